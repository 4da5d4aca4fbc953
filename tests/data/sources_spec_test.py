"""A SPEC names one source; encodings of HTML; paths that are not local."""

import gzip
import sys

import pytest
import zstandard
from source_files import HTML, jsonl, parquet, warc, wet

from gptjax.config.checks import check
from gptjax.config.fields import Config, DataConfig, TrainConfig
from gptjax.data import sources
from gptjax.data.preparing import cleaning
from gptjax.errors import UserError

BASE = DataConfig(text_field="body", separator="--", tfds_dir="/data", path="old", tfds_name="old", tfds_split="old")

SPECS = {
    "corpus": dict(source="corpus"),
    "text:books/*.md": dict(source="text", path="books/*.md"),
    "jsonl:gs://bucket/c4/*.json.gz": dict(source="jsonl", path="gs://bucket/c4/*.json.gz"),
    "gs://bucket/c4/*.jsonl.zst": dict(source="jsonl", path="gs://bucket/c4/*.jsonl.zst"),
    "prepared:/data/c4": dict(source="prepared", path="/data/c4"),
    "a.txt": dict(source="text", path="a.txt"),
    "~/a.parquet": dict(source="parquet", path="~/a.parquet"),
    "x/a.array_record": dict(source="arrayrecord", path="x/a.array_record"),
    "CC-MAIN-00000.warc.wet.gz": dict(source="warc", path="CC-MAIN-00000.warc.wet.gz"),
    "tfds:lm1b": dict(source="tfds", tfds_name="lm1b"),
    "tfds:wikipedia/20230601.en:1.0.0@train[:1%]": dict(
        source="tfds", tfds_name="wikipedia/20230601.en:1.0.0", tfds_split="train[:1%]"
    ),
    "hf:Salesforce/wikitext/wikitext-103-v1@test": dict(
        source="hf", path="Salesforce/wikitext/wikitext-103-v1", hf_split="test"
    ),
}


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_names_a_source_and_keeps_how_it_is_read(spec):
    kept = dict(text_field="body", separator="--", tfds_dir="/data")
    assert sources.from_spec(spec, BASE) == DataConfig(**kept | SPECS[spec])


BAD = {
    "jsnl:a.jsonl": "'jsnl' is no kind; did you mean 'jsonl'[?]; expected a path or one of: corpus, text",
    "text:": "source 'text:': expected text:PATH",
    "tfds:": "source 'tfds:': expected tfds:NAME",
    "tfds:lm1b@": "source 'tfds:lm1b@': expected tfds:NAME or tfds:NAME@SPLIT",
    "corpus:plays": "source 'corpus:plays': expected corpus alone",
    "missing": "missing does not exist; expected a file, a folder or a glob",
    "": "source '': expected",
}


@pytest.mark.parametrize("spec", BAD)
def test_a_spec_that_names_none_is_answered_with_what_would(spec):
    with pytest.raises(UserError, match=BAD[spec]) as error:
        sources.from_spec(spec, BASE)
    assert "\n" not in str(error.value)


def test_a_folders_files_say_its_kind(tmp_path):
    def kind() -> str:
        return sources.from_spec(str(tmp_path), BASE).source

    with pytest.raises(UserError, match="is a folder without files"):
        kind()
    (tmp_path / "README.md").write_text("of no kind")
    with pytest.raises(
        UserError,
        match="no file's ending says its kind; expected .txt, .jsonl, .*, .wet, packed or not; or KIND:PATH, as in text:",
    ):
        kind()
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.jsonl.zst").write_text("x")
    assert kind() == "jsonl"
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="holds files of several kinds, 1 of .* and 1 of .*; say which: .*:/"):
        kind()
    assert sources.from_spec(f"{tmp_path}/*.txt", BASE).source == "text"
    (tmp_path / "manifest.json").write_text("{}")
    assert kind() == "prepared"


def test_a_path_may_have_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b.txt").write_text("x")
    config = sources.from_spec("a:b.txt", BASE)
    assert (config.source, config.path) == ("text", "a:b.txt")


@pytest.mark.parametrize("source", ["text", "jsonl", "parquet", "arrayrecord", "warc", "hf", "prepared"])
def test_a_config_without_the_path_its_source_needs_is_refused(source):
    with pytest.raises(UserError, match=f"data.source='{source}' needs data.path"):
        check(Config(train=TrainConfig(steps=1), data=DataConfig(source=source)))
    check(Config(train=TrainConfig(steps=1), data=DataConfig(source=source, path="x")))


def test_a_config_that_names_two_sources_is_refused():
    with pytest.raises(UserError, match="set one"):
        check(Config(train=TrainConfig(steps=1), data=DataConfig(source="tfds", tfds_name="lm1b", path="x")))


PAGES = {
    "header": ("text/html; charset=ISO-8859-2", "<p>Łódź", "iso-8859-2"),
    "quoted": ('text/html; Charset="koi8-r"; x=y', "<p>привет", "koi8-r"),
    "meta": ("text/html", '<head><meta charset="shift_jis"><p>日本', "shift_jis"),
    "old meta": ("text/html", '<meta http-equiv="C" content="text/html; charset=gb2312"><p>中文', "gb2312"),
    "header before meta": ("text/html; charset=utf-8", "<meta charset=latin-1>é", "utf-8"),
    "none": ("text/html", "<p>é中", "utf-8"),
    "web's latin-1": ("application/xhtml+xml; charset=latin1", "“quoted” €", "cp1252"),
    "utf-16": ("text/html", "\ufeff<p>é", "utf-16-le"),
    "bom": ("text/html; charset=latin-1", "\ufeff<p>é", "utf-8"),
}


@pytest.mark.parametrize("name", PAGES)
def test_html_is_decoded_as_it_says(name, tmp_path):
    content_type, text, encoding = PAGES[name]
    page = ("response", ["200 OK", ("Content-Type", content_type)], text.encode(encoding))
    (tmp_path / "a.warc.gz").write_bytes(warc([page]))
    found = list(sources.documents(DataConfig(source="warc", path=str(tmp_path))))
    assert found == [text.removeprefix("\ufeff")]


def test_packed_and_chunked_html_is_unpacked_and_what_is_no_page_is_no_document(tmp_path):
    packed = gzip.compress(b"<p>page")
    chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (5, packed[:5], len(packed) - 5, packed[5:])
    headers = [*HTML, ("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]
    others = [
        ("request", ["GET / HTTP/1.1"], b""),
        ("response", ["404 Not Found", *HTML[1:]], b"<p>missing"),
        ("response", ["200 OK", ("Content-Type", "image/png")], b"\x89PNG"),
        ("metadata", None, b"fetchTimeMs: 9"),
    ]
    (tmp_path / "a.warc.gz").write_bytes(warc([*others, ("response", headers, chunks)]))
    assert list(sources.documents(DataConfig(source="warc", path=str(tmp_path)))) == ["<p>page"]


CONTENT_TYPES = {  # of an answer, WARC-Identified-Payload-Type, its body: whether it is a document
    ("text/html; charset=utf-8", "text/plain", "words"): True,
    ("Application/XHTML+XML", None, "<p>words"): True,
    ("text/plain", "text/html", "<html>words"): False,
    (None, "text/html", "words"): True,
    (None, "text/plain", "<html>words"): False,
    (None, None, "<!-- a --><!DOCTYPE html>words"): True,
    ("", None, "<html>words"): True,
    (None, None, "words <html>"): False,
}


@pytest.mark.parametrize("said", CONTENT_TYPES)
def test_a_page_is_what_its_content_type_says_and_without_one_what_begins_as_a_page(said, tmp_path):
    content_type, identified, body = said
    page = ("response", ["200 OK"] + [("Content-Type", content_type)] * (content_type is not None), body.encode())
    header = f"WARC-Identified-Payload-Type: {identified}\r\nWARC-Date".encode() if identified else b"WARC-Date"
    (tmp_path / "a.warc").write_bytes(warc([page], packed=False).replace(b"WARC-Date", header))
    config = DataConfig(source="warc", path=str(tmp_path))
    [found] = [list(sources.read(config, unit, pytest.fail)) for unit in sources.units(config)]
    assert [(document.text, document.is_html) for document in found] == [(body, True)] * CONTENT_TYPES[said]


def test_the_text_of_a_wet_file_is_no_html_however_it_looks(tmp_path):
    text = "<html>is how a page begins"
    (tmp_path / "a.wet").write_bytes(wet([text]))
    config = DataConfig(source="warc", path=str(tmp_path))
    [document] = [d for unit in sources.units(config) for d in sources.read(config, unit, pytest.fail)]
    assert document.is_html is False and cleaning.Cleaner(cleaning.parse("html"))(document) == [document]


# ---- paths that are not local: a folder in the place of gs://, behind the library that epath asks for any store


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that is gs://bucket."""
    import fsspec
    from etils.epath import backend
    from fsspec.implementations.dirfs import DirFileSystem

    class Bucket(DirFileSystem):
        protocol = ("gs", "gcs")

        def __init__(self, **options):
            super().__init__(path=str(tmp_path), fs=fsspec.filesystem("file"))

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    (tmp_path / "bucket").mkdir()
    yield tmp_path / "bucket"
    backend.fsspec_backend._get_filesystem.cache_clear()


REMOTE = {
    "text": ("a.txt", b"--\none\n--\ntwo\n--\nthree\n", ["one\n", "two\n", "three\n"]),
    "jsonl": ("a.jsonl", jsonl(["one", "two", "three"]), ["one", "two", "three"]),
    "jsonl packed": ("a.jsonl.gz", gzip.compress(jsonl(["one", "two"])), ["one", "two"]),
    "parquet": ("a.parquet", parquet([str(i) for i in range(30)]), [str(i) for i in range(30)]),
    "warc": ("a.wet.gz", wet(["one", "two"]), ["one", "two"]),
}


@pytest.mark.parametrize("name", REMOTE)
def test_a_store_is_read_as_a_disk_is(name, bucket):
    file, data, texts = REMOTE[name]
    (bucket / "part").mkdir()
    (bucket / "part" / file).write_bytes(data)
    for path in ("gs://bucket", "gs://bucket/*/a.*", f"gs://bucket/part/{file}"):
        config = sources.from_spec(f"{name.split()[0]}:{path}", DataConfig(separator="--"))
        assert list(sources.documents(config)) == texts
        units = sources.units(config, 20)
        assert [d.text for unit in units for d in sources.read(config, unit, pytest.fail)] == texts
        assert all(unit.path == f"gs://bucket/part/{file}" for unit in units)
    assert sources.identity(config)["files"][0]["size"] == len(data)


def test_a_store_without_its_library_and_a_kind_that_is_read_from_disks_only_are_named():
    with pytest.raises(UserError, match=r"gs://b/a.txt cannot be read here: .*; pip install 'etils\[epath-gcs\]'"):
        sources.units(DataConfig(path="gs://b/a.txt"))
    with pytest.raises(UserError, match="gs://b/a.arrayrecord: ArrayRecord files are read from a disk"):
        sources.units(sources.from_spec("gs://b/a.arrayrecord", BASE))


def test_an_optional_library_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"x"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"packed by zstd, needs zstandard; pip install 'gptjax\[data\]'"):
        list(sources.documents(DataConfig(source="jsonl", path=str(tmp_path))))


@pytest.mark.parametrize(
    "name, kind", [("a.jsonl", "jsonl"), ("a.txt", "text"), ("a.log", "text"), ("a.jsonl.gz", "jsonl")]
)
def test_a_path_alone_is_of_the_kind_that_its_ending_says_and_otherwise_text(tmp_path, name, kind):
    (tmp_path / name).write_text("x")
    assert sources.source_name(DataConfig(path=str(tmp_path / name))) == kind
    assert sources.source_name(DataConfig(path=str(tmp_path))) == kind
    assert sources.source_name(DataConfig(source="text", path=str(tmp_path / name))) == "text"


def test_a_path_alone_may_be_a_prepared_folder_which_has_no_text(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    config = DataConfig(path=str(tmp_path))
    assert sources.source_name(config) == "prepared"
    with pytest.raises(UserError, match="was made by gptjax prepare: it holds tokens"):
        next(sources.documents(config))
    with pytest.raises(UserError, match="expected one of: .*prepared, tfds, hf"):
        next(sources.documents(DataConfig(source="jsnl")))
