"""A branch is bit for bit what its own config gives from scratch; whatever else it would be is refused."""

import hashlib
import json
import shutil
import signal

import numpy as np
import pytest
import runs
from etils import epath
from runs import losses, saved_arrays, train_rows

from gptjax import errors, flops
from gptjax.checkpoints import validity
from gptjax.config.config_file import from_dict
from gptjax.data.rows.pipeline import open_text
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory
from gptjax.study.results import noise_scales
from gptjax.training import branching, catch_up, main, resume

LEAVES, STEPS = 8, 14  # a trunk of 12 steps, left after 8 for a cooldown of 6


def origin(trunk, step=LEAVES):
    return branching.Origin(run_directory.open_run(trunk), step)


def from_scratch(config, workdir):
    assert main.train(config, str(workdir)) == 0
    return workdir


def branch(config, workdir, trunk, step=LEAVES, **arguments):
    assert main.train(config, str(workdir), origin=origin(trunk, step), **arguments) == 0
    return workdir


@pytest.fixture(scope="module")
def trunk_values(values):
    """With dropout, an average and skipping: all the state there is."""
    return runs.changed(
        values,
        model=dict(n_layers=1),
        optim=dict(warmup_steps=3, schedule="constant", ema_decay=0.9, skip="outliers", skip_window=4),
        train=dict(steps=12, microbatches=2, log_noise_scale=True),
        checkpoint=dict(every_steps=None, keep=1, keep_steps=(4, LEAVES)),
        eval=dict(every_steps=4, max_tokens=256),
    )


@pytest.fixture(scope="module")
def config(trunk_values):
    """Of the branch."""
    cooled = dict(schedule="wsd", cooldown_fraction=(STEPS - LEAVES) / STEPS, final_lr_fraction=0.0)
    return from_dict(trunk_values).replace(
        optim=cooled, train={"steps": STEPS}, checkpoint={"keep_steps": (LEAVES, 11), "keep": 1}
    )


@pytest.fixture(scope="module")
def trunk(trunk_values, tmp_path_factory):
    return from_scratch(from_dict(trunk_values), tmp_path_factory.mktemp("runs") / "trunk")


@pytest.fixture(scope="module")
def scratch(config, tmp_path_factory):
    return from_scratch(config, tmp_path_factory.mktemp("runs") / "scratch")


@pytest.fixture(scope="module")
def branched(config, trunk, tmp_path_factory):
    """Killed before its first checkpoint, then started again."""
    folder = tmp_path_factory.mktemp("runs")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume.Keeper, "save", killed)
        branch(config, folder / "branch", trunk)
    assert run_directory.open_run(folder / "branch").steps() == [] and len(train_rows(folder / "branch")) == LEAVES
    shutil.copytree(folder / "branch", folder / "begun")
    return from_scratch(config, folder / "branch")  # the flags are known to the directory


def arrays(workdir, number):
    """runs.saved_arrays with the average and the windows of skipping."""
    return saved_arrays(workdir, number, ("params", "opt_state", "ema", "skips"))


def assert_same_run(a, b):
    assert losses(a) == losses(b) and len(losses(a)) == STEPS
    before, after = arrays(a, STEPS), arrays(b, STEPS)
    assert before.keys() == after.keys() and {name.partition("[")[0] for name in before} >= {"ema", "skips"}
    for name, array in before.items():
        assert np.array_equal(array, after[name]), name


def computed(row):
    """Of a row, what says nothing of when, where and how fast it was computed."""
    lost = ("time", "tokens_per_second", "mfu", "seconds_left", "memory_bytes", "taken_over", "seconds", "by_process")
    return {name: value for name, value in row.items() if name.partition("/")[0] not in lost}


def test_a_branch_is_bit_equal_to_a_run_from_scratch(scratch, branched):
    assert_same_run(scratch, branched)
    rates = [row["learning_rate"] for row in train_rows(branched)]
    assert rates[2] == rates[LEAVES - 1] > rates[LEAVES] and rates[-1] == 0


def test_a_branch_reads_alone_as_if_it_had_run_from_scratch(scratch, branched, trunk):
    """Its rows are those of a run from scratch, in their order; those of the trunk are marked."""
    kinds = ("train", "eval")
    mine, other = ([row for row in metrics.read_metrics(w / "metrics.jsonl") if row["kind"] in kinds] for w in (branched, scratch))  # fmt: skip
    assert [computed(row) for row in mine] == [computed(row) for row in other]
    assert all(row.get("taken_over", False) == (row["step"] <= LEAVES) for row in mine)
    assert [row["step"] for row in mine if row["kind"] == "eval"] == [4, 4, 8, 8, 12, 12, 14, 14]  # and of the average
    events = [row["event"] for row in metrics.read_metrics(branched / "metrics.jsonl", "event")]
    assert [event for event in events if event != "update_skipped"] == ["branched", "first_call", "rows_read"]


def test_what_the_critical_batch_is_made_of_is_logged_and_taken_over(trunk, branched):
    both = [[row[name] for name in ("noise_signal", "noise_trace")] for row in train_rows(branched)]
    assert both[:LEAVES] == [[row["noise_signal"], row["noise_trace"]] for row in train_rows(trunk)][:LEAVES]
    assert np.isfinite(both).all() and noise_scales.of_run(branched).n_steps == STEPS


def test_evaluations_that_the_trunk_did_not_make_are_no_ones_to_make_up(branched, tmp_path):
    """With a cadence of 2 steps: 8 has the branch's own checkpoint, 10 has none, 2 and 6 were never the branch's."""
    workdir = shutil.copytree(branched, tmp_path / "branch")
    runs.change_config(workdir, eval={"every_steps": 2})
    rows = metrics.read_metrics(workdir / "metrics.jsonl")
    kept = [row for row in rows if (row["kind"], row["step"]) != ("eval", LEAVES)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    found = catch_up.find(run_directory.open_run(workdir))
    assert ([step for step, _ in found.left], [step for step, _ in found.lost]) == (
        [8, 8],
        [10, 10],
    )  # with the average


def test_a_trunk_saves_the_steps_that_are_named_and_keeps_them(trunk, branched):
    assert run_directory.open_run(trunk).steps() == [4, 8, 12]
    assert run_directory.open_run(branched).steps() == [8, 11, 14]


def test_the_lineage_names_run_step_config_and_checkpoint(trunk, branched):
    known = json.loads((branched / "manifest.json").read_text())["branched"]
    manifest = json.loads((trunk / "checkpoints/8/manifest.json").read_text())
    values = json.dumps(manifest["config"], sort_keys=True, separators=(",", ":"))
    expected = {
        "run": str(trunk),
        "step": LEAVES,
        "checkpoint_sha256": manifest["sha256"],
        "trunk": None,
        "allowed": [],
    }
    assert known.items() >= expected.items()
    assert known["config_sha256"] == hashlib.sha256(values.encode()).hexdigest()
    saved = (validity.description(epath.Path(run / "checkpoints/8"))["data"] for run in (trunk, branched))
    assert next(saved) == next(saved) != {}, "where a run goes on that is killed before its next checkpoint"
    [event] = [row for row in metrics.read_metrics(branched / "metrics.jsonl") if row.get("event") == "branched"]
    assert event["step"] == LEAVES and event["run"] == known["run"]


def test_a_branch_of_a_branch_is_bit_equal_too_and_flops_are_counted_once(config, trunk, branched, scratch, tmp_path):
    """From step 11 of the branch, inside its cooldown, to the same end."""
    again = branch(config, tmp_path / "again", branched, 11)
    assert_same_run(scratch, again)
    lineage = json.loads((again / "manifest.json").read_text())["branched"]
    assert (lineage["step"], lineage["trunk"]["step"], lineage["trunk"]["run"]) == (11, LEAVES, str(trunk))
    own = {trunk: (0, 12), branched: (LEAVES, STEPS), again: (11, STEPS), scratch: (0, STEPS)}
    assert {run: branching.own_steps(run) for run in own} == own
    of_a_step = flops.train_flops_per_sequence(run_directory.open_run(trunk).config().model) * config.train.batch_size
    assert [branching.own_flops(run) / of_a_step for run in own] == [12, 6, 3, 14]
    assert branching.own_flops(scratch) == flops.train_flops(run_directory.open_run(scratch).config())
    marked = [row["step"] for row in train_rows(again) if row.get("taken_over")]
    assert marked == list(range(1, 12))


@pytest.mark.slow
def test_a_killed_branch_goes_on_bit_equal_without_its_trunk(config, trunk, scratch, tmp_path):
    shutil.copytree(trunk, tmp_path / "trunk")
    workdir, values = tmp_path / "branch", config.to_dict()
    flags = [f"--branch_from={tmp_path / 'trunk'}", f"--branch_step={LEAVES}"]
    with runs.processes(values, workdir, tmp_path, 1, 8, arguments={0: flags}) as [process]:
        runs.wait_for_step(workdir, 10, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    shutil.rmtree(tmp_path / "trunk")
    assert main.train(config, str(workdir), origin=origin(tmp_path / "trunk")) == 0  # a supervisor starts it so
    assert_same_run(scratch, workdir)
    assert main.train(config, str(workdir)) == 0
    with pytest.raises(UserError, match="was branched from step 8 of .*/trunk; leave the two flags out"):
        main.train(config, str(workdir), origin=origin(trunk, 4))


@pytest.mark.slow
def test_a_branch_goes_on_on_another_mesh(config, trunk, scratch, tmp_path):
    workdir = branch(config.replace(mesh={"fsdp": 4, "tensor": 2}), tmp_path / "branch", trunk)
    assert [row["batch_hash"] for row in train_rows(workdir)] == [row["batch_hash"] for row in train_rows(scratch)]
    for name in ("loss", "grad_norm", "param_norm"):
        mine, other = ([row[name] for row in train_rows(w)] for w in (workdir, scratch))
        assert mine[:LEAVES] == other[:LEAVES]
        np.testing.assert_allclose(mine, other, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_branch_as_one_does(config, trunk, scratch, tmp_path):
    workdir, flags = tmp_path / "branch", [f"--branch_from={trunk}", f"--branch_step={LEAVES}"]
    with runs.processes(config.to_dict(), workdir, tmp_path, 2, 4, arguments={0: flags, 1: flags}) as both:
        for process in both:
            process.ends_with(0)
    assert [row["batch_hash"] for row in train_rows(workdir)] == [row["batch_hash"] for row in train_rows(scratch)]
    for name in ("loss", "grad_norm", "param_norm"):
        mine, other = ([row[name] for row in train_rows(w)] for w in (workdir, scratch))
        np.testing.assert_allclose(mine, other, rtol=1e-5)
    assert branching.own_steps(workdir) == (LEAVES, STEPS)


@pytest.mark.slow
def test_processes_that_would_branch_elsewhere_do_not_start(config, trunk, tmp_path):
    workdir, flags = tmp_path / "branch", [f"--branch_from={trunk}"]
    arguments = {0: [*flags, "--branch_step=4"], 1: [*flags, "--branch_step=8"]}
    with runs.processes(config.to_dict(), workdir, tmp_path, 2, 4, arguments=arguments) as both:
        for process in both:
            process.ends_with(errors.USER_ERROR)
            assert "--branch_from" in process.output()
    assert not (workdir / "config.json").exists()


# ---- what is refused


@pytest.fixture(scope="module")
def store(config):
    return open_text(config.data, config.model.context_length)[0]


def refusal(start, config, store, tmp_path, allowed=(), **sections) -> str:
    """What is said to a branch of `config` with other fields."""
    resolved = config.replace(**sections).with_vocabulary(store.tokenizer.vocab_size)
    manifest = run_directory.manifest(resolved, store, ["gptjax"])
    with pytest.raises(UserError) as error:
        branching.lineage(run_directory.open_run(tmp_path / "new"), resolved, store, start, allowed, manifest)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "sections,reason",
    [
        (dict(optim={"beta2": 0.9}), "optim.beta2 (0.95 there, 0.9 here)"),
        (dict(model={"n_layers": 2}, train={"seed": 1}), "model.n_layers (1 there, 2 here), train.seed (0 there, 1 here)"),
        (dict(data={"seed": 1}), "--allow_change=data.seed"),
        (dict(optim={"ema_decay": None}), "optim.ema_decay (0.9 there, None here)"),
        (dict(optim={"peak_lr": 1e-3}), "learning rate of step 1 is 0.001"),
        (dict(optim={"warmup_steps": 4}), "learning rate of step 1 is"),
        (dict(optim={"cooldown_fraction": 9 / 14}), "learning rate of step 6 is"),
        (dict(optim={"cooldown_fraction": 9 / 14}), "branch at step 5 or before"),
        (dict(optim={"schedule": "cosine"}), "learning rate of step 4 is"),
        (dict(train={"batch_size": 32}), "batch size of step 1 is 16 there and 32 here"),
        (
            dict(train={"batch_size": 32, "batch_ramp_start": 16, "batch_ramp_increment": 16, "batch_ramp_tokens": 5 * 256}),
            "batch size of step 6 is 16 there and 32 here",
        ),
        (dict(train={"steps": 8}, checkpoint={"keep_steps": ()}), "its config ends at step 8"),
    ],
)  # fmt: skip
def test_a_branch_that_its_config_would_not_give_from_scratch_is_refused(
    config, trunk, store, tmp_path, sections, reason
):
    assert reason in refusal(origin(trunk), config, store, tmp_path, **sections)


def test_what_does_not_change_the_steps_before_may_differ(config, trunk, store, tmp_path):
    """Another batch from the next step on, another mesh, a warmup and peak that give the same rates ..."""
    ramp = {"batch_size": 32, "batch_ramp_start": 16, "batch_ramp_increment": 16, "batch_ramp_tokens": LEAVES * 256}
    for sections in (
        dict(train=ramp),
        dict(mesh={"tensor": 2}, train={"log_every": 2}, eval={"every_steps": None}, model={"remat": "full"}),
        dict(optim={"warmup_steps": None, "warmup_tokens": 3 * 256}),
        dict(data={"path": "/moved/text.txt", "cache_dir": "/moved"}),
        dict(optim={"schedule": "linear", "warmup_steps": 3, "peak_lr": 3e-3, "final_lr_fraction": 1.0}),
    ):
        resolved = config.replace(**sections).with_vocabulary(store.tokenizer.vocab_size)
        manifest = run_directory.manifest(resolved, store, ["gptjax"])
        new = run_directory.open_run(tmp_path / "new")
        assert branching.lineage(new, resolved, store, origin(trunk), (), manifest)["branched"]["step"] == LEAVES


def test_a_step_that_the_trunk_has_not_kept_is_refused_with_those_there_are(config, trunk, store, tmp_path):
    said = refusal(origin(trunk, 6), config, store, tmp_path)
    assert "it has 4, 8, 12" in said and "checkpoint.keep_steps=(6,)" in said
    assert "has no config.json" in refusal(origin(tmp_path / "nowhere"), config, store, tmp_path)
    assert "is --workdir itself" in refusal(origin(tmp_path / "new"), config, store, tmp_path)


def test_step_0_is_a_step_of_a_run_and_where_it_was_not_saved_that_is_said(config, trunk, store, tmp_path):
    start = branching.asked(str(trunk), "0")
    assert start.step == 0
    said = refusal(start, config, store, tmp_path)
    assert "it has 4, 8, 12" in said and "leave --branch_from out: step 0 is the start of a run of its own" in said
    with pytest.raises(UserError, match="--branch_step=-1 is no step of a run"):
        branching.asked(str(trunk), "-1")


def test_another_text_or_tokenizer_is_refused(config, trunk, store, text, tmp_path):
    (tmp_path / "other.txt").write_text(text.read_text()[::-1])
    elsewhere = dict(path=str(tmp_path / "other.txt"), cache_dir=str(tmp_path))
    changed = config.replace(data=elsewhere)
    other = open_text(changed.data, 16)[0]
    assert "its text differs (fingerprint" in refusal(origin(trunk), changed, other, tmp_path)
    changed = config.replace(data=elsewhere | dict(tokenizer="bytes"))
    other = open_text(changed.data, 16)[0]
    assert "its tokenizer differs (" in refusal(origin(trunk), changed, other, tmp_path, ("data", "model"))


def test_what_is_allowed_to_differ_is_recorded_and_said(config, trunk, store, tmp_path):
    resolved = config.replace(optim={"weight_decay": 0.0}).with_vocabulary(store.tokenizer.vocab_size)
    arguments = (
        resolved,
        store,
        origin(trunk),
        ("optim.weight_decay",),
        run_directory.manifest(resolved, store, ["gptjax"]),
    )
    known = branching.lineage(run_directory.open_run(tmp_path / "new"), *arguments)["branched"]
    assert known["allowed"] == ["optim.weight_decay"] and known["other_program"] == []
    assert (
        "because optim.weight_decay differs, this is not the run that this config gives from scratch"
        in branching.said(known)
    )


def test_a_trunk_whose_schedule_was_changed_under_way_is_found_by_its_log(config, trunk, store, tmp_path):
    shutil.copytree(trunk, tmp_path / "trunk")
    file = tmp_path / "trunk/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row |= {"learning_rate": 2e-3} if (row["kind"], row["step"]) == ("train", 5) else {}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refusal(origin(tmp_path / "trunk"), config, store, tmp_path)
    assert "the learning_rate of step 5 is 0.002 in its metrics.jsonl and 0.003" in said


def test_another_program_is_said_and_recorded(config, trunk, store, tmp_path):
    shutil.copytree(trunk, tmp_path / "trunk")
    manifest = json.loads((tmp_path / "trunk/manifest.json").read_text())
    manifest["packages"]["jax"], manifest["code"] = "0.1", "0"
    (tmp_path / "trunk/manifest.json").write_text(json.dumps(manifest))
    other = config.replace(train={"log_noise_scale": False}, mesh={"tensor": 2})
    resolved = other.with_vocabulary(store.tokenizer.vocab_size)
    arguments = resolved, store, origin(tmp_path / "trunk"), (), run_directory.manifest(resolved, store, ["gptjax"])
    known = branching.lineage(run_directory.open_run(tmp_path / "new"), *arguments)["branched"]
    code, *others = known["other_program"]
    assert code.startswith("gptjax's files, revision ") and others[0].startswith("jax 0.1 -> ")
    assert others[1:] == ["mesh.tensor 1 -> 2", "train.log_noise_scale True -> False"]
    assert "its program differed (gptjax's files, revision" in branching.said(known)


def test_a_damaged_checkpoint_is_refused_and_the_branch_may_be_started_again(config, trunk, scratch, tmp_path):
    shutil.copytree(trunk, tmp_path / "trunk")
    [array, *_] = sorted((tmp_path / "trunk/checkpoints/8/params").rglob("d/*"), key=lambda file: -file.stat().st_size)
    whole = array.read_bytes()
    middle = len(whole) // 2
    array.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError, match="checkpoint .*/trunk/checkpoints/8 is damaged"):
        branch(config, tmp_path / "new", tmp_path / "trunk")
    assert run_directory.open_run(tmp_path / "new").steps() == []


def test_a_branch_that_was_killed_before_its_first_checkpoint_still_needs_its_trunk(config, branched, tmp_path):
    begun = shutil.copytree(branched.parent / "begun", tmp_path / "begun")
    manifest = json.loads((begun / "manifest.json").read_text())
    manifest["branched"]["run"] = str(tmp_path / "gone")
    (begun / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="--branch_from=.*/gone is not a run directory"):
        main.train(config, str(begun))


def test_a_finished_branch_knows_its_trunk_by_the_checkpoint_wherever_it_lies_now(
    config, trunk, branched, store, tmp_path
):
    moved = shutil.copytree(trunk, tmp_path / "moved")
    resolved = config.with_vocabulary(store.tokenizer.vocab_size)
    known = json.loads((branched / "manifest.json").read_text())["branched"]
    for start in (None, origin(trunk), origin(moved)):
        assert branching.lineage(run_directory.open_run(branched), resolved, store, start, (), {}) == {
            "branched": known
        }
    for start in (origin(trunk, 4), origin(moved, 4), origin(tmp_path / "nowhere")):
        with pytest.raises(UserError, match="was branched from step 8 of .*/trunk; leave the two flags out"):
            branching.lineage(run_directory.open_run(branched), resolved, store, start, (), {})


def test_a_run_that_began_in_another_way_is_not_made_a_branch(config, trunk, scratch):
    before = (scratch / "manifest.json").read_text()
    with pytest.raises(UserError, match="the run in .*/scratch was not branched; leave the two flags out"):
        main.train(config, str(scratch), origin=origin(trunk))
    assert (scratch / "manifest.json").read_text() == before
