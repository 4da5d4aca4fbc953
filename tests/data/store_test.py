"""Tokens on disk are the text's, split as nanoGPT splits it, made once, and refused when damaged."""

import dataclasses
import multiprocessing
import pathlib

import numpy as np
import pytest

from gptjax.config.fields import DataConfig
from gptjax.data import sources, tokenizers
from gptjax.data.tokenizers import save_tokenizer, train_tokenizer
from gptjax.data.tokens import store
from gptjax.data.tokens.folder import TextStore
from gptjax.data.tokens.shards import Tokens
from gptjax.data.tokens.store import Span, prepare, split_documents
from gptjax.errors import UserError

TEXT = "It was the best of times, it was the wørst of times.\n" * 40


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    return DataConfig(path=str(tmp_path / "text"), tokenizer="chars", cache_dir=str(tmp_path / "cache"))


def cached(config) -> list[pathlib.Path]:
    return sorted(pathlib.Path(config.cache_dir).iterdir())


def text_of(made) -> TextStore:
    """Of the only source."""
    [text] = made.sources.values()
    return text


def ids(tokens: Tokens) -> np.ndarray:
    """All of them."""
    return tokens.read(np.array([0]), tokens.n_tokens)[0] if tokens.n_tokens else np.zeros(0, np.int32)


def starts(tokens: Tokens) -> list[int]:
    return tokens.document_starts(np.arange(tokens.n_documents)).tolist()


def decode(made, split: str) -> str:
    return made.tokenizer.decode(ids(getattr(text_of(made), split)))


def token_file(folder, split: str) -> pathlib.Path:
    return pathlib.Path(folder) / f"{split}-00000-of-00001" / "c" / "0"


def test_one_document_of_characters_is_split_as_nanogpt_splits_it(config):
    # nanoGPT, data/shakespeare_char/prepare.py (Karpathy, 2022)
    chars = sorted(set(TEXT))
    number = {c: i for i, c in enumerate(chars)}
    n = len(TEXT)
    train, val = TEXT[: int(n * 0.9)], TEXT[int(n * 0.9) :]
    made = prepare(config)
    assert made.tokenizer.vocab_size == len(chars)
    text = text_of(made)
    assert made.description["dtype"] == "uint16"
    assert ids(text.train).tolist() == [number[c] for c in train]
    assert ids(text.val).tolist() == [number[c] for c in val]
    assert text.train.byte_count == len(train.encode()) and text.val.byte_count == len(val.encode())
    assert starts(text.train) == starts(text.val) == [0]


def test_documents_are_parted_by_end_of_text_and_found_by_their_start(config):
    texts = ["one", "", "two, two", "three"]
    for i, text in enumerate(texts):
        (pathlib.Path(config.path) / f"{i}.txt").write_text(text or "-")
    (pathlib.Path(config.path) / "a.txt").unlink()
    made = prepare(dataclasses.replace(config, tokenizer="bytes", val_fraction=0.25))
    # 17 characters, of which int(17 * .75) = 12 are trained on: the cut document ends in the held-out part only
    e = made.tokenizer.eot_id
    text = text_of(made)
    assert ids(text.train).tolist() == [*b"one", e, *b"-", e, *b"two, two", e]
    assert ids(text.val).tolist() == [*b"three", e]
    assert starts(text.train) == [0, 4, 6]
    assert text.train.documents(0, 3)[1].tolist() == [3, 1, 8] and text.train.documents(0, 3)[0][-1].tolist() == [6, 15]
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


HELD_OUT = [3, 9, 16, 21, 38, 46]  # of 60 documents, a tenth


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
    second = prepare(dataclasses.replace(config, seed=3, prefetch_workers=9, mask_documents=True))
    assert second.fingerprint == first.fingerprint and second.description == first.description
    np.testing.assert_array_equal(ids(text_of(second).train), ids(text_of(first).train))
    assert len(cached(config)) == 1


CHANGES = [
    {"val_fraction": 0.2},
    {"val_split": "document"},
    {"tokenizer": "bytes"},
    {"separator": "x"},
    {"tokenizer": "sentencepiece", "tokenizer_vocab_size": 285},
    {"tokenizer": "sentencepiece", "tokenizer_vocab_size": 290},
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
    assert made.description["dtype"] == "uint32" and decode(made, "train") == many
    val = text_of(made).val
    assert val.n_tokens == 0 and val.n_documents == 0


def test_the_shipped_corpus_comes_back_from_its_tokens(config):
    config = dataclasses.replace(config, path=None, tokenizer="sentencepiece", tokenizer_vocab_size=512)
    made = prepare(config)
    text = "".join(sources.documents(config))
    assert decode(made, "train") + decode(made, "val") == text
    train = text_of(made).train
    assert (ids(train) == made.tokenizer.eot_id).sum() + 1 == train.n_documents == 14
    assert train.byte_count == made.tokenizer.token_bytes[ids(train)].sum()
    assert train.documents(0, 14)[1].sum() == train.byte_count


def test_a_run_that_fails_leaves_no_folder_behind(config):
    for file in pathlib.Path(config.path).iterdir():
        file.write_bytes(b"\xff")
    with pytest.raises(UserError, match=".txt is not UTF-8"):
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


# ---- several sources


@pytest.fixture
def prepared(config):
    """{name: folder} of two texts prepared with one tokenizer, bytes."""
    folders = {}
    for name, text in {"best": TEXT, "rest": TEXT.replace("best", "rest")}.items():
        file = pathlib.Path(config.path).parent / f"{name}.txt"
        file.write_text(text)
        made = prepare(dataclasses.replace(config, path=str(file), tokenizer="bytes"))
        folders[name] = made.description["folder"]
    return folders


def mixed(config, mixture, **changes) -> DataConfig:
    return dataclasses.replace(config, path=None, tokenizer=None, mixture=mixture, **changes)


def test_a_mixture_has_the_texts_of_its_sources_and_a_fingerprint_of_all(config, prepared):
    made = prepare(mixed(config, prepared))
    assert list(made.sources) == ["best", "rest"] and made.tokenizer.kind == "bytes"
    for name, text in made.sources.items():
        alone = prepare(dataclasses.replace(config, source="prepared", path=prepared[name], tokenizer=None))
        assert alone.fingerprint == text.fingerprint != made.fingerprint
        assert made.description["sources"][name]["splits"] == alone.description["splits"]
        assert text.training_text == f"the training text of {name!r}"
    renamed = {"best": prepared["best"], "last": prepared["rest"]}
    assert prepare(mixed(config, renamed)).fingerprint != made.fingerprint
    assert (
        prepare(mixed(config, {name: f"prepared:{at}" for name, at in prepared.items()})).fingerprint
        == made.fingerprint
    )


def test_raw_text_and_a_prepared_folder_mix_if_their_tokenizer_is_one(config, prepared):
    raw = {"raw": f"text:{config.path}"} | prepared
    made = prepare(dataclasses.replace(mixed(config, raw), tokenizer="bytes"))
    assert made.sources["raw"].fingerprint == made.sources["best"].fingerprint  # it is the same text


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "chars", None])
def test_raw_text_whose_tokenizer_would_be_its_own_is_refused_in_a_mixture(config, prepared, tokenizer):
    raw = {"raw": f"text:{config.path}"} | prepared
    with pytest.raises(UserError, match="data.mixture: 'raw' is raw text, and data.tokenizer=.* would be made"):
        prepare(dataclasses.replace(mixed(config, raw), tokenizer=tokenizer))


def test_sources_of_different_tokenizers_are_refused_by_name(config, prepared):
    other = prepare(config).description["folder"]
    with pytest.raises(UserError, match=r"data.mixture: 'chars' was made with another tokenizer \(chars, .* 'best'"):
        prepare(mixed(config, prepared | {"chars": other}))


def test_a_prepared_folder_of_another_tokenizer_than_the_config_says_is_refused(config, prepared):
    chosen = dataclasses.replace(config, source="prepared", path=prepared["best"], tokenizer="chars")
    says = r"was made with a bytes tokenizer \(hash .*\), which is not that of data.tokenizer='chars'; add --config.data.tokenizer=None"
    with pytest.raises(UserError, match=says):
        prepare(chosen)


def test_a_prepared_folder_and_the_path_of_another_tokenizer_are_refused_and_that_of_its_own_is_not(config, tmp_path):
    one, other = (train_tokenizer(DataConfig(tokenizer="chars"), [text]) for text in (TEXT, TEXT + "é"))
    for name, tokenizer in (
        ("one", one),
        ("other", other.with_special(["<|x|>"])),
        ("again", one.with_special(["<|x|>"])),
    ):
        save_tokenizer(tokenizer, tmp_path / name)
    folder = prepare(dataclasses.replace(config, tokenizer="chars", tokenizer_path=str(tmp_path / "one"))).description[
        "folder"
    ]
    chosen = dataclasses.replace(config, source="prepared", path=folder, tokenizer=None)
    for name in ("one", "again"):
        assert prepare(dataclasses.replace(chosen, tokenizer_path=str(tmp_path / name))).tokenizer.hash == one.hash
    with pytest.raises(
        UserError,
        match="made with a chars tokenizer .* not that of data.tokenizer=None, data.tokenizer_path='.*/other'",
    ):
        prepare(dataclasses.replace(chosen, tokenizer_path=str(tmp_path / "other")))


def test_a_source_that_is_no_prepared_folder_is_one_line(config, prepared, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/none.*"):
        prepare(mixed(config, prepared | {"none": f"prepared:{tmp_path}/none"}))


def test_a_long_preparation_reports_on_stderr(capsys, monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
    assert list(store._watched(["é" * 10**6] * 5, "tokenising", lambda: None)) == ["é" * 10**6] * 5
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tokenising: 2 documents, 2M characters, 0.3M/s", "tokenising: 4 documents, 4M characters, 0.3M/s"]
