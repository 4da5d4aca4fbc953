"""The units of a source are its documents, whatever their size; what cannot be read is left out by name, not silently."""

import dataclasses
import gzip
import json
import pickle
import re

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet
import pytest
from source_files import HTML, array_record, jsonl, parquet, warc, wet, zstd_frames

from gptjax.config.fields import DataConfig
from gptjax.data import sources
from gptjax.data.sources import columns, files
from gptjax.errors import UserError

TEXTS = [f"document {i}\n" + "é\u2028" * (i % 7) + "\r\n" + "long " * (200 * (i % 5 == 0)) for i in range(60)]
EXAMPLE = b"\n\x13\n\x11\n\x04text\x12\t\n\x07\n\x05hello"
"""tf.train.Example(features: {feature: {"text": bytes_list "hello"}}), serialized."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each kind in files of its own: a folder of small ones, one of a large one, one of packed ones."""
    where = tmp_path_factory.mktemp("kinds")

    def write(name: str, data: bytes):
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_bytes(data)

    for i, text in enumerate(TEXTS):
        write(f"small/{i:03}.txt", text.encode())
    write("large/a.txt", b"<|>\n" + b"<|>\n".join(text.encode() + b"\n" for text in TEXTS) + b"<|>\r\n\n")
    write("jsonl/a.jsonl", jsonl(TEXTS[:40]))
    write("jsonl/b.jsonl.gz", gzip.compress(jsonl(TEXTS[40:45])) + gzip.compress(jsonl(TEXTS[45:50])) + bytes(9))
    write("jsonl/c.jsonl.zst", zstd_frames(jsonl(TEXTS[50:])))
    write("parquet/a.parquet", parquet(TEXTS[:50]))
    write("parquet/b.parquet", parquet(TEXTS[50:], pa.dictionary(pa.int32(), pa.large_string())))
    write("warc/a.warc.wet.gz", wet(TEXTS[:30]))
    write("warc/b.wet", wet(TEXTS[30:40], packed=False))
    write("warc/c.warc.gz", warc([("response", HTML, text.encode()) for text in TEXTS[40:]]))
    (where / "arrays").mkdir()
    array_record(where / "arrays/a.arrayrecord", TEXTS[:50])
    array_record(where / "arrays/b.array_record", [json.dumps({"text": text}) for text in TEXTS[50:]])
    return where


KINDS = {
    "small": "text",
    "large": "text",
    "jsonl": "jsonl",
    "parquet": "parquet",
    "warc": "warc",
    "arrays": "arrayrecord",
}


def never(error: UserError):
    raise AssertionError(error)


def read_units(config: DataConfig, unit_bytes: int, on_error=never) -> list[list[sources.Document]]:
    """The documents of each unit, each read after a trip through pickle."""
    units = pickle.loads(pickle.dumps(sources.units(config, unit_bytes)))
    return [list(sources.read(config, unit, on_error)) for unit in units]


def joined(units: list[list]) -> list:
    return [document for unit in units for document in unit]


@pytest.mark.parametrize("name", KINDS)
def test_the_units_of_any_size_are_the_documents_in_order(name, folder):
    config = DataConfig(source=KINDS[name], path=str(folder / name), separator="<|>" if name == "large" else None)
    whole = joined(read_units(config, 1 << 30))
    assert [document.text for document in whole] == (
        TEXTS if name != "large" else [text + "\n" for text in TEXTS] + ["\n"]
    )
    assert list(sources.documents(config)) == [document.text for document in whole]
    assert len({document.where for document in whole}) == len(whole)
    for unit_bytes in (13, 999, 5000):
        assert joined(read_units(config, unit_bytes)) == whole


@pytest.mark.parametrize("name, at_least", [("large", 40), ("jsonl", 40), ("parquet", 8), ("arrays", 50)])
def test_a_large_file_is_cut(name, at_least, folder):
    config = DataConfig(source=KINDS[name], path=str(folder / name), separator="<|>" if name == "large" else None)
    assert sum(map(bool, read_units(config, 50))) >= at_least
    assert max(map(len, read_units(config, 50))) <= 10


def test_many_small_files_make_few_units(tmp_path):
    for i in range(300):
        (tmp_path / f"{i:03}.txt").write_text(f"text {i}")
    config = DataConfig(path=str(tmp_path))
    units = sources.units(config)
    assert len(units) == 1 and units[0].name == f"{tmp_path}/000.txt and 299 more"
    assert [len(unit) for unit in read_units(config, 800)] == [113, 100, 87]  # of 6 to 8 bytes each
    assert joined(read_units(config, 800)) == joined(read_units(config, 1))


LINES = st.lists(st.sampled_from([b"--\n", b"--\r\n", b"---\n", b"a\n", b"bc\r\n", b"\n", b"\r\n", "é\n".encode()]))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(lines=LINES, end=st.sampled_from([b"", b"--", b"a"]), unit_bytes=st.integers(1, 12))
def test_separated_text_is_the_same_wherever_it_is_cut(lines, end, unit_bytes, tmp_path_factory):
    data = b"".join(lines) + end
    hypothesis.assume(data)
    file = tmp_path_factory.getbasetemp() / "separated.txt"
    file.write_bytes(data)
    config = DataConfig(path=str(file), separator="--")
    runs, run = [], b""
    for line in data.splitlines(keepends=True) + [b"--"]:  # what a document is, said once more
        if line.strip(b"\r\n") == b"--":
            runs, run = runs + [run] * bool(run), b""
        else:
            run += line
    assert [d.text.encode() for d in joined(read_units(config, unit_bytes))] == runs
    assert [d.text.encode() for d in joined(read_units(config, 1 << 20))] == runs


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), unit_bytes=st.integers(1, 40))
def test_lines_belong_to_one_unit_wherever_they_are_cut(sizes, unit_bytes, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "lines.jsonl"
    file.write_bytes(jsonl("x" * size for size in sizes).rstrip(b"\n"))
    units = read_units(DataConfig(source="jsonl", path=str(file)), unit_bytes)
    assert [document.text for document in joined(units)] == ["x" * size for size in sizes]


# ---- what cannot be read: (file, its bytes, texts that are read, the one error there is)

GOOD = TEXTS[:20]
JSONL = jsonl(GOOD)
DAMAGED_GROUP = parquet(
    GOOD, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
)


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1 and len(old) == len(new)
    return data.replace(old, new, 1)


def html(payload: bytes, content_type: str = "text/html", *more) -> bytes:
    return warc([("response", ["200 OK", ("Content-Type", content_type), *more], payload)])


BAD = {
    "line.jsonl": (b'{"text": "a"}\n{"text": \n{"text": "b"}\n', ["a", "b"], "line.jsonl:2 is not JSON: .* column"),
    "field.jsonl": (b'{"body": "a"}\n{"text": "b"}', ["b"], "field.jsonl:1 has no field 'text'; it has: 'body'"),
    "chat.jsonl": (
        b'{"messages": []}\n{"text": "b"}',
        ["b"],
        "chat.jsonl:1 has no field 'text'; it has: 'messages'. Set data.text_field or, for conversations, data.chat.",
    ),
    "latin.jsonl": (b'{"text": "a"}\n\n{"text": "\xe9"}', ["a"], "latin.jsonl:3 is not UTF-8 at byte 10"),
    "deep.jsonl": (b"[" * 5000 + b'\n{"text": "a"}', ["a"], "deep.jsonl:1 is not JSON that can be read"),
    "list.jsonl.gz": (gzip.compress(b'{"text": "a"}\n[]\n'), ["a"], "list.jsonl.gz:2 holds a list"),
    "empty.jsonl": (b"", [], "empty.jsonl is empty; remove it"),
    "cut.jsonl.gz": (
        gzip.compress(JSONL)[:-9],
        GOOD,
        r"truncated gzip file \(it ends too early\): nothing after line 20",
    ),
    "cut.jsonl.zst": (zstd_frames(JSONL)[:-5], None, r"cut.jsonl.zst is a damaged or truncated zstd file"),
    "sum.jsonl.gz": (gzip.compress(JSONL)[:-8] + bytes(8), [], "sum.jsonl.gz is a damaged .*incorrect data check"),
    "not.jsonl.zst": (
        b"\x28\xb5\0\0",
        [],
        "not.jsonl.zst is damaged or no zstd file: it begins with the bytes 28 b5 00",
    ),
    "tail.jsonl.gz": (gzip.compress(JSONL) + b"tail", GOOD, "tail.jsonl.gz is a damaged .*incorrect header"),
    "latin.txt": (b"caf\xe9", [], r"latin.txt is not UTF-8 at byte 3 \(0xe9\)"),
    "part.txt": (b"a\n--\nb\xff\n--\nc\n", ["a\n", "c\n"], r"part.txt is not UTF-8 at byte 6 \(0xff\)"),
    "not.parquet": (JSONL, [], "not.parquet is a damaged or no Parquet file"),
    "cut.parquet": (parquet(GOOD)[:-20], [], "cut.parquet is a damaged or no Parquet file"),
    "other.parquet": (patched(parquet(["a"]), b"text", b"body"), [], "no Parquet file|has no column 'text'"),
    "number.parquet": (
        parquet([1, 2], pa.int8()),
        [],
        "number.parquet: column 'text' is of type int8; expected strings",
    ),
    "null.parquet": (parquet(["a", None, "b"]), ["a", "b"], "null.parquet row 1: field 'text' is null"),
    "latin.parquet": (
        parquet([b"a", b"\xe9", b"b"], pa.binary()),
        ["a", "b"],
        "latin.parquet row 1 is not UTF-8 at byte 0",
    ),
    "group.parquet": (
        patched(DAMAGED_GROUP, b"document 9", b"dokument 9"),
        GOOD[:7] + GOOD[14:],
        "group.parquet is damaged: rows 7 to 13, the rest of row group 1, cannot be read .*CRC",
    ),
    "not.warc": (JSONL, [], "not.warc is a damaged or no WARC file .*: nothing after record 0"),
    "cut.wet": (wet(GOOD, packed=False)[:-9], GOOD[:-1], "cut.wet is a damaged .*Content-Length says.*after record 20"),
    "short.wet": (
        patched(wet(["a", "b" * 99, "c"], packed=False), b"Content-Length: 99", b"Content-Length: 90"),
        ["a"],
        "short.wet is a damaged or no WARC file .*Content-Length says.*after record 2",
    ),
    "cut.wet.gz": (wet(GOOD)[:-9], GOOD[:-1], "cut.wet.gz is a damaged or truncated gzip file .*after record 20 can"),
    "latin.wet": (
        warc([("conversion", None, b"\xe9"), ("conversion", None, b"a")], False),
        ["a"],
        "latin.wet record 1 is not U",
    ),
    "lie.warc.gz": (
        html(b"\xe9", "text/html; charset=utf-8"),
        [],
        r"lie.warc.gz record 1 is not utf-8, as it says, at byte 0",
    ),
    "packed.warc.gz": (
        html(b"abc", "text/html", ("Content-Encoding", "klingon")),
        [],
        "Content-Encoding 'klingon'; expec",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_left_out_and_named_once_or_raised(name, tmp_path):
    data, texts, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    kind = sources.from_spec(str(tmp_path / name), DataConfig()).source
    config = DataConfig(source=kind, path=str(tmp_path / name), separator="--" if name == "part.txt" else None)
    for unit_bytes in (1 << 20, 30):
        errors = []
        found = [document.text for document in joined(read_units(config, unit_bytes, errors.append))]
        assert found == texts or texts is None and found == GOOD[: len(found)] and len(found) >= 9
        assert len(errors) == 1 or kind == "parquet" and "column" in message
        assert isinstance(errors[0], UserError) and "\n" not in str(errors[0])
        with pytest.raises(UserError, match=message):
            raise errors[0]
    with pytest.raises(UserError, match=message):
        list(sources.documents(config))


def test_a_warc_file_that_ends_anywhere_but_between_records_is_damaged(tmp_path):
    data = warc([("response", HTML, text) for text in (b"one", b"two")], packed=False)
    second = data.index(b"WARC/1", 1)
    for cut in range(second - 4 + 1, len(data) - 4, 3):
        (tmp_path / "a.warc").write_bytes(data[:cut])
        errors = []
        found = joined(read_units(DataConfig(source="warc", path=str(tmp_path)), 1 << 20, errors.append))
        assert [document.text for document in found] == ["one"]
        assert len(errors) == (cut > second), cut


def test_rows_are_numbered_over_batches_and_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_BATCH_BYTES", 1)
    (tmp_path / "a.parquet").write_bytes(parquet(GOOD))
    found = joined(read_units(DataConfig(source="parquet", path=str(tmp_path)), 1 << 20))
    assert found == [sources.Document(text, f"{tmp_path}/a.parquet row {i}") for i, text in enumerate(GOOD)]


LONG = {
    "a.txt": (None, b"x" * 101, [], "a.txt would be one document of more than .*; set data.separator"),
    "b.txt": (
        "--",
        b"a\n--\n" + b"x\n" * 51 + b"--\nb",
        ["a\n"],
        "b.txt has no separator line .* from byte 5 on; check",
    ),
    "c.txt": ("--", b"a\n--\n" + b"x" * 100 + b"\n--\nb", ["a\n"], "c.txt: the line at byte 5 is longer than"),
    "a.jsonl": (None, jsonl(["a", "x" * 99, "b"]), ["a"], "a.jsonl: the line at byte 23 is longer than"),
    "b.jsonl.gz": (
        None,
        gzip.compress(jsonl(["a", "x" * 99, "b"])),
        ["a"],
        "b.jsonl.gz: the line at byte 23 is longer",
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_what_would_not_fit_the_memory_is_not_read(name, tmp_path, monkeypatch):
    separator, data, texts, message = LONG[name]
    monkeypatch.setattr(files, "LONGEST_DOCUMENT", 100)
    (tmp_path / name).write_bytes(data)
    config = dataclasses.replace(sources.from_spec(str(tmp_path / name), DataConfig()), separator=separator)
    errors = []
    assert [document.text for document in joined(read_units(config, 1 << 20, errors.append))] == texts
    assert len(errors) == 1 and re.search(message, str(errors[0]))


def test_the_files_beside_a_bad_one_are_read(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jsonl.gz").write_bytes(gzip.compress(jsonl([f"text {i}"])))
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(b"x" * 99)[:20])
    (tmp_path / "2.jsonl.gz").write_bytes(b"")
    config, errors = DataConfig(source="jsonl", path=str(tmp_path)), []
    units = sources.units(config)
    (tmp_path / "3.jsonl.gz").unlink()
    found = [document for unit in units for document in sources.read(config, unit, errors.append)]
    assert [document.text for document in found] == ["text 0"]
    assert [str(error).split(";")[0].split(" (")[0].removeprefix(f"{tmp_path}/") for error in errors] == [
        "1.jsonl.gz is a damaged or truncated gzip file",
        "2.jsonl.gz is empty",
        "3.jsonl.gz cannot be read: No such file or directory",
    ]


def test_records_before_and_behind_a_damaged_one_are_read(tmp_path):
    file = tmp_path / "a.arrayrecord"
    array_record(file, [f"document {i} " * 50 for i in range(1000)])
    data = bytearray(file.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 50] = b"x" * 50
    file.write_bytes(data)
    errors = []
    found = joined(read_units(DataConfig(source="arrayrecord", path=str(file)), 1 << 30, errors.append))
    assert found[0].text.startswith("document 0 ") and found[-1].text.startswith("document 999 ")
    assert len(errors) == 1 and 900 < len(found) == 1000 - sources.number_left_out(errors[0]) < 1000
    damaged = re.search(r"a.arrayrecord record (\d+)( to \d+)? cannot be read, damaged \(.*\); fetch", str(errors[0]))
    first, stop = int(damaged[1]), int(damaged[1]) + 1000 - len(found)
    assert [int(document.text.split()[1]) for document in found] == [*range(first), *range(stop, 1000)]


ARRAYS = {
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:70_000]), "damaged or no ArrayRecord file"),
    "another": (lambda file: file.write_bytes(b"hello" * 100), "damaged or no ArrayRecord file .*64KB"),
    "field": (lambda file: array_record(file, ['{"body": "a"}']), "record 0 has no field 'text'; it has: 'body'"),
    "example": (lambda file: array_record(file, [EXAMPLE]), "a.arrayrecord holds tf.train.Examples; expected text or"),
    "latin": (lambda file: array_record(file, [b"caf\xe9"]), "record 0 is not UTF-8 at byte 3"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_records_that_are_no_text_are_named(name, tmp_path):
    file = tmp_path / "a.arrayrecord"
    array_record(file, TEXTS * 9)
    change, message = ARRAYS[name]
    change(file)
    with pytest.raises(UserError, match=message) as error:
        list(sources.documents(DataConfig(source="arrayrecord", path=str(file))))
    assert "\n" not in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("n_files, lines", [(1, 5), (3, 200), (100, 3)])
def test_spread_documents_are_all_of_them_and_the_first_ones_from_all_over(tmp_path, n_files, lines, monkeypatch):
    monkeypatch.setattr(sources, "_SPREAD_BYTES", 500)
    texts = [f"{i} {j} " + "x" * (j % 50) for i in range(n_files) for j in range(lines)]
    for i in range(n_files):
        part = texts[i * lines : (i + 1) * lines]
        (tmp_path / f"{i:03}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    config = DataConfig(source="jsonl", path=str(tmp_path))
    spread = list(sources.spread_documents(config))
    assert sorted(spread) == sorted(texts) and spread == list(sources.spread_documents(config))
    if len(texts) > 100:
        thirds = {texts.index(text) * 3 // len(texts) for text in spread[:20]}
        assert thirds == {0, 1, 2}
