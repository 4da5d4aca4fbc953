"""The model against an independent NumPy forward pass, and against itself: causality, packing, caching, remat."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from conftest import TINY, VARIANTS
from flax import nnx

from gptjax import flops
from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.errors import UserError, make_chosen
from gptjax.models import architectures, attention, rotary, splash
from gptjax.models import gpt as model
from gptjax.parallel import meshes
from gptjax.training import program as programs

BATCH, LENGTH = 2, 16
RNG = np.random.default_rng(0)
TOKEN_BT = RNG.integers(0, 65, (BATCH, LENGTH + 1)).astype(np.int32)
TOKEN_BL = TOKEN_BT[:, :-1]


@functools.partial(jax.jit, static_argnames="graph")
def logits(graph, params, token_BL, segment_BL=None, position_BL=None, key=None, prefix_BL=None):
    masks = dict(segment_BL=segment_BL, position_BL=position_BL, prefix_BL=prefix_BL)
    return nnx.merge(graph, params)(token_BL, key=key, **masks)


@functools.partial(jax.jit, static_argnames="graph")
def token_loss(graph, params, token_BT, segment_BL=None, position_BL=None):
    """(loss, logsumexp of the logits), both [B, L]."""
    packing = dict(segment_BL=segment_BL, position_BL=position_BL)
    return nnx.merge(graph, params).token_loss(token_BT, chunks=4, **packing)[:2]


@functools.partial(jax.jit, static_argnames="graph")
def extend(graph, params, token_BL, cache, start, pad_B=None, layers=None):
    gpt = nnx.merge(graph, params)
    x_BLD, cache = gpt.extend(token_BL, cache, start, pad_B, layers)
    return gpt.logits(x_BLD), cache


def changed(tree, path: str, layer, change):
    """The parameters with change(value) in place of one leaf's value at a layer."""
    first, _, rest = path.partition("/")
    if rest:
        return {**tree, first: changed(tree[first], rest, layer, change)}
    return {**tree, first: tree[first].at[layer].set(change(tree[first][layer]))}


# A slow reference, written from the papers: float64, one row, one head, one query at a time


def reference_logits(config: ModelConfig, params: dict, token_L, prefix: int = 0) -> np.ndarray:
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x_LD = params["token_embedding"][token_L] * (math.sqrt(config.d_model) if config.scale_embedding else 1)
    if config.position == "learned":
        x_LD = x_LD + params["position_embedding"][: len(token_L)]
    for n in range(config.n_layers):
        block = jax.tree.map(lambda a: a[n], params["blocks"])
        window = config.band_width if config.window_pattern[n % len(config.window_pattern)] == "S" else None
        rotates = config.position == "rope" and config.rope_pattern[n % len(config.rope_pattern)] == "R"

        def attend(x_LD, block=block, window=window, rotates=rotates):
            return reference_attention(config, block["attention"], x_LD, window, prefix, rotates)

        def mlp(x_LD, block=block):
            return reference_mlp(config, block["mlp"], x_LD)

        for name, layer in (("attention_norm", attend), ("mlp_norm", mlp)):
            norm = functools.partial(reference_norm, config, block[name])
            x_LD = norm(x_LD + layer(x_LD)) if config.norm_position == "post" else x_LD + layer(norm(x_LD))
    if config.final_norm:
        x_LD = reference_norm(config, params["final_norm"], x_LD)
    logit_LV = x_LD @ params["token_embedding" if config.tied_head else "head"].T
    if config.logit_softcap:
        logit_LV = config.logit_softcap * np.tanh(logit_LV / config.logit_softcap)
    return logit_LV[:, : config.vocab_size]


def reference_norm(config, norm, x):
    if config.norm.startswith("rmsnorm"):
        return rms_normalised(config, x) * (norm["gain"] if "gain" in norm else 1 + norm["offset"])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
    return x * norm["gain"] + norm.get("bias", 0)


def rms_normalised(config, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)


def reference_attention(config, p, x_LD, window, prefix, rotates):
    K, group = config.head_size, config.n_heads // config.kv_heads
    heads_out = []
    for h in range(config.n_heads):
        g, r = divmod(h, group)

        def projected(slot, g=g):
            y_LK = x_LD @ p["qkv"]["weight"][:, g, slot]
            return y_LK + p["qkv"].get("bias", np.zeros_like(p["qkv"]["weight"][0]))[g, slot]

        q_LK, k_LK, v_LK = projected(r), projected(group), projected(group + 1)
        if config.qk_norm:
            q_LK = rms_normalised(config, q_LK) * p["q_norm"]["gain"]
            k_LK = rms_normalised(config, k_LK) * p["k_norm"]["gain"]
        if rotates:
            q_LK, k_LK = (reference_rotation(config, x) for x in (q_LK, k_LK))
        out_LK = np.zeros_like(v_LK)
        for query in range(len(x_LD)):
            first = 0 if window is None else max(0, query - window + 1)
            stop = max(query + 1, min(prefix, len(x_LD) if window is None else query + window))
            weight = np.exp(k_LK[first:stop] @ q_LK[query] / math.sqrt(K))
            out_LK[query] = weight / weight.sum() @ v_LK[first:stop]
        heads_out.append(out_LK @ p["out"]["weight"][h])
    return sum(heads_out) + p["out"].get("bias", 0)


def reference_rotation(config, x_LK):
    """Pairs (i, i + K/2) as complex numbers, turned by position * theta^(-2 i / K), or by what scaling makes of that."""
    half = x_LK.shape[1] // 2
    z = x_LK[:, :half] + 1j * x_LK[:, half:]
    rate, gain = config.rope_theta ** (-2 * np.arange(half) / x_LK.shape[1]), 1.0
    if config.rope_scaling:  # whose rates are held to transformers' in rope_scaling_test
        scaling = make_chosen(config.rope_scaling, rotary.SCALINGS, "model.rope_scaling")
        rate, gain = scaling.rates(config.rope_theta, half), scaling.gain
    z = z * gain * np.exp(1j * np.arange(len(x_LK))[:, None] * rate)
    return np.concatenate([z.real, z.imag], axis=1)


def reference_mlp(config, p, x_LD):
    h = np.tensordot(x_LD, p["up"]["weight"], 1) + p["up"].get("bias", 0)
    value = 1
    if config.mlp == "geglu":
        h, value = h[:, 0], h[:, 1]
    if config.mlp == "swiglu":
        h = h[:, 0] / (1 + np.exp(-h[:, 0])) * h[:, 1]
    elif config.mlp == "relu2":
        h = np.maximum(h, 0) ** 2
    elif config.mlp == "gelu":
        h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    else:
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) * value
    return h @ p["down"]["weight"] + p["down"].get("bias", 0)


def test_the_forward_pass_equals_a_slow_one_written_from_the_papers(gpt_variant):
    logit_BLV = logits(gpt_variant.graph, gpt_variant.params, TOKEN_BL)
    for token_L, logit_LV in zip(TOKEN_BL, logit_BLV):
        expected = reference_logits(gpt_variant.config, gpt_variant.params, token_L)
        np.testing.assert_allclose(logit_LV, expected, atol=2e-5 * np.abs(expected).max())


def test_exact_gelu_equals_the_error_function(make_variant):
    tiny = make_variant("gpt2")
    config = dataclasses.replace(tiny.config, mlp="gelu")
    expected = reference_logits(config, tiny.params, TOKEN_BL[0])
    logit_LV = logits(architectures.abstract(config)[0], tiny.params, TOKEN_BL)[0]
    np.testing.assert_allclose(logit_LV, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(logit_LV - logits(tiny.graph, tiny.params, TOKEN_BL)[0]).max() > 1e-4  # the tanh form differs


# Causality and reach


@pytest.mark.parametrize("changed_at", [0, 7, LENGTH - 1])
def test_changing_token_t_leaves_earlier_logits_unchanged(variant, changed_at):
    token_BL = TOKEN_BL.copy()
    token_BL[:, changed_at] = (token_BL[:, changed_at] + 1) % 65
    before, after = (logits(variant.graph, variant.params, tokens) for tokens in (TOKEN_BL, token_BL))
    np.testing.assert_array_equal(before[:, :changed_at], after[:, :changed_at])
    assert np.all(np.abs(before - after)[:, changed_at:].max(-1) > 0)


@pytest.mark.parametrize("name,prefix", [("gpt1", LENGTH), ("gpt3", 9), ("modern", 9), ("modern", LENGTH)])
def test_a_prefix_is_seen_both_ways_as_in_a_slow_forward_pass(make_variant, name, prefix):
    """All of a text, as a masked LM sees it, or its first nine tokens."""
    tiny, prefix_BL = make_variant(name), np.tile(np.arange(LENGTH) < prefix, (BATCH, 1))
    logit_BLV = logits(tiny.graph, tiny.params, TOKEN_BL, prefix_BL=prefix_BL)
    for token_L, logit_LV in zip(TOKEN_BL, logit_BLV):
        expected = reference_logits(tiny.config, tiny.params, token_L, prefix)
        np.testing.assert_allclose(logit_LV, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("changed_at", [8, 9])
def test_a_token_of_a_prefix_moves_all_logits_and_a_later_one_none_before_it(make_variant, changed_at):
    tiny, prefix_BL = make_variant("modern"), np.tile(np.arange(LENGTH) < 9, (BATCH, 1))
    token_BL = TOKEN_BL.copy()
    token_BL[:, changed_at] = (token_BL[:, changed_at] + 1) % 65
    before, after = (logits(tiny.graph, tiny.params, tokens, prefix_BL=prefix_BL) for tokens in (TOKEN_BL, token_BL))
    moved_L = np.abs(before - after).max((0, 2)) > 0
    assert np.flatnonzero(moved_L).tolist() == list(range(0 if changed_at < 9 else changed_at, LENGTH))


@pytest.mark.parametrize("silenced,reach", [(0, 3), (1, LENGTH)], ids=["banded layers alone", "dense layers alone"])
def test_every_second_layer_reaches_as_far_as_its_band(make_variant, silenced, reach):
    tiny, params = make_variant("gpt3"), make_variant("gpt3").params
    for layer in (silenced, silenced + 2, 2 + (1 - silenced)):  # of 4 layers one is left that attends
        for name in ("weight", "bias"):
            params = changed(params, f"blocks/attention/out/{name}", layer, jnp.zeros_like)
    token_BL = TOKEN_BL.copy()
    token_BL[:, 2] = (token_BL[:, 2] + 1) % 65
    before, after = (logits(tiny.graph, params, tokens) for tokens in (TOKEN_BL, token_BL))
    moved_L = np.abs(before - after).max((0, 2)) > 0
    assert np.flatnonzero(moved_L).tolist() == list(range(2, min(2 + reach, LENGTH)))


# Packed documents

LENGTHS = (5, 1, 10)


@pytest.mark.parametrize("name", ["gpt3", "modern", "lstm"])
def test_packed_documents_equal_each_document_alone(make_variant, name):
    tiny = make_variant(name)
    segment_BL = np.tile(np.repeat(np.arange(len(LENGTHS)), LENGTHS), (BATCH, 1)).astype(np.int32)
    position_BL = np.tile(np.concatenate([np.arange(n) for n in LENGTHS]), (BATCH, 1)).astype(np.int32)
    packed = logits(tiny.graph, tiny.params, TOKEN_BL, segment_BL, position_BL)
    alone, start = [], 0
    for length in LENGTHS:
        rows = np.zeros_like(TOKEN_BL)  # tokens after the document, which causality hides
        rows[:, :length] = TOKEN_BL[:, start : start + length]
        alone.append(logits(tiny.graph, tiny.params, rows)[:, :length])
        start += length
    np.testing.assert_allclose(packed, np.concatenate(alone, axis=1), atol=2e-5)
    unmasked = logits(tiny.graph, tiny.params, TOKEN_BL, 0 * segment_BL, position_BL)
    assert np.abs(packed - unmasked)[:, 6:].max() > 0.1


def test_packed_losses_equal_those_of_each_document_alone(make_variant):
    tiny = make_variant("gpt3")
    segment_BT = np.tile(np.repeat([0, 1], (6, 11)), (BATCH, 1)).astype(np.int32)
    position_BL = np.tile(np.concatenate([np.arange(6), np.arange(10)]), (BATCH, 1)).astype(np.int32)
    packed, _ = token_loss(tiny.graph, tiny.params, TOKEN_BT, segment_BT[:, :-1], position_BL)
    for start, end in ((0, 6), (6, 17)):
        rows = np.zeros_like(TOKEN_BT)  # tokens after the document, which causality hides
        rows[:, : end - start] = TOKEN_BT[:, start:end]
        alone, _ = token_loss(tiny.graph, tiny.params, rows)
        predicted = end - start - 1  # packed[5] predicts the next document's first token: no document alone does
        np.testing.assert_allclose(packed[:, start : end - 1], alone[:, :predicted], atol=2e-5)


def test_the_token_loss_is_the_cross_entropy_of_the_logits(variant):
    loss_BL, log_normaliser_BL = token_loss(variant.graph, variant.params, TOKEN_BT)
    logit_BLV = np.float64(logits(variant.graph, variant.params, TOKEN_BL))
    log_normaliser = np.log(np.exp(logit_BLV).sum(-1))
    target = np.take_along_axis(logit_BLV, TOKEN_BT[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(log_normaliser_BL, log_normaliser, atol=2e-5)
    np.testing.assert_allclose(loss_BL, log_normaliser - target, atol=2e-5)


def test_padding_of_the_vocabulary_takes_no_part(variant):
    tables = ("token_embedding",) if variant.config.tied_head else ("token_embedding", "head")
    huge = variant.params
    for table in tables:
        huge = changed(huge, table, np.s_[65:], lambda rows: jnp.full_like(rows, 1e4))
        assert huge[table].shape[0] == 128
    logit_BLV = logits(variant.graph, variant.params, TOKEN_BL)
    assert logit_BLV.shape == (BATCH, LENGTH, 65)
    np.testing.assert_array_equal(logits(variant.graph, huge, TOKEN_BL), logit_BLV)
    loss_BL, with_huge_BL = (token_loss(variant.graph, p, TOKEN_BT)[0] for p in (variant.params, huge))
    np.testing.assert_array_equal(loss_BL, with_huge_BL)


# Cache


# layers that forget, fewer key heads at turned positions, a state, windows beside layers without positions
CACHED = ["gpt3", "modern", "lstm", "patterned"]


@pytest.mark.parametrize("name", runs.default_or_slow(VARIANTS, CACHED))
def test_extending_a_cache_gives_the_logits_of_the_whole_sequence(make_variant, name):
    variant = make_variant(name)
    whole = logits(variant.graph, variant.params, TOKEN_BL)
    cache = nnx.merge(variant.graph, variant.params).empty_cache(BATCH, LENGTH + 4)
    for start, end in ((0, 5), (5, 10), *((t, t + 1) for t in range(10, LENGTH))):
        piece, cache = extend(variant.graph, variant.params, TOKEN_BL[:, start:end], cache, start)
        np.testing.assert_allclose(piece, whole[:, start:end], atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("name", runs.default_or_slow(VARIANTS, CACHED))
def test_layers_taken_apart_and_rows_padded_in_front_give_the_same_logits(make_variant, name):
    """Rows of unequal length that end together, their padding filled with tokens that nothing sees."""
    variant = make_variant(name)
    pad_B = np.array([3, 0] + [7] * (BATCH - 2), np.int32)
    shifted_BL = np.stack([np.concatenate([np.full(pad, 1), row])[:LENGTH] for pad, row in zip(pad_B, TOKEN_BL)])
    whole = logits(variant.graph, variant.params, TOKEN_BL)
    gpt = nnx.merge(variant.graph, variant.params)
    cache, layers = gpt.empty_cache(BATCH, LENGTH + 4, apart=True), gpt.apart()
    for start, end in ((0, 10), *((t, t + 1) for t in range(10, LENGTH))):
        piece, cache = extend(variant.graph, variant.params, shifted_BL[:, start:end], cache, start, pad_B, layers)
        for row, pad in enumerate(pad_B):
            expected = whole[row, max(start - pad, 0) : end - pad]
            got = piece[row, max(pad - start, 0) :]
            np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(whole).max())


def test_a_prompt_is_read_by_a_kernel_that_keeps_its_padding_apart(monkeypatch):
    """As by attention over the cache, which then holds the same: the TPU's kernel, interpreted."""
    assert attention.KERNELS["splash"].function == "gptjax.models.splash:splash_attention"
    monkeypatch.setattr(splash, "splash_attention", functools.partial(splash.splash_attention, interpret=True))
    config = dataclasses.replace(TINY, context_length=256, band_width=40)
    pad_B, token_BL = np.array([0, 90]), np.random.default_rng(0).integers(65, size=(2, 128))
    found = []
    for name in ("splash", "xla"):
        gpt = architectures.make(config, jax.random.key(0), kernel=name)
        found.append(gpt.extend(token_BL, gpt.empty_cache(2, 256), 0, pad_B))
    (x, cache), (expected, expected_cache) = found
    for row, pad in enumerate(pad_B):
        np.testing.assert_allclose(x[row, pad:], expected[row, pad:], atol=2e-5)
        for a, b in zip(cache, expected_cache):  # N, M, G, B, K
            np.testing.assert_allclose(a[:, pad:, :, row], b[:, pad:, :, row], atol=2e-5)


# Dropout, precision, recomputation


DROPOUTS = ("embed_dropout", "attention_dropout", "residual_dropout")


def test_dropout_is_off_without_a_key(make_variant):
    tiny = make_variant("gpt2")
    graph = architectures.abstract(dataclasses.replace(tiny.config, **dict.fromkeys(DROPOUTS, 0.1)))[0]
    plain = logits(tiny.graph, tiny.params, TOKEN_BL)
    np.testing.assert_array_equal(logits(graph, tiny.params, TOKEN_BL), plain)


@pytest.mark.parametrize("field", DROPOUTS)
def test_each_dropout_is_on_with_a_key_and_a_function_of_it(make_variant, field):
    tiny = make_variant("gpt2")
    graph = architectures.abstract(dataclasses.replace(tiny.config, **{field: 0.1}))[0]
    plain = logits(tiny.graph, tiny.params, TOKEN_BL)
    first, again, other = (logits(graph, tiny.params, TOKEN_BL, None, None, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 0.1 and np.abs(first - other).max() > 0.1


@pytest.mark.parametrize("name", ["modern", "lstm"])
def test_bfloat16_logits_are_near_those_of_float32(make_variant, name):
    tiny = make_variant(name)
    graph = architectures.abstract(dataclasses.replace(tiny.config, dtype="bfloat16"))[0]
    exact, rounded = (logits(g, tiny.params, TOKEN_BL) for g in (tiny.graph, graph))
    assert rounded.dtype == jnp.float32
    difference = np.abs(rounded - exact)
    assert 1e-4 * exact.std() < difference.std() < 0.03 * exact.std()


@functools.partial(jax.jit, static_argnames="graph")
def loss_gradient(graph, params, key):
    return jax.grad(lambda p: nnx.merge(graph, p).token_loss(TOKEN_BT, key=key)[0].mean())(params)


MORE_REMAT = [("gpt2", "dots"), ("gpt2", "mlp"), ("gpt2", "full"), ("lstm", "full")]  # the LSTM's is in parity_test too


@pytest.mark.parametrize(
    "name,remat", [("gpt2", "attention"), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_REMAT)]
)
def test_recomputing_activations_leaves_the_gradients_as_they_are(make_variant, name, remat):
    tiny = make_variant(name)
    plain = dataclasses.replace(tiny.config, attention_dropout=0.2, residual_dropout=0.2, embed_dropout=0.2)
    recomputed = dataclasses.replace(plain, remat=remat)
    kept, again = (
        loss_gradient(architectures.abstract(c)[0], tiny.params, jax.random.key(0)) for c in (plain, recomputed)
    )
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again)):
        np.testing.assert_allclose(a, b, atol=1e-6 * max(1, np.abs(a).max()))


def test_unrolling_the_layers_leaves_the_logits_as_they_are(make_variant):
    tiny = make_variant("gpt3")
    unrolled = architectures.abstract(dataclasses.replace(tiny.config, scan_unroll=2))[0]
    looped, expected = (logits(graph, tiny.params, TOKEN_BL) for graph in (unrolled, tiny.graph))
    np.testing.assert_allclose(looped, expected, atol=1e-6 * np.abs(expected).max())


def test_more_tokens_than_the_context_raise(make_variant):
    tiny = make_variant("gpt2")
    with pytest.raises(UserError, match="17 tokens are more than model.context_length=16"):
        logits(tiny.graph, tiny.params, TOKEN_BT)


# Initialisation and size


@pytest.fixture(scope="module")
def initial():
    """A GPT-2 wide enough for statistics."""
    config = ModelConfig(
        vocab_size=1000, context_length=512, n_layers=4, d_model=128, n_heads=4, position_init_std=0.01, tied_head=False
    )
    return jax.jit(lambda key: architectures.split(model.GPT(config, key))[1])(jax.random.key(0))


def test_initial_weights_have_the_standard_deviations_of_gpt2(initial):
    blocks = initial["blocks"]
    residual = 0.02 / math.sqrt(2 * 4)
    stds = {
        "token_embedding": (initial["token_embedding"], 0.02),
        "position_embedding": (initial["position_embedding"], 0.01),
        "head": (initial["head"], 0.02),
        "qkv": (blocks["attention"]["qkv"]["weight"], 0.02),
        "up": (blocks["mlp"]["up"]["weight"], 0.02),
        "out": (blocks["attention"]["out"]["weight"], residual),
        "down": (blocks["mlp"]["down"]["weight"], residual),
    }
    for name, (weight, std) in stds.items():
        assert np.std(weight) == pytest.approx(std, rel=0.015), name  # 4 standard errors of 65,536 draws are 0.011
        assert abs(np.mean(weight)) < 0.02 * std, name


def test_initial_biases_are_zero_and_gains_one(initial):
    for path, leaf in jax.tree_util.tree_leaves_with_path(initial):
        if path[-1].key in ("bias", "gain"):
            assert np.all(leaf == (path[-1].key == "gain")), path


def test_no_two_layers_or_maps_start_alike(initial):
    weights = [
        np.asarray(initial["blocks"][part][name]["weight"][n]).reshape(-1)[:16_384]
        for part, name in (("attention", "qkv"), ("attention", "out"), ("mlp", "up"), ("mlp", "down"))
        for n in range(4)
    ] + [np.asarray(initial[name]).reshape(-1)[:16_384] for name in ("token_embedding", "head", "position_embedding")]
    correlation = np.corrcoef(weights) - np.eye(len(weights))
    assert np.abs(correlation).max() < 5 / math.sqrt(16_384)


def test_initial_parameters_do_not_depend_on_the_mesh(tiny_config):
    config = tiny_config.replace(mesh={"fsdp": 4, "tensor": 2})
    one = programs.build(tiny_config, meshes.make_mesh(tiny_config, jax.devices()[:1]), "xla").init()
    eight = programs.build(config, meshes.make_mesh(config), "xla").init()
    assert len(eight.params["token_embedding"].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_the_number_of_parameters_is_that_counted_from_the_config(variant_config):
    _, params, _ = architectures.abstract(variant_config)
    held = sum(leaf.size for leaf in jax.tree.leaves(params))
    padding = (variant_config.padded_vocab_size - variant_config.vocab_size) * variant_config.d_model
    assert held - padding * (1 if variant_config.tied_head else 2) == flops.parameters(variant_config).total


@pytest.mark.parametrize("band_width", runs.default_or_slow([None, 4], [4]))
def test_the_compiled_program_does_not_grow_with_depth(band_width):
    def program_size(n_layers):
        config = Config(
            model=ModelConfig(
                vocab_size=65, context_length=16, n_layers=n_layers, d_model=32, n_heads=4, band_width=band_width
            ),
            mesh=MeshConfig(fsdp=8),
            train=TrainConfig(steps=1, batch_size=8),
        )
        mesh = meshes.make_mesh(config)
        program = programs.build(config, mesh, "xla")
        batch = {
            "token_BT": jax.ShapeDtypeStruct((1, 8, 17), jnp.int32),
            "weight_BL": jax.ShapeDtypeStruct((1, 8, 16), jnp.float32),
        }
        with jax.set_mesh(mesh):
            text = program.train.lower(program.abstract_state, batch, jax.ShapeDtypeStruct((1,), jnp.float32)).as_text()
        return len(text.splitlines())

    assert program_size(96) <= 1.02 * program_size(12)


def test_log_activations_are_those_of_each_layer(make_variant):
    tiny = make_variant("gpt3")

    @jax.jit
    def measure(params):
        return nnx.merge(tiny.graph, params).activations(TOKEN_BL, log_activations=True)[1]

    numbers = measure(tiny.params)
    assert numbers["max_attention_logit"].shape == numbers["activation_rms"].shape == (4,)
    # Silence all of the last layer: the residual stream then ends as the layer before it left it.
    params = tiny.params
    for part in ("attention/out", "mlp/down"):
        for name in ("weight", "bias"):
            params = changed(params, f"blocks/{part}/{name}", 3, jnp.zeros_like)
    rms_N = numbers["activation_rms"]
    np.testing.assert_allclose(measure(params)["activation_rms"], [*rms_N[:3], rms_N[2]], rtol=1e-6)
    # Queries and keys of one layer doubled: its logits grow fourfold.
    louder = changed(tiny.params, "blocks/attention/qkv/weight", 0, lambda w: w.at[:, :, :2].multiply(2))
    louder = changed(louder, "blocks/attention/qkv/bias", 0, lambda b: b.at[:, :2].multiply(2))
    grown = measure(louder)["max_attention_logit"][0] / numbers["max_attention_logit"][0]
    assert grown == pytest.approx(4, rel=1e-5)
