"""A folder of tokens that is not complete, or not as it was written, is refused by the name of the file."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from gptjax.config.fields import DataConfig
from gptjax.data import tokenizers
from gptjax.data.tokens import folder
from gptjax.data.tokens.folder import open_folder, token_dtype, with_end, write_manifest
from gptjax.data.tokens.shards import BLOCK, ShardWriter
from gptjax.errors import UserError

SHARDS = {"train": 3, "val": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder as `gptjax prepare` makes them: three shards of training text, of which one has two blocks."""
    where = tmp_path_factory.mktemp("made") / "corpus"
    write(where, seed=0)
    return where


def write(where: pathlib.Path, seed: int) -> None:
    tokenizer = tokenizers.train_tokenizer(DataConfig(tokenizer="bytes"), [])
    rng, shards = np.random.default_rng(seed), {}
    for split, count in SHARDS.items():
        names = [f"{split}-{i:05}-of-{count:05}" for i in range(count)]
        shards[split] = {}
        for i, name in enumerate(names):
            writer = ShardWriter(where / name, token_dtype(tokenizer))
            for n in (10, BLOCK + 100 if i == 1 else 30):
                writer.add(with_end(rng.integers(0, 256, n), tokenizer), n)
            shards[split][name] = writer.close()
    write_manifest(where, {"source": {"source": "test"}}, tokenizer, shards)


@pytest.fixture
def copy(made, tmp_path):
    """To damage."""
    return pathlib.Path(shutil.copytree(made, tmp_path / "corpus"))


def test_a_folder_opens_with_what_was_written(made):
    tokenizer, text = open_folder(made)
    assert tokenizer.kind == "bytes" and text.training_text == "the training text"
    rng = np.random.default_rng(0)
    wanted = [n for size in (10, 30, 10, BLOCK + 100, 10, 30) for n in [*rng.integers(0, 256, size), tokenizer.eot_id]]
    assert text.train.read(np.array([0]), len(wanted))[0].tolist() == wanted
    assert text.train.n_tokens == len(wanted) and text.train.byte_count == len(wanted) - 6
    assert text.train.document_starts(np.arange(6)).tolist() == [0, 11, 42, 53, 53 + BLOCK + 101, 64 + BLOCK + 101]
    assert text.description["splits"]["train"] == {"documents": 6, "tokens": len(wanted), "bytes": len(wanted) - 6}
    assert not {"files", "shards"} & text.description.keys() and text.description["folder"] == str(made)


def test_the_fingerprint_is_that_of_the_tokens_wherever_they_are(made, copy, tmp_path):
    write(tmp_path / "other", seed=1)
    fingerprints = [open_folder(place)[1].fingerprint for place in (made, copy, tmp_path / "other")]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


FILES = [
    "tokenizer.json",
    "tokenizer.model",
    *(f"train-00001-of-00003/{name}" for name in ("zarr.json", "c/0", "documents.bin")),
    *(f"val-00000-of-00001/{name}" for name in ("zarr.json", "c/0", "documents.bin")),
]
DAMAGES = {
    "is missing": pathlib.Path.unlink,
    "bytes, but was written with": truncate,
    "was altered after it was written": flip,
}


def test_all_files_are_damaged_here_but_those_of_like_shards(made):
    files = {str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()}
    assert files - {f for f in files if "00000-of-00003" in f or "00002" in f} == {*FILES, "manifest.json"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("message", DAMAGES)
def test_every_damaged_file_is_refused_by_name(copy, name, message):
    if name == "tokenizer.model" and not (copy / name).stat().st_size:
        (copy / name).write_bytes(b"1")  # the tokenizer of bytes has an empty one
        message = "has 1 bytes, but was written with 0"
    else:
        DAMAGES[message](copy / name)
    with pytest.raises(UserError, match=f"^{re.escape(str(copy / name))} .*{message}") as error:
        open_folder(copy)
    assert f"remove {copy} and make it again" in str(error.value) and "\n" not in str(error.value)


def without(file, *keys) -> None:
    """A manifest that lacks one of its parts."""
    values = part = json.loads(file.read_text())
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    file.write_text(json.dumps(values))


MANIFESTS = {
    "unlink": (pathlib.Path.unlink, "has no manifest.json, the last file to be written"),
    "truncate": (truncate, "manifest.json cannot be read (JSONDecodeError"),
    "empty": (lambda file: file.write_text(""), "manifest.json cannot be read (JSONDecodeError"),
    "list": (lambda file: file.write_text("[]"), "manifest.json cannot be read (TypeError"),
    "another": (lambda file: file.write_text("{}"), "manifest.json cannot be read (KeyError: 'format')"),
    "no dtype": (lambda file: without(file, "dtype"), "manifest.json cannot be read (KeyError: 'dtype')"),
    "no split": (lambda file: without(file, "splits", "val"), "manifest.json cannot be read (KeyError: 'val')"),
    "no shards": (lambda file: without(file, "shards", "val"), "manifest.json cannot be read (KeyError: 'val')"),
    "binary": (lambda file: file.write_bytes(b"\xff\xfe"), "manifest.json cannot be read (UnicodeDecodeError"),
    "old": (
        lambda file: file.write_text('{"format": 1}'),
        f"has format 1, and {folder.FORMAT} is read here; make it again",
    ),
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_a_folder_whose_manifest_is_no_manifest_is_refused(copy, how):
    damage, message = MANIFESTS[how]
    damage(copy / "manifest.json")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        open_folder(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_a_shard_that_the_manifest_does_not_know_is_refused_by_name(copy):
    shutil.copytree(copy / "train-00000-of-00003", copy / "train-00003-of-00003")
    with pytest.raises(UserError, match=re.escape(f"{copy / 'train-00003-of-00003'} is not in its manifest")):
        open_folder(copy)


def test_what_others_put_beside_the_shards_is_left_alone(copy):
    _, before = open_folder(copy)
    (copy / "README.txt").write_text("mine")
    (copy / "report").mkdir()
    _, after = open_folder(copy)
    assert after.fingerprint == before.fingerprint
    assert (copy / "README.txt").read_text() == "mine" and (copy / "report").is_dir()


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'none'} is not there; expected a folder of gptjax prepare"):
        open_folder(tmp_path / "none")


def test_a_folder_that_prepare_has_not_finished_is_told_to_go_on_and_not_removed(tmp_path):
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="prepare has not finished .run the same gptjax prepare again") as error:
        open_folder(tmp_path)
    assert "remove" not in str(error.value)


def test_files_too_large_to_hash_at_the_start_are_checked_block_by_block(copy, monkeypatch):
    file = copy / "train-00001-of-00003" / "c" / "0"
    monkeypatch.setattr(folder, "_HASHED_BYTES", {"local": file.stat().st_size - 1, "remote": 0})
    data = bytearray(file.read_bytes())
    data[len(data) - 300] ^= 1  # its second block
    file.write_bytes(data)
    _, text = open_folder(copy)
    first = 42 + 11  # of the long document, in the second shard
    text.train.read(np.array([first]), 100)
    with pytest.raises(UserError, match="train-00001-of-00003 was altered .*block 1 of c/0 has another CRC"):
        text.train.read(np.array([first + BLOCK]), 20)
    flip(copy / "train-00001-of-00003" / "documents.bin")  # which is small
    with pytest.raises(UserError, match="documents.bin was altered"):
        open_folder(copy)


def test_a_large_file_cut_short_is_refused_at_the_start(copy, monkeypatch):
    monkeypatch.setattr(folder, "_HASHED_BYTES", {"local": 0, "remote": 0})
    truncate(copy / "val-00000-of-00001" / "c" / "0")
    with pytest.raises(UserError, match="val-00000-of-00001/c/0 has .* bytes, but was written with"):
        open_folder(copy)
