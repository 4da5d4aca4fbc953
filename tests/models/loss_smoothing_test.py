"""Label smoothing against torch's cross-entropy (golden/make_finetune_options.py), whole and in parts of the vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

from gptjax.models import loss

VOCAB, SMOOTHING, CAPS = 200, 0.1, {"plain": None, "capped": 2.0}


@pytest.fixture(scope="module")
def golden():
    values = np.load(ROOT / "tests" / "golden" / "finetune_options.npz")
    return {name.removeprefix("smoothing_"): values[name] for name in values if name.startswith("smoothing_")}


def smoothed(x, head_VD, target, **options):
    result, _, above_mean = loss.smoothed_cross_entropy(x, head_VD, target, vocab_size=VOCAB, **options)
    return result + SMOOTHING * above_mean


@pytest.mark.parametrize("kind", CAPS)
@pytest.mark.parametrize("chunks", [1, 4, 256])
def test_loss_and_gradients_are_those_of_torch_and_padding_has_none(golden, chunks, kind):
    def mean(x, head_VD):
        loss_N = smoothed(x, head_VD, golden["target"], chunks=chunks, softcap=CAPS[kind])
        return jnp.sum(loss_N * golden["weight"]), loss_N

    (_, loss_N), (dx, dhead) = jax.value_and_grad(mean, (0, 1), has_aux=True)(golden["x"], golden["head"])
    np.testing.assert_allclose(loss_N, golden[f"{kind}_loss"], rtol=2e-6)
    np.testing.assert_allclose(dx, golden[f"{kind}_dx"], atol=2e-6)
    np.testing.assert_allclose(dhead[:VOCAB], golden[f"{kind}_dhead"], atol=2e-6)
    assert not np.any(dhead[VOCAB:])


def test_torch_says_what_the_golden_file_says(golden):
    torch = pytest.importorskip("torch")
    logit = torch.tensor(golden["x"] @ golden["head"][:VOCAB].T)
    options = {"label_smoothing": SMOOTHING, "reduction": "none"}
    theirs = torch.nn.functional.cross_entropy(logit, torch.tensor(golden["target"]).long(), **options)
    np.testing.assert_allclose(theirs, golden["plain_loss"], rtol=2e-6)


@pytest.mark.parametrize("chunks", [1, 4])
def test_the_plain_loss_beside_it_is_the_one_without_smoothing(golden, chunks):
    inputs = golden["x"], golden["head"], golden["target"]
    options = {"vocab_size": VOCAB, "chunks": chunks}
    both = functools.partial(loss.cross_entropy, *inputs)(**options), loss.smoothed_cross_entropy(*inputs, **options)
    np.testing.assert_array_equal(both[0], both[1][:2])


def test_the_cost_of_uniform_logits_does_not_depend_on_smoothing():
    x, head_VD = jnp.zeros((3, 2)), jnp.ones((8, 2))
    for chunks in (1, 2):
        value, _, above_mean = loss.smoothed_cross_entropy(x, head_VD, jnp.arange(3), vocab_size=5, chunks=chunks)
        np.testing.assert_allclose(value + 0.3 * above_mean, np.log(5), rtol=1e-6)
