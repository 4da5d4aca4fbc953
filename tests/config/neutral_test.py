"""What parity and the coordinate check make of a config has none of its run: every field, set to something valid, is tried."""

import dataclasses

import jax
import pytest

from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.config.neutral import KEPT, neutral
from gptjax.diagnostics import coordcheck, miniature, parity
from gptjax.models import attention
from gptjax.parallel import meshes

BASE = Config(
    model=ModelConfig(vocab_size=65, context_length=32, n_layers=4, d_model=32, n_heads=4, dtype="float32"),
    train=TrainConfig(steps=40, batch_size=16, microbatches=2, log_every=4),
)
RUN = {  # a valid value that is not BASE's, of every field that is a run's; a dict: with what it needs
    "mesh": {
        "replica": 2,
        "stage": 2,
        "fsdp": 2,
        "sequence": 2,
        "tensor": 2,
        "dcn_replica": 2,
        "dcn_fsdp": 2,
        "pipeline_microbatches": 4,
        "pipeline_repeats": {"mesh": {"stage": 2, "pipeline_repeats": 2}},
        "offload_optimizer": True,
        "cpu_devices": 2,
    },
    "train": {
        "steps": 80,
        "tokens": {"train": {"steps": None, "tokens": 10_000}},
        "epochs": {"train": {"steps": None, "epochs": 0.5}},
        "batch_size": 32,
        "batch_ramp_start": {
            "train": {"batch_ramp_start": 8, "batch_ramp_increment": 8, "batch_ramp_tokens": 2048, "steps_per_call": 1}
        },
        "batch_ramp_increment": {
            "train": {"batch_ramp_start": 8, "batch_ramp_increment": 4, "batch_ramp_tokens": 2048}
        },
        "batch_ramp_tokens": {"train": {"batch_ramp_start": 8, "batch_ramp_increment": 8, "batch_ramp_tokens": 4096}},
        "microbatches": 4,
        "steps_per_call": 2,
        "vocab_chunks": 2,
        "loss": "next_token_of_another",
        "lm_coef": {
            "model": {"task_head": "classes(n=2)"},
            "data": {"task": "classify"},
            "train": {"loss": "classify", "lm_coef": 0.5},
        },
        "z_loss": 1e-4,
        "label_smoothing": 0.1,
        "neftune_alpha": 5.0,
        "seed": 1,
        "start_from": "run",
        "start_step": {"train": {"start_from": "run", "start_step": "best"}},
        "critic_from": {"train": {"start_from": "run", "critic_from": "run"}},
        "reference": "run",
        "trainable": "blocks",
        "stop_metric": "loss",
        "stop_patience": {"train": {"stop_metric": "loss", "stop_patience": 4}},
        "stop_change": {"train": {"stop_metric": "loss", "stop_change": 0.1}},
        "max_skips": 3,
        "max_rollbacks": 1,
        "log_every": 8,
        "log_activations": True,
        "log_noise_scale": True,
        "profile_steps": (2, 4),
        "stall_seconds": 10.0,
        "tensorboard": False,
        "wandb_project": "name",
    },
    "checkpoint": {
        "every_steps": 10,
        "every_minutes": 1.0,
        "keep": 3,
        "keep_every": 20,
        "keep_best": "loss",
        "keep_steps": (20, 40),
        "on_save_failure": "continue",
    },
    "eval": {
        "every_steps": 10,
        "batch_size": 32,
        "max_tokens": 100,
        "tasks": "configs/tasks",
        "tasks_every_steps": {"eval": {"tasks": "configs/tasks", "tasks_every_steps": 4}},
        "tasks_limit": {"eval": {"tasks": "configs/tasks", "tasks_limit": 4}},
        "tasks_num_fewshot": {"eval": {"tasks": "configs/tasks", "tasks_num_fewshot": 1}},
        "sample_prompt": "a",
        "sample_tokens": 5,
        "sample_every_steps": {"eval": {"sample_tokens": 5, "sample_every_steps": 4}},
    },
    "optim": {"skip": "outliers"},
}
FIELDS = [(section, field) for section, fields in RUN.items() for field in fields]


def changed(section: str, field: str) -> Config:
    value = RUN[section][field]
    config = BASE.replace(**(value if isinstance(value, dict) else {section: {field: value}}))
    assert getattr(getattr(config, section), field) != getattr(getattr(BASE, section), field)
    return config


def all_changed() -> Config:
    """Every field of RUN that goes with the others."""
    sections = {}
    for section, field in FIELDS:
        value = RUN[section][field]
        if field not in ("tokens", "epochs", "loss", "lm_coef") and not field.startswith(
            ("batch_ramp", "replica", "sequence", "tensor", "dcn")
        ):
            for name, fields in (value if isinstance(value, dict) else {section: {field: value}}).items():
                sections.setdefault(name, {}).update(fields)
    return BASE.replace(**sections | {"checkpoint": sections["checkpoint"] | {"keep": 5}})


def test_every_field_of_a_run_is_tried_here():
    for section in ("mesh", "train", "checkpoint", "eval"):
        assert RUN[section].keys() == {field.name for field in dataclasses.fields(getattr(BASE, section))}


@pytest.mark.parametrize("section, field", FIELDS)
def test_no_field_of_a_run_is_left_in_what_is_derived_from_it(section, field):
    config = changed(section, field)
    kept = field in KEPT
    assert (neutral(config) == neutral(BASE)) == (not kept)
    widths = [coordcheck.variant(one, "mup", 64, 32, rows=2, of_depth=False) for one in (config, BASE)]
    assert (widths[0] == widths[1]) == (not kept)
    small = [miniature.shrink(one, steps=2) for one in (config, BASE)]
    of_parity = kept or field in ("microbatches", "offload_optimizer")  # BASE's batch has the miniature's eight rows
    assert (small[0] == small[1]) == (not of_parity)


def one_device(config) -> None:
    mesh = meshes.make_mesh(config, jax.devices()[:1])
    attention.choose_kernel(config, "cpu", mesh.shape["sequence"])


PIPED = parity.Case((("stage", 2), ("fsdp", 4)), 1, "none")


def test_a_config_with_every_field_of_a_run_set_is_checked_for_parity_and_for_its_coordinates():
    config = all_changed()
    one_device(coordcheck.variant(config, "mup", 64, 32, rows=2, of_depth=False))
    assert parity.refusal(miniature.shrink(config, steps=1), PIPED) is None


@pytest.mark.slow
def test_parity_of_a_config_with_every_field_of_a_run_set_holds():
    runner = parity.Runner.of(miniature.shrink(all_changed(), steps=1))
    assert not runner.run(PIPED, *runner.reference()).differs
