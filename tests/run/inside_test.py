import jax
import numpy as np
import pytest
from flax import nnx

from gptjax.run import inside

rng = np.random.default_rng(1)
TOKEN_BL = rng.integers(0, 65, (2, 16)).astype(np.int32)


@pytest.fixture
def slow(gpt_variant):
    """(weights [N, B, H, L, M], residuals [N + 1, B, L, D]) of the layers one after the other, attention in NumPy."""
    gpt = nnx.merge(gpt_variant.graph, gpt_variant.params)
    config = gpt_variant.config
    position_BL = np.broadcast_to(np.arange(16), (2, 16))
    x_BLD = gpt.embed(TOKEN_BL, position_BL)
    weights, stream = [], [x_BLD]
    for n in range(config.n_layers):
        block = nnx.merge(
            *[part if i == 0 else jax.tree.map(lambda a: a[n], part) for i, part in enumerate(nnx.split(gpt.blocks))]
        )
        window = config.band_width if config.window_pattern[n % len(config.window_pattern)] == "S" else None
        rotates = config.rope_pattern[n % len(config.rope_pattern)] == "R"

        def attend(q, k, v):
            weight, out = numpy_attention(*map(np.float64, (q, k, v)), window)
            weights.append(weight)
            return jax.numpy.float32(out), None

        x_BLD, _ = block(x_BLD, attend, position_BL if rotates else None)
        stream.append(x_BLD)
    return np.stack(weights), np.stack(stream)


def numpy_attention(q_BLHK, k_BMGK, v_BMGK, window):
    B, L, H, K = q_BLHK.shape
    weight, out = np.zeros((B, H, L, L)), np.zeros(q_BLHK.shape)
    for b in range(B):
        for h in range(H):
            g = h // (H // k_BMGK.shape[2])
            for query in range(L):
                first = 0 if window is None else max(0, query - window + 1)
                score = k_BMGK[b, first : query + 1, g] @ q_BLHK[b, query, h] / np.sqrt(K)
                share = np.exp(score - score.max())
                weight[b, h, query, first : query + 1] = share / share.sum()
                out[b, query, h] = weight[b, h, query] @ v_BMGK[b, :, g]
    return weight, out


def test_attention_and_residuals_are_those_of_the_layers_one_after_the_other(gpt_variant, slow):
    weight_NBHLM, stream_NBLD = slow
    found = np.asarray(inside.attention_weights(gpt_variant.graph, gpt_variant.params, TOKEN_BL))
    np.testing.assert_allclose(found, weight_NBHLM, atol=2e-5)
    stream = np.asarray(inside.residuals(gpt_variant.graph, gpt_variant.params, TOKEN_BL))
    np.testing.assert_allclose(stream, stream_NBLD, atol=2e-4, rtol=2e-4)


def test_the_last_of_the_logit_lens_is_the_models_logits_and_the_loss_is_theirs(gpt_variant):
    lens = np.asarray(inside.logit_lens(gpt_variant.graph, gpt_variant.params, TOKEN_BL))
    logits = np.asarray(inside.logits(gpt_variant.graph, gpt_variant.params, TOKEN_BL))
    assert lens.shape == (gpt_variant.config.n_layers + 1, 2, 16, 65)
    np.testing.assert_allclose(lens[-1], logits, atol=2e-5)
    assert np.abs(lens[0] - logits).max() > 0.1
    loss_BL = np.asarray(inside.token_loss(gpt_variant.graph, gpt_variant.params, TOKEN_BL))
    before = np.float64(logits[:, :-1])
    chosen = np.take_along_axis(before, TOKEN_BL[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss_BL, np.log(np.exp(before).sum(-1)) - chosen, atol=2e-5)


def test_padding_that_is_not_seen_changes_nothing_where_all_is_seen(make_variant):
    tiny = make_variant("gpt3")
    seen_BL = np.broadcast_to(np.arange(16) < 9, (2, 16))
    other = np.where(seen_BL, TOKEN_BL, 0)
    weight, same = (
        np.asarray(inside.attention_weights(tiny.graph, tiny.params, tokens, seen_BL)) for tokens in (TOKEN_BL, other)
    )
    np.testing.assert_array_equal(weight[..., :9, :9], same[..., :9, :9])
    assert (weight[..., :9, 9:] == 0).all() and (weight[0, :, :, :9, :9] > 0).all()
    lens = np.asarray(inside.logit_lens(tiny.graph, tiny.params, TOKEN_BL, seen_BL))
    logits = np.asarray(inside.logits(tiny.graph, tiny.params, TOKEN_BL, seen_BL))
    np.testing.assert_allclose(lens[-1][:, :9], logits[:, :9], atol=2e-5)


@pytest.mark.parametrize(
    "length,context,unit,size",
    [(1, 1024, 1, 16), (16, 1024, 1, 16), (17, 1024, 1, 32), (600, 1024, 1, 1024), (3, 1024, 128, 128), (5, 20, 1, 20)],
)
def test_buckets_are_halves_of_the_context(length, context, unit, size):
    assert inside.bucket(length, context, unit) == size
