"""Passages of documents, and an index of them by words, by vectors and by both."""

import itertools
import json
import re

import judging
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from gptjax import cli
from gptjax.applications import documents, retrieval, vectors
from gptjax.errors import UserError
from gptjax.serve.batcher import Batcher, BatcherOptions

ENCODER = ROOT / "tests" / "golden" / "sentence_encoder"
TEXTS = {"cats.txt": "The cat sat on the mat.\n\nA dog ate.", "zh.md": "检查点保存模型。\n\n猫在睡觉。"}


@pytest.fixture
def files(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@settings(max_examples=200, deadline=None)
@given(st.text("ab .!?。\n", max_size=120), st.integers(1, 20))
def test_passages_hold_all_of_a_text_but_spaces_in_order_and_none_is_too_long(text, length):
    passages = documents.cut(text, "f", length)
    squeezed = lambda text: re.sub(r"\s", "", text)  # noqa: E731
    assert squeezed("".join(one.text for one in passages)) == squeezed(text)
    assert all(0 < len(one.text) <= length for one in passages)
    for one in passages:  # it begins on its line
        assert (
            text.split("\n")[one.line - 1].lstrip()[:1] == one.text[:1] or one.text[0] in text.split("\n")[one.line - 1]
        )


@pytest.fixture
def passages():
    return [one for name, text in TEXTS.items() for one in documents.cut(text, name, 25 if name == "cats.txt" else 10)]


def test_a_text_is_cut_at_empty_lines_then_at_sentences_then_at_words():
    text = "One. Two words here.\n\nThree is a longer paragraph."
    assert [one.text for one in documents.cut(text, "f", 22)] == [
        "One. Two words here.",
        "Three is a longer",
        "paragraph.",
    ]
    assert [one.line for one in documents.cut(text, "f", 22)] == [1, 3, 3]
    assert [one.text for one in documents.cut(text, "f", 15)][:2] == ["One.", "Two words here."]


@pytest.mark.parametrize(
    ("question", "best"), [("Where did the cat sit?", 0), ("dogs? a dog", 1), ("模型的检查点", 2), ("猫", 3)]
)
def test_the_passage_that_shares_rare_words_with_a_question_is_first(files, passages, question, best):
    index = retrieval.build(passages, str(files / "index"))
    assert index.search(question, 1) == [passages[best]]
    assert retrieval.load(str(files / "index")).search(question, 9) == index.search(question, 9)


def test_by_words_alone_nothing_is_found_that_shares_none(files):
    index = retrieval.build(documents.read([str(files)]), str(files / "index"))
    assert index.search("zebra", 3) == [] and index.search("?!", 3) == []


def test_joined_orders_are_sums_of_reciprocal_ranks():
    orders = [[4, 2, 9], [2, 7]]
    score = {i: sum(1 / (60 + order.index(i) + 1) for order in orders if i in order) for i in (2, 4, 7, 9)}
    assert retrieval.fused(orders) == sorted(score, key=lambda i: -score[i]) == [2, 4, 7, 9]


def test_a_sentence_encoder_gives_the_vectors_of_transformers_whatever_stands_in_the_batch():
    expected = json.loads((ENCODER / "expected.json").read_text())
    encode = vectors.embedder(str(ENCODER))
    assert np.abs(encode(expected["texts"]) - np.array(expected["vectors"])).max() < 2e-6
    assert np.abs(encode(expected["texts"][2:3])[0] - np.array(expected["vectors"][2])).max() < 2e-6


def test_an_index_with_vectors_finds_by_meaning_and_is_the_same_when_it_is_read(files, passages):
    index = retrieval.build(passages, str(files / "index"), str(ENCODER))
    encode = vectors.embedder(str(ENCODER))
    nearest = np.argsort(-(encode([one.text for one in passages]) @ encode(["a mat"])[0]))
    words = retrieval.build(passages, str(files / "words")).search("a mat", 9)
    orders = [[passages.index(one) for one in words], nearest.tolist()]
    expected = [passages[i] for i in retrieval.fused(orders)]
    assert index.search("a mat", 9) == expected == retrieval.load(str(files / "index")).search("a mat", 9)


def test_vectors_of_a_run_are_those_that_its_server_gives(monkeypatch):
    """The mean of its final activations, of length 1, a few texts at a time."""
    one = judging.made_run()
    monkeypatch.setattr("gptjax.run.run.load", lambda path: one)
    texts = [f"abc{'d' * n}" for n in range(9)]
    vector_ND = vectors.embedder("run:somewhere")(texts)
    token_lists = [one.tokens(text) for text in texts]
    for token_L, vector_D in zip(token_lists, vector_ND, strict=True):
        mean_D = np.asarray(one.model.activations(token_L[None])[0][0], np.float32).mean(0)
        assert np.allclose(vector_D, mean_D / np.linalg.norm(mean_D), atol=1e-5)
    batcher = Batcher(one.engine, one.tokenizer, BatcherOptions(slots=1))
    batcher.start()
    np.testing.assert_array_equal(batcher.embed(token_lists).result(60)[:8], vector_ND[:8])
    batcher.stop()


def test_the_command_makes_an_index_and_says_what_is_wrong(files, capsys):
    out = f"--out={files / 'index'}"
    assert cli.main(["index", out, str(files / "cats.txt")]) == 0
    assert capsys.readouterr().out == f"{files / 'index'}: 1 passages of 1 files, by words\n"
    (files / "empty.txt").write_text(" \n")
    (files / "bytes.txt").write_bytes(b"\xff\xfe")
    wrong = {
        (out,): "the following arguments are required: FILE",
        (out, str(files / "absent")): "is not there; give text files",
        (out, str(files / "empty.txt")): "there is no text in",
        (out, str(files / "bytes.txt")): "cannot be read as UTF-8 text",
        (f"--out={files}", str(files / "cats.txt")): "is there and is no index",
        (out, str(files / "cats.txt"), "--embeddings=nothing"): "is none of: run:DIR, an address, minilm, a folder",
    }
    for words, message in wrong.items():
        assert cli.main(["index", *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no index"):
        retrieval.load(str(files))


def test_an_index_whose_parts_differ_is_refused(files):
    retrieval.build(documents.read([str(files)]), str(files / "index"))
    file = files / "index" / "passages.jsonl"
    file.write_text("".join(itertools.islice(file.open(), 1)))
    with pytest.raises(UserError, match="has parts of different indexes"):
        retrieval.load(str(files / "index"))
