"""Each kernel against a slow NumPy attention that loops over queries, and the choice between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config.fields import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import attention, splash
from gptjax.parallel import meshes
from gptjax.planning import hlo, topology

CASES = {  # length, query heads, key heads, window, documents, prefix
    "one block": (24, 4, 4, None, False, False),
    "one block, band": (24, 4, 4, 5, False, False),
    "one block, everything": (24, 4, 2, 5, True, False),
    "one block, prefix": (24, 4, 4, None, False, True),
    "one block, prefix and everything": (24, 4, 2, 5, True, True),
    "three blocks": (384, 2, 2, None, False, False),
    "three blocks, band inside a block": (384, 2, 2, 3, False, False),
    "three blocks, band over blocks": (384, 2, 1, 200, False, False),
    "two uneven blocks, everything": (301, 4, 2, 70, True, False),
    "two uneven blocks, prefix": (301, 2, 2, None, True, True),
    "two uneven blocks, prefix and everything": (301, 4, 2, 70, True, True),
}


def masks(case):
    """The arguments beside q, k and v; of a prefix every third token or so."""
    length, _, _, window, documents, prefix = CASES[case]
    prefix_BL = np.random.default_rng(2).random((2, length)) < 0.3 if prefix else None
    return dict(window=window, segment_BL=inputs(length, 1, 1, documents)[3], prefix_BL=prefix_BL)


@functools.cache
def inputs(length, heads, kv_heads, documents, head_dim=8, batch=2):
    """q, k, v and segments, whose documents end at other places in every row and don't depend on the heads."""
    starts = np.random.default_rng(3).random((batch, length)) < 4 / length
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal((batch, length, n, head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads)
    )
    return q, k, v, np.cumsum(starts, axis=1).astype(np.int32) if documents else None


def sees(query: int, key: int, window, segment_L, prefix_L) -> bool:
    in_band = window is None or abs(query - key) < window
    in_time = key <= query or (prefix_L is not None and prefix_L[key])
    return in_time and in_band and (segment_L is None or segment_L[key] == segment_L[query])


def reference(q_BLHK, k_BLGK, v_BLGK, window, segment_BL, prefix_BL):
    """(attention, largest logit) in float64, query by query."""
    B, L, H, K = q_BLHK.shape
    group = H // k_BLGK.shape[2]
    out, largest = np.zeros((B, L, H, K)), -np.inf
    for b, query in np.ndindex(B, L):
        segment_L, prefix_L = (None if a is None else a[b] for a in (segment_BL, prefix_BL))
        seen = [m for m in range(L) if sees(query, m, window, segment_L, prefix_L)]
        for h in range(H):
            logit = k_BLGK[b, seen, h // group].astype(np.float64) @ q_BLHK[b, query, h] / np.sqrt(K)
            weight = np.exp(logit - logit.max())
            out[b, query, h] = weight / weight.sum() @ v_BLGK[b, seen, h // group]
            largest = max(largest, logit.max())
    return out, largest


@functools.cache
def reference_of(case):
    return reference(*inputs(*CASES[case][:3], False)[:3], **masks(case))


@pytest.mark.parametrize("case", CASES)
def test_xla_attention_equals_a_loop_over_queries(case):
    q, k, v, _ = inputs(*CASES[case][:3], False)
    attend = jax.jit(attention.xla_attention, static_argnames="window")
    out = attend(q, k, v, **masks(case))
    np.testing.assert_allclose(out, reference_of(case)[0], atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_largest_logit_is_that_of_a_loop_over_queries(case):
    q, k, *_ = inputs(*CASES[case][:3], False)
    largest = attention.largest_logit(q, k, **masks(case))
    assert float(largest) == pytest.approx(reference_of(case)[1], rel=1e-6)


def test_a_logit_that_no_query_sees_is_not_the_largest():
    q = jnp.ones((1, 4, 1, 1))
    k = jnp.array([1.0, 2.0, 3.0, 100.0]).reshape(1, 4, 1, 1)
    segment_BL = jnp.array([[0, 0, 0, 1]])
    assert attention.largest_logit(q[:, :3], k[:, :3]) == 3
    assert attention.largest_logit(q * jnp.array([1, 1, 1, 0.01]).reshape(1, 4, 1, 1), k) == 3
    assert attention.largest_logit(-q, k[:, ::-1], window=2, segment_BL=segment_BL) == -1
    assert attention.largest_logit(-q, k, window=2) == -1
    assert attention.largest_logit(-q[:, 1:], k[:, 1:], segment_BL=segment_BL[:, 1:]) == -2


@pytest.mark.parametrize("length,window", [(1, None), (127, None), (384, None), (384, 3), (384, 384), (5000, 100)])
def test_query_blocks_cover_every_query_once_and_every_key_it_sees(length, window):
    blocks = attention.query_blocks(length, window)
    assert [q for block in blocks for q in range(block.start, block.end)] == list(range(length))
    for block, ahead in zip(blocks, attention.query_blocks(length, window, prefix=True)):
        assert block.first_key == max(0, block.start + 1 - (window or length)) and block.end_key == block.end
        last = min(length, block.end - 1 + (window or length))  # the first key that the last query cannot see
        assert ahead == block._replace(end_key=last)


@pytest.mark.parametrize("window", [None, 1, 7, 40])
def test_attention_over_a_cache_equals_attention_over_the_whole_sequence(window):
    q, k, v, _ = inputs(24, 4, 2, False)
    whole = attention.xla_attention(q, k, v, window=window)
    unfilled = ((0, 0), (0, 8), (0, 0), (0, 0))
    k, v = (jnp.pad(x, unfilled, constant_values=9.0) for x in (k, v))  # positions nobody has written yet
    for start, end in ((0, 5), (5, 6), (6, 24)):
        piece = attention.cached_attention(q[:, start:end], k, v, start, window=window)
        np.testing.assert_allclose(piece, whole[:, start:end], atol=1e-6)


def test_bfloat16_attention_is_rounded_once_or_twice():
    rng = np.random.default_rng(0)
    qkv = [jnp.asarray(rng.standard_normal((1, 256, 2, 64)), jnp.bfloat16) for _ in range(3)]
    rounded, exact = attention.xla_attention(*qkv), attention.xla_attention(*(x.astype(jnp.float32) for x in qkv))
    error = np.float32(rounded) - np.float32(exact)
    # The weights and the output, each to 8 bits; dividing in bfloat16 too gave 3.0e-3.
    assert np.sqrt(np.square(error).mean() / np.square(exact).mean()) < 2.4e-3


# Gradients, whose backward pass is written by hand


def plain_attention(q, k, v, *, window, segment_BL, prefix_BL):
    """The definition in a form that JAX can differentiate itself."""
    L, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    ones = np.ones((L, L), bool)
    seen = np.tril(ones)[None, None]
    seen = seen if prefix_BL is None else seen | prefix_BL[:, None, None, :]
    seen = seen & np.triu(ones, 1 - (window or L)) & np.tril(ones, (window or L) - 1)
    seen = seen if segment_BL is None else seen & (segment_BL[:, None, :, None] == segment_BL[:, None, None, :])
    logit = jnp.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(jnp.where(seen, logit, -np.inf)), v)


def gradients(kernel, inputs, **options):
    """Of a weighted sum of the output, by q, k and v."""
    weight = np.random.default_rng(1).standard_normal(inputs[0].shape).astype(np.float32)
    weighted = lambda q, k, v: jnp.sum(kernel(q, k, v, **options) * weight)  # noqa: E731
    return jax.jit(jax.grad(weighted, argnums=(0, 1, 2)))(*inputs)


@pytest.mark.parametrize("case", [name for name in CASES if "," in name])
def test_gradients_of_xla_attention_are_those_jax_finds_for_the_definition(case):
    qkv = inputs(*CASES[case][:3], False)[:3]
    ours, expected = (gradients(kernel, qkv, **masks(case)) for kernel in (attention.xla_attention, plain_attention))
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max())


def test_the_gradient_with_dropout_is_the_slope_with_the_same_entries_dropped():
    *qkv, segment_BL = inputs(301, 4, 2, True)
    options = dict(window=70, segment_BL=segment_BL, dropout_rate=0.3, key=jax.random.key(0))
    grads = gradients(attention.xla_attention, qkv, **options)
    weight = np.random.default_rng(1).standard_normal(qkv[0].shape)
    attend = jax.jit(functools.partial(attention.xla_attention, **options))
    for i, grad in enumerate(np.float64(g) for g in grads):
        direction = grad / np.sqrt(np.square(grad).mean())
        ahead, behind = (
            np.sum(weight * attend(*qkv[:i], (qkv[i] + step * direction).astype(np.float32), *qkv[i + 1 :]))
            for step in (1e-2, -1e-2)
        )
        assert np.sum(direction * grad) == pytest.approx(float(ahead - behind) / 2e-2, rel=2e-3)


# Dropout


def dropped(q, k, v, seed, rate=0.5, window=None):
    return attention.xla_attention(q, k, v, window=window, dropout_rate=rate, key=jax.random.key(seed))


def test_attention_dropout_is_a_function_of_its_key():
    q, k, v, _ = inputs(24, 4, 2, False)
    np.testing.assert_array_equal(dropped(q, k, v, 1), dropped(q, k, v, 1))
    assert np.abs(dropped(q, k, v, 1) - dropped(q, k, v, 2)).max() > 0.1
    np.testing.assert_array_equal(dropped(q, k, v, 1, rate=0.0), attention.xla_attention(q, k, v))


def test_attention_dropout_keeps_the_mean_and_the_rate():
    q = jnp.zeros((4, 256, 2, 8))  # equal probabilities, and v = 1: outputs are the share that was kept, scaled up
    ones = jnp.ones_like(q)
    out_BLH = np.asarray(dropped(q, q, ones, 0, rate=0.25))[..., 0]
    first_query = out_BLH[:, 0]  # sees one key: kept and scaled by 4/3, or dropped
    assert set(np.unique(first_query)) <= {0.0, np.float32(4 / 3)}
    assert out_BLH[:, 128:].mean() == pytest.approx(1.0, abs=0.01)  # 1024 * 2 sums of 128 and more draws
    assert out_BLH[:, 64:128].std() == pytest.approx(np.sqrt(0.25 / 0.75 / 96), rel=0.1)


def test_blocks_of_queries_drop_different_probabilities():
    q = jnp.zeros((1, 256, 1, 256))
    one_hot_BLGK = jnp.eye(256)[None, :, None]  # outputs are the probabilities themselves
    out_LM = np.asarray(dropped(q, q, one_hot_BLGK, 0))[0, :, 0]
    same = (out_LM[:128, :128] > 0) == (out_LM[128:, :128] > 0)
    assert same[127].mean() == pytest.approx(0.5, abs=0.2)  # of the 128 keys that both see; 4.5 standard errors


# The TPU kernel, interpreted


@pytest.mark.parametrize(
    "window,documents,kv_heads,head_size",
    [(None, False, 2, 64), (None, True, 1, 96), (100, True, 2, 8)],
    ids=["causal", "documents, one key head for two", "band and documents"],
)
def test_splash_attention_and_its_gradients_equal_those_of_xla(window, documents, kv_heads, head_size):
    *qkv, segment_BL = inputs(256, 2, kv_heads, documents, head_size, batch=1)
    kernel = jax.jit(functools.partial(splash.splash_attention, interpret=True), static_argnames="window")
    options = dict(window=window, segment_BL=segment_BL)
    np.testing.assert_allclose(kernel(*qkv, **options), attention.xla_attention(*qkv, **options), atol=2e-6)
    for a, b in zip(gradients(kernel, qkv, **options), gradients(attention.xla_attention, qkv, **options)):
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max())


def test_splash_attention_on_a_mesh_equals_that_on_one_device():
    q, k, v, segment_BL = inputs(128, 4, 4, True, batch=2)
    mesh = meshes.make_mesh(config(mesh={"fsdp": 2, "tensor": 2}), jax.devices()[:4])
    kernel = jax.jit(functools.partial(splash.splash_attention, interpret=True))
    with jax.set_mesh(mesh):
        sharded = kernel(q, k, v, segment_BL=segment_BL)
    np.testing.assert_allclose(sharded, attention.xla_attention(q, k, v, segment_BL=segment_BL), atol=2e-6)


@pytest.mark.parametrize("head_size", [64, 96])
def test_what_splash_attention_keeps_of_small_heads_is_as_large_as_they_are(head_size):
    q, k, v, _ = inputs(128, 2, 2, False, head_size, batch=1)
    kept = jax.eval_shape(lambda *qkv: jax.vjp(splash.splash_attention, *qkv)[1], q, k, v)
    assert max(leaf.size for leaf in jax.tree.leaves(kept)) == q.size


@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")  # no TPU to read it for
def test_libtpu_compiles_splash_attention_and_its_gradients_for_small_heads_as_they_are():
    place = jax.sharding.SingleDeviceSharding(topology.describe("v5e:2x2").devices[0])
    sizes = (64, 96)
    heads = [jax.ShapeDtypeStruct((1, 256, 2, size), jnp.bfloat16, sharding=place) for size in sizes]

    def sums(*heads):
        return sum(jnp.sum(splash.splash_attention(a, a, a).astype(jnp.float32)) for a in heads)

    program = hlo.parse(jax.jit(jax.grad(sums, (0, 1))).lower(*heads).compile().as_text())
    kernels = [i for i, _, _ in hlo.walk(program) if hlo.is_kernel(i)]
    assert {a.shape[-1] for i in kernels for a in i.arrays if a.dtype == "bf16"} == set(sizes)
    assert len(kernels) == 2 * 3  # forward, and two of the backward pass


# The choice


def config(model=(), data=(), mesh=()):
    return Config(
        model=ModelConfig(**{"context_length": 256, **dict(model)}),
        data=DataConfig(**dict(data)),
        mesh=MeshConfig(**dict(mesh)),
        train=TrainConfig(steps=10),
    )


OBSTACLES = [  # kernel, platform, what the config asks, why the kernel cannot
    ("cudnn", "cpu", {}, "runs on gpu, not on cpu"),
    ("cudnn", "tpu", {}, "runs on gpu, not on tpu"),
    ("splash", "gpu", {}, "runs on tpu, not on gpu"),
    ("cudnn", "gpu", {"model": {"attention_dropout": 0.1}}, "has no attention dropout"),
    ("splash", "tpu", {"model": {"attention_dropout": 0.1}}, "has no attention dropout"),
    ("cudnn", "gpu", {"data": {"mask_documents": True}}, "cannot keep packed documents apart"),
    ("cudnn", "gpu", {"data": {"objective": "prefix_lm"}}, "cannot let a token see later ones"),
    ("cudnn", "gpu", {"data": {"objective": "span_corruption"}}, "cannot let a token see later ones"),
    ("splash", "tpu", {"data": {"objective": "masked_lm"}}, "cannot let a token see later ones"),
    ("cudnn", "gpu", {"model": {"dtype": "float32"}}, "has no float32 form"),
    ("cudnn", "gpu", {"mesh": {"sequence": 2}}, "cannot split a sequence"),
    ("cudnn", "gpu", {"mesh": {"sequence": 2}}, "cannot split a sequence"),
    ("cudnn", "gpu", {"mesh": {"fsdp": 1, "sequence": -1}}, "cannot split a sequence"),
    ("splash", "tpu", {"mesh": {"sequence": 2}}, "multiple of 512"),
    ("splash", "tpu", {"model": {"context_length": 200}}, "multiple of 128"),
    ("cudnn", "gpu", {"model": {"n_heads": 4}}, "head size"),  # 192
    ("cudnn", "gpu", {"model": {"head_dim": 60}}, "head size"),
    ("triton", "gpu", {"model": {"context_length": 200, "attention_dropout": 0.1}}, "multiple of 64"),
    ("triton", "gpu", {"data": {"objective": "prefix_lm"}}, "cannot let a token see later ones"),
    ("triton", "gpu", {"model": {"dtype": "float32"}}, "has no float32 form"),
    ("triton", "tpu", {}, "runs on gpu, not on tpu"),
]


@pytest.mark.parametrize("kernel,platform,asked,reason", OBSTACLES)
def test_a_kernel_asked_for_by_name_that_cannot_do_it_raises(kernel, platform, asked, reason):
    model = {**asked.get("model", {}), "attention": kernel}
    with pytest.raises(UserError, match=f"model.attention='{kernel}' cannot be used: .*{reason}.*; use 'auto' or"):
        attention.choose_kernel(config(model, asked.get("data", {}), asked.get("mesh", {})), platform)


@pytest.mark.parametrize("kernel,platform,asked,reason", OBSTACLES)
def test_auto_takes_another_where_a_kernel_cannot_and_says_why(kernel, platform, asked, reason):
    chosen, given = attention.choose_kernel(config(**asked), platform)
    assert chosen != kernel
    if kernel in attention.FASTEST[platform]:
        assert f"{kernel} " in given and reason in given
    else:
        assert chosen == (*attention.FASTEST[platform], "xla")[0] and given == f"the fastest on {platform}"


@pytest.mark.parametrize(
    "asked",
    [{"model": {"attention_dropout": 0.1}}, {"data": {"mask_documents": True}}, {"mesh": {"sequence": 2}}],
    ids=["dropout", "documents", "split sequences"],
)
def test_on_gpus_what_cudnn_cannot_do_the_triton_kernel_does(asked):
    assert attention.choose_kernel(config(**asked), "gpu")[0] == "triton"
    assert attention.advice(config(**asked), "gpu", "triton", 1) is None


@pytest.mark.parametrize(
    "platform,asked,cure",
    [
        ("tpu", {"model": {"attention_dropout": 0.1}}, "model.attention_dropout=0."),
        ("gpu", {"model": {"dtype": "float32"}}, "model.dtype=bfloat16."),
        (
            "gpu",  # of the kernels the one that wants least
            {"model": {"attention_dropout": 0.1, "dtype": "float32"}, "mesh": {"sequence": 2}},
            "model.dtype=bfloat16.",
        ),
        ("tpu", {"data": {"mask_documents": True}}, None),  # splash can
        ("gpu", {"model": {"n_heads": 4}}, None),  # no setting of a run, but another model
        ("gpu", {"model": {"attention": "xla", "attention_dropout": 0.1}}, None),  # asked for by name
        ("cpu", {"model": {"attention_dropout": 0.1}}, None),
    ],
)
def test_what_keeps_a_kernel_from_running_is_told_with_what_to_set(platform, asked, cure):
    asked = config(**asked)
    kernel, _ = attention.choose_kernel(asked, platform)
    advice = attention.advice(asked, platform, kernel, asked.mesh.sequence)
    assert advice is None if cure is None else advice.endswith(cure) and "twice as long" in advice
    if cure is not None:
        model, data = {"attention_dropout": 0.0, "dtype": "bfloat16"}, {"mask_documents": False}
        cured = asked.replace(model=model, data=data, mesh={"sequence": 1})
        assert attention.choose_kernel(cured, platform)[0] == attention.FASTEST[platform][0]
        assert attention.advice(cured, platform, attention.FASTEST[platform][0], 1) is None


@pytest.mark.parametrize("platform,kernel", [("cpu", "xla"), ("gpu", "cudnn"), ("tpu", "splash")])
def test_auto_takes_the_fastest_kernel_of_the_platform(platform, kernel):
    assert attention.choose_kernel(config(), platform) == (kernel, f"the fastest on {platform}")
    assert attention.choose_kernel(config({"attention": kernel}), platform) == (kernel, "as configured")


@pytest.mark.parametrize("platform,kernel", [("gpu", "cudnn"), ("tpu", "splash")])
def test_a_kernel_is_chosen_by_the_devices_that_split_a_sequence_not_by_minus_one(platform, kernel):
    rest = config(mesh={"fsdp": 1, "sequence": -1})
    assert attention.choose_kernel(rest, platform, 1) == (kernel, f"the fastest on {platform}")
    assert attention.choose_kernel(rest, platform, 4)[0] == "xla"  # 256 tokens are no eight chunks of 128, or 64
    with pytest.raises(UserError, match="mesh.sequence=4|multiple of 1024"):
        attention.choose_kernel(rest.replace(model={"attention": kernel}), platform, 4)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_xla_can_do_everything_everywhere(platform):
    hardest = config(
        {"attention": "xla", "attention_dropout": 0.1, "dtype": "float32", "context_length": 100, "band_width": 3},
        {"mask_documents": True, "objective": "span_corruption"},
        {"sequence": 2},
    )
    assert attention.choose_kernel(hardest, platform)[0] == "xla"


def test_an_unknown_kernel_raises_with_the_names_there_are():
    with pytest.raises(UserError, match="model.attention='flash' is not known"):
        attention.choose_kernel(config({"attention": "flash"}), "gpu")
