"""Flash attention for GPUs, interpreted: the same as plain XLA's, with a mask of dropout that depends on positions alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.models import attention, triton_attention
from gptjax.parallel import context, meshes

KEY = jax.random.key(3)
SIZES = dict(batch=2, length=128, heads=4, groups=2, head_size=16)


def inputs(batch, length, heads, groups, head_size):
    """q, k, v and a gradient of the output; and the documents of packed rows."""
    keys = jax.random.split(jax.random.key(length + head_size), 5)
    counts = (heads, groups, groups, heads)
    arrays = [jax.random.normal(key, (batch, length, n, head_size)) for key, n in zip(keys, counts)]
    begins_BL = jax.random.bernoulli(keys[4], 0.03, (batch, length))
    return arrays, jnp.cumsum(begins_BL, axis=1, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames=("attend", "window", "rate"))
def output_and_gradients(attend, q, k, v, d_out, segment_BL=None, key=None, *, window=None, rate=0.0):
    options = dict(window=window, segment_BL=segment_BL, dropout_rate=rate, key=key)
    out, gradients_of = jax.vjp(lambda q, k, v: attend(q, k, v, **options), q, k, v)
    return out, *gradients_of(d_out)


ours = functools.partial(triton_attention.triton_attention, interpret=True)


def plain(q, k, v, *, window, segment_BL, dropout_rate, key):
    """The definition, with the kernel's own mask of dropout."""
    (B, L, H, K), R = q.shape, q.shape[2] // k.shape[2]
    words = jnp.concatenate([jax.random.bits(key, (2,), jnp.uint32), jnp.zeros(2, jnp.uint32)])
    logit_BHLM = jnp.einsum("blhk,bmhk->bhlm", q, jnp.repeat(k, R, axis=2)) / math.sqrt(K)
    seen = attention.visible(np.arange(L), np.arange(L), window) & (segment_BL[:, :, None] == segment_BL[:, None])
    weight_BHLM = jax.nn.softmax(jnp.where(seen[:, None], logit_BHLM, -jnp.inf))
    kept = [
        [triton_attention.kept(dropout_rate, words, b, h, np.arange(L), np.arange(L)) for h in range(H)]
        for b in range(B)
    ]
    weight_BHLM = jnp.where(jnp.array(kept), weight_BHLM / (1 - dropout_rate), 0)
    return jnp.einsum("bhlm,bmhk->blhk", weight_BHLM, jnp.repeat(v, R, axis=2))


def assert_close(ones, others):
    for a, b in zip(ones, others):
        np.testing.assert_allclose(a, b, atol=4e-6 * np.abs(b).max())


@pytest.mark.parametrize(
    "window,documents,sizes",
    [
        (None, False, SIZES),
        (40, False, SIZES | dict(groups=4, head_size=24)),  # heads that are no power of two, and a band
        (None, True, SIZES | dict(length=192, groups=1)),  # an odd number of tiles
    ],
)
def test_output_and_gradients_equal_those_of_xla(window, documents, sizes):
    arrays, segment_BL = inputs(**sizes)
    of = functools.partial(output_and_gradients, window=window)
    options = (segment_BL,) if documents else ()
    assert_close(of(ours, *arrays, *options), of(attention.xla_attention, *arrays, *options))


def test_with_dropout_output_and_gradients_equal_those_of_the_definition():
    arrays, segment_BL = inputs(**SIZES)
    of = functools.partial(output_and_gradients, window=50, rate=0.3)
    dropped = of(ours, *arrays, segment_BL, KEY)
    assert_close(dropped, of(plain, *arrays, segment_BL, KEY))
    assert np.abs(dropped[0] - of(ours, *arrays, segment_BL, jax.random.key(4))[0]).max() > 0.1


def test_what_is_dropped_is_even_and_independent():
    """Of neighbours in every direction: queries, keys, heads, rows, keys of the random numbers."""
    words = np.array([[7, 9, 0, 0], [8, 9, 0, 0], [7, 10, 0, 0]], np.uint32)
    at = np.arange(512)
    kept = np.array(
        [
            [[triton_attention.kept(0.25, word, row, head, at, at) for head in range(2)] for row in range(2)]
            for word in words
        ]
    )
    count = kept[0, 0, 0].size
    assert np.abs(kept.mean((-1, -2)) - 0.75).max() < 4.5 * math.sqrt(0.25 * 0.75 / count)
    first = kept[0, 0, 0] - 0.75
    others = [kept[1, 0, 0], kept[2, 0, 0], kept[0, 1, 0], kept[0, 0, 1], np.roll(kept[0, 0, 0], 1, 0)]
    others += [np.roll(kept[0, 0, 0], 1, 1), kept[0, 0, 0].T]
    for other in others:
        assert abs((first * (other - 0.75)).mean()) < 4.5 * 0.25 * 0.75 / math.sqrt(count)


@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2}, {"replica": 2, "sequence": 2}])
def test_on_a_mesh_it_equals_that_on_one_device_what_is_dropped_included(axes):
    arrays, segment_BL = inputs(**SIZES | dict(length=256))
    asked = Config(model=ModelConfig(), mesh=MeshConfig(**{"fsdp": 1} | axes), train=TrainConfig(steps=1, batch_size=2))
    alone = output_and_gradients(ours, *arrays, segment_BL, KEY, rate=0.2)
    with jax.set_mesh(meshes.make_mesh(asked, jax.devices()[:4])):
        order_L = context.device_order(256)
        order_L = np.arange(256) if order_L is None else order_L
        back_L = np.argsort(order_L)
        there = [a[:, order_L] for a in (*arrays, segment_BL)]
        of_mesh = output_and_gradients(ours, *there, KEY, rate=0.2)
    assert_close([a[:, back_L] for a in of_mesh], alone)
