"""Documents come as they stand in their files, in one order; what cannot be read is named in one line."""

import dataclasses
import gzip
import json
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gptjax.config.fields import DataConfig
from gptjax.data import sources
from gptjax.errors import UserError


def read(**fields) -> list[str]:
    return list(sources.documents(DataConfig(**fields)))


def test_the_shipped_corpus_is_a_megabyte_of_plain_text_without_boilerplate():
    texts = read()
    assert len(texts) == 15 and 1_000_000 < sum(map(len, texts)) < 2_000_000
    for text in texts:
        assert text.isascii() and text.isprintable() is False and "\r" not in text
        assert "gutenberg" not in text.lower() and "copyright" not in text.lower()
        assert "\n\nby William Shakespeare\n\n" in text and "\n\nACT I.\n\n" in text


def test_a_path_beside_the_default_source_means_text(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    assert read(path=str(tmp_path / "a.txt")) == read(source="text", path=str(tmp_path / "a.txt")) == ["hello"]


def test_text_is_not_changed(tmp_path):
    data = "\ufeff one\r\ntwo \u2028\0\n\n".encode()
    (tmp_path / "a.txt").write_bytes(data)
    assert [text.encode() for text in read(path=str(tmp_path / "a.txt"))] == [data]


def test_a_folder_is_read_recursively_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "b/2.txt", "b/1.txt", "a.txt", "b/no.md"):
        (tmp_path / name).write_text(name)
    assert read(path=str(tmp_path)) == ["a.txt", "b/1.txt", "b/2.txt", "c.txt"]
    assert read(path=f"{tmp_path}/*/*.md") == ["b/no.md"]
    assert read(path=f"{tmp_path}/**/[12].txt") == ["b/1.txt", "b/2.txt"]


def test_separator_lines_part_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"---\none\n1\n---\r\ntwo---\n---\n---\n\nthree\n")
    assert read(path=str(tmp_path), separator="---") == ["one\n1\n", "two---\n", "\nthree\n"]


def test_jsonl_gives_one_document_a_line_packed_or_not(tmp_path):
    lines = [json.dumps({"id": i, "body": f"line {i}\n\u2028é"}) for i in range(3)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines[0].encode()))
    found = read(source="jsonl", path=str(tmp_path), text_field="body")
    assert found == [f"line {i}\n\u2028é" for i in (0, 0, 1, 2)]


BAD = {
    "missing.txt": (None, {}, "missing.txt does not exist; expected a file, a folder or a glob"),
    "x*.txt": (None, {}, "matches no file; check the glob"),
    "empty.txt": (b"", {}, "empty.txt is empty"),
    "latin.txt": ("caf\xe9".encode("latin-1"), {}, r"latin.txt is not UTF-8 at byte 3 \(0xe9\)"),
    "late.txt": (b"ab\n--\ncd\n--\ne\xff", {"separator": "--"}, r"late.txt is not UTF-8 at byte 13 \(0xff\)"),
    "lines.txt": (b"ab", {"separator": "--\n"}, r"data.separator='--.n' is more than one line"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', {}, "bad.jsonl:2 is not JSON: .* at column"),
    "field.jsonl": (b'{"a": 1, "b": 2}', {}, "field.jsonl:1 has no field 'text'; it has: 'a', 'b'"),
    "list.jsonl": (b"[1]", {}, "list.jsonl:1 holds a list; expected an object"),
    "number.jsonl": (b'{"text": 1}', {}, "number.jsonl:1: field 'text' is a int; expected a string"),
    "latin.jsonl": (b'{"text": "\xe9"}', {}, "latin.jsonl:1 is not UTF-8 at byte 10"),
    "half.jsonl": (b'{"text": "\\ud83d"}', {}, "half.jsonl:1: 'text' has half of a surrogate pair"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-12], {}, "cut.jsonl.gz is a damaged or truncated gzip"),
    "not.jsonl.gz": (
        b"\x1f\x8c\0a",
        {},
        "not.jsonl.gz is damaged or no gzip file: it begins with the bytes 1f 8c 00 61",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(name, tmp_path):
    data, fields, message = BAD[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read(source="jsonl" if "jsonl" in name else "text", path=str(tmp_path / name), **fields)
    assert "\n" not in str(error.value)


def test_a_folder_without_text_says_what_was_looked_for(tmp_path):
    (tmp_path / "a.md").write_text("a")
    with pytest.raises(UserError, match=r"is a folder without \*.txt files, packed or not; name"):
        read(path=str(tmp_path))
    with pytest.raises(UserError, match=r"is a folder without \*.jsonl files, packed or not; name"):
        read(source="jsonl", path=str(tmp_path))


def test_an_unknown_source_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="data.source='jsnl' is not known; did you mean 'jsonl'"):
        read(source="jsnl", path="x")


def test_the_identity_changes_with_the_file_even_within_a_second(tmp_path):
    (tmp_path / "a.txt").write_text("aaa")
    config = DataConfig(path=str(tmp_path))
    before = sources.identity(config)
    assert sources.identity(config) == before
    (tmp_path / "a.txt").write_text("bbb")
    assert sources.identity(config) != before


def test_the_identity_of_very_many_files_is_short_and_changes_with_each(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.files, "_FILES_LISTED", 2)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    config = DataConfig(path=str(tmp_path))
    before = sources.identity(config)["files"]
    assert (before["count"], before["size"]) == (3, 3)
    (tmp_path / "b.txt").write_text("B")
    assert sources.identity(config)["files"] != before


def test_hugging_face_data_sets_are_asked_for_where_their_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="source hf needs datasets; pip install datasets"):
        read(source="hf", path="wikitext")


def test_a_hugging_face_data_set_is_read_from_a_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = [f"row {i} é" for i in range(50)]
    table = datasets.Dataset.from_dict({"text": texts, "n": list(range(50))})
    datasets.DatasetDict({"train": table, "test": table.select([7, 3])}).save_to_disk(str(tmp_path / "saved"))
    config = DataConfig(source="hf", path=str(tmp_path / "saved"))
    assert list(sources.documents(config)) == texts
    units = sources.units(config, 100)
    assert len(units) > 5 and [d.text for u in units for d in sources.read(config, u, pytest.fail)] == texts
    assert read(source="hf", path=config.path, hf_split="test") == [texts[7], texts[3]]
    with pytest.raises(UserError, match="data.hf_split='x' is not a split of .*; there are: train, test"):
        read(source="hf", path=config.path, hf_split="x")
    with pytest.raises(UserError, match="has no column 'body'; it has: 'text', 'n'. Set data.text_field"):
        read(source="hf", path=config.path, text_field="body")
    with pytest.raises(UserError, match="column 'n' is of type int64; expected strings"):
        read(source="hf", path=config.path, text_field="n")


def test_importing_the_package_loads_no_heavy_library():
    heavy = ["jax", "tensorflow_datasets", "sentencepiece", "tensorflow", "pyarrow", "zstandard", "warcio", "grain"]
    heavy += ["tensorstore", "tiktoken", "tokenizers", "trafilatura", "ftfy", "rensa"]
    code = f"import sys, gptjax.data; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ---- TFDS


@pytest.fixture(scope="module")
def tfds_config(tmp_path_factory):
    """A data set of our own, prepared as ArrayRecord and then only to be found on disk, as a user's would be."""
    import tensorflow_datasets as tfds

    class TinyProverbs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"body": tfds.features.Text(), "label": np.int64}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(0, 600), "test": self._generate_examples(600, 610)}

        def _generate_examples(self, first, stop):
            for i in range(first, stop):
                yield i, {"body": f"proverb {i} \u2028é\n", "label": i}

    folder = str(tmp_path_factory.mktemp("tfds"))
    TinyProverbs(data_dir=folder, file_format="array_record").download_and_prepare()
    tfds.core.registered._DATASET_REGISTRY.pop("tiny_proverbs")
    return DataConfig(source="tfds", tfds_name="tiny_proverbs", tfds_dir=folder, text_field="body")


def test_a_tfds_data_set_is_read_without_tensorflow(tfds_config):
    found = list(sources.documents(tfds_config))
    assert sorted(found) == sorted(f"proverb {i} \u2028é\n" for i in range(600))
    assert found == list(sources.documents(tfds_config))
    part = dataclasses.replace(tfds_config, tfds_split="test[:50%]")
    assert len(list(sources.documents(part))) == 5
    assert sources.identity(part)["name"] == "tiny_proverbs/1.0.0"
    assert sources.identity(part) != sources.identity(tfds_config)
    assert "tensorflow" not in sys.modules


def test_the_units_of_a_tfds_data_set_are_its_documents_in_order(tfds_config):
    whole = list(sources.documents(tfds_config))
    for unit_bytes, at_least in ((200, 50), (700, 15), (1 << 30, 1)):
        units = pickle.loads(pickle.dumps(sources.units(tfds_config, unit_bytes)))
        assert len(units) >= at_least
        found = [document for unit in units for document in sources.read(tfds_config, unit, pytest.fail)]
        assert [document.text for document in found] == whole
        assert found[5].where == "example 5 of data.tfds_name='tiny_proverbs'"


def test_an_example_that_cannot_be_read_is_left_out_and_named(tfds_config, tmp_path):
    folder = tmp_path / "tfds"
    shutil.copytree(tfds_config.tfds_dir, folder)
    (file,) = folder.glob("*/*/*test.array_record*")
    file.write_bytes(file.read_bytes()[:-99])
    config, errors = dataclasses.replace(tfds_config, tfds_dir=str(folder), tfds_split="test"), []
    found = [d for unit in sources.units(config) for d in sources.read(config, unit, errors.append)]
    assert found == [] and len(errors) == 1
    assert re.match(
        r"example 0 to 9 of data.tfds_name='tiny_proverbs' cannot be read, damaged \(.*\); ", str(errors[0])
    )


TFDS_BAD = [
    ({"tfds_name": "wikipedja"}, "data.tfds_name='wikipedja' is not known to TFDS; did you mean 'wikipedia'"),
    ({"tfds_name": "wikipedia/20230601.xx"}, "data.tfds_name='wikipedia/20230601.xx': .*20230601.xx"),
    ({"tfds_split": "tset"}, "data.tfds_split='tset' is not a split of tiny_proverbs/1.0.0; there are: .*train"),
    ({"text_field": "text"}, "example 0 of data.tfds_name='tiny_proverbs' has no field 'text'; it has: 'body'"),
    ({"text_field": "label"}, "field 'label' is a int; expected a string"),
]


@pytest.mark.parametrize("fields, message", TFDS_BAD)
def test_what_tfds_does_not_have_is_named(fields, message, tfds_config):
    with pytest.raises(UserError, match=message) as error:
        list(sources.documents(dataclasses.replace(tfds_config, **fields)))
    assert "\n" not in str(error.value)
