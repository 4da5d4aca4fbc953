"""Whatever the bytes of a source are, no document of it ends the reading: each is read, or left out by name and counted."""

import bz2
import encodings.aliases
import gzip
import lzma

import hypothesis
import hypothesis.strategies as st
import pyarrow.parquet
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordReader
from source_files import array_record, jsonl, parquet, warc, wet

from gptjax.config.fields import DataConfig
from gptjax.data import sources, tokenizers
from gptjax.data.preparing import preparation
from gptjax.errors import UserError

TEXTS = ["a short text", "é\u2028 second", "", "<p>third</p>", '{"text": "fourth"}', "fifth\r\n" * 9]
EDGES = [
    b"",
    b"\0",
    b"\n",
    b'"',
    b"\\",
    b"{",
    b"[" * 3000,
    b"\xff",
    b"\xfe\xff",
    b"\x1f\x8b\x08",
    b"\\ud800",
    b"<",
    b"\r\n\r\n",
]
EDGES += [b"9" * 5000, b"WARC/1.0\r\n", b"Content-Length: 9\r\n", b"PAR1", b"charset=punycode ", b"--\n", b"\xf0\x9f"]

EDIT = st.tuples(
    st.integers(0, 1 << 20),  # where, modulo the length
    st.sampled_from(["replace", "insert", "cut", "delete", "flip"]),
    st.one_of(st.sampled_from(EDGES), st.binary(max_size=6)),
)


NAMES = ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.jsonl.bz2", "a.parquet", "a.arrayrecord"]
NAMES += ["j.arrayrecord", "a.wet", "a.wet.gz", "a.warc", "a.warc.gz"]


def edited(data: bytes, edits: list[tuple]) -> bytes:
    for place, how, piece in edits:
        at = place % (len(data) + 1)
        if how == "cut":
            data = data[:at]
        elif how == "flip":
            data = data[:at] + bytes(b ^ (1 << place % 8) for b in data[at : at + 1]) + data[at + 1 :]
        else:
            data = data[:at] + (b"" if how == "delete" else piece) + data[at + (len(piece) if how != "insert" else 0) :]
    return data


def read(kind: str, file, **fields) -> tuple[list[sources.Document], int]:
    """The documents, and how many are left out, after a look at what was said of these."""
    config, errors = DataConfig(source=kind, path=str(file), **fields), []
    found = [d for unit in sources.units(config) for d in sources.read(config, unit, errors.append)]
    for document in found:
        assert document.where.startswith(str(file))
        document.text.encode()
    for error in errors:
        assert isinstance(error, UserError) and str(error).startswith(str(file))
        assert "\n" not in str(error) and len(str(error)) < 2000
    return found, sum(map(sources.number_left_out, errors))


# ---- bytes of files, changed at random


def array_record_bytes(file, records) -> bytes:
    array_record(file, records)
    return file.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of a file of each kind, by its name."""
    file = tmp_path_factory.mktemp("whole") / "x"
    page = ("response", ["200 OK", ("Content-Type", "text/html; charset=utf-8")], b"<html><p>a page")
    return {
        "a.txt": "".join(f"{text}\n--\n" for text in TEXTS).encode(),
        "a.jsonl": jsonl(TEXTS),
        "a.jsonl.gz": gzip.compress(jsonl(TEXTS), mtime=0),
        "a.jsonl.zst": zstandard.compress(jsonl(TEXTS)),
        "a.jsonl.xz": lzma.compress(jsonl(TEXTS)),
        "a.jsonl.bz2": bz2.compress(jsonl(TEXTS)),
        "a.parquet": parquet(TEXTS, row_group_size=2, compression="none"),
        "a.arrayrecord": array_record_bytes(file, TEXTS),
        "j.arrayrecord": array_record_bytes(file, jsonl(TEXTS).splitlines()),
        "a.wet": wet(TEXTS, packed=False),
        "a.wet.gz": wet(TEXTS),
        "a.warc": warc([page] * 3, packed=False),
        "a.warc.gz": warc([page] * 3),
    }


def lines(data: bytes) -> int:
    return sum(bool(line.strip()) for line in data.split(b"\n"))


def rows(file) -> int:
    table = pyarrow.parquet.ParquetFile(str(file))
    return sum(table.metadata.row_group(i).num_rows for i in range(table.num_row_groups))


def array_records(file) -> int:
    reader = ArrayRecordReader(str(file))
    assert reader.ok()
    return reader.num_records()


COUNTED = {  # how many documents are in a file, as another says who reads it with nothing of ours; raises, if it is damaged
    "a.jsonl": lambda file: lines(file.read_bytes()),
    "a.jsonl.gz": lambda file: lines(gzip.decompress(file.read_bytes())),
    "a.jsonl.xz": lambda file: lines(lzma.decompress(file.read_bytes())),
    "a.jsonl.bz2": lambda file: lines(bz2.decompress(file.read_bytes())),
    "a.parquet": rows,
    "a.arrayrecord": array_records,
    "j.arrayrecord": array_records,
}


def check_account(name: str, file) -> None:
    """Documents in = read + left out; where a file is damaged, at least that is said."""
    kind = sources.from_spec(str(file), DataConfig()).source
    found, n_left_out = read(kind, file, separator="--" if name == "a.txt" else None)
    if name not in COUNTED:
        return
    try:
        expected = COUNTED[name](file)
    except Exception:
        assert n_left_out > 0
        return
    of_another_kind = n_left_out == 1 and not found
    assert len(found) + n_left_out == expected or of_another_kind


def fuzzed(examples: int):
    return hypothesis.settings(max_examples=examples, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))


@pytest.mark.parametrize("name", NAMES)
@fuzzed(12)
@hypothesis.given(edits=st.lists(EDIT, min_size=1, max_size=4))
def test_a_file_of_any_bytes_is_read_or_left_out_by_name(name, edits, whole, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(edited(whole[name], edits))
    check_account(name, file)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@fuzzed(3000)
@hypothesis.given(edits=st.lists(EDIT, min_size=1, max_size=6))
def test_a_file_of_any_bytes_is_read_or_left_out_by_name_with_many_examples(name, edits, whole, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(edited(whole[name], edits))
    check_account(name, file)


# ---- whole files of records of which each is anything

JSON_VALUES = st.sampled_from(
    [
        '"a"',
        '"\\ud800"',
        '""',
        "null",
        "1",
        "7" * 5000,
        "-" + "7" * 5000,
        "1e9999",
        "NaN",
        "[" * 2000,
        "{}",
        '"\\u0000"',
        "{",
    ]
)
JSON_LINES = st.builds(
    lambda fields, end: ("{" + ", ".join(f'"{name}": {value}' for name, value in fields) + end).encode(),
    st.lists(st.tuples(st.sampled_from(["text", "n", "text\\n", ""]), JSON_VALUES), max_size=3),
    st.sampled_from(["}", "}", "}", "", "} {", "]"]),
)
LINES = st.one_of(JSON_LINES, st.binary(max_size=9).map(lambda data: data.replace(b"\n", b"")))


@fuzzed(25)
@hypothesis.given(some=st.lists(LINES, max_size=6))
def test_of_lines_of_anything_each_is_read_or_left_out(some, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "lines.jsonl"
    file.write_bytes(b'{"text": "first"}\n' + b"\n".join(some))
    found, n_left_out = read("jsonl", file)
    assert len(found) + n_left_out == 1 + sum(bool(line.strip()) for line in some)


@fuzzed(20)
@hypothesis.given(records=st.lists(st.one_of(JSON_LINES, st.binary(max_size=9)), min_size=1, max_size=6))
def test_of_records_of_anything_each_is_read_or_left_out(records, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "records.arrayrecord"
    array_record(file, records)
    found, n_left_out = read("arrayrecord", file)
    assert len(found) + n_left_out in (len(records), 1)  # 1: a file of tf.train.Examples, by chance


CHARSETS = st.one_of(
    st.sampled_from(sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "undefined", "idna"})),
    st.text("abc1-_.:é\u0660 ", min_size=1, max_size=9),
)
PAGES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode(errors="replace")),
    st.lists(
        st.sampled_from(
            [
                "<p>",
                "</p>",
                "text of a page. ",
                "<!--",
                "-->",
                "<",
                "&#xd800;",
                "&#0;",
                "<html>",
                "<div>" * 300,
                "<table><tr>",
            ]
        )
    ).map(lambda parts: "".join(parts).encode()),
)


def prepared(spec: str, clean: str | None, **fields) -> dict:
    """What gptjax prepare would do with the first 10 MB of a source, in this process."""
    config = sources.from_spec(spec, DataConfig(**fields))
    order = preparation.Order(spec, config, tokenizers.from_spec("bytes"), "out", None, 1, 0.0, clean, None, False)
    return preparation.trial(order, preparation.plan(order))


@fuzzed(25)
@hypothesis.given(pages=st.lists(st.tuples(CHARSETS, st.booleans(), PAGES), min_size=1, max_size=4))
def test_of_pages_of_any_charset_and_markup_each_is_cleaned_or_left_out(pages, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "pages.warc.gz"
    records = []
    for charset, in_header, page in pages:
        label = f"charset={charset}"
        header = ("Content-Type", f"text/html; {label}" if in_header else "text/html")
        page = page if in_header else f"<meta {label}>".encode() + page
        records.append(("response", ["200 OK", header], page))
    file.write_bytes(warc(records))
    found = prepared(str(file), "html,unicode")
    n_unread = len(pages) - found["counts"]["documents"]
    html = found["cleaning"]["steps"][0]
    assert html["documents"] + found["failures"]["count"] == len(pages) and 0 <= n_unread <= found["failures"]["count"]
    assert html["removed"] + html["pieces"] == html["documents"]
