"""The prepared folder holds the tokens of the source's documents, in order, however it was made and often killed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import buckets
import preparing
import pytest
from etils import epath
from places import ROOT

from gptjax.cli import main
from gptjax.config.fields import DataConfig
from gptjax.data import sources, tokenizers
from gptjax.data.preparing import cleaning, preparation, workers
from gptjax.data.rows.hashing import is_held_out
from gptjax.data.tokens.folder import open_folder
from gptjax.errors import UserError

CLEAN = "unicode,gopher_quality(min_words=40,min_word_length=1,min_stop_words=0),pii"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A jsonl file of 120 documents."""
    path = tmp_path_factory.mktemp("source") / "text.jsonl"
    preparing.write_documents(path, 120)
    return path


def prepare(source, out, *flags: str) -> tuple:
    """(tokenizer, store) of the folder made by the command."""
    assert main(["prepare", f"--source={source}", f"--out={out}", "--val_fraction=0.2", *flags]) == 0
    return open_folder(out)


def expected(source, tokenizer, keep=lambda texts: texts) -> dict[str, list]:
    """What each split has to hold, made plainly: {split: [(tokens, bytes) of a document]}."""
    found = {"train": [], "val": []}
    for text in keep(list(sources.documents(sources.from_spec(str(source), DataConfig())))):
        split = "val" if is_held_out(text, 0.2) else "train"
        ids = tokenizer.encode(text).tolist() + ([] if tokenizer.eot_id is None else [tokenizer.eot_id])
        found[split].append((ids, len(text.encode())))
    return found


def contents(store) -> dict[str, list]:
    return {"train": preparing.documents(store.train), "val": preparing.documents(store.val)}


@pytest.fixture(scope="module")
def model(source, tmp_path_factory):
    """A folder with a SentencePiece tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    config = DataConfig(tokenizer="sentencepiece", tokenizer_vocab_size=320)
    texts = sources.documents(sources.from_spec(str(source), DataConfig()))
    tokenizers.save_tokenizer(tokenizers.train_tokenizer(config, texts), folder)
    return folder


@pytest.mark.parametrize("shards", [1, 7])
def test_the_tokens_are_those_of_each_document_in_order(source, model, shards, tmp_path):
    tokenizer, store = prepare(source, tmp_path / "out", f"--tokenizer={model}", f"--num_shards={shards}")
    assert contents(store) == expected(source, tokenizer)
    assert 10 < store.val.n_documents < 40
    assert store.train.byte_count + store.val.byte_count == sum(len(t.encode()) for t in sources_of(source))


def sources_of(source) -> list[str]:
    return [json.loads(line)["text"] for line in source.read_text().splitlines()]


def test_the_folder_is_the_same_to_the_bit_for_any_number_of_workers(source, tmp_path):
    for name, n in {"one": 1, "three": 3}.items():
        flags = ("--tokenizer=bytes", "--num_shards=4", f"--workers={n}", f"--clean={CLEAN}", "--dedup=exact")
        prepare(source, tmp_path / name, *flags)
    assert preparing.hashes(tmp_path / "one") == preparing.hashes(tmp_path / "three")
    assert not (tmp_path / "one" / "work").exists()


def test_cleaned_documents_without_repeated_ones_are_what_is_left(source, tmp_path):
    flags = ("--tokenizer=bytes", "--num_shards=3", f"--clean={CLEAN}", "--dedup=exact")
    tokenizer, store = prepare(source, tmp_path / "out", *flags)
    assert contents(store) == expected(source, tokenizer, cleaned_first_of_equals)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    kept = sum(split["documents"] for split in report["splits"].values())
    assert report["duplicates"]["removed"] == report["cleaning"]["steps"][-1]["pieces"] - kept > 5
    assert report["duplicates"]["samples"][0]["where"].startswith(str(source))
    assert "# Duplicates of earlier documents" in (tmp_path / "out" / "samples.md").read_text()


def cleaned_first_of_equals(texts: list[str]) -> list[str]:
    cleaner = cleaning.Cleaner(cleaning.parse(CLEAN))
    cleaned = [d.text for text in texts for d in cleaner(sources.Document(text, ""))]
    assert 10 < len(cleaned) < len(texts)
    return list(dict.fromkeys(cleaned))


HELD_OUT = [3, 9, 16, 21, 38, 46]  # of "0" to "59", a tenth


def test_documents_held_out_are_those_they_always_were_and_about_the_wanted_part():
    held = [is_held_out(str(i), 0.1) for i in range(5000)]
    assert 400 < sum(held) < 600
    assert [i for i in range(60) if held[i]] == HELD_OUT
    assert all(is_held_out(f" {i}\n", 0.1) == held[i] for i in range(5000))  # white space is not the words
    assert not any(is_held_out(str(i), 0.0) for i in range(5000))


@pytest.mark.parametrize("size, shards", [(1, 1), (4 << 20, 1), (9 << 20, 3), (1 << 30, 32), (64 << 30, 256)])
def test_shards_are_as_many_as_the_size_of_the_source_says(size, shards, tmp_path):
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(size)  # takes no space
    config = sources.from_spec(str(tmp_path / "a.jsonl"), DataConfig())
    order = preparation.Order("a.jsonl", config, None, "out", None, 1, 0.1, None, None, False)
    tasks = preparation._tasks(order)
    assert [task.number for task in tasks] == list(range(shards))
    assert [unit for task in tasks for unit in task.units] == sources.units(
        config, 64 << 20 if shards > 32 else 4 << 20
    )
    sizes = [len(task.units) for task in tasks]
    assert max(sizes) - min(sizes) <= 1


def test_a_finished_folder_is_left_as_it_is(source, tmp_path, capsys):
    prepare(source, tmp_path / "out", "--tokenizer=bytes", "--num_shards=2")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    prepare(source, tmp_path / "out", "--tokenizer=bytes", "--num_shards=2", "--workers=1")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert "is already complete, made by this same command; nothing to do" in capsys.readouterr().out


def test_an_altered_shard_is_refused_by_name(source, tmp_path):
    prepare(source, tmp_path / "out", "--tokenizer=bytes", "--num_shards=2")
    file = tmp_path / "out" / "train-00001-of-00002" / "c" / "0"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="train-00001-of-00002/c/0 was altered"):
        open_folder(tmp_path / "out")


def test_what_cannot_be_read_is_left_out_named_and_counted(source, tmp_path, capsys):
    lines = source.read_text().splitlines()[:20]
    lines[3:3] = ["{not json", '{"body": "no text"}']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    _, store = prepare(tmp_path / "bad.jsonl", tmp_path / "out", "--tokenizer=bytes", "--num_shards=3")
    assert store.train.n_documents + store.val.n_documents == 20
    failures = json.loads((tmp_path / "out" / "report.json").read_text())["failures"]
    assert failures["count"] == 2
    assert f"{tmp_path}/bad.jsonl:4 is not JSON" in failures["messages"][0]
    assert "bad.jsonl:5 has no field 'text'" in failures["messages"][1] and "--text_field" in failures["messages"][1]
    printed = capsys.readouterr()
    assert "2 could not be read and were left out:" in printed.out and "left out: " in printed.err


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    with buckets.mounted(tmp_path, monkeypatch) as folder:
        yield folder


def in_this_process(make, tasks, n_workers, on_report):
    """workers.run, where other processes would not know the bucket."""
    do = make()
    yield from (do(task, on_report) for task in tasks)


def test_a_folder_on_a_store_is_the_one_on_a_disk(source, bucket, tmp_path, monkeypatch):
    given = ("--tokenizer=bytes", "--num_shards=3", f"--clean={CLEAN}", "--dedup=minhash:0.9", "--val_fraction=0.2")
    assert main(["prepare", f"--source={source}", f"--out={tmp_path}/local", *given]) == 0
    monkeypatch.setattr(workers, "run", lambda make, tasks, *more: in_this_process(make, tasks[:2], *more))
    with pytest.raises(KeyError):  # two shards are done, and no more
        main(["prepare", f"--source={source}", "--out=gs://bucket/out", *given])
    monkeypatch.setattr(workers, "run", in_this_process)
    for _ in range(2):
        assert main(["prepare", f"--source={source}", "--out=gs://bucket/out", *given]) == 0
    assert preparing.hashes(bucket / "out") == preparing.hashes(tmp_path / "local")


def test_a_folder_on_a_store_is_refused_where_a_file_is_missing_or_cut_and_asked_for_files_at_once(
    source, bucket, tmp_path, monkeypatch
):
    given = ("--tokenizer=bytes", "--num_shards=3", "--val_fraction=0.2")
    assert main(["prepare", f"--source={source}", f"--out={bucket}/out", *given]) == 0
    stat, threads = type(epath.Path("gs://bucket")).stat, set()
    counting = lambda path: threads.add(threading.current_thread()) or time.sleep(0.01) or stat(path)  # noqa: E731
    monkeypatch.setattr(type(epath.Path("gs://bucket")), "stat", counting)
    open_folder("gs://bucket/out")
    assert len(threads) > 5
    file = bucket / "out" / "train-00001-of-00003" / "documents.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-16])
    with pytest.raises(
        UserError, match=f"train-00001-of-00003/documents.bin has {len(data) - 16} bytes, but was written"
    ):
        open_folder("gs://bucket/out")
    file.unlink()
    with pytest.raises(UserError, match="gs://bucket/out/train-00001-of-00003/documents.bin is missing"):
        open_folder("gs://bucket/out")


def test_a_shard_whose_file_is_gone_is_made_again_and_no_other(source, tmp_path, monkeypatch, capfd):
    given = ("--tokenizer=bytes", "--num_shards=3", "--val_fraction=0.2", f"--source={source}")
    assert main(["prepare", f"--out={tmp_path}/whole", *given]) == 0
    run = workers.run
    monkeypatch.setattr(workers, "run", lambda make, tasks, *more: run(make, tasks[:2], *more))
    with pytest.raises(KeyError):
        main(["prepare", f"--out={tmp_path}/out", *given])
    (tmp_path / "out" / "train-00001-of-00003" / "documents.bin").unlink()
    monkeypatch.setattr(workers, "run", run)
    assert main(["prepare", f"--out={tmp_path}/out", *given]) == 0
    assert "tokenising: 1 of 3 shards are done already" in capfd.readouterr().err
    assert preparing.hashes(tmp_path / "out") == preparing.hashes(tmp_path / "whole")


def test_a_mistake_in_the_code_of_a_worker_is_one_line_and_a_traceback_in_a_file(source, tmp_path, monkeypatch, capfd):
    def failing(*given):
        raise workers._failure(KeyError("missing"))

    monkeypatch.setattr(workers, "run", failing)
    assert main(["prepare", f"--source={source}", "--tokenizer=bytes", f"--out={tmp_path}/out"]) == 2
    file = tmp_path / "out" / "work" / "traceback.txt"
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"gptjax: a worker failed: KeyError: 'missing' (a fault in gptjax; {file} says where)")
    assert file.exists()


MODULES = """
import sys
import threading
from gptjax.data.preparing import dedup, duplicates, preparation, shardmaker; from gptjax.data import tokenizers
shardmaker.make_cleaner("unicode,language=en,gopher_quality,gopher_repetition,c4,pii")
dedup.Fingerprinter(dedup.parse("minhash"))("some text")
print([name for name in ("jax", "flax", "tensorflow", "grain") if name in sys.modules])
"""


def test_a_worker_imports_no_jax():
    found = subprocess.run([sys.executable, "-c", MODULES], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout == "[]\n", found.stderr


# ---- killed, and begun again


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """Two seconds of work in six shards."""
    path = tmp_path_factory.mktemp("long") / "text.jsonl"
    preparing.write_documents(path, 1800, words=160)
    return path


def flags(source, out, *more: str) -> list[str]:
    return [
        f"--source={source}",
        f"--out={out}",
        "--tokenizer=bytes",
        "--num_shards=6",
        "--workers=2",
        f"--clean={CLEAN}",
        "--dedup=exact",
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(long_source, tmp_path_factory):
    """Hashes of the folder that the command makes when it is left alone."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(["prepare", *flags(long_source, out)]) == 0
    return preparing.hashes(out)


def records(out: pathlib.Path) -> list[str]:
    """Names of the records of what is done."""
    return [path.name for path in (out / "work").glob("*-*.json")]


def wait_for_record(process, out: pathlib.Path, n: int = 1) -> None:
    until = time.monotonic() + 60
    while len(records(out)) < n and process.poll() is None:
        assert time.monotonic() < until, "nothing was done in a minute"
        time.sleep(0.005)


def finish(long_source, out) -> None:
    """Runs the command to its end."""
    process = preparing.start(*flags(long_source, out))
    printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed


def test_killed_at_random_points_and_begun_again_it_is_the_undisturbed_folder(long_source, undisturbed, tmp_path):
    rng, out, killed = random.Random(), tmp_path / "out", 0
    for n in (1, 7):
        process = preparing.start(*flags(long_source, out))
        wait_for_record(process, out, n)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert killed
    kept = {kind: len(list((out / "work").glob(f"{kind}-*.json"))) for kind in ("cleaned", "shard")}
    process = preparing.start(*flags(long_source, out))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    if kept["cleaned"]:  # else the last one had ended before it was killed
        assert f"cleaning: {kept['cleaned']} of 6 shards are done already" in err
    if kept["shard"]:
        assert f"tokenising: {kept['shard']} of 6 shards are done already" in err
    assert preparing.hashes(out) == undisturbed


def test_a_command_begun_at_once_after_its_parent_alone_was_killed_gives_the_same_folder(
    long_source, undisturbed, tmp_path
):
    process = preparing.start(*flags(long_source, tmp_path / "out"))
    wait_for_record(process, tmp_path / "out")
    process.kill()  # the workers notice
    finish(long_source, tmp_path / "out")
    process.communicate()
    assert preparing.hashes(tmp_path / "out") == undisturbed


def workers_of(process) -> list[int]:
    pids = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_killed_worker_ends_the_command_in_one_line_and_what_is_done_is_kept(long_source, undisturbed, tmp_path):
    for attempt in range(3):  # on a busy machine the command may be done before it is hit
        out = tmp_path / f"out{attempt}"
        process = preparing.start(*flags(long_source, out))
        wait_for_record(process, out)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == 74
    assert "gptjax: a worker was killed by SIGKILL" in err.splitlines()[-1] and "Traceback" not in err
    finish(long_source, out)
    assert preparing.hashes(out) == undisturbed


def test_ctrl_c_stops_in_two_lines_and_leaves_no_worker(long_source, tmp_path):
    process = preparing.start(*flags(long_source, tmp_path / "out"))
    wait_for_record(process, tmp_path / "out")
    pids = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == [
        "stopped; finished shards are kept. Run the same command again to continue",
        "gptjax: interrupted",
    ]
    assert "Traceback" not in err
    preparing.wait_for_end(pids)


def test_two_commands_do_not_fill_one_folder_at_once(long_source, tmp_path):
    process = preparing.start(*flags(long_source, tmp_path / "out"))
    wait_for_record(process, tmp_path / "out")
    os.killpg(process.pid, signal.SIGSTOP)
    second = preparing.start(*flags(long_source, tmp_path / "out"))
    _, err = second.communicate(timeout=60)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert second.returncode == 2 and "another gptjax prepare is filling" in err


@pytest.mark.parametrize("dedup", [[], ["--dedup=exact"]])
def test_the_parts_that_cleaning_splits_a_document_into_are_all_held_out_or_none(tmp_path, dedup):
    words = "a question of thirteen words stands in the middle of this long text"
    (tmp_path / "asked.txt").write_text(words)
    lines = [json.dumps({"text": f"{i:03} " * 150 + words + f" {i:03}b" * 150}) for i in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    flags = [f"--clean=decontaminate={tmp_path / 'asked.txt'}", "--tokenizer=bytes", *dedup]
    _, store = prepare(tmp_path / "in.jsonl", tmp_path / "out", *flags)
    found = {}
    for split, tokens in (("train", store.train), ("val", store.val)):
        for ids, _ in preparing.documents(tokens):
            found.setdefault(bytes(ids[:-1]).split()[0][:3], []).append(split)
    assert len(found) == 40 and all(len(splits) == 2 and len(set(splits)) == 1 for splits in found.values())
    assert 0 < sum(splits[0] == "val" for splits in found.values()) < 20
