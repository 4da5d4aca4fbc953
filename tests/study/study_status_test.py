"""What is known of a study from its folder alone, and what makes two runs the same run."""

import dataclasses
import json
import os
import shutil
import time

import pytest
import runs

from gptjax import cli, errors
from gptjax.checkpoints import validity
from gptjax.config import config_file
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.study import PlannedRun
from gptjax.study.declare.declaration import Branch
from gptjax.study.running import identity, layout, ledger, status

CODE = "c0de"


@pytest.fixture(scope="module")
def texts():
    return identity.Texts()


@pytest.fixture
def config(values):
    return config_file.from_dict(runs.changed(values, train={"steps": 6}))


@pytest.fixture
def study(config, texts, tmp_path):
    """(StudyDirectory, Ledger) of a run named "a", done, as the only one."""
    return made([PlannedRun("a", "grid", {}, config)], texts, tmp_path)


def made(planned, texts, tmp_path):
    """A study on disk, its first run done; what a run leaves there is written by what writes it in a run."""
    directory = layout.open_directory(str(tmp_path / "out"))
    entries, configs = ledger.entries(planned, texts, CODE)
    found = ledger.succeed(None, entries, CODE, {})
    found.write(directory)
    run = run_directory.open_run(str(directory.run(entries[0].key)))
    run.write_config(configs[entries[0].key])
    log = metrics.MetricsLog(run.path, resume_step=0, tensorboard=False, wandb_project=None, config=None)
    for step in (2, 4, 6):
        log.write("train", step, loss=2.0 / step)
        log.write("eval", step, loss=3.0 / step)
        log.write("eval", step, ema_loss=2.5 / step)
    log.close()
    for step in (4, 6):
        (run.checkpoints / str(step) / "params").mkdir(parents=True)
        (run.checkpoints / str(step) / "params" / "array").write_text("numbers")
        validity.write_manifest(run.checkpoints / str(step), step, {}, {}, {})
    return directory, found


def of_a(study) -> status.RunStatus:
    directory, found = study
    return status.of_run(directory, found, found.entries[0])


def write_exit(study, code) -> None:
    directory, found = study
    layout.write_json(directory.exit(found.entries[0].key), {"code": code, "attempt": 1})


def run_of(study) -> run_directory.RunDirectory:
    directory, found = study
    return run_directory.open_run(str(directory.run(found.entries[0].key)))


def without_rows(study, dropped) -> None:
    """metrics.jsonl without the rows that dropped(row) chooses."""
    file = run_of(study).metrics
    file.write_text("".join(json.dumps(r) + "\n" for r in metrics.read_metrics(file) if not dropped(r)))


# ---- states


def test_a_run_that_was_evaluated_and_saved_at_its_last_step_is_done_with_the_loss_of_that_evaluation(study):
    assert (of_a(study).state, of_a(study).step, of_a(study).loss) == ("done", 6, 0.5)
    write_exit(study, 1)
    assert of_a(study).state == "done", "whatever happened after it"


def test_without_its_last_evaluation_or_its_last_checkpoint_a_run_is_partial(study):
    without_rows(study, lambda row: row["kind"] == "eval" and row["step"] == 6)
    assert (of_a(study).state, of_a(study).step) == ("partial", 6)
    shutil.rmtree(run_of(study).checkpoints / "6")
    assert (of_a(study).state, of_a(study).step, of_a(study).fraction) == ("partial", 4, 4 / 6)


def test_a_done_run_whose_last_checkpoint_is_damaged_is_not_done(study):
    (run_of(study).checkpoints / "6" / "manifest.json").write_text("{}")
    assert of_a(study).state == "partial"


def write_words(study, **words) -> None:
    """manifest.json and the study's own copy of the config, as the study writes it."""
    directory, found = study
    layout.write_json(directory.config(found.entries[0].key), run_of(study).config().to_dict())
    run_of(study).write_json("manifest.json", {"data": {"fingerprint": found.entries[0].fingerprint}} | words)


def test_a_finished_run_that_is_another_than_the_study_declares_is_failed_and_no_point(study):
    write_words(study)
    assert of_a(study).state == "done"
    config = run_of(study).config()
    run_of(study).write_config(config.replace(checkpoint={"keep": 7}, train={"log_every": 2}))
    assert of_a(study).state == "done", "what decides no number"
    run_of(study).write_config(config.replace(optim={"peak_lr": 0.5}))
    known = of_a(study)
    assert known.state == "failed"
    assert (
        f"is another run than the study declares: optim.peak_lr was {config.optim.peak_lr} and is 0.5 there"
        in known.reason
    )


def test_a_finished_run_of_another_text_or_with_an_edited_config_is_failed(study):
    write_words(study, data={"fingerprint": "f" * 64})
    assert of_a(study).state == "failed" and "was trained on the text ffffffffffff" in of_a(study).reason
    config = json.loads((run_of(study).path / "config.json").read_text())
    history = [{"config": {}, "text": None}]  # of the checkpoints
    history += [{"config": config | {"model": config["model"] | {"norm_eps": 0.5}}, "text": None}]
    write_words(study)
    run_of(study).write_json("manifest.json", {"run_id": "a", "history": history})
    assert of_a(study).state == "failed" and "model.norm_eps was 0.5" in of_a(study).reason


def test_a_run_that_somebody_writes_to_is_running_and_afterwards_what_it_was(study):
    with runlock.hold(run_of(study).path):
        assert of_a(study).state == "done", "whoever holds it: a group has runs that are done among its own"
        without_rows(study, lambda row: row["kind"] == "eval")
        assert (of_a(study).state, of_a(study).step) == ("running", 6)
    assert of_a(study).state == "partial"


def test_a_lease_counts_as_running_while_it_is_fresh(study):
    file = run_of(study).path / runlock.NAME
    with runlock.hold(run_of(study).path, lease=True):
        assert status._has_fresh_lease(file)
        os.utime(file, (0, time.time() - 2 * runlock.LEASE_SECONDS))
        assert not status._has_fresh_lease(file), "whoever wrote it is gone"
    assert not status._has_fresh_lease(file)


def test_the_exit_code_of_a_save_leaves_a_run_partial_and_any_other_failed_with_the_last_line_of_its_log(study):
    directory, found = study
    without_rows(study, lambda row: row["kind"] == "eval")
    directory.log(found.entries[0].key).parent.mkdir()
    directory.log(found.entries[0].key).write_text("step 1\nValueError: no luck\n\n")
    for code, state in ((None, "partial"), (0, "partial"), (errors.SAVED_AND_STOPPED, "partial"), (137, "failed")):
        write_exit(study, code)
        assert of_a(study).state == state, code
    assert of_a(study).reason == "ValueError: no luck (exit code 137)"


def test_a_run_is_diverged_until_it_is_resumed(study):
    without_rows(study, lambda row: row["kind"] == "eval")
    metrics.insert(run_of(study).metrics, "event", 6, event="diverged", reason="loss is nan")
    write_exit(study, errors.DIVERGED)
    assert (of_a(study).state, of_a(study).reason, of_a(study).loss) == (
        "diverged",
        "loss is nan at step 6",
        float("inf"),
    )
    metrics.insert(run_of(study).metrics, "event", 6, event="resumed")
    write_exit(study, None)
    assert of_a(study).state == "partial"


def test_what_nobody_has_begun_is_planned_and_a_branch_waits_for_its_trunks_step(config, texts, tmp_path):
    def branch(name, step):
        longer = config.replace(train={"steps": 8})
        return PlannedRun(name, "grid", {}, longer, Branch("trunk", step))

    planned = [PlannedRun("trunk", "trunk", {}, config), branch("early", 3), branch("late", 4)]
    planned += [PlannedRun("alone", "grid", {}, config.replace(train={"seed": 1}))]
    planned += [PlannedRun("tuned", "grid", {}, None, outline=config)]
    directory, found = made(planned, texts, tmp_path)
    states = {known.entry.name: (known.state, known.reason) for known in status.read(directory, found)}
    assert states == {
        "trunk": ("done", ""),
        "early": ("waiting", "for step 3 of trunk, which is done without it"),
        "late": ("planned", ""),
        "alone": ("planned", ""),
        "tuned": ("waiting", "for the tuning runs"),
    }
    flops = {entry.name: entry.flops for entry in found.entries}
    assert flops["late"] * 6 == flops["trunk"] * 4 and flops["early"] * 6 == flops["trunk"] * 5
    assert flops["tuned"] == flops["trunk"]


def test_a_ledger_that_lacks_something_is_one_line_that_says_how_to_go_on(study):
    directory, _ = study
    one = {"name": "a", "stage": "grid", "factors": {}}
    wrong = [
        {"runs": 3},
        {"runs": "ab"},
        {"runs": [1]},
        {"runs": [one | {"name": 1}]},
        {"runs": [one | {"factors": []}]},
    ]
    wrong += [{"runs": [one | {"steps": "6"}]}, {"runs": [], "accepted": [1]}, {"runs": [], "former": 1}]
    for values in ({"code": "x"}, {"runs": [{"name": "a"}]}, *wrong):
        layout.write_json(directory.study, values)
        with pytest.raises(UserError, match="study.json is damaged: .*; restore it, or delete it and run the same"):
            ledger.read(directory)


def test_a_number_that_is_none_and_a_half_written_exit_are_no_json_error(study):
    directory, found = study
    directory.exit(found.entries[0].key).parent.mkdir(exist_ok=True)
    directory.exit(found.entries[0].key).write_text('{"code": 1')
    assert of_a(study).state == "done"
    infinite = dataclasses.replace(of_a(study), loss=float("inf"))
    assert json.loads(json.dumps(infinite.as_dict(), allow_nan=False))["loss"] is None


# ---- the table


def test_status_prints_a_row_for_every_run_and_names_what_is_on_disk_and_not_declared(study, capsys):
    directory, found = study
    other = dataclasses.replace(found.entries[0], name="b", key="other", code="older")
    gone = dataclasses.replace(found.entries[0], name="c", key="gone", what="else")
    for entry in (other, gone):
        shutil.copytree(run_of(study).path, directory.run(entry.key))
    dataclasses.replace(found, former=(other, gone)).write(directory)
    assert cli.main(["study", "status", str(directory.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("a ") and " done " in line and "[####################]" in line for line in lines)
    assert "on disk, made by other code: a (other, done)" in lines
    assert "on disk, no longer declared: c (gone, done)" in lines
    assert cli.main(["study", "status", str(directory.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"]["done"] == 1 and facts["runs"][0]["key"] == found.entries[0].key
    assert facts["code_changed"], "it was made with the code 'c0de'"


def test_a_folder_without_a_study_is_one_line_and_the_name_of_one_beside_it(study, capsys):
    directory, _ = study
    assert cli.main(["study", "status", str(directory.path) + "t"]) == errors.USER_ERROR
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no study.json; did you mean 'out'?" in said


def test_a_damaged_study_is_one_line(study, capsys):
    study[0].study.write_text('{"runs": 3}')
    assert cli.main(["study", "status", str(study[0].path)]) == errors.USER_ERROR
    assert "study.json is damaged" in capsys.readouterr().err


# ---- keys


def key(config, texts, code=CODE, name="a"):
    [entry], _ = ledger.entries([PlannedRun(name, "grid", {}, config)], texts, code)
    return entry.key


def test_a_key_depends_on_what_changes_a_number_and_on_nothing_else(config, texts, tmp_path):
    same = [
        dict(mesh={"cpu_devices": 2}), dict(train={"log_every": 3}), dict(checkpoint={"every_steps": 5}),
        dict(eval={"every_steps": 3}), dict(data={"cache_dir": str(tmp_path / "cache")}), dict(model={"remat": "full"}),
    ]  # fmt: skip
    other = [
        dict(optim={"peak_lr": 1e-2}), dict(train={"seed": 1}), dict(data={"seed": 1}), dict(model={"init_std": 0.01}),
        dict(eval={"max_tokens": 256}), dict(train={"max_rollbacks": 1}), dict(checkpoint={"keep_steps": (3,)}),
        dict(data={"val_fraction": 0.2}), dict(train={"steps": 7}),
    ]  # fmt: skip
    assert {key(config.replace(**changes), texts) for changes in same} == {key(config, texts)}
    keys = [key(config.replace(**changes), texts) for changes in other]
    assert len({*keys, key(config, texts), key(config, texts, code="other")}) == len(other) + 2


def test_a_key_follows_the_text_and_not_where_it_lies(config, texts, tmp_path):
    moved = tmp_path / "moved.txt"
    shutil.copy(config.data.path, moved)
    assert key(config.replace(data={"path": str(moved)}), texts) == key(config, texts)
    edited = tmp_path / "edited.txt"
    edited.write_text(moved.read_text().replace("a", "b", 1))
    assert key(config.replace(data={"path": str(edited)}), texts) != key(config, texts)


def test_a_branch_is_another_run_than_the_same_config_from_scratch_and_outlives_more_kept_steps(config, texts):
    def keys(**trunk):
        planned = [
            PlannedRun("t", "trunk", {}, config.replace(checkpoint=trunk)),
            PlannedRun("b", "grid", {}, config, Branch("t", 2)),
            PlannedRun("s", "grid", {}, config),
        ]
        return [entry.key for entry in ledger.entries(planned, texts, CODE)[0]]

    few, more = keys(keep_steps=(2,)), keys(keep_steps=(2, 4))
    assert len(set(few)) == 3
    assert few[0] != more[0] and few[1:] == more[1:]


def test_two_runs_of_one_name_and_a_trunk_that_there_is_not_are_one_line(config, texts):
    twice = [PlannedRun("a", "grid", {}, config)] * 2
    with pytest.raises(UserError, match="2 runs with the name 'a'"):
        ledger.entries(twice, texts, CODE)
    with pytest.raises(UserError, match="branches from 'trunc', which is no run of the study; did you mean 'trunk'"):
        planned = [PlannedRun("trunk", "trunk", {}, config), PlannedRun("b", "grid", {}, config, Branch("trunc", 2))]
        ledger.entries(planned, texts, CODE)
    with pytest.raises(UserError, match="in a circle: a, b"):
        planned = [PlannedRun(n, "grid", {}, config, Branch(t, 2)) for n, t in (("a", "b"), ("b", "a"))]
        ledger.entries(planned, texts, CODE)


# ---- code


def plain(source: str):
    import ast

    return identity.plain(ast.parse(source))


def test_comments_docstrings_and_what_errors_say_are_no_other_code():
    source = 'def f(x):\n    """Doc."""\n    if x:\n        raise ValueError(f"bad {x}")\n    return x + 1\n'
    same = '"""Module."""\ndef f(x):  # why\n\n    if x: raise ValueError("worse")\n    return (x + 1)\n'
    assert plain(source) == plain(same)
    assert plain(source) != plain(source.replace("x + 1", "x + 2"))
    assert plain(source) != plain(source.replace("if x", "if not x"))


def test_what_a_config_field_says_of_itself_is_no_other_code_but_its_default_is():
    field = 'x: int = setting(3, "steps", "nothing")'
    assert plain(field) == plain(field.replace("steps", "steps of a run").replace("nothing", "rounding"))
    assert plain(field) != plain(field.replace("3", "4"))


def test_the_code_is_that_of_the_modules_that_decide_numbers():
    names = {file.relative_to(identity.PACKAGE).as_posix() for file in identity.code_files()}
    models = {
        f"models/{name}.py" for name in ("gpt", "lstm", "layers", "attention", "splash", "loss", "parametrization")
    }
    optim = {f"optim/{name}.py" for name in ("optimizers", "rounding", "skipping")}
    rows = {f"data/rows/{name}.py" for name in ("pipeline", "packing", "mixture", "objectives")}
    others = {"training/step.py", "training/feed.py", "evaluation/held_out.py", "schedule.py", "config/fields.py"}
    assert names > models | optim | rows | others | {"parallel/sharding.py", "study/lanes/program.py"}
    assert names > {"models/__init__.py", "data/rows/__init__.py"}, "what runs with every import below it"
    assert not names & {"training/main.py", "rundir/metrics.py", "errors.py", "cli.py", "data/tokens/store.py"}
    assert not names & {"hosts/compiling.py", "hosts/coordination.py"}, "how processes wait for each other"


def test_what_is_named_to_decide_numbers_or_to_decide_none_is_there():
    for name in (*identity.ROOTS, *identity.PLUMBING):
        place = identity.PACKAGE.joinpath(*name.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), name


def test_the_code_follows_imports_tables_of_names_and_packages(tmp_path):
    files = {
        "step.py": "from gptjax.models import gpt\nfrom gptjax import errors\n",
        "errors.py": "import gptjax.unseen\n",
        "unseen.py": "",
        "alone.py": "",
        "models/__init__.py": "SCALE = 2\n",
        "models/gpt.py": 'KERNELS = {"splash": "gptjax.kernels.splash:attend"}\n',
        "models/lstm.py": "import gptjax.parts.gates.sigmoid as s\n",
        "kernels/__init__.py": "",
        "kernels/splash.py": "",
        "kernels/other.py": "",
        "parts/gates.py": "",
        "room/__init__.py": "",
        "room/inner.py": "",
        "room/log.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def names(roots, plumbing=("errors",)):
        return {str(file.relative_to(tmp_path)) for file in identity.code_files(tmp_path, roots, plumbing)}

    chosen = {"kernels/__init__.py", "kernels/splash.py"}
    assert names(("step",)) == {"step.py", "models/__init__.py", "models/gpt.py", *chosen}
    whole = {"models/__init__.py", "models/gpt.py", "models/lstm.py", "parts/gates.py", *chosen}
    assert names(("models",)) == whole, "a room: every module of it"
    assert names(("room.inner",), ("room",)) == {"room/inner.py"}
    assert names(("room",), ("room.log",)) == {"room/__init__.py", "room/inner.py"}
    with pytest.raises(AssertionError, match="no lost"):
        names(("lost",))


# ---- a study file that changed


def test_runs_that_are_declared_no_more_stay_known_and_come_back(config, texts):
    both = [PlannedRun(name, "grid", {}, config.replace(train={"seed": s})) for s, name in enumerate("ab")]
    first = ledger.succeed(None, ledger.entries(both, texts, CODE)[0], CODE, {})
    second = ledger.succeed(first, ledger.entries(both[1:], texts, CODE)[0], CODE, {})
    assert [entry.name for entry in second.former] == ["a"]
    third = ledger.succeed(second, ledger.entries(both, texts, CODE)[0], CODE, {})
    assert (third.entries, third.former) == (first.entries, ())


def test_a_finished_run_of_other_code_stands_for_the_declared_one_once_it_is_accepted_and_from_then_on(config, texts):
    def declared(code):
        return ledger.entries([PlannedRun("a", "grid", {}, config)], texts, code)[0]

    old = ledger.succeed(None, declared("old"), "old", {})
    new = ledger.succeed(old, declared("new"), "new", {})
    [[key, [other]]] = ledger.of_other_code(new).items()
    assert (key, other) == (declared("new")[0].key, old.entries[0])
    accepted = ledger.accept(new, {key: other.key})
    assert accepted.entries == old.entries and accepted.former == ()
    later = ledger.succeed(accepted, declared("new"), "new", {})
    assert later.entries == old.entries and not ledger.of_other_code(later)
    newest = ledger.succeed(later, declared("newest"), "newest", {})
    assert newest.entries == tuple(declared("newest")) and ledger.of_other_code(newest)
