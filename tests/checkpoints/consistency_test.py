"""A run directory whose parts are not of one run is refused, or the part set aside, in one line by whatever reads it."""

import json
import shutil

import numpy as np
import pytest
import runs
from etils import epath
from places import ROOT

import gptjax
from gptjax import cli, errors
from gptjax.checkpoints import consistency, validity
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory
from gptjax.training import branching, main

GOLDEN = ROOT / "tests" / "golden" / "checkpoints"


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """Another run, of the same text, steps and model, less its seed."""
    workdir = tmp_path_factory.mktemp("other") / "run"
    config = run_directory.open_run(trained).config().replace(train={"seed": 1})
    assert main.train(config, str(workdir)) == 0
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, under another name: its id is as it was, and so is all else."""
    return shutil.copytree(trained, tmp_path / "renamed")


def edit(file, **sections) -> None:
    values = json.loads(file.read_text())
    for section, fields in sections.items():
        values[section] = values[section] | fields if isinstance(fields, dict) else fields
    file.write_text(json.dumps(values))


def said_by_verify(run, capsys) -> dict[str, tuple[str, str]]:
    """{name: (state, reasons)} of what is not as it should be."""
    capsys.readouterr()
    code = cli.main(["verify", f"--workdir={run}", "--json"])
    found = json.loads(capsys.readouterr().out)["found"]
    bad = {one["name"]: (one["state"], "; ".join(one["reasons"])) for one in found if not one["good"]}
    assert code == (1 if bad else 0)
    return bad


def refusals(run, config, tmp_path) -> list[str]:
    """What a load, a resume, a branch and a study say of a run."""
    origin, lines = branching.asked(str(run), "6"), []
    for read in (
        lambda: gptjax.load(run),
        lambda: main.train(config, str(run)),
        lambda: branching.check(origin, run_directory.open_run(tmp_path / "b"), config, None, (), {}),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert "\n" not in str(error.value)
        lines.append(str(error.value))
    return lines


def test_a_run_that_was_copied_and_renamed_is_as_it_was(run, trained, capsys):
    assert said_by_verify(run, capsys) == {}
    config = run_directory.open_run(run).config()
    assert gptjax.load(run).step == 6 and main.train(config, str(run)) == 0
    before, after = (json.loads((place / "manifest.json").read_text()) for place in (trained, run))
    assert (before["run_id"], before["history"]) == (after["run_id"], after["history"])


def test_a_checkpoint_names_its_run_tokenizer_text_and_step(trained):
    manifest = run_directory.open_run(trained).manifest()
    saved = validity.read_manifest(epath.Path(trained / "checkpoints" / "6"))
    assert saved["run"] == {
        "id": manifest["run_id"],
        "tokenizer_hash": manifest["tokenizer_hash"],
        "text": manifest["data"]["fingerprint"],
    }
    assert saved["config"] == manifest["history"][-1]["config"] == json.loads((trained / "config.json").read_text())


# ---- a checkpoint


@pytest.mark.parametrize("reader", ["verify", "load", "steps"])
def test_a_renamed_checkpoint_does_not_count(run, reader, capsys):
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "9")
    reason = "its manifest says step 6, its folder 9; rename the folder to 6"
    if reader == "verify":
        assert said_by_verify(run, capsys) == {"9": ("misplaced", reason)}
    elif reader == "load":
        assert gptjax.load(run).step == 4
        assert f"step 9 of {run} is left out: {reason}" in capsys.readouterr().err
        with pytest.raises(UserError, match=f"no checkpoint of step 9 that counts: it is misplaced .{reason}"):
            gptjax.load(run, step=9)
    else:
        assert run_directory.open_run(run).steps() == [4]
    assert validity.standing_of(epath.Path(run / "checkpoints" / "9")).state == validity.MISPLACED


def test_a_run_goes_on_from_the_step_before_a_renamed_one_as_if_undisturbed(run, trained, capsys):
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "9")
    assert main.train(run_directory.open_run(run).config(), str(run)) == 0
    runs.assert_same_state(run, trained, 6)
    assert runs.losses(run) == runs.losses(trained)
    assert "step 9 is set aside" in capsys.readouterr().err
    assert (run / "checkpoints" / "9.damaged-1" / "damaged.json").exists()


def test_a_renamed_checkpoint_of_schema_1_does_not_count(tmp_path):
    place = shutil.copytree(GOLDEN / "schema1", tmp_path / "run")
    (place / "checkpoints" / "6").rename(place / "checkpoints" / "7")
    with pytest.raises(UserError, match="its metadata|its manifest says step 6, its folder 7|no valid checkpoint"):
        gptjax.load(place)
    [standing] = validity.standings(place / "checkpoints")
    assert (standing.state, standing.counts) == ("misplaced", False)


def test_the_only_checkpoint_is_not_set_aside_for_its_name(run):
    shutil.rmtree(run / "checkpoints" / "4")
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "9")
    with pytest.raises(UserError, match="no valid checkpoint left .9: its manifest says step 6"):
        main.train(run_directory.open_run(run).config(), str(run))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["9"]


def test_a_run_whose_every_checkpoint_is_of_another_is_refused_and_none_is_set_aside(run):
    edit(run / "manifest.json", run_id="0" * 16)
    for read in (lambda: gptjax.load(run), lambda: main.train(run_directory.open_run(run).config(), str(run))):
        with pytest.raises(UserError, match="no valid checkpoint"):
            read()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_does_not_count_and_is_set_aside(run, other, capsys):
    shutil.rmtree(run / "checkpoints" / "6")
    shutil.copytree(other / "checkpoints" / "6", run / "checkpoints" / "6")
    ids = [json.loads((place / "manifest.json").read_text())["run_id"] for place in (other, run)]
    reason = (
        f"its manifest says that run {ids[0]} saved it, manifest.json is of run {ids[1]}; take it back to its own run"
    )
    [(name, (state, said))] = said_by_verify(run, capsys).items()
    assert (name, state) == ("6", "misplaced") and said.startswith(reason)
    assert gptjax.load(run).step == 4 and reason in capsys.readouterr().err
    assert main.train(run_directory.open_run(run).config(), str(run)) == 0
    assert "step 6 is set aside" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["config", "tokenizer_hash", "text"])
def test_a_checkpoint_of_other_words_than_its_runs_does_not_count(run, field):
    saved = validity.read_manifest(epath.Path(run / "checkpoints" / "6"))
    shutil.rmtree(run / "checkpoints" / "6")
    if field == "config":
        fields = {"config": saved["config"] | {"train": saved["config"]["train"] | {"seed": 5}}}
    else:
        fields = {"run": saved["run"] | {field: "0" * 64}}
    runs.copy_step(run, 4, 6, **fields)
    words = {"config": "train.seed was 0 and is 5 there", "tokenizer_hash": "the tokenizer 000000000000"}
    [standing] = [s for s in validity.standings(run / "checkpoints") if s.step == 6]
    assert standing.state == validity.MISPLACED
    assert words.get(field, "trained on the text 000000000000") in standing.reason


def test_a_branch_does_not_begin_with_a_misplaced_checkpoint(run):
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "5")
    origin = branching.asked(str(run), "5")
    with pytest.raises(UserError, match="there is no such checkpoint .it has 4."):
        branching.check(
            origin, run_directory.open_run(run.parent / "b"), run_directory.open_run(run).config(), None, (), {}
        )


# ---- the run's own files


def other_norm(run):
    edit(run / "config.json", model={"norm_eps": 0.1})


def other_manifest(run, other):
    shutil.copy(other / "manifest.json", run / "manifest.json")


def other_tokenizer(run):
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(GOLDEN / "schema2" / "tokenizer", run / "tokenizer")


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (other_norm, "config.json", "model.norm_eps was 1e-05 and is 0.1 in config.json"),
        (other_manifest, "config.json", "train.seed was 1 and is 0 in config.json"),
        (other_tokenizer, "tokenizer", "the folder holds 7e230149c148"),
    ],
)
def test_a_file_of_the_run_that_is_not_its_own_is_refused_by_whatever_reads_it(
    run, other, change, name, reason, capsys, tmp_path
):
    config = run_directory.open_run(run).config()
    change(*[run, other][: change.__code__.co_argcount])
    bad = said_by_verify(run, capsys)
    assert bad[name][0] == "unreadable" and reason in bad[name][1]
    for line in refusals(run, config, tmp_path):
        assert reason in line


@pytest.mark.parametrize("command", ["sample", "eval", "data", "export"])
def test_every_command_refuses_an_edited_config(run, command, capsys, tmp_path):
    other_norm(run)
    arguments = {"export": ["--to=hf", f"--out={tmp_path / 'out'}"]}.get(command, [])
    assert cli.main([command, f"--workdir={run}", *arguments]) == errors.USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"gptjax: {run / 'config.json'} is not the config that this run was trained with: manifest.json says what it was:"
        " model.norm_eps was 1e-05 and is 0.1 in config.json; put it back (a resume with --allow_change changes a config)."
    ]


def test_config_json_in_other_words_and_the_same_values_is_the_same(run):
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    assert gptjax.load(run).step == 6


# ---- changes that a run may make


def test_a_resume_with_changes_leaves_a_trail_and_all_checkpoints_count(run, trained, capsys):
    config = run_directory.open_run(trained).config()
    longer = config.replace(train={"steps": 8, "log_every": 1}, optim={"peak_lr": 1e-3}, checkpoint={"keep": 9})
    assert main.train(longer, str(run), ("train.steps", "optim.peak_lr")) == 0
    history = json.loads((run / "manifest.json").read_text())["history"]
    assert [entry["since_step"] for entry in history] == [0, 6]
    assert history[1]["changed"] == {
        "optim.peak_lr": [config.optim.peak_lr, 1e-3],
        "train.steps": [6, 8],
        "checkpoint.keep": [config.checkpoint.keep, 9],
    }
    assert said_by_verify(run, capsys) == {}
    assert run_directory.open_run(run).steps() == [4, 6, 8] and gptjax.load(run, step=4).step == 4


def test_a_run_killed_between_its_manifest_and_its_config_goes_on(run, capsys):
    directory = run_directory.open_run(run)
    before = directory.config()
    words = consistency.begun(
        directory.manifest(), [], None, before.replace(checkpoint={"keep": 7}).to_dict(), directory.fingerprint(), 6
    )
    directory.write_json("manifest.json", directory.manifest() | words)
    assert directory.config() == before and said_by_verify(run, capsys) == {}
    assert main.train(before.replace(checkpoint={"keep": 7}), str(run)) == 0
    assert len(directory.manifest()["history"]) == 2


@pytest.mark.parametrize("schema", ["schema1", "schema2"])
def test_a_run_of_an_older_gptjax_is_read_as_before_and_its_model_is_compared(schema, tmp_path, capsys):
    place = shutil.copytree(GOLDEN / schema, tmp_path / "run")
    golden = np.load(GOLDEN / schema / "logits.npz")
    np.testing.assert_allclose(gptjax.load(place).logits(golden["tokens"]), golden["params"], atol=2e-6)
    edit(place / "config.json", checkpoint={"keep": 5}, optim={"peak_lr": 0.2})
    assert gptjax.load(place).step == 6, "no word says that this was not changed by a resume"
    edit(place / "config.json", model={"norm_eps": 0.1})
    if schema == "schema2":  # schema 1 kept no config to compare with
        with pytest.raises(UserError, match="newest checkpoint has another model: model.norm_eps was 1e-05 and is 0.1"):
            gptjax.load(place)


def test_a_run_of_an_older_gptjax_that_goes_on_gets_an_id_and_keeps_its_checkpoints(run, trained, capsys):
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["run_id"], manifest["history"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    for step in (4, 6):
        saved = json.loads((run / "checkpoints" / str(step) / "manifest.json").read_text())
        del saved["run"], saved["sha256"]
        (run / "checkpoints" / str(step) / "manifest.json").write_text(
            json.dumps(saved | {"sha256": validity.digest(saved)})
        )
    config = run_directory.open_run(run).config().replace(train={"steps": 8}, checkpoint={"keep": 9})
    assert main.train(config, str(run), ("train.steps",)) == 0
    history = run_directory.open_run(run).manifest()["history"]
    assert [(entry["since_step"], entry["config"]["train"]["steps"]) for entry in history] == [(None, 6), (6, 8)]
    assert said_by_verify(run, capsys) == {} and run_directory.open_run(run).steps() == [4, 6, 8]
    assert runs.losses(run)[:6] == runs.losses(trained)


# ---- damaged JSON


@pytest.mark.parametrize("content", ["[1, 2]", "null", "3", '{"a": ', '"text"', b"\xff\xfe{}", "", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_json_of_another_kind_is_one_line(run, name, content, capsys):
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (["sample"], ["eval"], ["data"]):
        assert cli.main([*command, f"--workdir={run}"]) == errors.USER_ERROR
        [line] = capsys.readouterr().err.splitlines()
        assert f"{run / name}" in line and "restore it" in line
    assert said_by_verify(run, capsys)[name][0] == "unreadable"


@pytest.mark.parametrize("history", [3, [1], [{"config": 2, "text": "a"}], [{"text": None}], "a"])
def test_a_history_of_another_kind_is_one_line(run, history):
    edit(run / "manifest.json", history=history)
    with pytest.raises(UserError, match="manifest.json of the run is damaged: its history is no list of configs"):
        gptjax.load(run)


def test_rows_say_what_was_set_aside(run):
    (run / "checkpoints" / "6").rename(run / "checkpoints" / "9")
    assert main.train(run_directory.open_run(run).config(), str(run)) == 0
    events = [row for row in metrics.read_metrics(run / "metrics.jsonl", "event")]
    [event] = [row for row in events if row["event"] == "checkpoint_set_aside"]
    assert event["checkpoint"] == 9 and "its manifest says step 6" in event["reason"]
