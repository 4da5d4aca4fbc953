"""Tokens on disk are the text's, split as nanoGPT splits it, made once, and refused when damaged."""

import dataclasses
import multiprocessing
import pathlib

import numpy as np
import pytest

from gptjax.config import DataConfig
from gptjax.data import sources, store, tokenizers
from gptjax.data.store import Span, prepare, split_documents
from gptjax.errors import UserError

TEXT = "It was the best of times, it was the wørst of times.\n" * 40


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    return DataConfig(path=str(tmp_path / "text"), tokenizer="chars", cache_dir=str(tmp_path / "cache"))


def cached(config) -> list[pathlib.Path]:
    return sorted(pathlib.Path(config.cache_dir).iterdir())


def decode(made, split: str) -> str:
    return made.tokenizer.decode(getattr(made, split).token)


def test_one_document_of_characters_is_split_as_nanogpt_splits_it(config):
    # nanoGPT, data/shakespeare_char/prepare.py (Karpathy, 2022)
    chars = sorted(set(TEXT))
    number = {c: i for i, c in enumerate(chars)}
    n = len(TEXT)
    train, val = TEXT[: int(n * 0.9)], TEXT[int(n * 0.9) :]
    made = prepare(config)
    assert made.tokenizer.vocab_size == len(chars)
    assert made.train.token.dtype == np.uint16
    assert made.train.token.tolist() == [number[c] for c in train]
    assert made.val.token.tolist() == [number[c] for c in val]
    assert made.train.byte_count == len(train.encode()) and made.val.byte_count == len(val.encode())
    assert made.train.document_start.tolist() == made.val.document_start.tolist() == [0]


def test_documents_are_parted_by_end_of_text_and_found_by_their_start(config):
    texts = ["one", "", "two, two", "three"]
    for i, text in enumerate(texts):
        (pathlib.Path(config.path) / f"{i}.txt").write_text(text or "-")
    (pathlib.Path(config.path) / "a.txt").unlink()
    made = prepare(dataclasses.replace(config, tokenizer="bytes", val_fraction=0.25))
    # 17 characters, of which int(17 * .75) = 12 are trained on: the cut document ends in the held-out part only
    e = made.tokenizer.eot_id
    assert made.train.token.tolist() == [*b"one", e, *b"-", e, *b"two, two", e]
    assert made.val.token.tolist() == [*b"three", e]
    assert made.train.document_start.tolist() == [0, 4, 6]
    assert made.description["splits"]["train"] == {"documents": 3, "tokens": 15, "characters": 12, "bytes": 12}


def test_a_document_across_the_boundary_ends_in_the_held_out_part_alone():
    spans = list(split_documents(DataConfig(val_fraction=0.5), ["abc", "defgh", "ij"], 10))
    assert spans == [
        Span("train", "abc", True),
        Span("train", "de", False),
        Span("val", "fgh", True),
        Span("val", "ij", True),
    ]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 0.999])
@pytest.mark.parametrize("val_split", ["tail", "document"])
def test_the_splits_hold_every_character_once(fraction, val_split):
    texts = [f"document {i}" * (i % 7) for i in range(200)]
    config = DataConfig(val_fraction=fraction, val_split=val_split)
    spans = list(split_documents(config, texts, sum(map(len, texts))))
    assert "".join(s.text for s in spans) == "".join(texts)
    assert sum(s.ends for s in spans) == len(texts)
    held_out = sum(len(s.text) for s in spans if s.split == "val") / sum(map(len, texts))
    assert abs(held_out - fraction) < (0.002 if val_split == "tail" else 0.12)


HELD_OUT = [10, 18, 21, 41, 48]  # of 60 documents, a tenth


def test_documents_held_out_by_hash_are_those_they_always_were_whatever_the_seed():
    for seed in (0, 5):
        config = DataConfig(val_fraction=0.1, val_split="document", seed=seed)
        spans = split_documents(config, map(str, range(60)), None)
        assert [int(s.text) for s in spans if s.split == "val"] == HELD_OUT


def test_a_second_run_uses_the_tokens_of_the_first(config, monkeypatch):
    first = prepare(config)

    def never(*args):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(store, "train_tokenizer", never)
    monkeypatch.setattr(store, "_write_store", never)
    second = prepare(dataclasses.replace(config, seed=3, prefetch=9, mask_documents=True))
    assert second.fingerprint == first.fingerprint and second.description == first.description
    np.testing.assert_array_equal(second.train.token, first.train.token)
    assert len(cached(config)) == 1


CHANGES = [
    {"val_fraction": 0.2},
    {"val_split": "document"},
    {"tokenizer": "bytes"},
    {"separator": "x"},
    {"tokenizer": "sentencepiece", "tokenizer_vocab_size": 285},
    {"tokenizer": "sentencepiece", "tokenizer_vocab_size": 285, "tokenizer_train_bytes": 1500},
]


def test_every_change_that_matters_gets_a_folder_of_its_own(config):
    made = [prepare(dataclasses.replace(config, **change)) for change in ({}, *CHANGES)]
    assert len({m.fingerprint for m in made[:5]}) == 4  # the separator occurs nowhere, and so changes no token
    assert len(cached(config)) == 1 + len(CHANGES)


def test_changed_text_is_tokenised_anew_and_the_same_text_elsewhere_has_the_same_fingerprint(config, tmp_path):
    first = prepare(config)
    (tmp_path / "copy.txt").write_text(TEXT)
    copy = prepare(dataclasses.replace(config, path=str(tmp_path / "copy.txt")))
    assert copy.fingerprint == first.fingerprint and len(cached(config)) == 2
    (pathlib.Path(config.path) / "a.txt").write_text(TEXT.replace("best", "rest"))
    assert prepare(config).fingerprint != first.fingerprint


def test_sentencepiece_is_trained_on_the_training_text_alone(config):
    config = dataclasses.replace(config, tokenizer="sentencepiece", tokenizer_vocab_size=285)
    text = TEXT + "zebra " * (len(TEXT) // 54)
    (pathlib.Path(config.path) / "a.txt").write_text(text)
    train = text[: int(len(text) * 0.9)]
    assert prepare(config).tokenizer.hash == tokenizers.train_tokenizer(config, [train]).hash


def test_chars_are_taken_from_the_whole_text(config):
    (pathlib.Path(config.path) / "a.txt").write_text("a" * 99 + "z")
    assert prepare(config).tokenizer.vocab_size == 2


def test_a_large_vocabulary_is_stored_in_four_bytes(config):
    many = "".join(map(chr, range(0x10000, 0x10000 + 70_000)))
    (pathlib.Path(config.path) / "a.txt").write_text(many)
    made = prepare(dataclasses.replace(config, val_fraction=0.0))
    assert made.train.token.dtype == np.uint32 and decode(made, "train") == many
    assert len(made.val.token) == 0 and len(made.val.document_start) == 0


def test_the_shipped_corpus_comes_back_from_its_tokens(config):
    config = dataclasses.replace(config, path=None, tokenizer="sentencepiece", tokenizer_vocab_size=512)
    made = prepare(config)
    text = "".join(sources.documents(config))
    assert decode(made, "train") + decode(made, "val") == text
    assert (made.train.token == made.tokenizer.eot_id).sum() + 1 == len(made.train.document_start) == 14
    assert made.train.byte_count == made.tokenizer.token_bytes[made.train.token].sum()


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "has no manifest.json": ("manifest.json", pathlib.Path.unlink),
    "manifest.json cannot be read": ("manifest.json", truncate),
    "train.bin is missing": ("train.bin", pathlib.Path.unlink),
    "train.bin has [0-9]+ bytes, but was written with": ("train.bin", truncate),
    "val.bin was altered": ("val.bin", flip),
    "train_documents.bin was altered": ("train_documents.bin", flip),
    "tokenizer.model was altered": ("tokenizer.model", flip),
    "tokenizer.json is missing": ("tokenizer.json", pathlib.Path.unlink),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_cache_is_refused_by_name(message, config):
    prepare(config)
    (folder,) = cached(config)
    name, damage = DAMAGES[message]
    damage(folder / name)
    with pytest.raises(UserError, match=f"{message}.*: remove {folder} and run again") as error:
        prepare(config)
    assert "\n" not in str(error.value)


def test_a_run_that_fails_leaves_no_folder_behind(config):
    (pathlib.Path(config.path) / "b.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="b.txt is not UTF-8"):
        prepare(config)
    assert cached(config) == []


def test_the_loser_of_a_race_uses_the_winners_folder(config, monkeypatch):
    write = store._write_store

    def write_while_another_wins(*args):
        monkeypatch.setattr(store, "_write_store", write)
        for lock in pathlib.Path(config.cache_dir).glob("*.lock"):  # as on a disk that has no locks
            lock.unlink()
        winner.append(prepare(config))
        write(*args)

    winner = []
    monkeypatch.setattr(store, "_write_store", write_while_another_wins)
    loser = prepare(config)
    assert loser.description == winner[0].description and decode(loser, "val") == decode(winner[0], "val")
    assert len(cached(config)) == 1


def test_processes_that_prepare_at_once_agree(config):
    config = dataclasses.replace(config, tokenizer="bytes")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        fingerprints = pool.map(_fingerprint, [config] * 3)
    assert set(fingerprints) == {prepare(config).fingerprint}
    assert len(cached(config)) == 1


def _fingerprint(config) -> str:
    return prepare(config).fingerprint


def test_a_cache_in_a_bucket_is_refused(config):
    with pytest.raises(UserError, match="data.cache_dir=gs://b is not a local folder"):
        prepare(dataclasses.replace(config, cache_dir="gs://b"))


def test_a_long_preparation_reports_on_stderr(capsys, monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
    assert list(store._watched(["é" * 10**6] * 5, "tokenising", lambda: None)) == ["é" * 10**6] * 5
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tokenising: 2 documents, 2M characters, 0.3M/s", "tokenising: 4 documents, 4M characters, 0.3M/s"]
