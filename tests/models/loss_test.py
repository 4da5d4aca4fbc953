"""Cross-entropy against float64 log-softmax in NumPy, and the chunked form against the whole one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models import loss

VOCAB, PADDED, WIDTH = 200, 256, 16


def inputs(shape=(3, 5), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*shape, WIDTH)).astype(np.float32)
    head_VD = 0.3 * rng.standard_normal((PADDED, WIDTH)).astype(np.float32)
    return x, head_VD, rng.integers(0, VOCAB, shape).astype(np.int32)


def reference(x, head_VD, target, softcap):
    """(loss, logsumexp) in float64, over the true vocabulary alone."""
    logit = x.astype(np.float64) @ head_VD[:VOCAB].astype(np.float64).T
    logit = logit if softcap is None else softcap * np.tanh(logit / softcap)
    log_normaliser = np.log(np.exp(logit).sum(-1))
    return log_normaliser - np.take_along_axis(logit, target[..., None], -1)[..., 0], log_normaliser


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunks", [1, 2, 8, 256])
def test_loss_and_normaliser_equal_a_float64_log_softmax(chunks, softcap):
    args = inputs()
    result = loss.cross_entropy(*args, vocab_size=VOCAB, chunks=chunks, softcap=softcap)
    for value, expected in zip(result, reference(*args, softcap)):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("chunks", [1, 4])
def test_tokens_that_keep_their_shape_as_on_tpus_cost_what_flat_ones_do(chunks, monkeypatch):
    def loss_and_gradient():
        function = functools.partial(weighted, target=target, weight=np.ones((2, 3, 5)), chunks=chunks, softcap=None)
        value, pullback = jax.vjp(function, x, head_VD)
        return jax.make_jaxpr(function)(x, head_VD), value, *pullback(jnp.ones_like(value))

    x, head_VD, target = inputs()
    (flat_jaxpr, *flat), _ = loss_and_gradient(), monkeypatch.setattr(loss.sharding, "platform", lambda: "tpu")
    jaxpr, *whole = loss_and_gradient()
    assert str(jaxpr) != str(flat_jaxpr)
    for value, expected in zip(whole, flat, strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-6 * np.abs(expected).max())


def test_uniform_logits_cost_the_logarithm_of_the_true_vocabulary():
    x, head_VD, target = inputs()
    for chunks in (1, 4):
        result, log_normaliser = loss.cross_entropy(0 * x, head_VD, target, vocab_size=VOCAB, chunks=chunks)
        np.testing.assert_allclose(result, np.log(200), rtol=1e-6)
        np.testing.assert_allclose(log_normaliser, np.log(200), rtol=1e-6)


def test_loss_worked_by_hand():
    # logits ln 1, ln 2, ln 5 and nothing else: probabilities 1/8, 2/8, 5/8; the padding row would win if it counted
    head_VD = np.log([[1.0], [2.0], [5.0], [1000.0]]).astype(np.float32)
    for chunks in (1, 2, 4):
        result, log_normaliser = loss.cross_entropy(
            jnp.ones((3, 1)), head_VD, jnp.arange(3), vocab_size=3, chunks=chunks
        )
        np.testing.assert_allclose(result, np.log([8, 4, 1.6]), rtol=1e-6)
        np.testing.assert_allclose(log_normaliser, np.log(8), rtol=1e-6)


def weighted(x, head_VD, target, weight, *, chunks, softcap):
    """A function of both outputs, so that both cotangents matter."""
    result, log_normaliser = loss.cross_entropy(x, head_VD, target, vocab_size=VOCAB, chunks=chunks, softcap=softcap)
    return jnp.sum(weight[0] * result) + jnp.sum(weight[1] * log_normaliser**2)


def gradients(chunks, softcap, dtype=jnp.float32):
    x, head_VD, target = inputs()
    weight = np.random.default_rng(1).random((2, *target.shape)).astype(np.float32)
    function = functools.partial(weighted, chunks=chunks, softcap=softcap)
    return jax.jit(jax.grad(function, argnums=(0, 1)))(x.astype(dtype), head_VD, target, weight)


@functools.cache
def gradients_of_the_whole(softcap):
    return gradients(1, softcap)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunks", [2, 8, 256])
def test_chunked_gradients_equal_those_of_the_whole(chunks, softcap):
    for chunked, whole in zip(gradients(chunks, softcap), gradients_of_the_whole(softcap)):
        np.testing.assert_allclose(chunked, whole, atol=5e-6 * np.abs(whole).max())


def test_gradient_of_the_loss_is_probability_minus_target():
    x, head_VD, target = inputs()
    probability = np.exp(-np.stack([reference(x, head_VD, np.full_like(target, v), None)[0] for v in range(VOCAB)], -1))
    d_logit = probability - np.eye(VOCAB)[target]
    for chunks in (1, 4):
        summed = lambda x, head: loss.cross_entropy(x, head, target, vocab_size=VOCAB, chunks=chunks)[0].sum()  # noqa: E731
        dx, d_head = jax.grad(summed, argnums=(0, 1))(x, head_VD)
        np.testing.assert_allclose(dx, d_logit @ head_VD[:VOCAB], atol=1e-5)
        np.testing.assert_allclose(d_head[:VOCAB], np.einsum("blv,bld->vd", d_logit, x), atol=1e-5)


@pytest.mark.parametrize("chunks", [1, 4, 256])
def test_padding_entries_get_no_gradient_and_give_none(chunks):
    _, d_head = gradients(chunks, 2.0)
    assert not np.any(d_head[VOCAB:])
    assert np.all(np.any(d_head[:VOCAB], axis=1))
    x, head_VD, target = inputs()
    huge = head_VD.copy()
    huge[VOCAB:] = 1e6
    for value, unmoved in zip(
        loss.cross_entropy(x, huge, target, vocab_size=VOCAB, chunks=chunks),
        loss.cross_entropy(x, head_VD, target, vocab_size=VOCAB, chunks=chunks),
    ):
        np.testing.assert_array_equal(value, unmoved)


def test_bfloat16_activations_give_a_float32_loss_and_gradients_of_the_inputs_dtypes():
    x, head_VD, target = inputs()
    exact, _ = loss.cross_entropy(x, head_VD, target, vocab_size=VOCAB)
    for chunks in (1, 4):
        rounded, _ = loss.cross_entropy(x.astype(jnp.bfloat16), head_VD, target, vocab_size=VOCAB, chunks=chunks)
        np.testing.assert_allclose(rounded, exact, atol=0.1)  # products of 16 numbers of 8 bits
        dx, d_head = gradients(chunks, None, jnp.bfloat16)
        assert (dx.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
        for rounded_gradient, whole in zip((dx, d_head), gradients_of_the_whole(None)):
            np.testing.assert_allclose(rounded_gradient.astype(jnp.float32), whole, atol=0.03 * np.abs(whole).max())


def test_chunked_loss_needs_far_less_memory_than_the_whole_logits():
    tokens, vocab = 512, 32768
    shapes = (
        jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((vocab, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )

    def temporary_bytes(chunks):
        def mean(x, head_VD, target):
            return loss.cross_entropy(x, head_VD, target, vocab_size=vocab - 1, chunks=chunks)[0].mean()

        return jax.jit(jax.grad(mean, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = tokens * vocab * 4
    assert temporary_bytes(1) > logits_bytes
    assert temporary_bytes(16) < logits_bytes / 4


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_scores_are_the_log_probability_and_whether_it_is_the_largest(chunks, softcap):
    x, head_VD, target = inputs(shape=(30, 20))
    likeliest = (x @ head_VD[:VOCAB].T).argmax(-1)
    target = np.where(target < 100, likeliest, target).astype(np.int32)
    log_p, greedy = loss.scores(x, head_VD, target, vocab_size=VOCAB, chunks=chunks, softcap=softcap)
    np.testing.assert_allclose(-log_p, reference(x, head_VD, target, softcap)[0], atol=1e-5)
    assert log_p.dtype == jnp.float32 and greedy.tolist() == (target == likeliest).tolist()
    assert 0.3 < greedy.mean() < 0.7


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_of_equal_logits_the_first_is_the_likeliest_and_padding_never(chunks):
    head_VD = np.array([[0.0], [1.0], [1.0], [9.0]], np.float32)
    _, greedy = loss.scores(jnp.ones((3, 1)), head_VD, jnp.arange(3), vocab_size=3, chunks=chunks)
    assert greedy.tolist() == [False, True, False]
