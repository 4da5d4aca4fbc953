"""Llama from and to Hugging Face: what its config.json may say, where its tensors go, models of that form made here.

Its logits and bytes are compared in huggingface_test.py, with the golden folders of all families.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from places import ROOT
from safetensors.numpy import load_file, save_file

import gptjax
from gptjax import cli
from gptjax.config.fields import ModelConfig
from gptjax.errors import UserError
from gptjax.huggingface import exporting, families, importing, llama
from gptjax.models import architectures

GOLDEN = ROOT / "tests" / "golden" / "hf"
SHAPE = ModelConfig(  # R = 3 queries share a key, and heads together are wider than the model
    vocab_size=257,
    context_length=24,
    n_layers=2,
    d_model=12,
    n_heads=6,
    n_kv_heads=2,
    head_dim=4,
    d_ff=10,
    norm="rmsnorm",
    mlp="swiglu",
    position="rope",
    rope_theta=300.0,
    bias=False,
    tied_head=False,
    scale_residual_init=False,
    dtype="float32",
)


def golden_copy(tmp_path, change=lambda tensors: tensors, drop=(), **fields) -> pathlib.Path:
    """A copy of a golden Llama with other tensors, without some fields of its config.json and with others."""
    folder = tmp_path / "hf"
    shutil.copytree(GOLDEN / "llama_plain", folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values = {name: value for name, value in values.items() if name not in drop} | fields
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def written_here(tmp_path, shape: ModelConfig) -> pathlib.Path:
    """A folder of random tensors of this shape, as an export would write it."""
    family = families.family_for(shape)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(family.config_out(shape, "float32", None)))
    rng, abstract = np.random.default_rng(0), architectures.abstract(shape)[1]
    tensors = {
        family.full_name(name): rng.normal(0, 0.4, each).astype(np.float32)
        for tensor in family.tensors(shape)
        for of_layer in tensor.names(shape)
        for name, each in zip(of_layer, tensor.shapes(abstract, shape))
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


# ---- tensors


def test_queries_keys_and_values_stand_by_group_and_come_apart_again():
    D, G, R, K = SHAPE.d_model, 2, 3, SHAPE.head_size
    q, k, v = (np.arange(heads * K * D).reshape(heads * K, D) + 1000 * i for i, heads in enumerate((G * R, G, G)))
    joined = llama.QKV.join((q, k, v), SHAPE)
    assert joined.shape == (D, G, R + 2, K)
    for d, g, n in itertools.product(range(D), range(G), range(K)):
        for r in range(R):
            assert joined[d, g, r, n] == q[(g * R + r) * K + n, d]
        assert (joined[d, g, R, n], joined[d, g, R + 1, n]) == (k[g * K + n, d], v[g * K + n, d])
    biases = llama.QKV.join((q[:, 0], k[:, 0], v[:, 0]), SHAPE)
    np.testing.assert_array_equal(biases, joined[0])
    for whole, parts in ((joined, (q, k, v)), (biases, (q[:, 0], k[:, 0], v[:, 0]))):
        for part, expected in zip(llama.QKV.part(whole, SHAPE), parts, strict=True):
            np.testing.assert_array_equal(part, expected)


def test_the_gate_comes_first_as_our_activation_takes_it():
    gate, value = np.arange(6).reshape(3, 2), 10 + np.arange(6).reshape(3, 2)  # [F, D]
    joined = llama.GATE_AND_VALUE.join((gate, value), SHAPE)
    assert joined.tolist() == [[[0, 2, 4], [10, 12, 14]], [[1, 3, 5], [11, 13, 15]]]  # [D, 2, F]
    for part, expected in zip(llama.GATE_AND_VALUE.part(joined, SHAPE), (gate, value), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_names_without_prefix_and_the_rates_of_older_releases_are_read_over(tmp_path):
    def older(tensors):
        bare = {name.removeprefix("model."): array for name, array in tensors.items()}
        return bare | {"layers.1.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}

    about = importing.import_folder(str(golden_copy(tmp_path, older)), str(tmp_path / "run"), "ids")
    importing.import_folder(str(GOLDEN / "llama_plain"), str(tmp_path / "plain"), "ids")
    loaded = [gptjax.load(tmp_path / name).params for name in ("run", "plain")]
    jax.tree.map(np.testing.assert_array_equal, *loaded)
    assert about["notes"] == [
        "layers.1.self_attn.rotary_emb.inv_freq not read: the rates of rotary positions as older releases kept them, which"
        " transformers computes anew, too"
    ]


def test_a_missing_part_of_ours_is_named_alone(tmp_path):
    def without_key(tensors):
        return {name: a for name, a in tensors.items() if name != "model.layers.1.self_attn.k_proj.weight"}

    with pytest.raises(UserError, match=r"it lacks layers\.1\.self_attn\.k_proj\.weight\.$"):
        importing.import_folder(str(golden_copy(tmp_path, without_key)), str(tmp_path / "run"), "ids")


def test_a_part_of_another_shape_is_named(tmp_path):
    with pytest.raises(UserError, match=r"k_proj.weight is \[12, 12\], but its config.json gives \[4, 12\]"):
        folder = golden_copy(tmp_path, num_key_value_heads=1)
        importing.import_folder(str(folder), str(tmp_path / "run"), "ids")


# ---- config.json


ROPE = {  # fields of config.json -> rope_theta
    "as releases before 5 say it": (dict(rope_theta=70.0, rope_scaling=None), 70.0),
    "as 5 says it": (dict(rope_parameters={"rope_type": "default", "rope_theta": 80}), 80),
    "inside before outside": (dict(rope_parameters={"rope_theta": 80.0}, rope_theta=70.0), 80.0),
    "scaling that is none": (dict(rope_scaling={"type": "default"}, rope_theta=70.0), 70.0),
    "scaling first": (dict(rope_scaling={"rope_theta": 60.0}, rope_parameters={"rope_theta": 80.0}), 60.0),
    "nowhere": ({}, 10000.0),
}


@pytest.mark.parametrize("name", ROPE)
def test_the_period_of_rotary_positions_is_read_where_transformers_reads_it(name):
    fields, theta = ROPE[name]
    shape = llama.FAMILY.config_in({"model_type": "llama", **fields}, "config.json")
    assert (shape.position, shape.rope_theta) == ("rope", theta)


@pytest.mark.parametrize("name", ROPE)
def test_transformers_reads_it_there(name):
    transformers = pytest.importorskip("transformers")
    fields, theta = ROPE[name]
    assert transformers.LlamaConfig(**json.loads(json.dumps(fields))).rope_parameters["rope_theta"] == theta


def test_what_a_config_does_not_say_is_as_transformers_has_it():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaConfig().to_dict()
    derived = {"n_kv_heads": 32, "head_dim": 128}  # which transformers writes out, and a config may leave open
    silent = dataclasses.replace(llama.FAMILY.config_in({}, "config.json"), **derived)
    assert silent == llama.FAMILY.config_in(theirs, "config.json")
    assert llama.FAMILY.unread(theirs) == []


BAD = {
    "longrope": (
        dict(rope_parameters={"rope_type": "longrope", "rope_theta": 5e5, "factor": 8.0}),
        r"scaled in another way \(rope_parameters: rope_type='longrope'\), not one of linear, dynamic, llama3, yarn",
    ),
    "no name": (
        dict(rope_scaling={"type": ["linear"]}),
        r"scaled in another way \(rope_scaling: rope_type=\['linear'\]",
    ),
    "llama3 in part": (
        dict(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}),
        "rope_parameters: rope_type='llama3.factor=8.0, original_context_length=10.': low_freq_factor is missing",
    ),
    "linear": (dict(rope_scaling={"type": "linear", "factor": "2"}), "rope_scaling: .*: factor='2' is no float"),
    "partial": (dict(partial_rotary_factor=0.5), "turn a part of each head only .partial_rotary_factor=0.5"),
    "partial inside": (dict(rope_parameters={"partial_rotary_factor": 0.25}), "partial_rotary_factor=0.25"),
    "theta": (
        dict(rope_parameters={"rope_theta": "x"}),
        "rope_parameters has rope_theta='x'; expected a number from 0",
    ),
    "no table": (dict(rope_scaling="linear"), "rope_scaling='linear'; expected a table of names and values"),
    "activation": (dict(hidden_act="gelu"), "its activation is 'gelu', not one of silu, swish"),
    "groups": (dict(num_key_value_heads=2), "num_key_value_heads does not divide num_attention_heads"),
    "odd": (dict(head_dim=5), r"a head has 5 dimensions \(head_dim\), of which rotary positions turn pairs"),
    "width": (dict(hidden_size=13), "num_attention_heads does not divide hidden_size"),
    "all": (
        dict(hidden_size=13, hidden_act="relu", quantization_config={"bits": 4}, rope_scaling={"type": "proportional"}),
        "activation is 'relu'.*does not divide hidden_size.*rope_type='proportional'.*weights are quantised",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_gptjax_has_no_equal_for_is_refused_by_name(name, tmp_path):
    fields, message = BAD[name]
    with pytest.raises(UserError, match=message):
        importing.import_folder(str(golden_copy(tmp_path, **fields)), str(tmp_path / "run"), "ids")
    assert not (tmp_path / "run").exists()


def test_fields_that_no_llama_has_are_named(tmp_path):
    fields = dict(sliding_window=8, n_ctx=3, rope_parameters={"rope_theta": 1e4, "rope_type": "default", "factor": 2.0})
    about = importing.import_folder(str(golden_copy(tmp_path, **fields)), str(tmp_path / "run"), "ids")
    assert about["notes"] == [
        "config.json: n_ctx, rope_parameters.factor, sliding_window not read, which no LlamaForCausalLM of transformers has"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(bias=True, tied_head=True, n_kv_heads=None),
        dict(head_dim=None, d_ff=None, norm_eps=0.1, init_std=0.3),
        dict(linear_bias="qkv,out", rope_scaling="linear(factor=2.0)"),
        dict(linear_bias="mlp", rope_scaling="yarn(factor=2.0, original_context_length=12, truncate=False)"),
    ],
)
def test_a_shape_that_is_written_is_read_back(changes):
    shape = dataclasses.replace(SHAPE, **changes)
    values = json.loads(json.dumps(llama.FAMILY.config_out(shape, "float32", 3)))
    read = families.family_of(values, "config.json").config_in(values, "config.json")
    derived = {"n_kv_heads": shape.kv_heads, "head_dim": shape.head_size, "d_ff": shape.ff_size}
    assert read == dataclasses.replace(shape, **derived)
    assert llama.FAMILY.unread(values) == []


# ---- models made here


@pytest.mark.parametrize(
    "changes,reason",
    [
        (dict(position="learned"), "its positions are learned"),
        (dict(norm="layernorm"), "its norms are layernorm"),
        (dict(norm_position="post"), "norm_position='post' with final_norm=True"),
        (dict(final_norm=False), "norm_position='pre' with final_norm=False"),
        (dict(mlp="relu2"), "its MLP is relu2, not one of swiglu"),
        (dict(attention_scale="linear"), "it has multipliers"),
    ],
)
def test_the_nearest_family_says_what_keeps_a_model_from_it(changes, reason):
    with pytest.raises(UserError, match=f"Hugging Face's LlamaForCausalLM: .*{reason}"):
        families.family_for(dataclasses.replace(SHAPE, **changes))


def test_a_family_says_all_that_keeps_a_model_from_it():
    shape = dataclasses.replace(SHAPE, qk_norm=True, logit_softcap=9.0)
    assert re.search(
        "its positions are rope .*; its norms are rmsnorm .*; it has no biases .*; 6 query heads share 2 key/value"
        " heads; 6 heads of 4 are not as wide as the model, 12; it normalises .*; it caps its logits .*; its MLP is swiglu",
        "; ".join(families.load("gpt2").reasons(shape)),
    )


def test_an_export_names_the_dropout_that_it_has_no_field_for(tmp_path):
    importing.import_folder(str(GOLDEN / "llama_plain"), str(tmp_path / "run"), "ids")
    loaded = gptjax.load(tmp_path / "run")
    assert exporting.export_run(loaded, str(tmp_path / "without"))["notes"] == []
    config = loaded.config.replace(model=dict(residual_dropout=0.1, attention_dropout=0.2))
    loaded = dataclasses.replace(loaded, config=config)
    assert exporting.export_run(loaded, str(tmp_path / "with"))["notes"] == [
        "model.residual_dropout=0.1 not written, for which LlamaForCausalLM has no field: no logit depends on it"
    ]
    assert json.loads((tmp_path / "with" / "config.json").read_text())["attention_dropout"] == 0.2


def test_what_is_exported_with_a_tokenizer_is_what_transformers_loads_and_computes(tmp_path, capsys):
    """A vocabulary of bytes beside a model_type of Llama, whose own tokenizer is another."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, workdir, out = written_here(tmp_path, SHAPE), tmp_path / "run", tmp_path / "out"
    assert cli.main(["import", "--from=hf", str(folder), f"--workdir={workdir}", "--tokenizer=bytes"]) == 0
    assert cli.main(["sample", f"--workdir={workdir}", "--prompt=ab", "--max_tokens=3", "--temperature=0"]) == 0
    assert cli.main(["export", f"--workdir={workdir}", "--to=hf", f"--out={out}", "--max_shard_size=4KB"]) == 0
    assert f"{out}: step 0 of {workdir} as LlamaForCausalLM, float32\n" in capsys.readouterr().out
    text, loaded = "ab Ü<|endoftext|>", gptjax.load(workdir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    token_L = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert token_L == loaded.tokenizer.encode(text).tolist()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    logit_LV = theirs(torch.tensor([token_L])).logits[0].detach().numpy()
    np.testing.assert_allclose(loaded.model(np.array([token_L]))[0], logit_LV, atol=2e-5 * np.abs(logit_LV).max())


# ---- the table


def test_more_heads_than_divide_the_width_keep_a_model_from_llama():
    shape = dataclasses.replace(SHAPE, n_heads=8, n_kv_heads=8)
    assert llama.FAMILY.reasons(shape) == ["its 8 heads do not divide its width, 12"]


def test_every_family_is_named_where_people_look(capsys):
    with pytest.raises(SystemExit):
        cli.main(["import", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    docs = (ROOT / "docs" / "huggingface.md").read_text()
    assert families.titles("or") in told
    for model_type, entry in families.FAMILIES.items():
        family = families.load(model_type)
        assert family.model_type == model_type
        assert f"{entry.title} (`{family.architecture}`" in docs
