"""Tokenizers from and to GGUF files: the ids are those of llama.cpp (golden/gguf/make_llama_cpp.py)."""

import io
import json

import gguf_kinds
import jax
import numpy as np
import pytest
from places import ROOT

import gptjax
from gptjax.data import tokenizers
from gptjax.data.tokenizers import save_tokenizer
from gptjax.errors import UserError
from gptjax.gguf import container, exporting, importing, vocabulary
from gptjax.gguf.container import F32, I32, Value
from gptjax.huggingface import importing as from_folder

LLAMA_CPP = json.loads((ROOT / "tests" / "golden" / "gguf" / "llama_cpp.json").read_text())
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def made():
    """made(name) is a tokenizer of gguf_kinds, made once."""
    tokenizer_of = {}

    def of(name: str) -> tokenizers.Tokenizer:
        if name not in tokenizer_of:
            tokenizer_of[name] = gguf_kinds.tokenizer(name)
        return tokenizer_of[name]

    return of


def stored(metadata: dict, tmp_path) -> dict:
    """Metadata as a file gives them back."""
    file = io.BytesIO()
    container.Writer(file, metadata, {}).finish()
    (tmp_path / "tokenizer.gguf").write_bytes(file.getvalue())
    with container.Reader(str(tmp_path / "tokenizer.gguf")) as reader:
        return reader.metadata


@pytest.mark.parametrize("name", gguf_kinds.NAMES)
def test_ids_are_those_of_llama_cpp_before_a_file_and_after_it(made, name, tmp_path):
    ours = made(name)
    metadata, notes = vocabulary.metadata_out(ours, ours.vocab_size + 3)
    again, more = vocabulary.read(stored(metadata, tmp_path), "a file")
    assert notes == more == [] and again.vocab_size - again.invented_eot == ours.vocab_size + 3
    for tokenizer in (ours, again):
        assert [tokenizer.encode(text).tolist() for text in gguf_kinds.TEXTS] == LLAMA_CPP[name]["ids"]
    assert {again.special[key] for key in ours.special if key in again.special} >= {ours.eot_id}


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_a_run_its_file_and_the_run_of_that_file_write_what_llama_cpp_writes(made, name, tmp_path):
    ours = made(name)
    gguf_kinds.write_folder(tmp_path / "hf", ours.vocab_size)
    save_tokenizer(ours, tmp_path / "tokenizer")
    from_folder.import_folder(str(tmp_path / "hf"), str(tmp_path / "run"), str(tmp_path / "tokenizer"))
    (tmp_path / "run" / "tokenizer" / importing.TEMPLATE).write_text(TEMPLATE)
    run = gptjax.load(tmp_path / "run")
    exporting.export_run(run, str(tmp_path / "model.gguf"))
    about = importing.import_file(str(tmp_path / "model.gguf"), str(tmp_path / "again"))
    again, expected = gptjax.load(tmp_path / "again"), LLAMA_CPP[name]["written"]
    assert (about["notes"], about["eot_id"], about["bos_id"]) == ([], ours.eot_id, ours.bos_id)
    assert (tmp_path / "again" / "tokenizer" / importing.TEMPLATE).read_text() == TEMPLATE
    tokens = json.loads((tmp_path / "again" / "tokenizer" / importing.SPECIAL_TOKENS).read_text())
    assert tokens["eos_token"] == "<|endoftext|>"
    for loaded in (run, again):
        written = _greedy(loaded, LLAMA_CPP[name]["prompt"], len(expected))
        assert written == expected


def _greedy(loaded, prompt: list[int], length: int) -> list[int]:
    token_BL, vocab_size = np.zeros((1, len(prompt) + length), np.int32), loaded.config.model.vocab_size
    logits = jax.jit(lambda token_BL: loaded.model(token_BL))
    token_BL[0, : len(prompt)] = prompt
    for at in range(len(prompt), token_BL.shape[1]):  # those behind are not seen
        token_BL[0, at] = np.asarray(logits(token_BL))[0, at - 1, :vocab_size].argmax()
    return token_BL[0, len(prompt) :].tolist()


def test_a_beginning_that_texts_do_not_begin_with_stands_before_none(made, tmp_path):
    metadata, _ = vocabulary.metadata_out(made("bytes"), 257)
    assert vocabulary.begins(metadata) and not vocabulary.begins(metadata | {"tokenizer.ggml.add_bos_token": False})
    bare = {key: value for key, value in metadata.items() if key != "tokenizer.ggml.add_bos_token"}
    for pre, begins in (("gpt-2", False), ("llama-bpe", True), ("smollm", False)):
        assert vocabulary.begins(bare | {"tokenizer.ggml.pre": pre}) == begins


def test_a_tokenizer_that_llama_cpp_lacks_is_left_out_in_a_note(made):
    chars = tokenizers.TOKENIZERS["chars"]("\n 'abc中", has_eot=True)
    metadata, notes = vocabulary.metadata_out(chars, 10)
    assert metadata == {"tokenizer.ggml.model": "none"} and "llama.cpp has none like 'chars'" in notes[0]
    fields = json.loads(made("smollm").definition)
    fields["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    other = type(made("smollm"))(json.dumps(fields).encode())
    metadata, notes = vocabulary.metadata_out(other, other.vocab_size)
    assert metadata == {"tokenizer.ggml.model": "none"} and "it splits or changes texts as none of those" in notes[0]


def changed(made, name: str, tmp_path, **changes):
    metadata, _ = vocabulary.metadata_out(made(name), made(name).vocab_size)
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return stored({key: value for key, value in metadata.items() if value is not None}, tmp_path)


REFUSED = {
    "kind": ("bytes", dict(model="t5"), "a tokenizer of kind 't5'; gptjax reads gpt2, llama"),
    "split": ("bytes", dict(pre="qwen"), "splits texts as 'qwen' does; did you mean 'qwen2'"),
    "no split": ("bytes", dict(pre=None), "has no tokenizer.ggml.pre"),
    "no merges": ("bytes", dict(merges=None), "has no tokenizer.ggml.merges"),
    "a merge of three": ("bytes", dict(merges=["a b c"]), "merges has 'a b c'; expected two tokens"),
    "a merge of none": ("bytes", dict(merges=["a \U0001f600"]), "could not be loaded"),
    "twice": ("bytes", dict(tokens=["a"] * 257), "names a token twice"),
    "types": ("bytes", dict(token_type=Value(np.zeros(3), I32)), "has no type for each token"),
    "scores": ("sentencepiece", dict(scores=Value(np.zeros(3), F32)), "are of another vocabulary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_that_cannot_be_is_refused_by_name(made, case, tmp_path):
    name, changes, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        vocabulary.read(changed(made, name, tmp_path, **changes), "a file")


def test_a_space_that_llama_cpp_puts_before_texts_is_named(made, tmp_path):
    tokenizer, notes = vocabulary.read(changed(made, "sentencepiece", tmp_path, add_space_prefix=True), "a file")
    assert notes == ["tokenizer.ggml.add_space_prefix not read: a text has the tokens of its own, no more"]
    assert tokenizer.encode("a b").tolist() == made("sentencepiece").encode("a b").tolist()
