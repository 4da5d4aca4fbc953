"""Mistral, Qwen2, Qwen3, SmolLM3 and Gemma: what their config.json may say otherwise than Llama's, and models made here.

Their logits and bytes are compared in huggingface_test.py, with the golden folders of all families.
"""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from llama_test import SHAPE
from places import ROOT
from safetensors.numpy import load_file

import gptjax
from gptjax import flops
from gptjax.errors import UserError
from gptjax.huggingface import exporting, families, importing, layer_types

GOLDEN = ROOT / "tests" / "golden" / "hf"
GAIN = (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)  # of mscale 2 and mscale_all_dim 1
NAMES = ("mistral", "qwen2", "qwen3", "smollm3", "gemma")
FOLDERS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.name.startswith(("llama", *NAMES)))


def read(model_type: str, **fields):
    values = {"model_type": model_type, **fields}
    return families.family_of(values, "config.json").config_in(values, "config.json")


# ---- config.json


@pytest.mark.parametrize("name", NAMES)
def test_what_a_config_does_not_say_is_as_transformers_has_it(name):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(name).to_dict()
    silent = read(name)
    derived = {"n_kv_heads": silent.kv_heads, "head_dim": silent.head_size}  # which transformers may write out
    assert dataclasses.replace(silent, **derived) == dataclasses.replace(read(**theirs), **derived)
    assert families.load(name).unread(theirs) == []


SAID = {  # fields of config.json -> fields of ModelConfig
    "mistral": ("mistral", dict(sliding_window=7), dict(band_width=7, window_pattern="S")),
    "mistral of old": ("mistral", dict(), dict(band_width=4096, window_pattern="S")),
    "mistral 0.2": ("mistral", dict(sliding_window=None), dict(band_width=None)),
    "qwen2 whose windows are off": ("qwen2", dict(sliding_window=7, max_window_layers=0), dict(band_width=None)),
    "qwen2 whose upper layers slide": (
        "qwen2",
        dict(num_hidden_layers=4, use_sliding_window=True, sliding_window=7, max_window_layers=3),
        dict(band_width=7, window_pattern="LLLS", linear_bias="qkv", bias=False),
    ),
    "qwen3 whose types go before": (
        "qwen3",
        dict(
            num_hidden_layers=4,
            use_sliding_window=True,
            max_window_layers=0,
            layer_types=["full_attention", "sliding_attention"] * 2,
        ),
        dict(band_width=4096, window_pattern="LS", qk_norm=True, head_dim=128),
    ),
    "qwen3 with biases": ("qwen3", dict(attention_bias=True), dict(linear_bias="qkv,out", bias=False)),
    "smollm3": ("smollm3", dict(), dict(rope_pattern="RRRN", band_width=None, rope_theta=2e6)),
    "smollm3 that ends in its period": (
        "smollm3",
        dict(num_hidden_layers=6),
        dict(rope_pattern="RRRNRR", band_width=None),
    ),
    "smollm3 with a list that is longer": (
        "smollm3",
        dict(num_hidden_layers=2, no_rope_layers=[0, 1, 1]),
        dict(rope_pattern="NR"),
    ),
    "smollm3 that slides": (
        "smollm3",
        dict(num_hidden_layers=4, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=9),
        dict(rope_pattern="RN", band_width=9, window_pattern="LS"),
    ),
    "gemma": ("gemma", dict(hidden_act="gelu"), dict(mlp="geglu", scale_embedding=True, norm="rmsnorm_plus_one")),
    "length outside": (
        "qwen3",
        dict(rope_scaling={"type": "yarn", "factor": 4}, original_max_position_embeddings=12),
        dict(rope_scaling="yarn(factor=4.0, original_context_length=12)"),
    ),
    "length nowhere, and a factor of two": (
        "qwen2",
        dict(
            max_position_embeddings=64,
            rope_parameters={"rope_type": "yarn", "factor": 4, "mscale": 2.0, "mscale_all_dim": 1.0, "beta_fast": 0},
        ),
        dict(rope_scaling=f"yarn(factor=4.0, original_context_length=64, attention_factor={GAIN})"),
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_a_config_says_of_layers_and_parts_is_read(name):
    model_type, fields, expected = SAID[name]
    shape = read(model_type, **fields)
    assert {field: getattr(shape, field) for field in expected} == expected


BAD = {
    "kinds": (
        "qwen3",
        dict(num_hidden_layers=2, layer_types=["chunked_attention", "full_attention"]),
        r"it has layers of other kinds \(layer_types: chunked_attention\)",
    ),
    "number of kinds": ("qwen2", dict(num_hidden_layers=2, layer_types=["full_attention"]), "names 1 layers of 2"),
    "width": (
        "smollm3",
        dict(num_hidden_layers=1, layer_types=["sliding_attention"]),
        "layer_types has sliding_attention, but use_sliding_window or sliding_window is not set",
    ),
    "numbers": ("smollm3", dict(no_rope_layers=[2] * 36), "no_rope_layers=.*; expected a list of 0 and 1"),
    "number of numbers": ("smollm3", dict(no_rope_layers=[1]), "no_rope_layers speaks of 1 layers of 36"),
    "mistral": (
        "mistral",
        dict(layer_types=["full_attention", "sliding_attention"]),
        "its layers are all sliding_attention by sliding_window, and full_attention by layer_types",
    ),
    "rates by kind": (
        "qwen3",
        dict(rope_parameters={"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 7.0}}),
        r"others in each kind of layer \(rope_parameters: full_attention, sliding_attention\)",
    ),
    "both ways": ("gemma", dict(use_bidirectional_attention=True), "its tokens see later ones"),
    "activation": ("gemma", dict(hidden_act="silu"), "its activation is 'silu', not one of gelu_pytorch_tanh"),
    "window": ("qwen2", dict(sliding_window=0), "sliding_window=0; expected a whole number of at least 1"),
    "a nearer relative": ("gemma2", dict(), "'gemma2', which has attention scores with a soft cap.*; gptjax imports"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_gptjax_has_no_equal_for_is_refused_by_name(name):
    model_type, fields, message = BAD[name]
    with pytest.raises(UserError, match=message):
        read(model_type, **fields)


def test_the_shortest_period_is_taken():
    periods = {"LLLL": "L", "LSLS": "LS", "LSL": "LSL", "LLSLLS": "LLS", "S": "S"}
    assert {letters: layer_types.shortest_period(letters) for letters in periods} == periods


# ---- parameters


@pytest.mark.parametrize("name", FOLDERS)
def test_as_many_parameters_are_counted_as_the_folder_holds(name):
    values = json.loads((GOLDEN / name / "config.json").read_text())
    held = sum(array.size for array in load_file(GOLDEN / name / "model.safetensors").values())
    assert flops.parameters(families.family_of(values, name).config_in(values, name)).total == held


@pytest.mark.parametrize("name", FOLDERS)
def test_a_shape_that_is_written_is_read_back(name):
    values = json.loads((GOLDEN / name / "config.json").read_text())
    shape = read(**values)
    written = families.load(values["model_type"]).config_out(shape, "float32", 3)
    derived = {"n_kv_heads": shape.kv_heads, "head_dim": shape.head_size}
    assert read(**json.loads(json.dumps(written))) == dataclasses.replace(shape, **derived)
    assert families.load(values["model_type"]).unread(written) == []


# ---- models made here


MADE = {  # fields beside those of Llama's SHAPE -> the family they are written as
    "llama": dict(rope_scaling="linear(factor=8.0)"),
    "mistral": dict(band_width=5, window_pattern="S"),
    "qwen2": dict(linear_bias="qkv", band_width=5),
    "qwen3": dict(qk_norm=True, linear_bias="qkv,out"),
    "smollm3": dict(rope_pattern="RN", band_width=5, window_pattern="S", linear_bias="mlp"),
    "gemma": dict(norm="rmsnorm_plus_one", mlp="geglu", scale_embedding=True),
}


@pytest.mark.parametrize("name", MADE)
def test_a_model_made_here_is_written_as_the_family_that_has_its_parts(name):
    shape = dataclasses.replace(SHAPE, **MADE[name])
    family = families.family_for(shape)
    assert family.model_type == name
    assert family.config_in(family.config_out(shape, "float32", None), "config.json") == shape


@pytest.mark.parametrize(
    "name,changes,reason",
    [
        ("mistral", dict(band_width=5), "some of its layers see 5 tokens, and others all"),
        ("qwen2", dict(), "it has biases in no linear map"),
        ("qwen3", dict(), "it does not normalise queries and keys"),
        ("smollm3", dict(linear_bias="out"), "it has biases in out"),
        ("gemma", dict(norm="rmsnorm_plus_one", mlp="geglu"), "it does not scale its embedding"),
        ("gemma", dict(scale_embedding=True), "its norms are rmsnorm .*its MLP is swiglu, not one of geglu"),
    ],
)
def test_a_family_says_what_a_model_lacks_of_it(name, changes, reason):
    found = families.load(name).reasons(dataclasses.replace(SHAPE, **changes))
    with pytest.raises(UserError, match=reason):
        raise UserError("; ".join(found))


def test_a_model_is_written_as_what_it_came_from_while_it_still_can_be(tmp_path):
    """A Mistral without a window has all that a Llama has."""
    importing.import_folder(str(GOLDEN / "mistral_no_window"), str(tmp_path / "run"), "ids")
    loaded = gptjax.load(tmp_path / "run")
    assert families.family_for(loaded.config.model).model_type == "llama"
    assert exporting.export_run(loaded, str(tmp_path / "out"))["architecture"] == "MistralForCausalLM"
    biased = loaded.config.replace(model=dict(linear_bias="qkv"))
    assert families.family_for(biased.model, "mistral").model_type == "qwen2"


def test_a_scaling_of_older_releases_comes_back_where_both_look(tmp_path):
    folder = shutil.copytree(GOLDEN / "llama_linear", tmp_path / "hf")
    values = json.loads((folder / "config.json").read_text())
    theta = values.pop("rope_parameters")["rope_theta"]
    values |= {"rope_theta": theta, "rope_scaling": {"type": "linear", "factor": 8.0}}
    (folder / "config.json").write_text(json.dumps(values))
    importing.import_folder(str(folder), str(tmp_path / "run"), "ids")
    loaded = gptjax.load(tmp_path / "run")
    expected = np.load(folder / "expected.npz")
    logit_BLV = np.asarray(loaded.model(expected["token_BL"]))
    np.testing.assert_allclose(logit_BLV, expected["logit_BLV"], atol=2e-5 * np.abs(logit_BLV).max())
    exporting.export_run(loaded, str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    settings = {"rope_type": "linear", "factor": 8.0}
    assert (written["rope_theta"], written["rope_scaling"]) == (theta, settings)
    assert written["rope_parameters"] == settings | {"rope_theta": theta}
