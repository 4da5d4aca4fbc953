"""Counts against published tables, numbers worked by hand, brute force, and what JAX itself keeps."""

import dataclasses
import functools
import subprocess
import sys

import pytest
from places import ROOT

from gptjax import flops, hardware
from gptjax.config import catalogue
from gptjax.config.config_file import load_config
from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import gpt_counts

CONFIGS = ROOT / "configs"

PARAMETERS = {  # REFERENCE: recomputed from the papers' shapes
    "gpt1": 116_534_784,
    "gpt2_small": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "gpt3_125m": 125_226_240,
    "gpt3_350m": 355_871_744,
    "gpt3_760m": 760_300_032,
    "gpt3_1_3b": 1_315_723_264,
    "gpt3_2_7b": 2_651_553_280,
    "gpt3_6_7b": 6_658_404_352,
    "gpt3_13b": 12_853_386_240,
    "gpt3_175b": 174_604_259_328,
}
NON_EMBEDDING = {
    "gpt2_small": 85_056_000,
    "gpt2_medium": 302_311_424,
    "gpt2_large": 708_390_400,
    "gpt2_xl": 1_475_561_600,
}
GPT3_FLOPS = {  # Brown et al. 2020, table D.1
    "gpt3_125m": 2.25e20,
    "gpt3_350m": 6.41e20,
    "gpt3_760m": 1.37e21,
    "gpt3_1_3b": 2.38e21,
    "gpt3_2_7b": 4.77e21,
    "gpt3_6_7b": 1.20e22,
    "gpt3_13b": 2.31e22,
    "gpt3_175b": 3.14e23,
}
CEREBRAS = [  # Dey et al. 2023: layers, width, heads, parameters
    (10, 768, 12, 111_050_496),
    (14, 1088, 17, 255_977_024),
    (18, 1536, 12, 590_310_912),
    (24, 2048, 16, 1_315_723_264),
    (32, 2560, 32, 2_651_553_280),
    (32, 4096, 32, 6_658_404_352),
    (40, 5120, 40, 12_853_386_240),
]
CHINCHILLA = [  # Hoffmann et al. 2022, table A9: millions of parameters, width, MLP width, head size, heads, layers
    (44, 512, 2048, 64, 8, 8),
    (57, 576, 2304, 64, 9, 9),
    (74, 640, 2560, 64, 10, 10),
    (90, 640, 2560, 64, 10, 13),
    (106, 640, 2560, 64, 10, 16),
    (117, 768, 3072, 64, 12, 12),
    (140, 768, 3072, 64, 12, 15),
    (163, 768, 3072, 64, 12, 18),
    (175, 896, 3584, 64, 14, 14),
    (196, 896, 3584, 64, 14, 16),
    (217, 896, 3584, 64, 14, 18),
    (251, 1024, 4096, 64, 16, 16),
    (278, 1024, 4096, 64, 16, 18),
    (306, 1024, 4096, 64, 16, 20),
    (425, 1280, 5120, 128, 10, 18),
    (489, 1280, 5120, 128, 10, 21),
    (509, 1408, 5632, 128, 11, 18),
    (552, 1280, 5120, 128, 10, 24),
    (587, 1408, 5632, 128, 11, 21),
    (632, 1536, 6144, 128, 12, 19),
    (664, 1408, 5632, 128, 11, 24),
    (724, 1536, 6144, 128, 12, 22),
    (816, 1536, 6144, 128, 12, 25),
    (893, 1792, 7168, 128, 14, 20),
    (1018, 1792, 7168, 128, 14, 23),
    (1143, 1792, 7168, 128, 14, 26),
    (1266, 2048, 8192, 128, 16, 22),
    (1424, 2176, 8704, 128, 17, 22),
    (1429, 2048, 8192, 128, 16, 25),
    (1593, 2048, 8192, 128, 16, 28),
    (1609, 2176, 8704, 128, 17, 25),
    (1731, 2304, 9216, 128, 18, 24),
    (1794, 2176, 8704, 128, 17, 28),
    (2007, 2304, 9216, 128, 18, 28),
    (2283, 2304, 9216, 128, 18, 32),
    (2298, 2560, 10240, 128, 20, 26),
    (2639, 2560, 10240, 128, 20, 30),
    (2980, 2560, 10240, 128, 20, 34),
    (3530, 2688, 10752, 128, 22, 36),
    (3802, 2816, 11264, 128, 22, 36),
    (4084, 2944, 11776, 128, 22, 36),
    (4516, 3072, 12288, 128, 24, 36),
    (6796, 3584, 14336, 128, 28, 40),
    (9293, 4096, 16384, 128, 32, 42),
    (11452, 4352, 17408, 128, 32, 47),
    (12295, 4608, 18432, 128, 36, 44),
    (12569, 4608, 18432, 128, 32, 47),
    (13735, 4864, 19456, 128, 32, 47),
    (14940, 4992, 19968, 128, 32, 49),
    (16183, 5120, 20480, 128, 40, 47),
]  # fmt: skip
PYTHIA = [  # Biderman et al. 2023, table 1: layers, width, heads, total, non-embedding
    (6, 512, 8, 70_426_624, 18_915_328),
    (12, 768, 12, 162_322_944, 85_056_000),
    (24, 1024, 16, 405_334_016, 302_311_424),
]
TINY = ModelConfig(vocab_size=10, context_length=4, n_layers=2, d_model=8, n_heads=2)


def shipped(name):
    return load_config(str(CONFIGS / f"{name}.py"))


def total(**fields):
    tiny = {"vocab_size": 10, "context_length": 4, "n_layers": 1, "d_model": 8, "n_heads": 2}
    return flops.parameters(ModelConfig(**tiny, **fields)).total


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shipped_gpt_has_exactly_its_known_number_of_parameters(name):
    assert flops.parameters(shipped(name).model).total == PARAMETERS[name]


@pytest.mark.parametrize("name", NON_EMBEDDING)
def test_gpt2_has_exactly_its_known_number_of_non_embedding_parameters(name):
    assert flops.parameters(shipped(name).model).non_embedding == NON_EMBEDDING[name]


@pytest.mark.parametrize("n_layers,d_model,n_heads,expected", CEREBRAS)
def test_cerebras_gpt_has_exactly_its_published_number_of_parameters(n_layers, d_model, n_heads, expected):
    shape = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads}
    assert flops.parameters(ModelConfig(vocab_size=50257, context_length=2048, **shape)).total == expected


def test_the_50_models_of_chinchilla_are_counted_to_within_a_million():
    """Gopher's architecture (Rae et al. 2021, section 2.1): RMSNorm and Transformer-XL's relative positions, 32,000 tokens.
    With LayerNorm's shifts the largest would be 1.46 million off."""
    assert len(CHINCHILLA) == 50
    for millions, d_model, d_ff, head_dim, n_heads, n_layers in CHINCHILLA:
        shape = {"n_layers": n_layers, "d_model": d_model, "d_ff": d_ff, "head_dim": head_dim, "n_heads": n_heads}
        model = ModelConfig(vocab_size=32_000, context_length=2048, norm="rmsnorm", **shape)
        found, own = (flops.parameters(model, relative_positions=relative).total for relative in (True, False))
        assert abs(found - millions * 1e6) < 1e6, (shape, found)
        heads = n_heads * head_dim
        assert found - own == n_layers * (d_model * heads + 2 * heads) - 2048 * d_model


@pytest.mark.parametrize("n_layers,d_model,n_heads,expected,non_embedding", PYTHIA)
def test_untied_rotary_pythia_has_exactly_its_published_counts(n_layers, d_model, n_heads, expected, non_embedding):
    shape = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads}
    model = ModelConfig(vocab_size=50304, context_length=2048, position="rope", tied_head=False, **shape)
    assert flops.parameters(model).total == expected
    assert flops.parameters(model).non_embedding == non_embedding


def test_every_kind_of_parameter_of_a_tiny_gpt_counted_by_hand():
    counts = flops.parameters(TINY)
    assert counts.token_embedding == 10 * 8
    assert counts.position_embedding == 4 * 8
    assert counts.matrices == 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
    assert counts.vectors == 2 * ((24 + 8 + 32 + 8) + 2 * 2 * 8) + 2 * 8
    assert counts.head == 0
    assert counts.matmul == counts.matrices + 10 * 8


@pytest.mark.parametrize(
    "change,difference",
    [
        ({"bias": False}, -(24 + 8 + 32 + 8) - 3 * 8),  # linear maps, and the shifts of three norms
        ({"norm": "rmsnorm"}, -3 * 8),
        ({"final_norm": False}, -2 * 8),
        ({"norm_position": "post"}, 0),
        ({"mlp": "swiglu"}, 8 * 32 + 32),
        ({"mlp": "relu2"}, 0),
        ({"n_kv_heads": 1}, -2 * (8 * 4 + 4)),
        ({"qk_norm": True}, 2 * 4),
        ({"position": "rope"}, -4 * 8),
        ({"tied_head": False}, 10 * 8),
        ({"head_dim": 6}, 4 * 8 * 4 + 3 * 4),  # heads * head_dim = 12, not the width
        ({"d_ff": 20}, -12 * (8 + 8 + 1)),
        ({"band_width": 2}, 0),
        ({"mlp": "geglu"}, 8 * 32 + 32),
        ({"norm": "rmsnorm_plus_one"}, -3 * 8),
        ({"linear_bias": "qkv"}, -(8 + 32 + 8)),
        ({"linear_bias": "out,mlp"}, -24),
        ({"bias": False, "linear_bias": "mlp"}, -(24 + 8) - 3 * 8),
        ({"position": "rope", "rope_pattern": "N", "rope_scaling": "linear(factor=2)"}, -4 * 8),
        ({"scale_embedding": True}, 0),
    ],
    ids=str,
)
def test_a_variant_adds_or_removes_the_parameters_counted_by_hand(change, difference):
    assert total(**change) - total() == difference


def test_tying_the_head_leaves_matmul_and_non_embedding_parameters_unchanged():
    tied, untied = (flops.parameters(ModelConfig(vocab_size=10, tied_head=tied)) for tied in (True, False))
    assert (tied.matmul, tied.non_embedding) == (untied.matmul, untied.non_embedding)


def test_counting_without_a_vocabulary_size_is_refused():
    with pytest.raises(UserError, match="model.vocab_size"):
        flops.parameters(ModelConfig())


def test_every_convention_of_a_tiny_gpt_worked_by_hand():
    n = 80 + 32 + 2 * 768 + 2 * 104 + 16
    matmul = 2 * (80 + 2 * 768)
    assert flops.flops_per_token(TINY) == {
        "6n": 6 * n,
        "6n_attn_full": 6 * n + 12 * 2 * 8 * 4,
        "6n_attn_causal": 6 * n + 12 * 2 * 8 * 2.5,
        "exact": 3 * (matmul + 4 * 2 * 8 * 2.5),
    }


def test_a_band_is_counted_in_every_second_layer_of_every_convention_with_attention():
    banded = ModelConfig(vocab_size=10, context_length=4, n_layers=2, d_model=8, n_heads=2, band_width=2)
    dense, banded = flops.flops_per_token(TINY), flops.flops_per_token(banded)
    mean_keys = (1 + 2 + 2 + 2) / 4
    assert banded["6n"] == dense["6n"]
    assert dense["6n_attn_full"] - banded["6n_attn_full"] == 12 * 8 * (4 - 2)
    assert dense["6n_attn_causal"] - banded["6n_attn_causal"] == 12 * 8 * (2.5 - mean_keys)
    assert dense["exact"] - banded["exact"] == 12 * 8 * (2.5 - mean_keys)


def test_a_window_of_every_layer_is_counted_in_each_and_of_three_in_four_in_three():
    shape = dict(vocab_size=10, context_length=4, n_layers=4, d_model=8, n_heads=2, band_width=2, position="rope")
    pairs = {"S": 4 * (1 + 2 + 2 + 2), "SSLS": 3 * (1 + 2 + 2 + 2) + (1 + 2 + 3 + 4)}
    for pattern, count in pairs.items():
        model = ModelConfig(**shape, window_pattern=pattern, rope_pattern="RN")
        assert gpt_counts.mixing_flops(model) == 4 * 8 * count
        assert gpt_counts.full_mixing_flops(model) == 4 * 8 * (4 * 2 + 2 * (pattern == "SSLS"))


@pytest.mark.parametrize("length,band", [(1, None), (7, None), (7, 1), (7, 3), (7, 7), (7, 20)])
def test_visible_pairs_equal_the_pairs_counted_one_by_one(length, band):
    pairs = [(q, k) for q in range(length) for k in range(length) if k <= q and (band is None or q - k < band)]
    assert gpt_counts.visible_pairs(length, band) == len(pairs)


@pytest.mark.parametrize("name", GPT3_FLOPS)
def test_6n_of_the_tokens_gives_the_training_flops_gpt3s_table_prints(name):
    config = shipped(name)
    assert flops.flops_per_token(config.model)["6n"] * config.train.tokens == pytest.approx(GPT3_FLOPS[name], rel=0.01)


def test_train_flops_are_those_of_whole_steps():
    config = Config(model=TINY, train=TrainConfig(tokens=33, batch_size=2))
    assert flops.train_flops(config) == 5 * 2 * flops.train_flops_per_sequence(TINY)


def test_mfu_of_palm_540b_is_the_published_one():
    """Chowdhery et al. 2022, table 3 and appendix B: 238.3K tokens/s on 6144 TPU v4; 46.2%, 45.7% without attention."""
    shape = {"n_layers": 118, "d_model": 18432, "n_heads": 48, "head_dim": 256, "n_kv_heads": 1}
    palm = ModelConfig(vocab_size=256_000, context_length=2048, mlp="swiglu", bias=False, position="rope", **shape)
    assert flops.parameters(palm).total == pytest.approx(540.35e9, rel=1e-4)
    per_token = flops.flops_per_token(palm)
    peak = 6144 * hardware.peak_flops("TPU v4")
    assert round(100 * flops.mfu(238.3e3, per_token["6n_attn_full"], peak), 1) == 46.2
    assert round(100 * flops.mfu(238.3e3, per_token["6n"], peak), 1) == 45.7


def test_counting_does_not_import_jax():
    code = "import sys, gptjax.flops, gptjax.hardware; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_layer_keeps_the_bytes_of_korthikanti_et_al():
    """Equation 1 without its 5 a s, which is recomputed: 34 h bytes per token and layer, and 4 a for the log-sums."""
    dropout = {"residual_dropout": 0.1, "attention_dropout": 0.1}
    model = ModelConfig(vocab_size=128, d_model=64, n_heads=4, context_length=32, **dropout)
    assert flops.kept_bytes(model, "none") == 34 * 64 + 4 * 4


@pytest.mark.parametrize(
    "remat,tolerance,fields",
    [
        ("none", 0.2, {}),
        ("none", 0.2, {"mlp": "swiglu", "n_kv_heads": 1, "norm": "rmsnorm", "dtype": "float32"}),
        ("dots", 0, {}),
        ("dots", 0, {"norm_position": "post", "final_norm": False}),
        ("mlp", 0, {}),
        ("mlp", 0, {"mlp": "swiglu", "n_kv_heads": 2}),
        ("attention", 0, {}),
        ("attention", 0, {"n_kv_heads": 2, "norm": "rmsnorm", "position": "rope"}),
        ("full", 0, {}),
    ],
    ids=str,
)
def test_kept_bytes_are_those_of_the_residuals_that_jax_keeps(remat, tolerance, fields):
    model = ModelConfig(vocab_size=128, context_length=256, n_layers=4, d_model=256, n_heads=4, remat=remat, **fields)
    carry = 0 if remat == "none" else model.d_model * flops.DTYPE_BYTES[model.dtype]
    expected = flops.kept_bytes(model, remat) + carry
    assert _residual_bytes_per_token(model) / model.n_layers == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("remat,dtype", [("none", "float32"), ("none", "bfloat16"), ("full", "float32")])
def test_an_lstms_kept_bytes_are_those_of_the_residuals_that_jax_keeps(remat, dtype):
    fields = {"architecture": "lstm", "vocab_size": 128, "context_length": 256, "n_layers": 4, "d_model": 256}
    model = ModelConfig(**fields, remat=remat, dtype=dtype)
    carry = 0 if remat == "none" else model.d_model * flops.DTYPE_BYTES[dtype]
    expected = flops.kept_bytes(model, remat) + carry
    assert _residual_bytes_per_token(model) / model.n_layers == pytest.approx(expected, rel=0.01)


def _residual_bytes_per_token(model):
    """Bytes stacked over the layers for the backward pass; the difference of two batches, so that weights cancel."""
    import jax
    from flax import nnx

    from gptjax.models import architectures

    graph, params, _ = architectures.abstract(model)

    def backward(params, token_BL):
        return jax.vjp(lambda params: nnx.merge(graph, params).activations(token_BL)[0], params)[1]

    def stacked_bytes(batch):
        token_BL = jax.ShapeDtypeStruct((batch, model.context_length), "int32")
        residuals = jax.tree.leaves(jax.eval_shape(backward, params, token_BL))
        return sum(x.size * x.dtype.itemsize for x in residuals if x.ndim > 1 and x.shape[0] == model.n_layers)

    return (stacked_bytes(5) - stacked_bytes(3)) / 2 / model.context_length


@pytest.mark.parametrize("architecture", catalogue.ARCHITECTURES)
def test_every_remat_policy_of_a_model_has_kept_bytes_and_recomputed_flops(architecture):
    """A table names its keys when it is asked for another."""
    entry = catalogue.entry(architecture)
    model = ModelConfig(vocab_size=65).with_architecture(architecture)
    config = Config(model=model, train=TrainConfig(steps=1))
    assert set(sys.modules[catalogue.model_class(architecture).__module__].REMAT) == set(entry.remat)
    unknown, counts = dataclasses.replace(model, remat="some"), catalogue.counts(architecture)
    for count in (counts.recomputed_flops, functools.partial(flops.kept_bytes, remat="some")):
        with pytest.raises(UserError, match=f"expected one of: {', '.join(entry.remat)}."):
            count(unknown)
    with pytest.raises(UserError, match="model.remat='some' is not known; .*expected one of: none, dots"):
        config.replace(model={"remat": "some"})
    kept = [flops.recomputed_flops_per_sequence(config.replace(model={"remat": name})) for name in entry.remat]
    assert kept[0] == 0 and all(kept[1:])


def test_activation_bytes_fall_with_microbatches_and_with_every_mesh_axis():
    one = {"replica": 1, "stage": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
    config = Config(model=ModelConfig(vocab_size=50257), train=TrainConfig(steps=1, batch_size=64))
    whole = flops.activation_bytes(config, one)
    for axis in ("replica", "fsdp", "sequence"):
        assert flops.activation_bytes(config, one | {axis: 2}) * 2 == whole
    assert flops.activation_bytes(config.replace(train={"microbatches": 2}), one) * 2 == whole
    assert whole / 2 < flops.activation_bytes(config, one | {"tensor": 2}) < whole


def test_each_stronger_remat_keeps_fewer_bytes():
    one = {"replica": 1, "stage": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
    config = Config(model=ModelConfig(vocab_size=50257), train=TrainConfig(steps=1, vocab_chunks=6))
    policies = ("none", "mlp", "dots", "attention", "full")
    kept = [flops.activation_bytes(config.replace(model={"remat": remat}), one) for remat in policies]
    assert kept == sorted(set(kept), reverse=True)


@pytest.mark.parametrize(
    "device_kind,tflops",
    [
        ("TPU v3", 61.5),  # a core, half a chip
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),  # half a chip
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
    ],
)
def test_peak_flops_are_those_of_one_device_as_jax_names_it(device_kind, tflops):
    assert hardware.peak_flops(device_kind) == tflops * 1e12


@pytest.mark.parametrize("device_kind", ["cpu", "TPU v9", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_an_unknown_device_has_no_peak(device_kind):
    assert hardware.peak_flops(device_kind) is None
    assert hardware.hbm_bytes(device_kind) is None


def test_memory_tells_the_two_a100_apart():
    assert hardware.hbm_bytes("NVIDIA A100-SXM4-80GB") == 2 * hardware.hbm_bytes("NVIDIA A100-SXM4-40GB") == 80 * 2**30


def test_the_measured_matmul_rate_of_this_machine_is_plausible():
    assert 1e8 < hardware.measure_matmul_flops("float32", size=256, products=4) < 1e16
