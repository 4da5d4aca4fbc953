"""A document that its parser, its cleaning or its tokenizer fails on is left out by name, and ends nothing else."""

import dataclasses
import itertools
import json
import re
import zoneinfo

import numpy as np
import pytest
import tiktoken
from source_files import array_record, parquet, warc

from gptjax.cli import main
from gptjax.config.fields import DataConfig
from gptjax.data import sources, tokenizers
from gptjax.data.preparing import shardmaker
from gptjax.data.preparing.cleaning import outcome, specs
from gptjax.data.sources import records
from gptjax.data.tokenizers import lossless
from gptjax.data.tokenizers.byte_level import byte_of_character
from gptjax.data.tokenizers.simple import ByteTokenizer
from gptjax.data.tokens import store
from gptjax.errors import UserError

STORIES = [json.dumps({"text": f"Short story {i} about a cat."}) for i in range(10)]
LONG_NUMBER = '{"text": "A sum.", "n": ' + "7" * 5000 + "}"
DEEP = '{"text": "Deep.", "n": ' + "[" * 100_000 + "}"
PAGE = b"<html><body><p>A plain page.</p></body></html>"


def page(charset: str) -> tuple:
    return ("response", ["200 OK", ("Content-Type", f"text/html; charset={charset}")], PAGE)


def recipe(folder, file, tokenizer="bytes", clean=None) -> shardmaker.Recipe:
    config = sources.from_spec(str(file), DataConfig())
    tokenizer = tokenizers.from_spec(tokenizer) if isinstance(tokenizer, str) else tokenizer
    (folder / "work").mkdir(parents=True, exist_ok=True)
    return shardmaker.Recipe(str(folder), config, tokenizer, 1, 0.0, clean, None, False)


def done(recipe: shardmaker.Recipe) -> dict:
    """The record of the one shard of a recipe, made as a worker makes it."""
    task = shardmaker.Task(0, tuple(sources.units(recipe.config)))
    return shardmaker.tokeniser(recipe)(task, lambda value: None)[1]


def counts(record: dict) -> tuple[int, int, int]:
    """Documents, their bytes, and how many were left out."""
    return record["counts"]["kept_documents"], record["counts"]["kept_bytes"], record["failures"]["count"]


def test_a_number_of_any_length_beside_the_text_does_no_harm(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join([*STORIES, LONG_NUMBER]))
    assert counts(done(recipe(tmp_path / "out", tmp_path / "a.jsonl"))) == (11, 266, 0)
    assert records.json_value(b'{"n": [1, -2, 3e2, ' + b"8" * 4301 + b"]}", "x") == {"n": [0, 0, 300.0, 0]}
    assert records.json_value(b"[12345678901234567890]", "x") == [12345678901234567890]


@pytest.mark.parametrize(
    "charset", ["undefined", "punycode", "idna", "hex", "rot13", "unicode_escape", "utf-7", "é", "x" * 99]
)
def test_a_charset_that_is_no_encoding_is_passed_over(charset, tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(warc([page("utf-8"), page(charset), page("utf-8")]))
    assert counts(done(recipe(tmp_path / "out", tmp_path / "a.warc.gz"))) == (3, 3 * len(PAGE), 0)


def test_behind_a_charset_that_is_none_the_pages_own_counts_and_then_utf8(tmp_path):
    headers = ["200 OK", ("Content-Type", "text/html; charset=undefined")]
    bodies = ['<meta charset="koi8-r">привет'.encode("koi8-r"), '<meta charset="hex">é'.encode(), b"\xe9"]
    (tmp_path / "a.warc.gz").write_bytes(warc([("response", headers, body) for body in bodies]))
    errors, config = [], DataConfig(source="warc", path=str(tmp_path))
    found = [d.text for unit in sources.units(config) for d in sources.read(config, unit, errors.append)]
    assert found == ['<meta charset="koi8-r">привет', '<meta charset="hex">é']
    assert "record 3 is not utf-8 at byte 0 (0xe9); it says 'undefined', which is no encoding" in str(errors[0])


def test_the_kind_of_records_is_that_of_most_and_not_of_the_first(tmp_path):
    """The JSON itself, braces and all, was the text."""
    first = {
        "empty": ("", 10, 260, "is empty"),
        "cut": ('{"text": "cut sho', 10, 260, "is not JSON"),
        "long": (LONG_NUMBER, 11, 266, None),
    }
    for name, (record, documents, n_bytes, message) in first.items():
        array_record(tmp_path / f"{name}.arrayrecord", [record, *STORIES])
        found = done(recipe(tmp_path / name, tmp_path / f"{name}.arrayrecord"))
        assert counts(found) == (documents, n_bytes, 11 - documents)
        assert message is None or f"{name}.arrayrecord record 0 {message}" in found["failures"]["messages"][0]


def test_empty_records_say_nothing_of_what_the_others_are(tmp_path):
    array_record(tmp_path / "a.arrayrecord", ["", " \n"] * 20 + STORIES)
    assert counts(done(recipe(tmp_path / "out", tmp_path / "a.arrayrecord"))) == (10, 260, 40)


def test_every_part_of_a_file_takes_its_records_for_the_same(tmp_path):
    file = tmp_path / "a.arrayrecord"
    array_record(file, ["plain text"] * 200 + ['{"text": "an object"}'] * 300)
    config = DataConfig(source="arrayrecord", path=str(file))
    for unit_bytes in (1 << 20, 2000):
        errors = []
        found = [
            d.text for unit in sources.units(config, unit_bytes) for d in sources.read(config, unit, errors.append)
        ]
        assert found == ["an object"] * 300 and len(errors) == 200
    assert len(sources.units(config, 2000)) > 3


def test_an_object_among_texts_is_left_out_if_it_would_be_a_document_elsewhere(tmp_path):
    file = tmp_path / "a.arrayrecord"
    array_record(file, ["one", STORIES[0], "{curly}", '{"name": "a package"}', b"\n\x02\n\0", "two", ""])
    errors, config = [], DataConfig(source="arrayrecord", path=str(file))
    found = [d.text for unit in sources.units(config) for d in sources.read(config, unit, errors.append)]
    assert found == ["one", "{curly}", '{"name": "a package"}', "two", ""]
    assert "record 1 is a JSON object with the field 'text', where most records of the file are text" in str(errors[0])
    assert "record 4 is a tf.train.Example, where most records of the file are text" in str(errors[1])


def test_rows_of_which_the_metadata_of_a_parquet_file_knows_nothing_are_told_of(tmp_path):
    """Each byte of the footer is changed in turn: with other changes pyarrow ended the process."""
    data = parquet(["a", "b", "c"], compression="none")
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    said, config = {}, DataConfig(source="parquet", path=str(tmp_path / "a.parquet"))
    for at, change in itertools.product(range(footer, len(data) - 8), (2, -2)):  # a step of one in Thrift's integers
        (tmp_path / "a.parquet").write_bytes(data[:at] + bytes([(data[at] + change) % 256]) + data[at + 1 :])
        errors = []
        found = [d.text for unit in sources.units(config) for d in sources.read(config, unit, errors.append)]
        said |= {(tuple(found), str(error).partition("damaged: ")[2]): True for error in errors}
    assert (("a", "b"), "by its metadata its row groups have 2 rows, and the whole 3; fetch it again.") in said
    assert (("a", "b", "c"), "row group 0 has 3 rows, and by its metadata 4; fetch it again.") in said


def test_the_rows_of_a_damaged_row_group_are_counted(tmp_path):
    data = parquet(
        [f"document {i}" for i in range(20)], compression="none", use_dictionary=False, write_statistics=False
    )
    assert data.count(b"document 9") == 1
    (tmp_path / "a.parquet").write_bytes(data.replace(b"\x0a\0\0\0document 9", b"\xff\xff\0\0document 9"))
    _, _, left_out = counts(done(recipe(tmp_path / "out", tmp_path / "a.parquet")))
    assert left_out == 7


# ---- each command that reads text

BAD = [
    "{",
    DEEP,
    '{"body": 1}',
    "[]",
    '{"text": 1}',
    '{"text": "\\ud800"}',
    "\udcff",
]  # the last: a byte that is no UTF-8


@pytest.fixture
def lines(tmp_path):
    """A file of ten lines that are stories and seven that cannot be read."""
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([*STORIES[:3], *BAD, *STORIES[3:]]), errors="surrogateescape")
    return file


def test_prepare_counts_and_names_each_and_strict_stops_at_the_first(lines, tmp_path, capfd):
    command = ["prepare", f"--source={lines}", "--tokenizer=bytes", "--val_fraction=0", "--workers=1"]
    assert main([*command, f"--out={tmp_path / 'out'}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (
        report["read"] == {"documents": 10, "bytes": 260, "failures": 7}
        and report["splits"]["train"]["documents"] == 10
    )
    for i, message in enumerate(report["failures"]["messages"], start=4):
        assert re.match(rf"{lines}:{i}[: ]", message)
    capfd.readouterr()
    assert main([*command, f"--out={tmp_path / 'strict'}", "--strict"]) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"gptjax: {lines}:4 is not JSON")


def test_training_on_a_small_text_leaves_out_what_cannot_be_read_and_says_so_whenever_it_is_opened(
    lines, tmp_path, capfd
):
    config = DataConfig(source="jsonl", path=str(lines), cache_dir=str(tmp_path / "cache"), tokenizer="bytes")
    for val_split in ("tail", "document"):
        made = store.prepare(dataclasses.replace(config, val_split=val_split)).sources["jsonl"]
        said = capfd.readouterr().err
        assert made.train.n_documents + made.val.n_documents == 10
        assert said.count(f"left out: {lines}:") == 5 and "left out: 7 documents in all" in said
        assert made.description["left_out"]["count"] == len(made.description["left_out"]["messages"]) == 7
        again = store.prepare(dataclasses.replace(config, val_split=val_split)).sources["jsonl"]
        said = capfd.readouterr().err
        assert again.fingerprint == made.fingerprint
        assert f"lacks 7 documents that cannot be read, the first of them: {lines}:4 is not JSON" in said


def test_a_text_of_which_nothing_can_be_read_is_refused_with_the_first_reason(lines, tmp_path):
    config = DataConfig(source="jsonl", path=str(lines), cache_dir=str(tmp_path / "cache"), text_field="story")
    for read in (store.prepare, lambda config: list(sources.spread_documents(config))):
        with pytest.raises(UserError, match="a.jsonl:1 has no field 'story'"):
            read(config)


def test_a_tokenizer_is_trained_on_what_can_be_read(lines, capfd):
    config = DataConfig(source="jsonl", path=str(lines))
    assert sorted(sources.spread_documents(config)) == sorted(json.loads(story)["text"] for story in STORIES)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 6 and said[-1] == "left out: 7 documents in all that could not be read"


def test_an_evaluation_is_of_all_of_its_text_or_stops_with_the_name_of_what_cannot_be_read(lines):
    with pytest.raises(UserError, match="a.jsonl:4 is not JSON"):
        list(sources.documents(DataConfig(source="jsonl", path=str(lines))))


# ---- what fails on a document after it was read


@dataclasses.dataclass(frozen=True)
class FailsOnStory4:
    """A cleaning step that calls `fails` on one document."""

    def ready(self) -> None: ...

    def __call__(self, text: str) -> outcome.Outcome:
        if "story 4" in text:
            FAILURES[FailsOnStory4.fails]()
        return outcome.kept(text)


class Tokenizer(ByteTokenizer):
    """One that calls `fails` on one document."""

    fails = None

    def encode(self, text: str) -> np.ndarray:
        if "story 4" in text:
            FAILURES[self.fails]()
        return super().encode(text)


def panic() -> None:
    """Of a library in Rust, which raises what is no Exception: tiktoken's split of text, on three million spaces."""
    bytes_alone = {bytes([i]): i for i in range(256)}
    tiktoken.Encoding(
        "bytes", pat_str=r"\s+(?!\S)|\s+", mergeable_ranks=bytes_alone, special_tokens={}
    ).encode_ordinary(" " * 3_000_000)


FAILURES = {
    "parser": lambda: json.loads("no"),
    "recursion": lambda: json.loads("[" * 100_000),
    "codec": lambda: b"a".decode("undefined"),
    "panic": panic,
}


@pytest.mark.parametrize("fails", FAILURES)
def test_a_document_on_which_cleaning_or_tokenising_fails_is_left_out_by_name(fails, lines, tmp_path, monkeypatch):
    monkeypatch.setitem(specs.STEPS, "fails", FailsOnStory4)
    monkeypatch.setitem(specs._NAMES, FailsOnStory4, "fails")
    monkeypatch.setattr(FailsOnStory4, "fails", fails, raising=False)
    monkeypatch.setattr(Tokenizer, "fails", fails)
    for clean, tokenizer, doing in (("fails", "bytes", "cleaned"), (None, Tokenizer(), "tokenised")):
        record = done(recipe(tmp_path / doing, lines, tokenizer, clean))
        assert record["counts"]["documents"] == 10 and record["counts"]["kept_documents"] == 9
        assert record["failures"]["count"] == 8
        *_, message = record["failures"]["messages"]
        assert message.startswith(f"{lines} at byte") and f"cannot be {doing} (" in message and "\n" not in message


def ours(statement: str):
    """A function of a line that stands in a module of gptjax."""
    names = {"__name__": "gptjax.data.sources.some"}
    exec(f"def to_document(record, where):\n    {statement}", names)
    return names["to_document"]


@pytest.mark.parametrize(
    "statement", ["{}[0]", "None.text", "assert not where", "len(5)", "nobody", "import not_there_at_all"]
)
def test_a_mistake_of_ours_is_no_document_that_cannot_be_read(statement):
    errors = []
    with pytest.raises((LookupError, AttributeError, AssertionError, TypeError, NameError, ImportError)):
        list(records.documents([("f:1", "text")], ours(statement), errors.append))
    assert errors == []


@pytest.mark.parametrize("raised", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_is_about_the_whole_process_ends_it(raised):
    def to_document(record, where):
        raise raised

    with pytest.raises(raised):
        list(records.documents([("f:1", "text")], to_document, lambda error: None))


def test_whatever_a_library_raises_leaves_one_document_out():
    """Also the kinds that from our own lines would be mistakes."""

    def to_document(record, where):
        return sources.Document(record(), where)

    made = [lambda: "one", lambda: json.loads(5), lambda: zoneinfo.ZoneInfo("no/where"), panic, lambda: "two"]
    errors = []
    found = list(records.documents(((f"f:{i}", one) for i, one in enumerate(made)), to_document, errors.append))
    assert [document.text for document in found] == ["one", "two"]
    for i, (error, kind) in enumerate(
        zip(errors, ("TypeError", "ZoneInfoNotFoundError", "PanicException"), strict=True)
    ):
        assert str(error).startswith(f"f:{i + 1} cannot be read ({kind}: ")


def test_what_python_says_of_json_that_ends_early_is_a_sentence():
    for line in ('{"text": "cut sho', '{"text": "a\tb"}', '{"text" 1}', ""):
        with pytest.raises(
            UserError, match=r"a\.jsonl:1 is not JSON: \w.* at column \d+; expected an object"
        ) as refused:
            records.json_value(line, "a.jsonl:1")
        assert " at at " not in str(refused.value)


# ---- what a tokenizer's vocabulary has no token for


def without_control_bytes(file) -> str:
    """The spec of a byte-level tokenizer without the bytes that SmolLM2's vocabulary lacks."""
    vocab = [c for c, b in byte_of_character().items() if b not in (*lossless.SELDOM, *lossless.NEVER)]
    model = {"type": "BPE", "vocab": {c: i for i, c in enumerate(vocab)}, "merges": []}
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    file.write_text(json.dumps({"model": model, "pre_tokenizer": pre, "decoder": pre, "added_tokens": []}))
    return f"hf:{file}"


@pytest.fixture
def bells(tmp_path):
    """(a file of which line 2 has a control character, the spec of a tokenizer without it)."""
    pytest.importorskip("tokenizers")
    file = tmp_path / "b.jsonl"
    file.write_text("\n".join([STORIES[0], json.dumps({"text": "A bell: \a."}), *STORIES[1:]]))
    return file, without_control_bytes(tmp_path / "tokenizer.json")


def test_a_preparation_leaves_out_a_text_that_the_vocabulary_cannot_spell(bells, tmp_path):
    file, tokenizer = bells
    record = done(recipe(tmp_path / "out", file, tokenizer))
    assert record["counts"]["documents"] == 11 and record["counts"]["kept_documents"] == 10
    [message] = record["failures"]["messages"]
    assert message.startswith(f"{file} at byte") and "the tokenizer 'hf' changes this text" in message


@pytest.mark.parametrize("val_split", ["tail", "document"])
def test_a_run_leaves_it_out_too_and_names_it(bells, tmp_path, capfd, val_split):
    file, tokenizer = bells
    kind, _, path = tokenizer.partition(":")
    config = DataConfig(source="jsonl", path=str(file), cache_dir=str(tmp_path / "c"), val_split=val_split)
    config = dataclasses.replace(config, tokenizer=kind, tokenizer_path=path)
    made = store.prepare(config).sources["jsonl"]
    assert made.train.n_documents + made.val.n_documents == 10 + (val_split == "tail")  # which parts one
    assert made.description["left_out"]["count"] == 1
    assert f"left out: {file} at byte 39: the tokenizer 'hf' changes this text" in capfd.readouterr().err
    file.write_text(json.dumps({"text": "\a"}))
    with pytest.raises(UserError, match="b.jsonl at byte 0: the tokenizer 'hf' changes this text"):
        store.prepare(config)


def test_a_conversation_that_the_vocabulary_cannot_spell_is_left_out_too(bells, tmp_path, capfd):
    file, tokenizer = bells
    kind, _, path = tokenizer.partition(":")
    turns = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in ("Yes.", "\a", "No.")
    ]
    file.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    config = DataConfig(
        source="jsonl", path=str(file), cache_dir=str(tmp_path / "c"), tokenizer=kind, tokenizer_path=path
    )
    config = dataclasses.replace(config, chat="gptjax", packing="best_fit", val_split="document", val_fraction=0.0)
    made = store.prepare(config).sources["jsonl"]
    assert made.train.n_documents == 2
    said = capfd.readouterr().err
    assert f"left out: {file} at byte" in said and "the tokenizer 'hf' changes this text" in said
