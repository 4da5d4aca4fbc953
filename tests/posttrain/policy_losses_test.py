"""Losses of reinforcement learning: TRL's, loss and gradients, however a batch is split."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.config.rl_fields import RLConfig
from gptjax.errors import UserError
from gptjax.huggingface import gpt2
from gptjax.models import architectures
from gptjax.parallel import meshes, numerics
from gptjax.posttrain import advantages, policy_losses, values
from gptjax.training import losses, step
from gptjax.training import program as programs

GOLDEN = ROOT / "tests" / "golden"
TOLERANCE = 1e-5
MODEL = ModelConfig(vocab_size=40, context_length=16, n_layers=1, d_model=8, n_heads=2, dtype="float32")
RL = RLConfig(prompts="jsonl:prompts.jsonl", rewards="numeric", group=2, temperature=0.8, max_tokens=12)
VARIANTS = {  # of the golden file -> the same here
    "grpo": "grpo(beta=0.04)",
    "grpo_kl_ratio": "grpo(beta=0.3, kl_ratio=True)",
    "grpo_high": "grpo(clip_high=0.28, dual_clip=1.5)",
    "bnpo": "grpo(beta=0.04, aggregate='token')",
    "dapo": "dapo",
    "dr_grpo": "grpo(aggregate='constant')",
    "gspo": "gspo(clip=0.2, clip_high=0.2)",
    "token_truncate": "grpo(beta=0.04, correction='token_truncate', cap=1.2)",
    "token_mask": "grpo(correction='token_mask', cap=1.2)",
    "sequence_truncate": "grpo(aggregate='token', correction='sequence_truncate', cap=1.2)",
    "sequence_mask": "grpo(aggregate='token', correction='sequence_mask', cap=1.2)",
    "rloo": "rloo",
}


def golden_script():
    spec = importlib.util.spec_from_file_location("make_policy", GOLDEN / "make_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = golden_script()


def config_of(loss: str, critic: str | None = None, **train) -> Config:
    return Config(
        model=dataclasses.replace(MODEL, critic=critic),
        train=TrainConfig(steps=4, batch_size=8, loss=loss, **train),
        rl=RL,
    )


def as_tree(arrays: dict[str, np.ndarray]) -> dict:
    """Arrays by their names in a GPT2LMHeadModel, as our parameters are laid out."""
    tree: dict = {}
    for tensor in gpt2.FAMILY.tensors(MODEL):
        layers = [tensor.layout.join([arrays["transformer." + name] for name in names], MODEL) for names in tensor.names(MODEL)]  # fmt: skip
        *parents, last = tensor.ours.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.stack(layers) if tensor.stacked else layers[0]
    return tree


def with_critic(policy: dict, trunk: dict, score_D: np.ndarray) -> dict:
    value = {"weight": score_D[:, None], "bias": np.zeros(1, np.float32)}
    return {**policy, "critic": {"model": trunk, "value": value}}


def before_answer(array_BA, length: int):
    """float32 [B, L]: what is of each answer's token, where it is predicted; 0 elsewhere."""
    placed_BL = np.zeros((len(array_BA), length - 1), np.float32)
    placed_BL[:, SCRIPT.PROMPT - 1 :] = array_BA
    return placed_BL


def golden_batch() -> dict[str, np.ndarray]:
    given = SCRIPT.batch()
    length = given["token_BT"].shape[1]
    at = {"weight_BL": "weight_BA", "old_BL": "old_BA", "reference_BL": "reference_BA"}
    batch = {name: before_answer(given[theirs], length) for name, theirs in at.items()}
    batch["logprob_BL"] = batch["old_BL"]
    batch["sampler_BL"] = before_answer(given["sampler_BA"], length)
    return batch | {"token_BT": given["token_BT"], "advantage_BL": given["advantage_B"][:, None] * batch["weight_BL"]}


def gradients(config: Config, params: dict, batch: dict, n_devices: int = 1):
    """(gradients, metrics) of the step's own mean."""
    program = programs.build(config, meshes.make_mesh(config, jax.devices()[:n_devices]), "xla")
    state = step.TrainState(np.zeros((), np.int32), params, None, None)
    spec = jax.tree.map(lambda place: place.spec, program.param_sharding)
    of = functools.partial(step.mean_gradient, graph=program.graph, config=config, param_spec=spec)
    with numerics.on_mesh(program.mesh):
        return jax.device_get(jax.jit(of)(state, batch))


def assert_close(ours: dict, theirs: dict, tolerance: float = TOLERANCE) -> None:
    """Each array to tolerance of the largest entry of all."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(leaf - other).max() <= tolerance * largest, path


# ---- TRL


@pytest.fixture(scope="module")
def ours():
    """{variant: (gradients, metrics)} of the golden batch, in one program, so that the model is compiled once."""
    params, batch = as_tree(SCRIPT.weights(0)), golden_batch()
    graph = architectures.abstract(MODEL)[0]

    def all_of_them(params, batch):
        made = {}
        for name, text in VARIANTS.items():
            config = config_of(text)
            given = batch | {"logprob_BL": batch["sampler_BL"]} if "correction" in text else batch
            given = {name: array for name, array in given.items() if name != "sampler_BL"}
            spec = jax.tree.map(lambda _: None, params)
            state = step.TrainState(np.zeros((), np.int32), params, None, None)
            made[name] = step.mean_gradient(state, given, graph=graph, config=config, param_spec=spec)
        return made

    return jax.device_get(jax.jit(all_of_them)(params, batch))


def assert_as_trl(ours, expected: dict) -> None:
    for name in VARIANTS:
        grads, metrics = ours[name]
        assert metrics["loss"] == pytest.approx(float(expected[f"{name}/loss"]), rel=TOLERANCE, abs=1e-6), name
        assert_close(grads, as_tree(SCRIPT.unpacked(expected[f"{name}/gradient"])))


def test_losses_and_gradients_of_answers_compared_with_one_another_are_those_of_trl(ours):
    assert_as_trl(ours, np.load(GOLDEN / "policy_grpo.npz"))


def test_they_are_those_of_the_trl_installed(ours, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_as_trl(ours, SCRIPT.expected_grpo())
