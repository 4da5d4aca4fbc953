"""A compiled step in a file: the same losses bit for bit, and one line for every way it can be the wrong one."""

import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from gptjax.config import changes
from gptjax.config.config_file import from_dict
from gptjax.data.tokens.store import prepare
from gptjax.errors import UserError
from gptjax.models import attention
from gptjax.parallel import meshes
from gptjax.planning import plan
from gptjax.rundir import metrics, run_directory
from gptjax.training import executable, main
from gptjax.training import program as programs


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join("".join(rng.choice(list("abcde"), size=4)) for _ in range(2000)))
    values = {
        "model": dict(context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32", residual_dropout=0.1),
        "data": dict(path=str(text), tokenizer="chars", cache_dir=str(text.parent / "cache")),
        "optim": dict(peak_lr=3e-3, warmup_steps=2),
        "train": dict(steps=8, batch_size=16, log_every=1, tensorboard=False),
        "checkpoint": dict(every_steps=8),
        "eval": dict(every_steps=None, max_tokens=256),
    }
    values["train"] |= dict(batch_ramp_start=8, batch_ramp_increment=8, batch_ramp_tokens=8 * 16 * 3)
    return from_dict(values)


@pytest.fixture(scope="module")
def ready(config):
    """(resolved config, mesh, kernel) as training would have them."""
    resolved = config.with_vocabulary(prepare(config.data).tokenizer.vocab_size)
    return resolved, meshes.make_mesh(resolved), attention.choose_kernel(resolved, "cpu")[0]


@pytest.fixture(scope="module")
def saved(ready, tmp_path_factory):
    """The file of a compiled step. It is compiled afresh: what a compilation cache hands out cannot be serialised."""
    from jax._src import compilation_cache

    config, mesh, kernel = ready
    path = tmp_path_factory.mktemp("executable") / "step.exe"
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        compiled, _ = plan.compile_step(config, programs.build(config, mesh, kernel))
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    assert executable.save(str(path), compiled, config, mesh, kernel) == path.stat().st_size
    return path


def losses(workdir) -> list:
    rows = metrics.read_metrics(run_directory.open_run(str(workdir)).metrics, "train")
    return [(row["step"], row["loss"], row["grad_norm"], row["param_norm"]) for row in rows]


@pytest.mark.slow
def test_a_run_with_a_loaded_step_has_the_losses_of_one_that_compiles_through_its_batch_ramp(config, saved, tmp_path):
    assert main.train(config, str(tmp_path / "compiled")) == 0
    assert main.train(config, str(tmp_path / "loaded"), (), str(saved)) == 0
    assert losses(tmp_path / "loaded") == losses(tmp_path / "compiled")
    assert len(losses(tmp_path / "loaded")) == 8


def test_the_loaded_step_is_the_one_that_runs(ready, saved, tmp_path):
    """A file whose executable was torn is not passed over in favour of compiling."""
    config, mesh, kernel = ready
    torn = tmp_path / "torn.exe"
    torn.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(UserError, match="could not be loaded"):
        executable.load(str(torn), config, mesh, kernel)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model": {"n_layers": 3}}, "config is"),
        ({"optim": {"peak_lr": 1e-3}}, None),
        ({"train": {"batch_size": 32}}, "config is"),
        ({"train": {"steps": 99}}, None),
        ({"data": {"prefetch_workers": 5}}, None),
        ({"mesh": {"fsdp": 4, "tensor": 2}}, "mesh is"),
        ({"mesh": {"pipeline_microbatches": 4}}, "config is"),
        ({"mesh": {"offload_optimizer": True}}, "config is"),
        ({"mesh": {"cpu_devices": 2}}, None),
        ({"train": {"stall_seconds": 7.0}}, None),
        ({"train": {"max_skips": 3, "wandb_project": None, "log_every": 1}}, None),
        ({"train": {"log_activations": True}}, "config is"),
        ({"optim": {"skip": "nonfinite"}}, "config is"),
        (
            {"mesh": {"dcn_fsdp": 2, "fsdp": 4}},
            "slices is {'replica': 1, 'fsdp': 1}, this run's {'replica': 1, 'fsdp': 2}",
        ),
    ],
)
def test_another_config_or_mesh_is_named(ready, saved, changes, named):
    config, _, kernel = ready
    changed = config.replace(**changes)
    mesh = meshes.make_mesh(changed.replace(mesh={"offload_optimizer": False}))  # which a CPU cannot
    found = json.loads(saved.read_bytes().split(b"\n")[0])
    if named is None:
        executable.check("f", found, executable.header(changed, mesh, kernel))
        return
    with pytest.raises(UserError, match=re.escape(f"compiled for another run: {named}")):
        executable.load(str(saved), changed, mesh, kernel)


def test_what_the_hash_leaves_out_changes_no_character_of_the_program(ready):
    config, mesh, kernel = ready
    plain = config.replace(mesh={"offload_optimizer": False}, eval={"every_steps": 5})
    other = {"train": {"steps": 99, "log_every": 3, "max_skips": 4, "max_rollbacks": 1, "stall_seconds": None}}
    other["train"] |= {"profile_steps": (1, 2), "tensorboard": True, "wandb_project": "p", "tokens": None}
    other["train"] |= {name: None for name in ("batch_ramp_start", "batch_ramp_increment", "batch_ramp_tokens")}
    other["train"] |= {"stop_metric": "loss", "stop_patience": 5, "stop_change": 0.1}
    other["optim"] = {"peak_lr": 0.5, "schedule": "linear", "warmup_steps": 3, "decay_steps": 50}
    other["optim"] |= {"final_lr_fraction": 0.3, "cooldown_fraction": 0.5}
    told = {f"{section}.{name}" for section, fields in other.items() for name in fields}
    of_a_step = {key for key in changes.words() if key.partition(".")[0] in executable.SECTIONS}
    left_out = {key for key in of_a_step if not changes.word(key).program} - set(executable.SHAPES)
    instead = {"optim.warmup_tokens", "optim.decay_tokens", "train.epochs"}  # of steps
    assert left_out - told - instead == set() == told - left_out
    changed = plain.replace(**other)
    assert executable.config_hash(changed) == executable.config_hash(plain)
    assert _program_text(changed, mesh, kernel) == _program_text(plain, mesh, kernel)


def _program_text(config, mesh, kernel) -> str:
    program = programs.build(config, mesh, kernel)
    with jax.set_mesh(mesh):
        return program.train.lower(*plan.abstract_arguments(config, program)).as_text()


def test_another_pipeline_schedule_of_the_same_mesh_has_another_hash(ready):
    config = ready[0]
    repeated = config.replace(mesh={"pipeline_repeats": 2})
    assert executable.config_hash(repeated) != executable.config_hash(config)


@pytest.mark.parametrize("key", ["jax", "jaxlib", "device", "kernel"])
def test_another_jax_or_device_is_named(ready, saved, tmp_path, key):
    line, _, body = saved.read_bytes().partition(b"\n")
    other = tmp_path / "other.exe"
    other.write_bytes(json.dumps(json.loads(line) | {key: "another"}).encode() + b"\n" + body)
    with pytest.raises(UserError, match=f"{key} is another, this run's"):
        executable.load(str(other), *ready)


def test_a_file_that_is_missing_or_something_else_is_one_line(ready, tmp_path):
    with pytest.raises(UserError, match="no such file; write one with gptjax plan"):
        executable.load(str(tmp_path / "none"), *ready)
    (tmp_path / "text").write_text("hello\nworld")
    with pytest.raises(UserError, match="is no gptjax-executable-2 file"):
        executable.load(str(tmp_path / "text"), *ready)
    (tmp_path / "older").write_text(json.dumps({"schema": "gptjax-executable-1"}) + "\npickle")
    with pytest.raises(UserError, match="is a gptjax-executable-1 file, of another version of gptjax than this, which"):
        executable.load(str(tmp_path / "older"), *ready)


@pytest.mark.parametrize(
    "path, written, read",
    [
        ("gs://bucket/step.exe", "cannot be written here (ImportError", "cannot be read here (ImportError"),
        ("none/step.exe", "cannot be written here (FileNotFoundError: No such file", "no such file; write one"),
        ("file/step.exe", "cannot be written here (NotADirectoryError: Not a directory)", "no such file; write one"),
        (".", "is a folder; give a file name", "no such file; write one"),
    ],
)
def test_a_path_that_cannot_be_written_or_read_is_one_line(ready, path, written, read, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where the library for buckets is not installed
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").write_text("")
    with pytest.raises(UserError, match=re.escape(written)):
        executable.check_target(path)
    with pytest.raises(UserError, match=re.escape(read)):
        executable.load(path, *ready)


def test_looking_whether_a_path_can_be_written_leaves_nothing_there(tmp_path):
    executable.check_target(str(tmp_path / "step.exe"))
    assert not list(tmp_path.iterdir())
