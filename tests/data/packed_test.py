"""Packed files are unpacked by their first bytes in every source; what cannot be is named with what to do."""

import bz2
import gzip
import lzma
import subprocess

import pytest
import zstandard
from source_files import array_record, jsonl, parquet, wet

from gptjax.config.fields import DataConfig
from gptjax.data import sources
from gptjax.errors import UserError

PACK = {"gz": gzip.compress, "zst": zstandard.compress, "xz": lzma.compress, "bz2": bz2.compress}
TEXTS = [f"text {i} é\n" for i in range(30)]


def read(kind: str, path, **fields) -> list[str]:
    return list(sources.documents(DataConfig(source=kind, path=str(path), **fields)))


@pytest.mark.parametrize("packed", PACK)
def test_every_source_of_text_reads_a_packed_file_as_the_plain_one(packed, tmp_path):
    plain = {
        "text": ("a.txt", "".join(TEXTS).encode(), {}),
        "text parted": ("b.txt", b"--\n".join(text.encode() for text in TEXTS), {"separator": "--"}),
        "jsonl": ("a.jsonl", jsonl(TEXTS), {}),
        "warc": ("a.wet", wet(TEXTS, packed=False), {}),
    }
    for kind, (name, data, fields) in plain.items():
        kind = kind.split()[0]
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}.{packed}").write_bytes(PACK[packed](data))
        (tmp_path / f"bare-{name}").write_bytes(PACK[packed](data))  # packed under a plain name
        expected = read(kind, tmp_path / name, **fields)
        assert expected in (TEXTS, ["".join(TEXTS)])
        for file in (f"{name}.{packed}", f"bare-{name}"):
            config = DataConfig(source=kind, path=str(tmp_path / file), **fields)
            assert read(kind, tmp_path / file, **fields) == expected
            assert sources.from_spec(str(tmp_path / file), DataConfig()).source == kind
            units = sources.units(config, 10)  # a packed file has one beginning
            assert len(units) == 1 and [d.text for d in sources.read(config, units[0], pytest.fail)] == expected


def test_gzip_by_the_command_is_read_and_its_folder_too(tmp_path):
    (tmp_path / "t.txt").write_text("A text.\n")
    subprocess.run(["gzip", str(tmp_path / "t.txt")], check=True)
    assert read("text", tmp_path / "t.txt.gz") == read("text", tmp_path) == ["A text.\n"]
    assert list(sources.documents(DataConfig(path=str(tmp_path / "t.txt.gz")))) == ["A text.\n"]


def test_plain_text_under_the_name_of_a_packed_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(jsonl(TEXTS))
    config = DataConfig(source="jsonl", path=str(tmp_path))
    assert list(sources.documents(config)) == TEXTS
    assert len(sources.units(config, 100)) > 5  # and cut as a plain one


def test_members_and_streams_one_after_the_other_are_one_text(tmp_path):
    for packed, pack in PACK.items():
        (tmp_path / f"a.txt.{packed}").write_bytes(pack(b"one ") + pack(b"two"))
        assert read("text", tmp_path / f"a.txt.{packed}") == ["one two"]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two") + bytes(4))
    assert read("text", tmp_path / "a.txt.xz") == ["one two"]


NOT_READ = {  # source, bytes, what the line says
    "a.jsonl": ("jsonl", b"PK\x03\x04rest", "a.jsonl is a zip archive; unpack it"),
    "b.txt": ("text", b"7z\xbc\xaf\x27\x1c..", "b.txt is a 7z archive; unpack it"),
    "c.jsonl.lz4": ("jsonl", b"\x04\x22\x4d\x18rest", "c.jsonl.lz4 is packed by lz4; unpack it"),
    "d.txt": ("text", "\ufeffa text".encode("utf-16-le"), "d.txt is in UTF-16; convert it to UTF-8"),
    "e.jsonl": ("jsonl", b"PAR1\x15\x04", "e.jsonl is a Parquet file; read it as parquet:PATH"),
    "f.txt": ("text", b"%PDF-1.7\n%\xe2\xe3", "f.txt is a PDF document; make text of it"),
    "g.wet": ("warc", b"\x1f\x9d\x90", "g.wet is packed by compress; unpack it"),
    "h.parquet": ("parquet", gzip.compress(b"x"), "h.parquet is packed by gzip; unpack it: Parquet files are read where"),
    "i.arrayrecord": ("arrayrecord", zstandard.compress(b"x" * 9), "i.arrayrecord is packed by zstd; unpack it: ArrayRec"),
    "j.arrayrecord": ("arrayrecord", b"PAR1\x15\x04" * 9, "j.arrayrecord is a Parquet file; read it as parquet:PATH"),
    "k.txt.gz": ("text", gzip.compress(b"x" * 99)[:-4], r"k.txt.gz is a damaged or truncated gzip file .it ends too ear"),
    "l.txt.bz2": ("text", b"\0\1\2\3\4", "l.txt.bz2 is damaged or no bzip2 file: it begins with the bytes 00 01 02 03; fe"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_unpacked_is_named_by_its_first_bytes_with_what_to_do(name, tmp_path):
    kind, data, message = NOT_READ[name]
    (tmp_path / name).write_bytes(data)
    errors, config = [], DataConfig(source=kind, path=str(tmp_path / name))
    assert not [d for unit in sources.units(config, 3) for d in sources.read(config, unit, errors.append)]
    assert len(errors) == 1 and "\n" not in str(errors[0])
    with pytest.raises(UserError, match=f"^{tmp_path}/{message}"):
        list(sources.documents(config))


def test_documents_before_the_damage_of_a_packed_file_are_read(tmp_path):
    data = b"--\n".join(text.encode() * 400 for text in TEXTS)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data, 0)[:-9000])
    errors, config = [], DataConfig(path=str(tmp_path / "a.txt.gz"), separator="--")
    found = [d.text for unit in sources.units(config) for d in sources.read(config, unit, errors.append)]
    assert 20 < len(found) < len(TEXTS) and found == [text * 400 for text in TEXTS[: len(found)]]
    ends = len("--\n".join(found).encode())
    assert len(errors) == 1 and f"nothing after the document that ends at byte {ends} of its text" in str(errors[0])


def test_a_readable_parquet_or_arrayrecord_file_is_not_asked_for_its_packing(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(TEXTS))
    array_record(tmp_path / "a.arrayrecord", TEXTS)
    assert read("parquet", tmp_path) == read("arrayrecord", tmp_path) == TEXTS
