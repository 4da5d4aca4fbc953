"""`gptjax prepare` answers every bad input in one line that says what is wrong, and reports what it did."""

import gzip
import json
import os
import re
import resource

import preparing
import pytest
import runs
from source_files import warc

from gptjax.cli import main
from gptjax.data.tokens.folder import open_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with good.jsonl (12 documents) and what is wrong with the others."""
    monkeypatch.chdir(tmp_path)
    preparing.write_documents(tmp_path / "good.jsonl", 12)
    good = (tmp_path / "good.jsonl").read_bytes()
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good)[:-20])
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_bytes(good + b"{\n")
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "a.txt").write_text("a")
    (tmp_path / "kinds" / "b.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "none.model").write_bytes(b"no model")
    return tmp_path


def prepare(*flags: str, source="good.jsonl", tokenizer="bytes", out="out") -> int:
    """The exit code; a flag given here overrides one above."""
    return main(["prepare", f"--source={source}", f"--tokenizer={tokenizer}", f"--out={out}", *flags])


BAD = [
    # (flags, what the line says)
    ("--source=missing.jsonl", "--source=missing.jsonl does not exist; expected a file, a folder or a glob"),
    ("--source=*.nothing", "--source=.*nothing"),
    ("--source=jsnl:good.jsonl", "source 'jsnl:good.jsonl': 'jsnl' is no kind; did you mean 'jsonl'"),
    ("--source=kinds", "kinds holds files of several kinds"),
    ("--source=empty.txt", "empty.txt gave no document .*empty.txt is empty"),
    ("--source=empty.txt --strict", "^gptjax: empty.txt is empty; remove it"),
    ("--source=good.jsonl --text_field=body", "gave no document .*has no field 'body'; it has: 'text'.*--text_field"),
    ("--source=good.jsonl --text_field=body --strict", "good.jsonl:1 has no field 'body'"),
    ("--source=cut.jsonl.gz --strict", "cut.jsonl.gz is a damaged or truncated gzip file"),
    ("--source=latin.txt --strict", "latin.txt is not UTF-8 at byte 3 .0xe9.; convert it to UTF-8"),
    ("--source=bad.jsonl --strict", "bad.jsonl:13 is not JSON"),
    ("--source=blank.jsonl", "nothing is left of the 1 documents of blank.jsonl"),
    ("--source=good.jsonl --separator=a\nb --source=text:latin.txt", "--separator='a.nb' is more than one line"),
    ("--tokenizer=gpt3", "the tokenizer 'gpt3' is neither a kind nor a folder.*did you mean 'gpt2'"),
    ("--tokenizer=sentencepiece:none.model", "none.model is not a SentencePiece model"),
    ("--tokenizer=hf:missing.json", "there is no missing.json"),
    ("--clean=unicode,gofer_quality", "cleaning step='gofer_quality' is not known; did you mean 'gopher_quality'"),
    ("--clean=length(min_words=many)", "length.min_words=many.: expected a whole number"),
    ("--clean=length(min_characters=99999999)", "nothing is left of the 12 documents of good.jsonl; .*--clean"),
    ("--clean=decontaminate=missing", "decontaminate=missing does not exist"),
    ("--dedup=minhsh", "--dedup='minhsh' is not known; did you mean 'minhash'"),
    ("--dedup=minhash:2", "--dedup='minhash:2': expected a similarity from 0.5 to 1"),
    ("--num_shards=13", "--num_shards=13 is more than the 12 documents of good.jsonl; use fewer"),
    ("--source=latin.txt --num_shards=0", "--num_shards=0 is too small; use at least 1"),
    ("--workers=0", "--workers=0 is too small; use at least 1"),
    ("--val_fraction=1", "--val_fraction=1 is not a share"),
    ("--val_fraction=nan", "--val_fraction=nan must be finite"),
    ("--val_fraction=0.999999", "--val_fraction=0.999999 holds out every document of good.jsonl; use a smaller one"),
    ("--out=other", "--out=other is a folder with other files .thesis.tex.; give a folder that is new or empty"),
    ("--out=good.jsonl", "--out=good.jsonl is a file"),
    ("--out=good.jsonl/x", "good.jsonl/x"),
    ("--config.data.seed=1", "unknown argument '--config.data.seed=1' of gptjax prepare"),
]


@pytest.mark.parametrize("flags, says", BAD, ids=[flags for flags, _ in BAD])
def test_bad_input_is_answered_in_one_line(flags, says, folder, capfd):
    assert prepare(*flags.split(" ")) == 2
    err = capfd.readouterr().err
    line = err.splitlines()[-1]
    assert re.search(says, line), line
    assert "Traceback" not in err and "data." not in line.replace("--config.data.seed", "")
    assert not (folder / "out" / "manifest.json").exists()
    assert (folder / "other" / "thesis.tex").read_text() == "precious"


def unfinish(out) -> None:
    """Turns a finished folder into one of whose shards none is done."""
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").unlink()
    (out / "work").mkdir()
    (out / "work" / "settings.json").write_text(json.dumps(manifest["settings"]))


CHANGES = [
    ("--val_fraction=0.1", "val_fraction was 0.005, now 0.1"),
    ("--num_shards=3", "num_shards was 2, now 3"),
    ("--clean=unicode", 'clean was null, now "unicode"'),
    ("--dedup=exact", 'dedup was null, now "exact"'),
    ("--source=bad.jsonl", "source.files of .*good.jsonl.path was"),
]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_other_settings_for_a_folder_are_refused_by_name_and_nothing_is_deleted(finished, folder, capfd):
    assert prepare("--num_shards=2") == 0
    if not finished:
        unfinish(folder / "out")
        (folder / "out" / "work" / "shard-00001.json").write_text("{}")  # a part that is done
    before = preparing.hashes(folder / "out")
    for flag, says in CHANGES:
        assert prepare("--num_shards=2", flag) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert re.search(f"--out=out was begun with other settings: .*{says}", line), line
    os.utime("good.jsonl", ns=(0, 0))
    assert prepare("--num_shards=2") == 2
    assert re.search("source.files of .*good.jsonl.mtime was", capfd.readouterr().err)
    assert {name: h for name, h in preparing.hashes(folder / "out").items() if "lock" not in name} == before


def test_the_folder_of_another_tokenizer_is_refused(folder, capfd):
    from gptjax.config.fields import DataConfig
    from gptjax.data import tokenizers

    tokenizers.save_tokenizer(tokenizers.train_tokenizer(DataConfig(tokenizer="chars"), ["abc"]), folder / "letters")
    assert prepare() == 0
    assert prepare(tokenizer="letters") == 2
    assert 'tokenizer.kind was "bytes", now "chars"; tokenizer.hash was' in capfd.readouterr().err


def test_a_document_that_the_tokenizer_cannot_write_is_named(folder, capfd):
    from gptjax.config.fields import DataConfig
    from gptjax.data import tokenizers

    tokenizers.save_tokenizer(tokenizers.train_tokenizer(DataConfig(tokenizer="chars"), ["abc"]), folder / "letters")
    assert prepare(tokenizer="letters") == 2
    reason = "gptjax: nothing is left of the 12 documents of good.jsonl: good.jsonl at byte 0: the text has '0'"
    assert reason in capfd.readouterr().err


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
def test_strict_stops_at_what_an_earlier_command_left_out(finished, folder, capfd):
    assert prepare("--num_shards=2", source="bad.jsonl") == 0
    if not finished:
        unfinish(folder / "out")
        record = {"entries": {}, "failures": {"count": 1, "messages": ["bad.jsonl:13 is not JSON"]}}
        (folder / "out" / "work" / "shard-00001.json").write_text(json.dumps(record))
    assert prepare("--num_shards=2", "--strict", source="bad.jsonl") == 2
    assert re.search("^gptjax: bad.jsonl:13 is not JSON", capfd.readouterr().err.splitlines()[-1])


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_a_full_disk_is_one_line_and_what_is_done_is_kept(folder):
    preparing.write_documents(folder / "long.jsonl", 400, words=400)
    flags = (f"--source={folder}/long.jsonl", "--tokenizer=bytes", f"--out={folder}/out", "--workers=1")
    # the last document does not fit
    lines = (folder / "long.jsonl").read_text().splitlines()
    lines[-1] = json.dumps({"text": "x" * 500_000})
    (folder / "long.jsonl").write_text("\n".join(lines))
    process = preparing.start(*flags, "--num_shards=20", preexec_fn=limit_file_size)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 74
    assert err.splitlines()[-1].startswith(
        f"gptjax: --out={folder}/out cannot be written: File too large; finished shards are kept"
    ), err
    done = len(list((folder / "out" / "work").glob("shard-*.json")))
    assert done >= 5 and not (folder / "out" / "manifest.json").exists()
    process = preparing.start(*flags, "--num_shards=20")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and f"tokenising: {done} of 20 shards are done already" in err
    assert open_folder(folder / "out")[1].train.n_documents > 390


def test_json_is_all_that_is_printed(folder, capfd):
    assert prepare("--json", "--clean=unicode", "--dedup=exact", "--val_fraction=0") == 0
    printed = json.loads(capfd.readouterr().out)
    kept = json.loads((folder / "out" / "report.json").read_text())
    assert {name: printed[name] for name in kept} == kept
    assert (
        kept["read"]["documents"] == 12 and kept["splits"]["train"]["documents"] + kept["duplicates"]["removed"] == 12
    )
    assert printed["performance"] == json.loads((folder / "out" / "performance.json").read_text())
    assert 0 < printed["performance"]["worker_peak_bytes"] < 500e6


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(folder, capfd):
    assert (
        prepare("--dry_run", "--num_shards=4", "--workers=2", "--clean=length(min_characters=1)", source="bad.jsonl")
        == 0
    )
    out = capfd.readouterr().out
    assert "in 4 shards by 2 workers; tokenizer bytes of 257 tokens" in out
    assert "12 documents of 12" in out and "1 could not be read and were left out:\n  bad.jsonl:13 is not JSON" in out
    assert not (folder / "out").exists()


def test_the_progress_line_and_the_table_say_how_it_went(folder, capfd):
    assert prepare("--val_fraction=0.5") == 0
    printed = capfd.readouterr()
    assert re.search(
        r"tokenising 0 of 1 shards  12 documents  [\d.]+kB  [\d.]+k tokens  [\d.]+ MB/s  0:00 left", printed.err
    )
    table = printed.out.splitlines()
    assert table[0].split() == ["split", "documents", "tokens", "bytes", "bytes/token"]
    counts = open_folder(folder / "out")[1].train
    assert table[1].split()[:3] == ["train", f"{counts.n_documents:,}", f"{counts.n_tokens:,}"]
    assert "--config.data.source=prepared:out --config.data.tokenizer=None" in printed.out


WRONG = ["--source=empty.txt", "--text_field=body", "--clean=length(min_characters=99999)"]


@pytest.mark.parametrize("wrong", runs.default_or_slow(WRONG, default=["--source=empty.txt"]))
def test_a_command_that_made_nothing_may_be_mended_and_run_again(wrong, folder, capfd):
    assert prepare(wrong, "--num_shards=1") == 2
    assert prepare("--num_shards=2") == 0
    mended = preparing.hashes(folder / "out")
    assert prepare("--num_shards=2", out="other_out") == 0
    assert mended == preparing.hashes(folder / "other_out")


def test_a_folder_without_held_out_documents_says_what_to_do_and_not_to_train_on_it(folder, capfd):
    assert prepare("--val_fraction=0") == 0
    out = capfd.readouterr().out
    assert "No document is held out" in out and "larger --val_fraction than 0" in out and "gptjax train" not in out


def test_pages_without_the_optional_tags_are_cleaned_for_their_content_type_says_html(folder):
    text = "The harbour was quiet in the morning, and the boats lay still on the water."
    pages = [
        f"<!DOCTYPE html><title>T</title><p>{text}</p>",
        f"<div><p>{text}</p></div>",
        f"<link rel=x><html><p>{text}",
    ]
    headers = ["200 OK", ("Content-Type", "text/html")]
    (folder / "a.warc.gz").write_bytes(warc([("response", headers, page.encode()) for page in pages]))
    assert prepare("--clean=html", "--val_fraction=0", source="a.warc.gz") == 0
    tokenizer, store = open_folder(folder / "out")
    assert [bytes(ids[:-1]).decode() for ids, _ in preparing.documents(store.train)] == [text] * 3


def test_a_line_of_two_dashes_parts_documents(folder):
    """argparse takes the value of --separator=-- away."""
    (folder / "a.txt").write_text("one\n--\ntwo\n")
    assert prepare("--separator=--", "--val_fraction=0", source="a.txt") == 0
    assert open_folder(folder / "out")[1].train.n_documents == 2
