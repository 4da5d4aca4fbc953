"""`gptjax data` from the command line: rows, statistics, checksums; every mistake is one line."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from runs import train_rows

from gptjax import cli
from gptjax.commands import data_table
from gptjax.config.config_file import load_config
from gptjax.data.looking import verification
from gptjax.data.rows import objectives
from gptjax.data.rows.pipeline import TrainRows
from gptjax.data.tokenizers import save_tokenizer
from gptjax.data.tokens.shards import BLOCK
from gptjax.data.tokens.store import prepare
from gptjax.rundir import run_directory

WORDS = "the quick brown fox jumps over a lazy dog while 你好 sleeps".split()


def write_jsonl(file: pathlib.Path, seed: int, n: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, most))) for _ in range(n)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config of a mixture in two stages, its text, and a run of it that never began."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "a.jsonl", 0, 60, 12)
    write_jsonl(folder / "b.jsonl", 1, 20, 400)
    values = dict(
        model=dict(context_length=32, n_layers=1, d_model=8, n_heads=1),
        data=dict(
            mixture={"short": str(folder / "a.jsonl"), "long": str(folder / "b.jsonl")},
            weights={"short": 1.0, "long": 3.0},
            weight_stages=((1600, {"short": 1.0, "long": 1.0}),),
            tokenizer="bytes",
            packing="best_fit",
            val_split="document",
            cache_dir=str(folder / "cache"),
        ),
        train=dict(steps=30, batch_size=8),
    )
    code = f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({values!r})\n"
    (folder / "fields.py").write_text(code)
    config = load_config(str(folder / "fields.py"))
    store = prepare(config.data)
    config = config.replace(model={"vocab_size": store.tokenizer.vocab_size})
    run = run_directory.open_run(str(folder / "run"))
    save_tokenizer(store.tokenizer, run.tokenizer)
    run.write_json("manifest.json", run_directory.manifest(config, store, []))
    run.write_config(config)
    return folder


def show(folder, *flags: str, capsys) -> str:
    assert cli.main(["data", f"--config={folder / 'fields.py'}", *flags]) == 0
    return capsys.readouterr().out


def test_rows_as_json_are_those_that_training_reads(folder, capsys):
    config = load_config(str(folder / "fields.py"))
    store = prepare(config.data)
    rows = TrainRows(store, config.data, 32, objectives.NextToken())
    facts = json.loads(show(folder, "--json", "--step=8", capsys=capsys))
    batch = rows.rows(56, 64)
    assert [row["tokens"] for row in facts["rows"]] == batch["token_BT"].tolist()
    for row, token_T in zip(facts["rows"], batch["token_BT"]):
        end = 33 - row["padding"]
        assert row["text"].replace("<|endoftext|>", "") == store.tokenizer.decode(token_T[:end])
    total = int(rows.hashes(0, 64).sum(dtype=np.uint64))
    assert facts["batch_hash"] == f"{total:016x}"


def test_a_run_shows_what_its_config_does(folder, capsys):
    of_config = show(folder, "--step=3", "--row=2", capsys=capsys)
    assert cli.main(["data", f"--workdir={folder / 'run'}", "--step=3", "--row=2"]) == 0
    assert capsys.readouterr().out == of_config


def test_another_row_has_other_text_and_an_override_is_obeyed(folder, capsys):
    first, second = (show(folder, f"--row={i}", capsys=capsys) for i in (0, 1))
    reseeded = show(folder, "--row=0", "--config.data.seed=1", capsys=capsys)
    assert len({first, second, reseeded}) == 3


def test_text_is_printed_as_it_is_with_marks_where_it_is_not_predicted(folder, capsys):
    rows = json.loads(show(folder, "--json", capsys=capsys))["rows"]
    row = max(rows, key=lambda row: row["documents"])
    printed = show(folder, f"--row={row['row']}", capsys=capsys)
    assert (
        f"{json.loads(show(folder, '--json', capsys=capsys))['batch_hash']} after it (as in metrics.jsonl)" in printed
    )
    assert "step 1 of 30: rows 0 to 7 of the run" in printed and "\033" not in printed
    for part in row["parts"]:
        if part["kind"] == "text":
            assert (part["text"] if part["predicted"] else f"⟨{part['text']}⟩") in printed
        if part["kind"] == "special":
            assert f"⟦{part['text']}⟧" in printed
    assert printed.count("another document") == sum(part["kind"] == "boundary" for part in row["parts"]) > 0
    assert f"{row['predicted']} of 32 targets have a loss" in printed


def test_the_rows_that_are_left_out_are_counted(folder, capsys):
    printed = show(folder, capsys=capsys)
    assert printed.count("\nrow ") == 3 and "5 more rows in this step: --row=3 to --row=7" in printed
    assert "more rows" not in show(folder, "--config.train.batch_size=3", capsys=capsys)


def test_text_cannot_command_the_terminal():
    part = {"kind": "text", "text": "a\x1b[31m\x07b\r\x9b2J\x7f\n\tc", "predicted": True, "prefix": False}
    row = {"predicts_in_place": False, "conversations": False}
    for marks in (data_table.PLAIN, data_table.COLOR):
        assert data_table._part(part, row, marks) == "a␛[31m␇b␍�2J␡\n\tc"


def test_colours_end_with_each_line():
    part = {"kind": "text", "text": "one\n\ntwo", "predicted": False, "prefix": False}
    lines = data_table._part(part, {"predicts_in_place": False, "conversations": False}, data_table.COLOR).split("\n")
    before, after = data_table.COLOR.unpredicted
    assert lines == [f"{before}one{after}", "", f"{before}two{after}"]


@pytest.mark.parametrize("objective", ["fim", "prefix_lm", "masked_lm", "span_corruption"])
def test_every_objective_is_shown_with_its_marks(folder, objective, capsys):
    flags = (f"--config.data.objective={objective}", "--config.data.mask_rate=0.3")
    facts = json.loads(show(folder, *flags, "--json", capsys=capsys))
    printed = show(folder, *flags, capsys=capsys)
    used = {part["text"] for row in facts["rows"][:3] for part in row["parts"] if part["kind"] == "special"}
    names = {"fim": "<|fim_middle|>", "masked_lm": "<|mask|>", "span_corruption": "<|span_0|>"}
    assert names.get(objective, "<|endoftext|>") in used
    assert all(f"⟦{name}⟧" in printed for name in used)
    assert ("«" in printed) == (objective in ("prefix_lm", "span_corruption"))
    assert ("→⟪" in printed) == (objective == "masked_lm")


def test_statistics_have_every_number_as_json_and_as_a_table(folder, capsys):
    facts = json.loads(show(folder, "--stats", "--json", capsys=capsys))
    printed = show(folder, "--stats", capsys=capsys)
    assert facts["run"]["rows"] == 240 and set(facts["sources"]) == {"short", "long"}
    assert [stage["first_row"] for stage in facts["stages"]] == [0, 50]
    numbers = {"documents", "tokens", "bytes"}
    for source in facts["sources"].values():
        shown = [source[split][name] for split in ("train", "held_out") for name in numbers]
        shown += [source["reading"][name] for name in ("rows", "rows_read_again", "tokens_read")]
        shown += [source["packing"][name] for name in ("rows_per_epoch", "document_starts", "padding", "documents_cut")]
        shown += [one[name] for one in source["reading"]["times_read"] for name in ("times", "rows", "tokens")]
        shown += [one["documents"] for one in source["lengths"]["histogram"]]
        shown += [source["lengths"][name]["tokens"] for name in ("shortest", "longest")]
        assert all(f"{number:,}" in printed for number in shown)
        assert f"{100 * source['packing']['efficiency']:.2f}%" in printed


def test_a_picture_is_drawn_or_the_extra_that_draws_it_is_named(folder, tmp_path, capsys):
    file = tmp_path / "lengths.png"
    code = cli.main(["data", f"--config={folder / 'fields.py'}", "--stats", f"--picture={file}"])
    if importlib.util.find_spec("matplotlib") is None:
        assert code == 2 and not file.exists()
        assert "pip install 'gptjax[study]'" in capsys.readouterr().err
    else:
        assert code == 0 and file.read_bytes().startswith(b"\x89PNG")


# ---- checksums


def shard_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("cache/tokens-*/train-*/c/0"))


def test_every_block_of_what_was_written_is_right(folder, capsys):
    facts = json.loads(show(folder, "--verify", "--json", capsys=capsys))
    assert facts["passed"] and [one["files"] for one in facts["sources"].values()] == [8, 8]
    on_disk = sum(
        p.stat().st_size for p in folder.glob("cache/tokens-*/**/*") if p.is_file() and p.name != "manifest.json"
    )
    assert sum(one["bytes"] for one in facts["sources"].values()) == on_disk
    assert show(folder, "--verify", capsys=capsys).count("no mistakes") == 2


@pytest.mark.parametrize("block, position", [(0, 5), (1, 0), (2, 2 * BLOCK + 3)])
def test_an_altered_block_is_named(tmp_path, capsys, block, position):
    write_jsonl(tmp_path / "a.jsonl", 0, 20, 4000)
    code = (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict(dict(model=dict(context_length=8,"
        f" n_layers=1, d_model=8, n_heads=1), train=dict(steps=1, batch_size=1), data=dict(path={str(tmp_path / 'a.jsonl')!r},"
        f" source='jsonl', tokenizer='bytes', cache_dir={str(tmp_path / 'cache')!r})))\n"
    )
    (tmp_path / "fields.py").write_text(code)
    config = load_config(str(tmp_path / "fields.py"))
    prepare(config.data)
    [file] = shard_files(tmp_path)
    content = bytearray(file.read_bytes())
    content[block * (2 * BLOCK + 4) + position] ^= 1  # a token, or its block's CRC
    file.write_bytes(content)
    assert cli.main(["data", f"--config={tmp_path / 'fields.py'}", "--verify"]) == 2
    printed = capsys.readouterr()
    assert f"{file}, block {block}, has another CRC-32C" in printed.err and printed.err.count("\n") == 1
    assert "bytes: 1 mistake (" in printed.out
    for i in range(30):
        content[i * (2 * BLOCK + 4) + 100] ^= 1
    file.write_bytes(content)
    assert cli.main(["data", f"--config={tmp_path / 'fields.py'}", "--verify"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 21 and "gptjax: 10 more mistakes" in error[-1]


def test_blocks_of_another_version_are_told_from_altered_ones(folder, monkeypatch):
    monkeypatch.setattr(verification, "BLOCK", BLOCK // 2)
    found = verification.verify(str(next(folder.glob("cache/tokens-*"))))["bad"]
    assert len(found) == 2 and all("another version of gptjax" in one["why"] for one in found)


def test_what_is_wrong_outside_blocks_is_named_by_its_file(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(next(folder.glob("cache/tokens-*")), copy)
    shard = next(copy.glob("train-*"))
    (shard / "documents.bin").write_bytes(bytes((shard / "documents.bin").stat().st_size))
    content = bytearray((shard / "c" / "0").read_bytes())
    content[-3] ^= 1  # the index, which has no block
    (shard / "c" / "0").write_bytes(content)
    (copy / "tokenizer.model").write_bytes(b"longer than it was")
    next(copy.glob("val-*/zarr.json")).unlink()
    found = {pathlib.Path(one["file"]).name: one["why"] for one in verification.verify(str(copy))["bad"]}
    assert found == {
        "documents.bin": "has another SHA-256",
        "0": "has another SHA-256",
        "tokenizer.model": "has 18 bytes, but was written with 0",
        "zarr.json": "is missing",
    }


# ---- mistakes


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], "give either --config=FILE or a run directory, --workdir=RUN"),
        (
            ["--config={f}/fields.py", "--workdir={f}/run"],
            "give either --config=FILE or a run directory, --workdir=RUN",
        ),
        (["--config={f}/none.py"], "no such file"),
        (["--workdir={f}/rum"], "did you mean 'run'?"),
        (["--workdir={f}/run", "--config.data.seed=1"], "is a run that has its own"),
        (["--config={f}/fields.py", "--config.data.sead=1"], "did you mean 'seed'?"),
        (["--config={f}/fields.py", "--step=31"], "give one from 1 to 30"),
        (["--config={f}/fields.py", "--row=8"], "give one from 0 to 7"),
        (
            ["--config={f}/fields.py", "--stats", "--step=1"],
            "--step chooses the text to show, but --stats shows no text",
        ),
        (
            ["--config={f}/fields.py", "--verify", "--row=0"],
            "--row chooses the text to show, but --verify shows no text",
        ),
        (["--config={f}/fields.py", "--stats", "--verify"], "give one of them"),
        (["--config={f}/fields.py", "--picture=a.png"], "needs --stats; add --stats"),
        (["--config={f}/fields.py", "--stats", "--picture=a.gif"], "use a name that ends in .png"),
        (["--config={f}/fields.py", "--stats", "--picture={f}/none/a.png"], "make it first"),
        (["--config={f}/fields.py", "--config.data.weights={{'short': 1, 'lung': 1}}"], "did you mean 'long'?"),
        (["--config={f}/fields.py", "--config.data.cache_dir={f}/other", "--verify"], "was not prepared yet"),
        (
            ["--config={f}/fields.py", "--config.model.context_length=1", "--config.data.objective=masked_lm"],
            "at least 2",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, flags, expected, capsys):
    assert cli.main(["data", *(flag.format(f=folder) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and error.startswith("gptjax: ")


def test_a_run_whose_text_has_changed_is_refused(folder, tmp_path, capsys):
    run, values = (
        run_directory.open_run(str(tmp_path / "run")),
        json.loads((folder / "run" / "config.json").read_text()),
    )
    write_jsonl(tmp_path / "b.jsonl", 2, 20, 100)
    values["data"]["mixture"]["long"] = str(tmp_path / "b.jsonl")
    run.write_json("config.json", values)
    run.write_json("manifest.json", json.loads((folder / "run" / "manifest.json").read_text()))
    assert cli.main(["data", f"--workdir={run.path}"]) == 2
    error = capsys.readouterr().err
    assert "is not the one that the run" in error and error.count("\n") == 1
    (run.path / "manifest.json").write_text("{}")
    assert cli.main(["data", f"--workdir={run.path}"]) == 2
    assert "manifest.json does not say what text the run has" in capsys.readouterr().err


def test_no_device_is_started(folder):
    import subprocess
    import sys

    code = (
        f"import sys; from gptjax import cli; cli.main(['data', '--config={folder / 'fields.py'}', '--row=0']);"
        f"cli.main(['data', '--config={folder / 'fields.py'}', '--stats']);"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_step_n_is_the_step_of_the_log_whose_loss_its_rows_gave(trained, capsys):
    """The hash of all rows up to and with those shown is the one logged in the row of that step."""
    logged = {row["step"]: row["batch_hash"] for row in train_rows(trained)}
    assert len(logged) == 6
    for step, batch_hash in logged.items():
        assert cli.main(["data", f"--workdir={trained}", f"--step={step}", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["step"], facts["batch_hash"]) == (step, batch_hash)
        assert facts["batch_hash_before"] == logged.get(step - 1, f"{0:016x}")
    assert cli.main(["data", f"--workdir={trained}", "--step=0"]) == 2
    assert "give one from 1 to 6, as the log counts them" in capsys.readouterr().err


def test_targets_of_conversations_are_marked_with_the_end_of_an_answer_and_no_question():
    row = {"predicts_in_place": False, "conversations": True}
    parts = [
        {"kind": "special", "text": "<|user|>", "predicted": False, "prefix": False},
        {"kind": "text", "text": "a question", "predicted": False, "prefix": False},
        {"kind": "text", "text": "an answer", "predicted": True, "prefix": False},
        {"kind": "special", "text": "<|end|>", "predicted": True, "prefix": False},
    ]
    plain = "".join(data_table._part(part, row, data_table.PLAIN) for part in parts)
    assert plain == "⟦<|user|>⟧a question⟪an answer⟫⟪<|end|>⟫"
    green, end = data_table.COLOR.answer
    assert f"{green}an answer{end}{green}<|end|>{end}" in "".join(
        data_table._part(part, row, data_table.COLOR) for part in parts
    )
