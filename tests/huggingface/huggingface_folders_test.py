"""What else a folder of transformers holds: end tokens, vocabularies of one's own, heads, links, values that are none."""

import json
import pathlib

import jax
import numpy as np
import pytest
import vocabularies
from safetensors.numpy import load_file, save_file

import gptjax
from gptjax import cli
from gptjax.data import tokenizers
from gptjax.errors import UserError
from gptjax.generation.text import prompt_ids
from gptjax.huggingface import exporting, importing, tensors
from gptjax.run.run import Run

WIDTH, CONTEXT = 16, 32
SHAPES = {
    "wpe.weight": (CONTEXT, WIDTH),
    "h.0.ln_1.weight": (WIDTH,),
    "h.0.ln_1.bias": (WIDTH,),
    "h.0.attn.c_attn.weight": (WIDTH, 3 * WIDTH),
    "h.0.attn.c_attn.bias": (3 * WIDTH,),
    "h.0.attn.c_proj.weight": (WIDTH, WIDTH),
    "h.0.attn.c_proj.bias": (WIDTH,),
    "h.0.ln_2.weight": (WIDTH,),
    "h.0.ln_2.bias": (WIDTH,),
    "h.0.mlp.c_fc.weight": (WIDTH, 4 * WIDTH),
    "h.0.mlp.c_fc.bias": (4 * WIDTH,),
    "h.0.mlp.c_proj.weight": (4 * WIDTH, WIDTH),
    "h.0.mlp.c_proj.bias": (WIDTH,),
    "ln_f.weight": (WIDTH,),
    "ln_f.bias": (WIDTH,),
}


def weights(vocab_size: int, always: int | None = None) -> dict[str, np.ndarray]:
    """Of a GPT-2 of one layer; with `always`, one that says this token whatever stands before."""
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (vocab_size, WIDTH), **SHAPES}
    made = {f"transformer.{name}": rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    if always is not None:
        made["transformer.wte.weight"][always] *= 9
        made["transformer.ln_f.weight"][:] = 0
        made["transformer.ln_f.bias"] = 50 * made["transformer.wte.weight"][always]
    return made


def write(folder: pathlib.Path, vocab_size: int, always=None, extra=None, files=(), **config) -> pathlib.Path:
    """A folder as save_pretrained writes it. files: name -> JSON, beside config.json."""
    folder.mkdir(exist_ok=True)
    values = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab_size}
    values |= {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": CONTEXT} | config
    for name, content in {"config.json": values, **dict(files)}.items():
        (folder / name).write_text(json.dumps(content))
    save_file(weights(vocab_size, always) | (extra or {}), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def own():
    """The library's tokenizer of 270 entries, [BOS] 0 and [EOS] 1."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    text = "the cat sat on the mat and the dog ran. " * 20
    made.train_from_iterator([text], vocab_size=270, special_tokens=["[BOS]", "[EOS]"], show_progress=False)
    return made


def imported(folder, tmp_path, spec=None, **options) -> tuple[Run, list[str]]:
    about = importing.import_folder(str(folder), str(tmp_path / "run"), spec, **options)
    return gptjax.load(tmp_path / "run"), about["notes"]


def ended(loaded: Run, prompt="the cat") -> list[str]:
    return [c.finish_reason for c in loaded.generate(prompt, max_tokens=3, temperature=0)]


# ---- end tokens


@pytest.mark.parametrize("vocab_size", [270, 384])
def test_texts_of_an_imported_model_begin_and_end_where_its_config_says_and_so_does_an_export(
    own, tmp_path, vocab_size
):
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    generation = {"_from_model_config": True, **ends}
    folder = write(tmp_path / "hf", vocab_size, always=1, files={"generation_config.json": generation}, **ends)
    own.save(str(folder / "tokenizer.json"))
    loaded, notes = imported(folder, tmp_path)
    tokenizer = loaded.tokenizer
    assert (tokenizer.eot_id, tokenizer.bos_id, tokenizer.vocab_size, notes) == (1, 0, 270, [])
    assert prompt_ids(tokenizer, "the cat").tolist() == [0, *own.encode("the cat").ids]
    assert ended(loaded) == ["eot"]
    exporting.export_run(loaded, str(tmp_path / "out"))
    written = {
        name: json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "generation_config.json")
    }
    assert {name: written["config.json"][name] for name in ends} == ends
    assert written["generation_config.json"] == generation
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    names = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (names["bos_token"], names["eos_token"]) == ("[BOS]", "[EOS]")


FIRST = "generation_config.json"
# what files say -> (end, beginning, what a note says)
SAID = {
    "generation first": ({FIRST: {"eos_token_id": 1}, "config.json": {"eos_token_id": 0}}, 1, 1, "config.json with 0"),
    "config": ({"config.json": {"eos_token_id": 1, "bos_token_id": 0}}, 1, 0, None),
    "list": ({FIRST: {"eos_token_id": [1, 0]}}, 1, 1, "of eos_token_id the first ends texts, 1; 0 do not here"),
    "list with a text": ({FIRST: {"eos_token_id": [40, 0]}}, 0, 0, "eos_token_id=40 is a token of texts, "),
    "name": ({"tokenizer_config.json": {"eos_token": "[EOS]", "bos_token": "[BOS]"}}, 1, 0, None),
    "written out": ({"special_tokens_map.json": {"eos_token": {"content": "[EOS]", "lstrip": False}}}, 1, 1, None),
    "no such name": (
        {"tokenizer_config.json": {"eos_token": "</x>"}, "special_tokens_map.json": {"eos_token": "[EOS]"}},
        1,
        1,
        "tokenizer_config.json: eos_token='</x>' is no token of the tokenizer",
    ),
    "id first": (
        {"config.json": {"eos_token_id": 1}, "tokenizer_config.json": {"eos_token": "[BOS]"}},
        1,
        1,
        "config.json ends texts with token 1, tokenizer_config.json with 0",
    ),
    "stale default": (
        {
            "config.json": {"eos_token_id": 50256, "bos_token_id": 50256},
            "tokenizer_config.json": {"eos_token": "[EOS]"},
        },
        1,
        1,
        "eos_token_id=50256 is none of the model's 384 tokens",
    ),
    "beyond the tokenizer": ({"config.json": {"eos_token_id": 300}}, 300, 300, None),
    "nothing": ({}, None, None, "nothing names an end token: texts go on to --max_tokens"),
    "only a beginning": ({"config.json": {"bos_token_id": 0}}, None, 0, "nothing names an end token"),
}


@pytest.mark.parametrize("name", SAID)
def test_the_files_that_name_an_end_token_are_asked_in_transformers_order(own, name, tmp_path):
    said, eot_id, bos_id, note = SAID[name]
    config = said.get("config.json", {})
    files = {file: content for file, content in said.items() if file != "config.json"}
    folder = write(tmp_path / "hf", 384, files=files, **config)
    own.save(str(folder / "tokenizer.json"))
    about = importing.import_folder(str(folder), str(tmp_path / "run"))
    assert (about["eot_id"], about["bos_id"]) == (eot_id, bos_id)
    assert (note is None and about["notes"] == []) or any(note in each for each in about["notes"])
    tokenizer = tokenizers.load_tokenizer(tmp_path / "run" / "tokenizer")
    assert (tokenizer.eot_id, tokenizer.bos_id) == (eot_id, bos_id)
    assert tokenizer.vocab_size == max(270, 301 if eot_id == 300 else 0)  # no new id for an end that nobody trained
    text = "the [EOS] cat"
    assert tokenizer.encode(text).tolist() == tokenizers.from_spec(f"hf:{folder}").encode(text).tolist()


def test_transformers_ends_texts_at_the_same_token(own, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write(tmp_path / "hf", 384, always=1, files={FIRST: {"eos_token_id": 1}}, eos_token_id=0, bos_token_id=0)
    own.save(str(folder / "tokenizer.json"))
    ids = torch.tensor([own.encode("the cat").ids])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist() == [1]
    assert ended(imported(folder, tmp_path)[0]) == ["eot"]


def test_a_model_without_tokenizer_ends_its_texts_too_and_adds_no_token_to_a_prompt(tmp_path):
    loaded, _ = imported(write(tmp_path / "hf", 40, always=1, bos_token_id=0, eos_token_id=1), tmp_path, "ids")
    assert prompt_ids(loaded.tokenizer, "3 1").tolist() == [3, 1] and loaded.tokenizer.decode([3, 1]) == " 3 1"
    assert ended(loaded, "3 4") == ["eot"]
    assert np.isfinite(loaded.loss("3 4 5").loss_L[1:]).all()


def test_gpt2_keeps_its_kind_and_hash(tmp_path):
    ours = tokenizers.from_spec(f"gpt2:{vocabularies.GPT2_FOLDER}")
    folder = write(tmp_path / "hf", 50257, bos_token_id=50256, eos_token_id=50256)
    for theirs, name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (folder / name).write_bytes((vocabularies.GPT2_FOLDER / theirs).read_bytes())
    about = importing.import_folder(str(folder), str(tmp_path / "run"))
    tokenizer = tokenizers.load_tokenizer(tmp_path / "run" / "tokenizer")
    assert (about["tokenizer"], about["notes"], tokenizer.hash) == ("gpt2", [], ours.hash)
    assert prompt_ids(tokenizer, "a").tolist() == [50256, 64]


# ---- vocabularies of one's own


@pytest.mark.parametrize("files", ["all", "two", "one"])
def test_vocab_and_merges_of_ones_own_are_read_alone_and_beside_tokenizer_json(own, files, tmp_path):
    folder = write(tmp_path / "hf", 270, bos_token_id=0, eos_token_id=1)
    if files != "one":
        own.save_model(str(folder))
    if files != "two":
        own.save(str(folder / "tokenizer.json"))
    loaded, notes = imported(folder, tmp_path)
    assert loaded.tokenizer.encode("the cat sat").tolist() == own.encode("the cat sat").ids
    assert (loaded.tokenizer.eot_id, loaded.tokenizer.vocab_size, notes) == (1, 270, [])


def test_a_tokenizer_json_that_adds_to_gpt2s_two_files_counts(tmp_path):
    folder = write(tmp_path / "hf", 50258, eos_token_id=50256)
    made = vocabularies.library_tokenizer("gpt2")  # which has <|mask|> besides
    made.save(str(folder / "tokenizer.json"))
    for theirs, name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (folder / name).write_bytes((vocabularies.GPT2_FOLDER / theirs).read_bytes())
    about = importing.import_folder(str(folder), str(tmp_path / "run"))
    assert about["tokenizer"] == "hf" and "tokenizer.json is the tokenizer" in about["notes"][0]
    assert tokenizers.load_tokenizer(tmp_path / "run" / "tokenizer").special["<|mask|>"] == 50257


# ---- tensors and fields


def head(vocab_size=40) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.1, (vocab_size, WIDTH)).astype(np.float32)


def test_a_head_that_differs_from_the_embedding_is_read_whatever_the_config_says_of_ties(tmp_path):
    folder = write(tmp_path / "hf", 40, extra={"lm_head.weight": head()}, tie_word_embeddings=True)
    loaded, notes = imported(folder, tmp_path, "ids")
    assert any("lm_head.weight is not wte.weight: the head is read for itself" in note for note in notes)
    assert not loaded.config.model.tied_head
    np.testing.assert_array_equal(loaded.params["head"][:40], head())
    exporting.export_run(loaded, str(tmp_path / "out"))
    ours, theirs = (load_file(at / "model.safetensors") for at in (tmp_path / "out", folder))
    assert {name: a.tobytes() for name, a in ours.items()} == {name: a.tobytes() for name, a in theirs.items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_logits_with_such_a_head_are_those_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write(tmp_path / "hf", 40, extra={"lm_head.weight": head()}, tie_word_embeddings=True)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = imported(folder, tmp_path, "ids")
    exporting.export_run(loaded, str(tmp_path / "out"))
    token_BL = np.arange(20).reshape(2, 10)
    ours_BLV = np.asarray(jax.jit(lambda token_BL: loaded.model(token_BL))(token_BL))
    for at in (folder, tmp_path / "out"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(at).eval()
        logit_BLV = theirs(torch.tensor(token_BL)).logits.detach().numpy()
        assert np.abs(ours_BLV[..., :40] - logit_BLV).max() < 2e-5 * np.abs(logit_BLV).max()


def test_a_head_that_is_the_embedding_is_tied_and_no_more_said(tmp_path):
    embedding = weights(40)["transformer.wte.weight"]
    folder = write(tmp_path / "hf", 40, extra={"lm_head.weight": embedding.copy()}, eos_token_id=1)
    loaded, notes = imported(folder, tmp_path, "ids")
    assert loaded.config.model.tied_head and notes == []


def test_what_is_not_read_is_named(own, tmp_path):
    mask = {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.float32))}
    files = {FIRST: {"temperature": 0.7, "top_k": 5}, "tokenizer_config.json": {"add_prefix_space": True}}
    odd = dict(rope_theta=10.0, afn="gelu", n_ctx=32)
    folder = write(tmp_path / "hf", 270, extra=mask, files=files, eos_token_id=1, **odd)
    own.save(str(folder / "tokenizer.json"))
    _, notes = imported(folder, tmp_path)
    assert notes == [
        "config.json: afn, rope_theta not read, which no GPT2LMHeadModel of transformers has",
        "generation_config.json: temperature, top_k not read; give gptjax sample its own settings",
        "tokenizer_config.json: add_prefix_space not read: a text has the tokens of its own, no more",
        "h.0.attn.bias not read: the causal mask as older releases kept it, which transformers skips too",
    ]


def test_transformers_other_names_of_fields_are_read(tmp_path):
    folder = write(tmp_path / "hf", 40)
    values = json.loads((folder / "config.json").read_text())
    for other, name in (
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("max_position_embeddings", "n_positions"),
    ):
        values[other] = values.pop(name)
    (folder / "config.json").write_text(json.dumps(values))
    loaded, _ = imported(folder, tmp_path, "ids")
    assert (loaded.config.model.d_model, loaded.config.model.n_layers, loaded.config.model.context_length) == (
        16,
        1,
        32,
    )


@pytest.mark.parametrize(
    "config,message",
    [
        (dict(layer_norm_epsilon="x"), "layer_norm_epsilon='x'; expected a number from 0"),
        (dict(resid_pdrop=1), "resid_pdrop=1; expected a number from 0 to below 1"),
        (dict(tie_word_embeddings=None), "tie_word_embeddings=None; expected true or false"),
        (dict(hidden_size="x"), " hidden_size='x'; expected a whole number of at least 1"),
        (dict(n_inner=0), "n_inner=0; expected a whole number of at least 1"),
        (dict(quantization_config={"bits": 4}), "its weights are quantised"),
        (dict(pruned_heads={"0": [1]}), "heads were taken out of it"),
    ],
)
def test_fields_that_cannot_be_are_refused(config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        importing.import_folder(str(write(tmp_path / "hf", 40, **config)), str(tmp_path / "run"), "ids")


def test_a_tensor_under_both_of_its_names_is_refused(tmp_path):
    folder = write(tmp_path / "hf", 40, extra={"wpe.weight": np.zeros((CONTEXT, WIDTH), np.float32)})
    with pytest.raises(UserError, match="has both wpe.weight and transformer.wpe.weight; expected one of them"):
        importing.import_folder(str(folder), str(tmp_path / "run"), "ids")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name_unless_asked_for(value, tmp_path, capsys):
    folder = write(tmp_path / "hf", 40)
    held = load_file(folder / "model.safetensors")
    held["transformer.h.0.mlp.c_fc.weight"][3, 5] = value
    save_file(held, folder / "model.safetensors")
    command = ["import", "--from=hf", str(folder), f"--workdir={tmp_path / 'run'}", "--tokenizer=ids"]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert (
        f"transformer.h.0.mlp.c_fc.weight has 1 values of 1024 that are not finite, the first {value} at [3, 5]" in told
    )
    assert "--allow_nonfinite" in told and not (tmp_path / "run").exists()
    assert cli.main([*command, "--allow_nonfinite"]) == 0
    assert "note: transformer.h.0.mlp.c_fc.weight hold NaN or infinities" in capsys.readouterr().out
    kept = gptjax.load(tmp_path / "run").params["blocks"]["mlp"]["up"]["weight"]
    np.testing.assert_array_equal(kept[0], held["transformer.h.0.mlp.c_fc.weight"])


# ---- files


def sharded(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The folder with its tensors in a shard of this name, by an index."""
    shard = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    index = {"weight_map": dict.fromkeys(load_file(shard), name)}
    (folder / tensors.INDEX).write_text(json.dumps(index))
    return shard


@pytest.mark.parametrize(
    "to", ["../outside/model.safetensors", "ABSOLUTE", "a/../../x.safetensors", "C:\\x.safetensors"]
)
def test_an_index_stays_inside_its_folder(to, tmp_path):
    folder = write(tmp_path / "hf", 40)
    (tmp_path / "outside").mkdir()
    name = str(tmp_path / "outside" / "model.safetensors") if to == "ABSOLUTE" else to
    sharded(folder, name).rename(tmp_path / "outside" / "model.safetensors")
    with pytest.raises(UserError, match="which lies outside of its folder"):
        importing.import_folder(str(folder), str(tmp_path / "run"), "ids")
    assert not (tmp_path / "run").exists()


def test_links_of_hugging_faces_cache_are_followed(tmp_path):
    folder = write(tmp_path / "blobs", 40)
    sharded(folder, "model-00001-of-00001.safetensors")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    loaded, _ = imported(snapshot, tmp_path, "ids")
    np.testing.assert_array_equal(loaded.params["token_embedding"][:40], weights(40)["transformer.wte.weight"])


def test_an_index_that_names_a_tensor_its_file_lacks_is_refused_and_what_it_leaves_out_is_read(tmp_path):
    folder = write(tmp_path / "hf", 40)
    sharded(folder, "model-00001-of-00001.safetensors")
    index = json.loads((folder / tensors.INDEX).read_text())
    del index["weight_map"]["transformer.wpe.weight"]
    (folder / tensors.INDEX).write_text(json.dumps(index))
    loaded, _ = imported(folder, tmp_path, "ids")
    np.testing.assert_array_equal(loaded.params["position_embedding"], weights(40)["transformer.wpe.weight"])
    index["weight_map"]["transformer.more"] = "model-00001-of-00001.safetensors"
    (folder / tensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="has no transformer.more, which model.safetensors.index.json says it has"):
        importing.import_folder(str(folder), str(tmp_path / "again"), "ids")


def test_one_file_goes_before_shards_as_for_transformers(tmp_path):
    folder = write(tmp_path / "hf", 40)
    stale = {name: a + 1 for name, a in load_file(folder / "model.safetensors").items()}
    sharded(folder, "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    save_file(stale, folder / "model-00001-of-00001.safetensors")
    loaded, notes = imported(folder, tmp_path, "ids")
    np.testing.assert_array_equal(loaded.params["token_embedding"][:40], weights(40)["transformer.wte.weight"])
    assert any("model.safetensors.index.json and its files are not read" in note for note in notes)
