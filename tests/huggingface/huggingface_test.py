"""Models from and to Hugging Face: golden files that transformers made (golden/hf/make.py), and transformers itself."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import vocabularies
from places import ROOT
from safetensors import safe_open
from safetensors.numpy import save_file

import gptjax
from gptjax import cli
from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.data.tokenizers import load_tokenizer, sentencepiece
from gptjax.errors import UserError
from gptjax.huggingface import exporting, families, importing, tensors, vocabulary
from gptjax.run import run
from gptjax.training import main

GOLDEN = ROOT / "tests" / "golden" / "hf"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TOLERANCE = 2e-5  # of the largest logit


def tensors_of(folder) -> dict:
    found = {}
    for file in pathlib.Path(folder).glob("*.safetensors"):
        with safe_open(file, "np") as reader:
            found |= {name: reader.get_tensor(name) for name in reader.keys()}
    return found


def assert_same_tensors(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert (array.shape, array.dtype, array.tobytes()) == (b[name].shape, b[name].dtype, b[name].tobytes()), name


def changed_golden(tmp_path, name="gpt2_plain", change=lambda tensors: tensors, **config):
    """A copy of a golden folder with other tensors or another config.json."""
    folder = tmp_path / "changed"
    shutil.copytree(GOLDEN / name, folder)
    save_file(change(tensors_of(folder)), folder / "model.safetensors")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


def logits(loaded: run.Run, token_BL):
    return np.asarray(jax.jit(lambda token_BL: loaded.model(token_BL))(token_BL))


def relative_error(logit_BLV, expected_BLV) -> float:
    return np.abs(logit_BLV - expected_BLV).max() / np.abs(expected_BLV).max()


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """imported(name) is the Run of a golden folder, imported once."""
    runs, base = {}, tmp_path_factory.mktemp("imported")

    def of(name: str) -> run.Run:
        if name not in runs:
            importing.import_folder(str(GOLDEN / name), str(base / name), "ids")
            runs[name] = gptjax.load(base / name)
        return runs[name]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_an_imported_model_are_those_of_transformers(imported, name):
    expected = np.load(GOLDEN / name / "expected.npz")
    assert relative_error(logits(imported(name), expected["token_BL"]), expected["logit_BLV"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_import_then_export_gives_the_same_bytes_of_every_tensor(imported, name, tmp_path):
    exporting.export_run(imported(name), str(tmp_path / "out"))
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(GOLDEN / name))
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", GOLDEN / name))
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize(
    "dtype,name", [("float16", "gpt2_plain"), ("bfloat16", "gpt2_plain"), ("bfloat16", "llama_plain")]
)
def test_tensors_of_half_precision_come_back_the_same(tmp_path, dtype, name):
    numpy_dtype = {"float16": np.dtype(np.float16), "bfloat16": tensors.bfloat16}[dtype]
    folder = changed_golden(
        tmp_path, name, change=lambda all_of_them: {name: a.astype(numpy_dtype) for name, a in all_of_them.items()}
    )
    importing.import_folder(str(folder), str(tmp_path / "run"), "ids")
    exporting.export_run(gptjax.load(tmp_path / "run"), str(tmp_path / "out"))
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(folder))


@pytest.mark.parametrize("name,max_shard_bytes", [("gpt2_deep", 8_000), ("llama_grouped", 2_500)])
def test_shards_hold_what_one_file_holds_and_are_imported_as_it_is(imported, tmp_path, name, max_shard_bytes):
    exporting.export_run(imported(name), str(tmp_path / "shards"), max_shard_bytes=max_shard_bytes)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    sizes = [file.stat().st_size for file in (tmp_path / "shards").glob("*.safetensors")]
    assert len(sizes) > 5 and set(index["weight_map"]) == set(tensors_of(GOLDEN / name))
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in tensors_of(GOLDEN / name).values())
    assert_same_tensors(tensors_of(tmp_path / "shards"), tensors_of(GOLDEN / name))
    importing.import_folder(str(tmp_path / "shards"), str(tmp_path / "run"), "ids")
    again, before = gptjax.load(tmp_path / "run").params, imported(name).params
    jax.tree.map(np.testing.assert_array_equal, again, before)


def test_names_without_prefix_buffers_and_a_tied_head_written_out_are_read(imported, tmp_path):
    def older(all_of_them):
        bare = {name.removeprefix("transformer."): array for name, array in all_of_them.items()}
        return bare | {
            "lm_head.weight": bare["wte.weight"].copy(),
            "h.0.attn.bias": np.ones((1, 1, 10, 10), np.float32),
        }

    importing.import_folder(str(changed_golden(tmp_path, change=older)), str(tmp_path / "run"), "ids")
    loaded = gptjax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, imported("gpt2_plain").params)


BAD_CONFIGS = {
    "another model": (dict(model_type="bloom"), "model_type 'bloom'; gptjax imports openai-gpt, gpt2, .* and gemma"),
    "no name": (dict(model_type=["gpt2"]), r"model_type \['gpt2'\]; gptjax imports"),
    "relu": (dict(activation_function="relu"), "its activation is 'relu', not one of gelu_new"),
    "scaling": (dict(scale_attn_by_inverse_layer_idx=True), "scales attention by the layer"),
    "unscaled": (dict(scale_attn_weights=False), "attention is not scaled"),
    "no text": (dict(activation_function=["gelu"]), r"activation_function=\['gelu'\]; expected a text"),
    "layers apart": (dict(per_layer_config={"0": {"n_head": 1}}), "its layers are not all alike"),
    "all of them": (
        dict(n_head=5, activation_function="relu", pruned_heads={"0": [1]}, scale_attn_weights=False),
        "activation is 'relu', .*; n_head does not divide n_embd; its attention is not scaled .*; heads were taken out",
    ),
    "all values": (dict(n_head=0, resid_pdrop=2), "n_head=0; expected .*; it has resid_pdrop=2; expected a number"),
    "cross": (dict(add_cross_attention=True), "has cross-attention"),
    "heads": (dict(n_head=5), "n_head does not divide n_embd"),
    "layers": (
        dict(n_layer=3),
        "it lacks h.2.attn.c_attn.bias, h.2.attn.c_attn.weight, h.2.attn.c_proj.bias and 9 more",
    ),
    "fewer layers": (dict(n_layer=1), "it has h.1.attn.c_attn.bias, .* and 9 more, which is no part of it"),
    "width": (dict(n_inner=24), r"h.0.mlp.c_fc.weight is \[12, 48\], but its config.json gives \[12, 24\]"),
    "vocabulary": (dict(vocab_size=30), r"wte.weight is \[29, 12\], but its config.json gives \[30, 12\]"),
    "untied": (dict(tie_word_embeddings=False), "lacks lm_head.weight"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_what_is_not_such_a_model_is_refused(tmp_path, name):
    config, message = BAD_CONFIGS[name]
    with pytest.raises(UserError, match=message):
        importing.import_folder(str(changed_golden(tmp_path, **config)), str(tmp_path / "run"), "ids")
    assert not (tmp_path / "run").exists()


def _without(name):
    return lambda folder: (folder / name).unlink()


def _cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _mixed(folder):
    found = tensors_of(folder)
    found["transformer.wpe.weight"] = found["transformer.wpe.weight"].astype(np.float16)
    save_file(found, folder / "model.safetensors")


def _shard_missing(folder):
    index = {"weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BAD_FOLDERS = {
    "no config": (_without("config.json"), "has no config.json; expected a folder that save_pretrained"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "no tensors": (_without("model.safetensors"), "has no model.safetensors; expected a folder"),
    "pickled": (_pickled, "pytorch_model.bin could run any code"),
    "cut": (_cut, "model.safetensors cannot be read"),
    "mixed": (_mixed, "its tensors are float16, float32; expected all float32"),
    "shard": (_shard_missing, "lacks model-00001-of-00002.safetensors, which"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_that_lacks_something_is_refused(tmp_path, name):
    damage, message = BAD_FOLDERS[name]
    folder = changed_golden(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message):
        importing.import_folder(str(folder), str(tmp_path / "run"), "ids")


MODERN = dict(position="rope", norm="rmsnorm", mlp="swiglu", n_kv_heads=2, qk_norm=True, logit_softcap=9.0, bias=False)
REFUSED = {
    "banded": (dict(n_layers=4, band_width=3), r"some of its layers see 3 tokens only \(model.band_width\)"),
    "modern": (
        MODERN,
        "as Hugging Face's Qwen3ForCausalLM: it caps its logits .*; transformers has no such model",
    ),
    "heads": (dict(head_dim=16), "4 heads of 16 are not as wide as the model, 32"),
    "post with a final norm": (dict(norm_position="post"), "norm_position='post' with final_norm=True"),
    "gelu in GPT-1": (dict(norm_position="post", final_norm=False, mlp="gelu"), "MLP is gelu, not one of gelu_tanh"),
    "narrow GPT-1": (dict(norm_position="post", final_norm=False, d_ff=8), "GPT-1's MLP is 4 n_embd wide, this one 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_transformers_has_not_is_refused_with_every_reason(name):
    changes, message = REFUSED[name]
    shape = ModelConfig(**dict(vocab_size=65, n_layers=2, d_model=32, n_heads=4) | changes)
    with pytest.raises(UserError, match=message):
        families.family_for(shape)


@pytest.mark.parametrize("config", ["gpt1", "gpt2_small", "gpt2_xl", "gpt3_125m"])
def test_dense_configs_that_ship_can_be_written_and_read_back_as_they_are(config):
    from gptjax.config.config_file import load_config

    path = ROOT / "configs" / f"{config}.py"
    shape = load_config(str(path), ["model.band_width=None", "model.vocab_size=50257"]).model
    family = families.family_for(shape)
    read = family.config_in(family.config_out(shape, "float32", None), "config.json")
    kept = ("vocab_size", "context_length", "n_layers", "d_model", "n_heads", "ff_size", "norm_position", "final_norm")
    for field in (*kept, "norm_eps", "mlp", "tied_head", "init_std", "residual_dropout", "scale_residual_init"):
        assert getattr(read, field) == getattr(shape, field), field


# ---- tokenizers


def kinds():
    """A tokenizer of each kind that has files, and texts that it must encode alike from them."""
    texts = ["One''s  two\n\n ÀÉ中文 <|endoftext|> x", "", " leading"]
    return {
        "bytes": (tokenizers.from_spec("bytes"), texts),
        "chars": (tokenizers.TOKENIZERS["chars"]("\n 'abc中", has_eot=True), ["abc a\n'中b", "", "\n\n"]),
        "gpt2": (tokenizers.from_spec(f"gpt2:{vocabularies.GPT2_FOLDER}"), texts),
        "sentencepiece": (sentencepiece_tokenizer(), [*texts, "\u2581 a", *vocabularies.MULTILINGUAL.splitlines()]),
    }


@functools.cache
def sentencepiece_tokenizer():
    lines = vocabularies.MULTILINGUAL.splitlines() * 20
    model = sentencepiece.train_model(list(sentencepiece.training_lines(lines, 10**5)), 600)
    return sentencepiece.SentencePieceTokenizer(model)


@pytest.mark.parametrize("kind", ["bytes", "chars", "gpt2", "sentencepiece"])
def test_the_tokenizer_json_that_is_written_gives_the_same_ids(kind):
    library = pytest.importorskip("tokenizers")
    ours, texts = kinds()[kind]
    theirs = library.Tokenizer.from_str(vocabulary.files(ours, 64)["tokenizer.json"].decode())
    theirs.encode_special_tokens = True
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids, skip_special_tokens=False) == text


def test_a_tokenizer_json_comes_back_as_it_is_or_with_the_symbols_that_were_added(tmp_path):
    library = pytest.importorskip("tokenizers")
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(vocabularies.small_json()))
    ours = tokenizers.from_spec(f"hf:{file}")
    assert vocabulary.files(ours, 64)["tokenizer.json"] == file.read_bytes()
    more = ours.with_special(["<|user|>", "<|end|>"])
    theirs = library.Tokenizer.from_str(vocabulary.files(more, 64)["tokenizer.json"].decode())
    assert {name: theirs.token_to_id(name) for name in ("</s>", "<pad>", "<|user|>", "<|end|>")} == {
        name: more.special[name] for name in ("</s>", "<pad>", "<|user|>", "<|end|>")
    }
    assert theirs.encode("a b").ids == more.encode("a b").tolist()


def test_gpt2s_own_files_come_back(tmp_path):
    ours, _ = kinds()["gpt2"]
    for name, content in vocabulary.files(ours, 1024).items():
        (tmp_path / name).write_bytes(content)
    original = pathlib.Path(vocabularies.GPT2_FOLDER)
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((original / "encoder.json").read_text())
    assert (tmp_path / "merges.txt").read_text() == (original / "vocab.bpe").read_text()
    assert vocabulary.read(tmp_path)[0].hash == ours.hash and vocabulary.read(tmp_path)[1] == []


def test_a_model_without_tokenizer_says_what_to_do_and_takes_ids(imported, tmp_path):
    with pytest.raises(UserError, match="neither vocab.json and merges.txt nor tokenizer.json; give --tokenizer=SPEC"):
        importing.import_folder(str(GOLDEN / "gpt2_plain"), str(tmp_path / "run"))
    tokenizer = imported("gpt2_plain").tokenizer
    assert tokenizer.encode("3 28").tolist() == [3, 28] and tokenizer.decode([3, 28]) == " 3 28"
    with pytest.raises(UserError, match="'29' is no token id: .* ids from 0 to 28"):
        tokenizer.encode("3 29")
    for word in ("²", "-1", "9" * 5000):
        with pytest.raises(UserError, match="is no token id"):
            tokenizer.encode(f"3 {word}")
    with pytest.raises(UserError, match="the tokenizer has 257 entries, the model 29"):
        importing.import_folder(str(GOLDEN / "gpt2_plain"), str(tmp_path / "run"), "bytes")


# ---- as a user has it


def test_the_commands_import_sample_and_export(tmp_path, capsys):
    workdir, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["import", "--from=hf", str(GOLDEN / "gpt1_plain"), f"--workdir={workdir}", "--tokenizer=ids"]) == 0
    assert "2 layers, width 12, 3 heads" in capsys.readouterr().out
    assert cli.main(["sample", f"--workdir={workdir}", "--prompt=3 4", "--max_tokens=3", "--temperature=0"]) == 0
    assert len(capsys.readouterr().out.split()) == 5
    assert cli.main(["eval", f"--workdir={workdir}"]) == 2
    assert "was imported from" in capsys.readouterr().err
    nowhere = f"{workdir}/config.json/deeper"
    assert cli.main(["export", f"--workdir={workdir}", "--to=hf", f"--out={nowhere}"]) == 2
    assert f"--out={nowhere} cannot be written: Not a directory" in capsys.readouterr().err
    assert (
        cli.main(["export", f"--workdir={workdir}", "--to=hf", f"--out={out}", "--max_shard_size=8KB", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["architecture"] == "OpenAIGPTLMHeadModel"
    assert_same_tensors(tensors_of(out), tensors_of(GOLDEN / "gpt1_plain"))
    for wrong, message in (
        (["export", f"--workdir={workdir}", "--to=hf", f"--out={out}"], "is not empty"),
        (["export", f"--workdir={workdir}", "--to=onnx", f"--out={out}"], "--to=onnx is not known; expected hf"),
        (
            ["export", f"--workdir={workdir}", "--to=hf", "--out=x", "--max_shard_size=5X"],
            "--max_shard_size=5X is no size",
        ),
        (["export", f"--workdir={workdir}", "--to=hf", f"--out={out}2", "--dtype=int8"], "--dtype=int8 is not known"),
        (["import", "--from=hf", str(GOLDEN / "gpt1_plain"), f"--workdir={workdir}"], "is not empty"),
        (["import", "--from=hf", str(tmp_path / "none"), f"--workdir={workdir}2"], "has no config.json"),
    ):
        assert cli.main(wrong) == 2
        assert message in capsys.readouterr().err


def test_an_imported_model_is_not_trained_further(imported):
    workdir = str(imported("gpt2_plain").directory.path)
    config = Config(
        model=ModelConfig(context_length=16, n_layers=1, d_model=8, n_heads=1), train=TrainConfig(steps=1, batch_size=8)
    )
    with pytest.raises(UserError, match="parameters only, no text of its own and no optimizer state"):
        main.train(config, workdir)


def test_a_trained_run_exported_and_imported_has_the_same_parameters(values, tmp_path):
    from gptjax.config.config_file import from_dict

    config = from_dict(values | {"train": values["train"] | {"steps": 2}})
    assert main.train(config, str(tmp_path / "run")) == 0
    exporting.export_run(gptjax.load(tmp_path / "run"), str(tmp_path / "hf"))
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    importing.import_folder(str(tmp_path / "hf"), str(tmp_path / "again"), str(tmp_path / "run" / "tokenizer"))
    before, after = gptjax.load(tmp_path / "run"), gptjax.load(tmp_path / "again")
    size = tokenizer.vocab_size

    def same(a, b):  # padding, which training moves, is zero after import
        rows = slice(size if a.shape[0] == before.config.model.padded_vocab_size else None)
        np.testing.assert_array_equal(a[rows], b[rows])

    jax.tree.map(same, before.params, after.params)
    ids = tokenizer.encode("abc de")[None]
    np.testing.assert_array_equal(logits(before, ids), logits(after, ids))


# ---- where torch is installed


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_what_is_written_and_computes_the_same(imported, name, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    exporting.export_run(imported(name), str(tmp_path / "out"), max_shard_bytes=10_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    expected = np.load(GOLDEN / name / "expected.npz")
    logit_BLV = theirs(torch.tensor(expected["token_BL"])).logits.detach().numpy()
    np.testing.assert_allclose(logit_BLV, expected["logit_BLV"], atol=1e-6 * np.abs(expected["logit_BLV"]).max())
    assert relative_error(logits(imported(name), expected["token_BL"]), logit_BLV) < TOLERANCE


@pytest.mark.parametrize("kind", ["bytes", "chars", "gpt2", "sentencepiece"])
def test_transformers_loads_the_tokenizer_files_with_the_same_ids(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, texts = kinds()[kind]
    for name, content in vocabulary.files(ours, 64).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == ours.eot_id
