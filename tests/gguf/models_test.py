"""Models from and to GGUF: files of llama.cpp's package with transformers' logits, runs written and read back."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from places import ROOT

import gptjax
from gptjax import cli
from gptjax.data import tokenizers
from gptjax.errors import UserError
from gptjax.gguf import architectures, blocks, container, exporting, importing, rope
from gptjax.gguf.container import F32, U32, Value
from gptjax.huggingface import importing as from_folder

GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(file.stem for file in (GOLDEN / "gguf").glob("*.gguf"))


def imported(name: str, tmp_path):
    importing.import_file(str(GOLDEN / "gguf" / f"{name}.gguf"), str(tmp_path / "run"), "ids")
    return gptjax.load(tmp_path / "run")


def changed(name: str, tmp_path, entries=(), arrays=(), drop=()) -> str:
    """A copy of a golden file with other metadata and tensors."""
    with container.Reader(str(GOLDEN / "gguf" / f"{name}.gguf")) as reader:
        kept = {key: _value(value) for key, value in reader.metadata.items() if key not in drop}
        kept |= dict(entries)
        tensors = {key: reader.read(key) for key in reader.tensors if key not in drop} | dict(arrays)
    described = {key: (array.shape, blocks.TYPES["f32"]) for key, array in tensors.items()}
    with open(tmp_path / "changed.gguf", "wb") as file:
        writer = container.Writer(file, {key: value for key, value in kept.items() if value is not None}, described)
        for key, array in tensors.items():
            writer.write(key, array)
    return str(tmp_path / "changed.gguf")


def _value(value):
    return Value(value, F32 if isinstance(value, float) else U32) if type(value) in (int, float) else value


def assert_same_params(ours: dict, theirs: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_file_has_the_parameters_of_its_folder_and_transformers_logits(name, tmp_path):
    loaded = imported(name, tmp_path)
    from_folder.import_folder(str(GOLDEN / "hf" / name), str(tmp_path / "hf"), "ids")
    assert_same_params(loaded.params, gptjax.load(tmp_path / "hf").params)
    expected = np.load(GOLDEN / "hf" / name / "expected.npz")
    logit_BLV = np.asarray(loaded.model(expected["token_BL"]))
    assert np.abs(logit_BLV - expected["logit_BLV"]).max() < 2e-5 * np.abs(expected["logit_BLV"]).max()


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_file_has_the_tensors_that_llama_cpps_package_wrote(name, tmp_path):
    exporting.export_run(imported(name, tmp_path), str(tmp_path / "out.gguf"))
    with (
        container.Reader(str(tmp_path / "out.gguf")) as ours,
        container.Reader(str(GOLDEN / "gguf" / f"{name}.gguf")) as theirs,
    ):
        assert ours.tensors.keys() == theirs.tensors.keys()
        for key in ours.tensors:
            assert ours.read(key).tobytes() == theirs.read(key).tobytes()
        own = {"general.name", "general.file_type", "general.quantization_version", "llama.vocab_size"}
        assert own >= {key for key in ours.metadata if ours.metadata[key] != theirs.metadata.get(key)}


def test_an_exported_file_is_imported_as_the_same_run_through_the_command_line(tmp_path, capsys):
    run, out, again = tmp_path / "run", tmp_path / "out.gguf", tmp_path / "again"
    source = GOLDEN / "gguf" / "llama_grouped.gguf"
    assert cli.main(["import", str(source), f"--workdir={run}", "--tokenizer=ids"]) == 0
    assert cli.main(["export", f"--workdir={run}", "--to=gguf", f"--out={out}"]) == 0
    assert f"{out}: step 0 of {run} as llama, f32\nnote: no tokenizer was written" in capsys.readouterr().out
    assert cli.main(["import", str(out), "--from=gguf", f"--workdir={again}", "--tokenizer=ids", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored_as"] == ["f32"]
    ours, theirs = gptjax.load(run), gptjax.load(again)
    assert_same_params(ours.params, theirs.params)
    assert dataclasses.replace(theirs.config.model) == ours.config.model


@pytest.mark.parametrize("kind,most", [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3), ("q4_0", 0.13), ("q4_1", 0.1)])
def test_matrices_of_a_type_come_back_as_near_as_it_holds_them_and_vectors_as_they_were(kind, most, tmp_path):
    """A width of 24 is no multiple of 32: those matrices are f16, and a note says so."""
    loaded = imported("llama_grouped", tmp_path)
    loaded = dataclasses.replace(loaded, params=jax.tree.map(np.asarray, loaded.params))
    about = exporting.export_run(loaded, str(tmp_path / "out.gguf"), kind)
    with container.Reader(str(tmp_path / "out.gguf")) as reader:
        types = {key: tensor.type.name for key, tensor in reader.tensors.items()}
        for key, array in exported_arrays(loaded):
            back = reader.read(key)
            exact = array.ndim == 1
            assert np.abs(back - array).max() <= (0 if exact else most * np.abs(array).max())
    rows = {"f32" if "norm" in key else kind if blocks.TYPES[kind].values == 1 else "f16" for key in types}
    assert set(types.values()) == rows
    assert any("written as f16: their rows are no multiples of 32" in note for note in about["notes"]) == ("q" in kind)


def exported_arrays(loaded):
    family, shape, values = _family_of(loaded)
    return exporting._ours(architectures.ARCHITECTURES["llama"], values, family, shape, loaded.params, None)


def _family_of(loaded):
    from gptjax.huggingface import families

    shape = loaded.config.model
    family = families.family_for(shape)
    return family, shape, family.config_out(shape, "float32", None)


# ---- what files may say


def test_rows_that_turn_with_a_neighbour_become_halves_and_come_back():
    rows = np.arange(2 * 6)[:, None] * np.ones(3)
    theirs = architectures.to_their_rows(rows, heads=2)
    assert theirs[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    np.testing.assert_array_equal(architectures.from_their_rows(theirs, heads=2), rows)


REFUSED = {
    "architecture": (dict(entries={"general.architecture": "bert"}), "is of architecture 'bert'; gptjax imports llama"),
    "missing": (dict(drop=["llama.embedding_length"]), "lacks llama.embedding_length; expected a whole number"),
    "no number": (dict(entries={"llama.embedding_length": "x"}), "has 'x' as llama.embedding_length"),
    "zero": (dict(entries={"llama.attention.head_count": Value(0, U32)}), "head_count=0; expected"),
    "layers": (dict(entries={"llama.block_count": Value(2**32 - 1, U32)}), "says that it has 4,294,967,295 layers"),
    "width": (dict(entries={"llama.embedding_length": Value(2**31, U32)}), "but the metadata give"),
    "experts": (dict(entries={"llama.expert_count": Value(8, U32)}), "its MLPs are 8 experts"),
    "partial": (dict(entries={"llama.rope.dimension_count": Value(2, U32)}), "turn 2 of a head's 4 dimensions"),
    "tensor gone": (dict(drop=["blk.0.ffn_up.weight"]), "lacks blk.0.ffn_up.weight"),
    "tensor more": (dict(arrays={"blk.0.x.weight": np.ones(3, np.float32)}), "such a model, blk.0.x.weight"),
    "factors": (dict(arrays={rope.FACTORS: np.array([3, 1.0], np.float32)}), "no settings of Llama 3 give"),
    "not finite": (dict(arrays={"output_norm.weight": np.full(24, np.nan, np.float32)}), "are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gptjax_has_no_equal_for_is_refused_by_name(name, tmp_path):
    changes, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        importing.import_file(changed("llama_grouped", tmp_path, **changes), str(tmp_path / "run"), "ids")
    assert not (tmp_path / "run").exists()


def test_metadata_that_are_not_read_are_named(tmp_path):
    file = changed("llama_grouped", tmp_path, {"llama.logit_scale": Value(2.0, F32)})
    about = importing.import_file(file, str(tmp_path / "run"), "ids")
    assert "llama.logit_scale not read, which gptjax has no equal for" in about["notes"]


@pytest.mark.parametrize(
    "settings",
    [
        dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
        dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
        dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=500),
    ],
)
def test_llama_3s_scaling_is_read_back_from_its_factors(settings):
    values = {"rope_theta": 5e5, "head_dim": 64, "rope_parameters": {"rope_type": "llama3", **settings}}
    metadata, factors = rope.written(values)
    assert factors.min() == 1 and factors.max() == settings["factor"]
    read = rope.of_factors(factors, 5e5, 64)
    assert read["rope_type"] == "llama3"
    again = rope.llama3_factors(read, 5e5, 64)
    np.testing.assert_allclose(again, factors, rtol=1e-5)
    if settings["high_freq_factor"] == 4:
        assert read == {"rope_type": "llama3", **settings}


def test_llama_3s_factors_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **settings}
    )
    rates, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 2 * np.pi / rope.periods(5e5, 64)
    np.testing.assert_allclose(plain / rates.numpy(), rope.llama3_factors(settings, 5e5, 64), rtol=1e-5)


# ---- commands


@pytest.mark.parametrize(
    "words,message",
    [
        (["--to=gguf", "--dtype=float16"], "--dtype is of --to=hf, and --to=gguf is given; use --type"),
        (["--to=hf", "--type=q8_0"], "--type is of --to=gguf, and --to=hf is given; use --dtype"),
        (["--to=gguf", "--type=q6_k"], "--type=q6_k is not known; expected one of: f32, f16, bf16, q4_0, q4_1, q8_0"),
        (
            ["--to=onnx"],
            "--to=onnx is not known; expected hf, Hugging Face's transformers or peft, adapters of PEFT or gguf, llama.cpp's GGUF",
        ),
    ],
)
def test_flags_of_another_format_are_refused(words, message, tmp_path, capsys):
    if not (tmp_path / "run").exists():
        imported("llama_grouped", tmp_path)
    out = tmp_path / "out.gguf"
    assert cli.main(["export", f"--workdir={tmp_path / 'run'}", f"--out={out}", *words]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    loaded = imported("llama_grouped", tmp_path)
    shutil.copy(GOLDEN / "gguf" / "llama_grouped.gguf", tmp_path / "out.gguf")
    with pytest.raises(UserError, match="is there already"):
        exporting.export_run(loaded, str(tmp_path / "out.gguf"))
    assert isinstance(loaded.tokenizer, tokenizers.Tokenizer)


def test_a_value_that_a_type_cannot_hold_is_named_and_no_file_is_left(tmp_path):
    loaded = imported("llama_grouped", tmp_path)
    params = jax.tree.map(np.array, loaded.params)
    params["token_embedding"][0, 0] = 1e6
    loaded = dataclasses.replace(loaded, params=params)
    with pytest.raises(UserError, match="token_embd.weight has values beyond float16's 65504; use --type=bf16 or f32"):
        exporting.export_run(loaded, str(tmp_path / "out.gguf"), "f16")
    assert not list(tmp_path.glob("out.gguf*"))
