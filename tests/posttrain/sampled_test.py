"""The distribution that is sampled, in the trainer: its numbers and gradients, whatever the parts of the vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import nnx

from gptjax.config.fields import Config, TrainConfig
from gptjax.errors import UserError
from gptjax.posttrain import sampled
from gptjax.posttrain.sampled import Sampling

SETTINGS = {
    "plain": dict(),
    "cool": dict(temperature=0.7),
    "warm": dict(temperature=1.3, entries=40),
    "top_k": dict(top_k=7),
    "top_p": dict(top_p=0.8),
    "min_p": dict(min_p=0.1),
    "all": dict(temperature=0.7, top_k=20, top_p=0.9, entries=40),
}


@pytest.fixture
def tiny(make_variant):
    return make_variant("modern")  # with a cap on its logits and an output matrix of its own


def batch_of(rng, rows=3, length=8):
    token_BT = rng.integers(40, size=(rows, length + 1)).astype(np.int32)
    return {"token_BT": token_BT, "advantage_BL": np.ones((rows, length), np.float32)}


@functools.partial(jax.jit, static_argnames=("graph", "config", "sampling"))
def value_and_gradient(params, batch, *, graph, config, sampling):
    def total(params):
        logprob_BL, entropy_BL = sampled.token_logprobs(params, batch, graph=graph, config=config, sampling=sampling)
        kept_BL = jnp.where(logprob_BL == sampled.CUT_LOGPROB, 0, logprob_BL)
        return (kept_BL * weight_of(kept_BL) + 0.3 * entropy_BL).sum(), (logprob_BL, entropy_BL)

    return jax.value_and_grad(total, has_aux=True)(params)


def weight_of(array_BL):
    return jnp.cos(jnp.arange(array_BL.size)).reshape(array_BL.shape)


def by_hand(logit_V, sampling: Sampling):
    """Probabilities [V] in float64."""
    logit_V = np.array(logit_V, np.float64)
    logit_V[sampling.entries or len(logit_V) :] = -np.inf
    p_V = np.exp(logit_V / sampling.temperature - (logit_V / sampling.temperature).max())
    p_V /= p_V.sum()
    if sampling.top_k is not None:
        p_V[np.argsort(-p_V)[sampling.top_k :]] = 0
        p_V /= p_V.sum()
    if sampling.top_p is not None:
        order = np.argsort(-p_V)
        p_V[order[np.searchsorted(np.cumsum(p_V[order]), sampling.top_p) + 1 :]] = 0
        p_V /= p_V.sum()
    if sampling.min_p is not None:
        p_V[p_V < sampling.min_p * p_V.max()] = 0
        p_V /= p_V.sum()
    return p_V


@pytest.mark.parametrize("name", runs.default_or_slow(SETTINGS, ["top_p", "all"]))
def test_log_probabilities_and_entropies_are_those_of_the_distribution_that_is_drawn_from(tiny, name):
    sampling, batch = Sampling(**SETTINGS[name]), batch_of(np.random.default_rng(1))
    config = Config(model=tiny.config, train=TrainConfig(steps=1))
    (_, made), _ = value_and_gradient(tiny.params, batch, graph=tiny.graph, config=config, sampling=sampling)
    logit_BLV = nnx.merge(tiny.graph, tiny.params)(batch["token_BT"][:, :-1])
    for row, target_L in enumerate(batch["token_BT"][:, 1:]):
        for place, target in enumerate(target_L):
            p_V = by_hand(logit_BLV[row, place], sampling)
            logprob = np.log(p_V[target]) if p_V[target] > 0 else sampled.CUT_LOGPROB
            entropy = -(p_V[p_V > 0] * np.log(p_V[p_V > 0])).sum()
            np.testing.assert_allclose(made[0][row, place], logprob, atol=1e-5)
            np.testing.assert_allclose(made[1][row, place], entropy, atol=1e-5)


@pytest.mark.parametrize("name", runs.default_or_slow(SETTINGS, ["top_p", "all"]))
def test_gradients_do_not_depend_on_the_parts_that_the_vocabulary_is_read_in(tiny, monkeypatch, name):
    """Of the whole softmax, by automatic differentiation of what stands in the test above."""
    sampling, batch = Sampling(**SETTINGS[name]), batch_of(np.random.default_rng(1))

    def total(params):
        logit_BLV = nnx.merge(tiny.graph, params)(batch["token_BT"][:, :-1])
        logit_BLV = jnp.where(jnp.arange(logit_BLV.shape[-1]) < (sampling.entries or 99), logit_BLV, -1e9)
        kept = np.array([[by_hand(logit_V, sampling) > 0 for logit_V in logit_LV] for logit_LV in plain_BLV])
        log_p_BLV = jax.nn.log_softmax(jnp.where(kept, logit_BLV / sampling.temperature, -1e9))
        logprob_BL = jnp.take_along_axis(log_p_BLV, batch["token_BT"][:, 1:, None], axis=-1)[..., 0]
        entropy_BL = -(jnp.exp(log_p_BLV) * log_p_BLV).sum(-1)
        logprob_BL = jnp.where(logprob_BL < -1e8, 0, logprob_BL)
        return (logprob_BL * weight_of(logprob_BL) + 0.3 * entropy_BL).sum()

    plain_BLV = np.array(nnx.merge(tiny.graph, tiny.params)(batch["token_BT"][:, :-1]))
    value, gradient = jax.value_and_grad(total)(tiny.params)
    for chunks, logits_at_a_time in ((1, 2**24), (4, 3 * 3 * tiny.config.padded_vocab_size)):
        monkeypatch.setattr(sampled, "LOGITS_AT_A_TIME", logits_at_a_time)
        config = Config(model=tiny.config, train=TrainConfig(steps=1)).replace(train={"vocab_chunks": chunks})
        (found, _), made = value_and_gradient(tiny.params, batch, graph=tiny.graph, config=config, sampling=sampling)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


def test_settings_out_of_range_and_temperature_0_in_the_trainer_are_refused(tiny):
    for wrong, message in (
        (dict(temperature=-1.0), "temperature=-1.0 is negative"),
        (dict(top_p=0.0), "top_p=0.0 is not in"),
        (dict(max_tokens=0), "max_tokens=0 is too small"),
    ):
        with pytest.raises(UserError, match=message):
            Sampling(**wrong)
    with pytest.raises(UserError, match="temperature=0 has no policy gradient"):
        sampled.token_logprobs({}, {}, graph=None, config=None, sampling=Sampling(temperature=0.0))
