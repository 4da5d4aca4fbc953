"""Losses of preferences: those of TRL with every gradient, the same however a batch is split, and what they log."""

import dataclasses
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax.traverse_util import unflatten_dict
from places import ROOT

from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.huggingface import gpt2
from gptjax.models import architectures
from gptjax.parallel import meshes
from gptjax.posttrain import answers, preference_numbers
from gptjax.training import losses, step
from gptjax.training import program as programs

GOLDEN = ROOT / "tests" / "golden"
TOLERANCE = 1e-5


def golden_script():
    spec = importlib.util.spec_from_file_location("make_preferences", GOLDEN / "make_preferences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = golden_script()
SHAPE = SCRIPT.SHAPE
MODEL = ModelConfig(
    vocab_size=SHAPE["vocab_size"], context_length=SHAPE["n_positions"], n_layers=SHAPE["n_layer"],
    d_model=SHAPE["n_embd"], n_heads=SHAPE["n_head"], dtype="float32",
)  # fmt: skip


def config_of(loss: str, **train) -> Config:
    return Config(model=MODEL, mesh=MeshConfig(fsdp=1), train=TrainConfig(steps=1, batch_size=8, loss=loss, **train))


def tree_of(arrays: dict) -> dict:
    """Our parameters of those of a GPT-2's state dict."""
    _, abstract, _ = architectures.abstract(MODEL)
    made = {}
    for tensor in gpt2.FAMILY.tensors(MODEL):
        parts = [[arrays[f"transformer.{name}"] for name in names] for names in tensor.names(MODEL)]
        layers = [tensor.layout.join(part, MODEL) for part in parts]
        made[tuple(tensor.ours.split("."))] = np.stack(layers) if tensor.stacked else layers[0]
    made = unflatten_dict(made)
    assert jax.tree.map(np.shape, made) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    return made


@functools.cache
def params(seed: int = 0) -> dict:
    return tree_of(SCRIPT.weights(seed))


def examples(rows: dict, more: int) -> dict:
    """A preference batch of the golden script's arrays, with so many rows of padding."""
    place_L = np.arange(1, SHAPE["n_positions"])
    is_answer = (place_L >= rows["prompt_B"][:, None, None]) & (place_L < rows["length_BK"][..., None])
    B = len(rows["prompt_B"])
    batch = {
        "token_BKT": rows["token_BKT"],
        "length_BK": rows["length_BK"],
        "weight_BKL": is_answer.astype(np.float32),
        "score_BK": np.tile(np.array([1, 0], np.float32), (B, 1)),
        "weight_B": np.ones(B, np.float32),
    }
    batch |= {"label_B": rows["label_B"]} if "label_B" in rows else {}
    return {name: np.pad(array, [(0, more), *[(0, 0)] * (array.ndim - 1)]) for name, array in batch.items()}


@functools.cache
def batch_of(loss: str) -> dict:
    """With log-probabilities of the reference, and padded to eight rows."""
    batch = examples(SCRIPT.judged() if loss.startswith("kto") else SCRIPT.batch(), 3)
    graph = architectures.abstract(MODEL)[0]
    of = functools.partial(answers.logprobs, graph=graph, config=config_of("dpo"))
    return batch | {"reference_BK": np.asarray(jax.jit(of)(params(1), batch))}


def gradient(config: Config, batch: dict, n_devices: int = 1):
    """(gradients, numbers) of a batch on a mesh."""
    program = programs.build(config, meshes.make_mesh(config, jax.devices()[:n_devices]), "xla")
    state = step.TrainState(np.zeros((), np.int32), params(), None, None)
    spec = jax.tree.map(lambda place: place.spec, program.param_sharding)
    of = functools.partial(step.mean_gradient, graph=program.graph, config=config, param_spec=spec)
    with jax.set_mesh(program.mesh):
        placed = jax.device_put(batch, jax.NamedSharding(program.mesh, jax.P()))
        grads, numbers = jax.jit(of)(jax.device_put(state, jax.NamedSharding(program.mesh, jax.P())), placed)
    return jax.device_get((grads, numbers))


@functools.cache
def whole(loss: str):
    return gradient(config_of(loss), batch_of(loss))


def assert_close(ours, theirs, tolerance: float = TOLERANCE):
    """Each array to tolerance of the largest entry of all."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(leaf - other).max() <= tolerance * largest, path


# ---- TRL


def assert_as_trl(case: str, loss: float, arrays: dict):
    grads, numbers = whole(case)
    assert numbers["loss"] == pytest.approx(loss, rel=TOLERANCE)
    assert_close(grads, tree_of(arrays))


@pytest.mark.parametrize("case", SCRIPT.CASES)
def test_loss_and_every_gradient_are_those_of_trl(case):
    vector = np.load(GOLDEN / "preferences.npz")[case]
    arrays, start = {}, 1
    for name, array in SCRIPT.weights().items():
        arrays[name] = vector[start : start + array.size].reshape(array.shape)
        start += array.size
    assert start == len(vector)
    assert_as_trl(case, vector[0], arrays)


@pytest.mark.parametrize("case", ["dpo(beta=0.3)", "orpo(beta=0.3)", SCRIPT.CASES[-1]])
def test_loss_and_every_gradient_are_those_of_the_trl_installed(case, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arrays = SCRIPT.expected(case)
    assert_as_trl(case, float(arrays.pop("loss")), arrays)


# ---- however a batch is split


@pytest.mark.parametrize("loss", ["dpo(beta=0.3, nll=0.5)", "aot(beta=0.3, label_smoothing=0.1)", SCRIPT.CASES[-1]])
def test_eight_devices_give_the_loss_the_gradients_and_the_numbers_of_one(loss):
    mesh = MeshConfig(fsdp=2, tensor=2, replica=2)
    grads, numbers = gradient(dataclasses.replace(config_of(loss), mesh=mesh), batch_of(loss), n_devices=8)
    assert_close(grads, whole(loss)[0])
    assert_same_numbers(numbers, whole(loss)[1])


def assert_same_numbers(ours: dict, theirs: dict):
    assert ours.keys() == theirs.keys() and not any(np.isnan(value) for value in theirs.values())
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_give_the_loss_the_gradients_and_the_numbers_of_the_whole(microbatches):
    """Five examples and three of padding, so that parts count differently, and one microbatch of four has one example."""
    loss = "dpo(beta=0.3, nll=0.5)"
    grads, numbers = gradient(config_of(loss, microbatches=microbatches), batch_of(loss))
    assert_close(grads, whole(loss)[0])
    assert_same_numbers(numbers, whole(loss)[1])


def test_parts_of_the_vocabulary_give_the_loss_and_the_gradients_of_the_whole():
    loss = "dpo(beta=0.3)"
    grads, numbers = gradient(config_of(loss, vocab_chunks=4), batch_of(loss))
    assert numbers["loss"] == pytest.approx(whole(loss)[1]["loss"], rel=TOLERANCE)
    assert_close(grads, whole(loss)[0])


# ---- pairs and what is logged of them


def loss_of(loss: str, batch: dict):
    graph = architectures.abstract(MODEL)[0]
    of = functools.partial(losses.chosen(loss), graph=graph, config=config_of(loss))
    (_, (sums, numbers)) = jax.jit(of)(params(), batch, jax.random.key(0))
    return float(sums[0]), float(sums[1]), {name: float(number.value) for name, number in numbers.items()}


def test_the_loss_of_a_ranking_is_the_mean_of_its_pairs_and_ties_are_none():
    pairs = batch_of("dpo")
    first, second = ({name: array[b : b + 1] for name, array in pairs.items()} for b in (0, 1))
    both = {name: np.concatenate([first[name], second[name]], axis=1) for name in first if "_BK" in name}
    ranking = first | both | {"score_BK": np.array([[1.0, 3.0, 1.0, -np.inf]], np.float32)}
    ranking["length_BK"] = ranking["length_BK"] * np.array([1, 1, 1, 0])  # the fourth is not there

    def of_pair(chosen: int, rejected: int):
        pair = {name: ranking[name][:, [chosen, rejected]] for name in both}
        return loss_of("dpo(beta=0.3)", first | pair | {"score_BK": np.array([[1.0, 0.0]], np.float32)})[0]

    loss_sum, weight, _ = loss_of("dpo(beta=0.3)", ranking)
    assert weight == 1 and loss_sum == pytest.approx((of_pair(1, 0) + of_pair(1, 2)) / 2, rel=1e-6)


@pytest.mark.parametrize("name", runs.default_or_slow([*losses.PAIR_LOSSES, "kto"], ["sigmoid", "dpo", "ipo", "kto"]))
def test_a_model_that_is_its_reference_starts_at_the_loss_of_no_preference(name):
    """For the losses that have a reference: log 2 of a logistic one, and so on."""
    loss = losses.chosen(name)
    if not loss.has_reference:
        return
    rows = batch_of(name)
    graph = architectures.abstract(MODEL)[0]
    own = jax.jit(functools.partial(answers.logprobs, graph=graph, config=config_of("dpo")))(params(), rows)
    loss_sum, weight, numbers = loss_of(name, rows | {"reference_BK": np.asarray(own)})
    start = {"hinge": 1, "ipo": 25, "exo_pair": 0.5 * (math.log(0.5 / 0.999) + math.log(0.5 / 0.001)), "sppo_hard": 50}
    start |= {"nca": 2 * math.log(2), "bco": 2 * math.log(2), "apo_zero": 1, "apo_down": 1, "kto": 0.5}
    start |= {"discopop": 0.5 * math.log(2) + 0.5}
    assert weight == 5 and loss_sum / weight == pytest.approx(start.get(name, math.log(2)), rel=1e-5)
    assert numbers["reward_accuracy"] == pytest.approx(0.5, abs=0.5)


def test_what_is_logged_of_pairs_is_what_numpy_makes_of_their_log_probabilities():
    batch, real = batch_of("dpo"), slice(0, 5)
    graph = architectures.abstract(MODEL)[0]
    logprob = np.asarray(jax.jit(functools.partial(answers.logprobs, graph=graph, config=config_of("dpo")))(params(), batch))[real]  # fmt: skip
    ratio, length = logprob - batch["reference_BK"][real], batch["weight_BKL"].sum(-1)[real]
    margin = 0.3 * (ratio[:, 0] - ratio[:, 1])
    expected = {
        "reward_accuracy": (margin > 0).mean(),
        "reward_margin": margin.mean(),
        "reward_chosen": 0.3 * ratio[:, 0].mean(),
        "reward_rejected": 0.3 * ratio[:, 1].mean(),
        "logprob_chosen": logprob[:, 0].mean(),
        "logprob_rejected": logprob[:, 1].mean(),
        "token_logprob_chosen": logprob[:, 0].sum() / length[:, 0].sum(),
        "token_logprob_rejected": logprob[:, 1].sum() / length[:, 1].sum(),
        "length_correlation": np.corrcoef(margin, length[:, 0] - length[:, 1])[0, 1],
    }
    _, _, numbers = loss_of("dpo(beta=0.3)", batch)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, rel=1e-4), name


def test_a_correlation_of_parts_is_that_of_the_whole():
    x, y, weight = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)
    y, weight = y + x, (weight > 0).astype(np.float32)
    parts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(preference_numbers.Correlation.of, x, y, weight))
    expected = np.corrcoef(x[weight > 0], y[weight > 0])[0, 1]
    assert float(parts.merged().value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("dpo(beta=0)", "beta=0.0 must be positive"),
        ("dpo(label_smoothing=0.5)", r"label_smoothing=0.5 is not in \[0, 0.5\)"),
        ("exo_pair(label_smoothing=0)", "label_smoothing=0.0 makes the divergence infinite"),
        ("orpo(nll=-1)", "nll=-1.0 must not be negative"),
        ("kto(bad_weight=0)", "bad_weight=0.0 must be positive"),
        ("discopop(tau=0)", "tau=0.0 must be positive"),
        ("dpo(betas=1)", "dpo has no parameter 'betas'"),
    ],
)
def test_parameters_that_cannot_be_are_refused_in_one_line(loss, message):
    with pytest.raises(UserError, match=message) as raised:
        losses.chosen(loss)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("train.loss=")
