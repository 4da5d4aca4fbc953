import json
import os
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
import runs
import vocabularies
from runs import assert_same_state, losses, saved_arrays, start, train_rows, wait_for_step

from gptjax import cli, errors, schedule, supervisor
from gptjax.checkpoints import checkpointer
from gptjax.config.config_file import from_dict
from gptjax.data.tokenizers import load_tokenizer
from gptjax.errors import UserError
from gptjax.parallel import meshes
from gptjax.run import run
from gptjax.rundir import metrics, resuming, run_directory
from gptjax.training import hooks, main, resume
from gptjax.training import program as programs

STEPS = 40


@pytest.fixture(scope="module")
def config(values):
    return from_dict(values)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """The run directory of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    relative = os.path.relpath(workdir)  # as users give it
    assert main.train(config, relative) == 0
    return workdir


def assert_same_run(a, b):
    assert losses(a) == losses(b)
    assert_same_state(a, b, STEPS)


def test_a_run_directory_holds_what_the_contract_says(undisturbed):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert manifest["packages"]["jax"] == jax.__version__ and manifest["data"]["fingerprint"]
    assert manifest["parameters"]["total"] > 0 and manifest["command"][0] == "gptjax"
    assert run_directory.open_run(undisturbed).config().model.vocab_size == 9  # eight letters and the space
    assert run_directory.open_run(undisturbed).steps() == [20, 30, 40]
    assert [row["step"] for row in train_rows(undisturbed)] == list(range(1, STEPS + 1))
    evaluations = metrics.read_metrics(run_directory.open_run(undisturbed).metrics, "eval")
    assert [row["step"] for row in evaluations] == [20, 40]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] < np.log(9) + 0.1


class Terminated(hooks.Hook):
    """SIGTERM to this process when step 4 is taken."""

    def due(self, step):
        return step == 4

    def run(self, state, step, should_stop):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_exits_with_its_own_code_and_the_run_goes_on_bit_equal(
    values, undisturbed, tmp_path, monkeypatch, capfd
):
    command = ["train", runs.write_config(values, tmp_path / "fields.py"), f"--workdir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setitem(hooks.HOOKS, "terminated", Terminated)
        assert cli.main(command) == errors.SAVED_AND_STOPPED
    said = capfd.readouterr().err
    assert (
        "SIGTERM: running a hook first has to reach a point where it can stop; then the run saves" in said
        and "run the same command again" in said
        and "Traceback" not in said
    )
    last_logged = train_rows(tmp_path / "run")[-1]["step"]
    assert run_directory.open_run(tmp_path / "run").steps()[-1] == last_logged < STEPS
    assert cli.main(command) == 0
    assert_same_run(undisturbed, tmp_path / "run")


def test_a_run_that_was_killed_goes_on_bit_equal(values, config, undisturbed, tmp_path):
    """25 kills at random points, and where it has resumed: faults_test."""
    workdir = tmp_path / "run"
    process = start(values, workdir, tmp_path)
    wait_for_step(workdir, 23, process)
    process.kill()
    process.communicate()
    assert main.train(config, str(workdir)) == 0
    resumed = [row for row in metrics.read_metrics(workdir / "metrics.jsonl", "event") if row["event"] == "resumed"]
    assert len(resumed) == 1 and resumed[0]["step"] < STEPS
    assert_same_run(undisturbed, workdir)


@pytest.mark.slow
def test_a_run_killed_at_random_points_and_resumed_is_bit_equal_to_an_undisturbed_one(values, undisturbed, tmp_path):
    points = runs.kill_at_random_points(values, tmp_path / "killed", tmp_path, kills=2, most_steps=5)
    events = metrics.read_metrics(tmp_path / "killed" / "metrics.jsonl", "event")
    assert len(points) > 1 and any(row["event"] == "resumed" for row in events), points
    assert_same_run(undisturbed, tmp_path / "killed")


def test_a_run_killed_between_its_last_checkpoint_and_its_last_evaluation_is_evaluated(config, undisturbed, tmp_path):
    workdir = tmp_path / "killed"
    shutil.copytree(undisturbed, workdir)
    file = run_directory.open_run(workdir).metrics
    kept = [line for line in file.read_text().splitlines() if f'"eval", "step": {STEPS}' not in line]
    file.write_text("\n".join(kept) + "\n")
    assert main.train(config, str(workdir)) == 0
    here, there = (
        metrics.read_metrics(run_directory.open_run(path).metrics, "eval")[-1] for path in (workdir, undisturbed)
    )
    assert here["step"] == STEPS and here["loss"] == there["loss"]


@pytest.fixture
def no_large_files():
    """no_large_files() lets this process write no file of more than 50 kB, which the parameters are: EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_ends_with_one_line_and_a_code_that_a_supervisor_restarts(
    values, undisturbed, tmp_path, no_large_files, capfd
):
    command = ["train", runs.write_config(values, tmp_path / "fields.py"), f"--workdir={tmp_path / 'run'}"]
    no_large_files()  # the text is prepared, and the programs are in jax's cache
    assert cli.main(command) == errors.SAVE_FAILED
    stderr = capfd.readouterr().err
    said = [line for line in stderr.splitlines() if line.startswith("gptjax: a checkpoint could not be written to ")]
    assert len(said) == 1, stderr  # what Orbax's threads say of the other files may come after it
    assert not run_directory.open_run(tmp_path / "run").steps()
    assert errors.SAVE_FAILED in supervisor.PASSING and errors.SAVE_FAILED not in supervisor.FINAL


def test_a_state_moves_between_meshes_bit_equal(config, tmp_path):
    config = config.replace(model={"vocab_size": 9}, optim={"ema_decay": 0.9})

    def program(fsdp, tensor):
        here = config.replace(mesh={"fsdp": fsdp, "tensor": tensor})
        return programs.build(here, meshes.make_mesh(here, jax.devices()[: fsdp * tensor]), "xla")

    source = program(4, 2)
    state = source.init()
    before = jax.tree.map(np.asarray, state)
    saver = checkpointer.Checkpointer(tmp_path / "0", config)
    saver.save(resume.items(state), 0)
    saver.wait()
    for i, (fsdp, tensor) in enumerate([(2, 4), (1, 1)]):
        target = program(fsdp, tensor)
        state = resume.read_state(saver, 0, target.abstract_state, target.state_sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            assert len(leaf.sharding.device_set) == fsdp * tensor, path
        jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))
        saver.close()
        saver = checkpointer.Checkpointer(tmp_path / str(i + 1), config)
        saver.save(resume.items(state), 0)
        saver.wait()
    saver.close()


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon", "sgd"])
def test_every_optimizers_state_survives_the_disk(config, tmp_path, name):
    config = config.replace(model={"vocab_size": 9}, optim={"name": name})
    program = programs.build(config, meshes.make_mesh(config), "xla")
    state = program.init()
    filled = jax.tree.map(lambda leaf: jax.device_put(leaf + 1, leaf.sharding), state)._replace(step=state.step + 7)
    saver = checkpointer.Checkpointer(tmp_path, config)
    saver.save(resume.items(filled), 7)
    saver.wait()
    restored = resume.read_state(saver, 7, program.abstract_state, program.state_sharding)
    saver.close()
    jax.tree.map(np.testing.assert_array_equal, filled, restored)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(config, tmp_path, capsys):
    wild = config.replace(
        optim={"peak_lr": 1e30, "clip_norm": None, "warmup_steps": None}, checkpoint={"every_steps": 1}
    )
    assert main.train(wild, str(tmp_path)) == errors.DIVERGED
    message = capsys.readouterr().err
    [event] = metrics.read_metrics(tmp_path / "metrics.jsonl", "event")[-1:]
    assert event["event"] == "diverged" and f"at step {event['step']}" in message
    assert all(saved < event["step"] for saved in run_directory.open_run(tmp_path).steps())


def test_a_changed_config_is_refused_by_the_name_of_its_keys(config, undisturbed):
    changed = config.replace(optim={"peak_lr": 1e-3}, model={"residual_dropout": 0.0})
    with pytest.raises(UserError) as error:
        main.train(changed, str(undisturbed))
    assert "optim.peak_lr (0.003 -> 0.001)" in str(error.value) and "model.residual_dropout" in str(error.value)
    assert "--allow_change=model.residual_dropout,optim.peak_lr" in str(error.value)


def test_harmless_and_allowed_changes_are_accepted(config):
    other = config.replace(mesh={"tensor": 2}, eval={"every_steps": None}, train={"log_every": 5})
    resuming.check_resume(config, other)
    resuming.check_resume(config, config.replace(data={"prefetch_workers": 3, "cache_dir": "/elsewhere"}))
    longer = config.replace(train={"steps": 80})
    with pytest.raises(UserError, match=r"train.steps \(40 -> 80\)"):
        resuming.check_resume(config, longer)
    resuming.check_resume(config, longer, allowed=("train.steps",))
    resuming.check_resume(config, longer, allowed=("train",))


def test_a_finished_run_is_left_as_it_is(config, undisturbed):
    before = saved_arrays(undisturbed, STEPS)
    rows = train_rows(undisturbed)
    assert main.train(config, str(undisturbed)) == 0
    assert train_rows(undisturbed) == rows
    assert all(np.array_equal(array, before[name]) for name, array in saved_arrays(undisturbed, STEPS).items())


def test_another_text_is_refused_on_resume(values, undisturbed, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])
    changed = from_dict({**values, "data": {**values["data"], "path": str(other)}})
    with pytest.raises(UserError, match="not the one that this run was started with"):
        main.train(changed, str(undisturbed), ("data.path",))


def test_another_tokenizer_is_refused_on_resume_whatever_is_allowed(config, undisturbed, tmp_path):
    before = load_tokenizer(undisturbed / "tokenizer")
    assert json.loads((undisturbed / "manifest.json").read_text())["tokenizer_hash"] == before.hash
    with pytest.raises(UserError, match="not the run's own: that is 'chars' of 9 tokens .* 'bytes' of 257 tokens"):
        main.train(config.replace(data={"tokenizer": "bytes"}), str(undisturbed), ("data", "model"))
    assert load_tokenizer(undisturbed / "tokenizer").hash == before.hash


def test_a_run_is_not_evaluated_with_another_tokenizer(undisturbed, text, tmp_path):
    """Its text has other characters now."""
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "other.txt").write_text(text.read_text() + "xyz")
    runs.change_config(tmp_path / "run", data={"path": str(tmp_path / "other.txt")})
    loaded = run.load(tmp_path / "run")
    with pytest.raises(UserError, match="not the run's own: that is 'chars' of 9 tokens .* of 12 tokens"):
        loaded.evaluate()


def test_a_run_is_not_evaluated_on_another_text_of_the_same_characters(undisturbed, text, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "other.txt").write_text(text.read_text()[::-1])
    runs.change_config(tmp_path / "run", data={"path": str(tmp_path / "other.txt")})
    loaded = run.load(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"the text or tokenizer is not the one that the run in .*/run was started with"
    ):
        loaded.evaluate()


def test_a_run_carries_its_tokenizer_and_is_read_without_the_file_that_was_given(values, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(vocabularies.small_json()))
    given = dict(tokenizer="hf", tokenizer_path=str(file))
    short = dict(train=dict(steps=2), eval=dict(every_steps=None, max_tokens=64))
    config = from_dict(runs.changed(values, model=dict(n_layers=1), data=given, **short))
    assert main.train(config, str(tmp_path / "run")) == 0
    file.unlink()
    loaded = run.load(tmp_path / "run")
    assert (loaded.tokenizer.kind, loaded.tokenizer.decode(loaded.tokenizer.encode("中 a"))) == ("hf", "中 a")
    [continued] = map(str, loaded.generate("ab", max_tokens=2))
    assert continued.startswith("ab")


def test_a_directory_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("\\begin{document}")
    with pytest.raises(UserError, match="has files in it but is not a run directory"):
        main.train(config, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="model.vocab_size=5 is smaller than the tokenizer's 9"):
        main.train(config.replace(model={"vocab_size": 5}), str(tmp_path / "run"))


@pytest.mark.slow
def test_a_ramp_smaller_than_the_mesh_pads_with_rows_that_count_nothing(config, tmp_path):
    ramp = {"steps": 6, "batch_ramp_start": 2, "batch_ramp_increment": 14, "batch_ramp_tokens": 100}
    rows = []
    for name, mesh in (("padded", {"fsdp": 8}), ("whole", {"fsdp": 1, "tensor": 4, "replica": 2})):
        changed = config.replace(model={"n_layers": 1}, train=ramp, mesh=mesh, eval={"every_steps": None})
        assert main.train(changed, str(tmp_path / name)) == 0
        rows.append(train_rows(tmp_path / name))
    padded, whole = rows
    assert [row["tokens"] for row in padded] == [row["tokens"] for row in whole]
    assert padded[0]["tokens"] == 2 * 16 and padded[-1]["tokens"] - padded[-2]["tokens"] == 16 * 16
    assert [row["batch_hash"] for row in padded] == [row["batch_hash"] for row in whole]
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose([row[name] for row in padded], [row[name] for row in whole], rtol=1e-5)


@pytest.mark.slow  # compiles without the cache
def test_a_ramps_next_program_is_compiled_beyond_a_steps_allowance_and_in_no_steps_time(values, tmp_path):
    ramp = dict(steps=40, batch_ramp_start=8, batch_ramp_increment=8, batch_ramp_tokens=20 * 8 * 16)
    values = runs.changed(values, train=values["train"] | ramp, eval=dict(every_steps=None))
    how = dict(program=runs.impatient(1.0), JAX_ENABLE_COMPILATION_CACHE="false")
    with runs.processes(values, tmp_path / "run", tmp_path, 1, 2, **how) as [process]:
        process.ends_with(0)
    rows = train_rows(tmp_path / "run")
    [at] = [i for i, row in enumerate(rows) if i and "tokens_per_second" not in row]
    assert (rows[at]["step"], at) == (21, 20) and "tokens_per_second" not in rows[0]
    assert rows[at]["time"] - rows[at - 1]["time"] > 1.6, "compiling takes no time here: this shows nothing"
    assert rows[at + 1]["tokens_per_second"] > 16 * 16  # a step of less than a second


def test_a_run_with_every_option_on_logs_what_it_should(config, tmp_path):
    options = config.replace(
        optim={"ema_decay": 0.9},
        train={
            "steps": 12,
            "batch_ramp_start": 8,
            "batch_ramp_increment": 8,
            "batch_ramp_tokens": 4 * 8 * 16,
            "log_activations": True,
            "profile_steps": (3, 4),
            "z_loss": 1e-4,
            "tensorboard": True,
        },
        eval={"every_steps": 6},
        mesh={"fsdp": 4, "tensor": 2},
        model={"remat": "dots"},
    )
    assert main.train(options, str(tmp_path / "run")) == 0
    rows = train_rows(tmp_path / "run")
    assert [row["tokens"] for row in rows] == [schedule.tokens_before(options, s) for s in range(1, 13)]
    assert rows[3]["tokens"] == 4 * 8 * 16 and rows[4]["tokens"] - rows[3]["tokens"] == 16 * 16
    assert len(rows[0]["activation_rms"]) == len(rows[0]["max_attention_logit"]) == 2
    assert {"loss", "grad_norm", "update_norm", "param_norm", "learning_rate", "memory_bytes"} <= rows[0].keys()
    assert {"tokens_per_second", "seconds_left"} <= rows[-1].keys()
    assert not [row for row in rows if "mfu" in row], "a CPU has no peak that it could be a fraction of"
    assert [row["step"] for row in rows if "tokens_per_second" not in row] == [1, 5], "while a program is compiled"
    averaged = [row for row in metrics.read_metrics(tmp_path / "run/metrics.jsonl", "eval") if "ema_loss" in row]
    assert len(averaged) == 2 and averaged[0]["ema_loss"] > 0
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "run/tensorboard").iterdir())


@pytest.mark.slow
def test_a_run_stored_in_bfloat16_with_its_optimizer_on_the_host_resumes_evaluates_and_samples(config, tmp_path):
    options = config.replace(
        optim={"param_dtype": "bfloat16", "moment_dtype": "bfloat16", "ema_decay": 0.9},
        mesh={"offload_optimizer": True},
        model={"remat": "offload", "n_layers": 1},
        train={"steps": 4},
        checkpoint={"every_steps": 2},
        eval={"every_steps": None},
    )
    assert main.train(options, str(tmp_path / "whole")) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert main.train(options, str(tmp_path / "run")) == 0
    whole, resumed = (saved_arrays(tmp_path / name, 4) for name in ("whole", "run"))
    for name, array in whole.items():
        assert np.array_equal(array, resumed[name]), name
    assert {str(array.dtype) for name, array in whole.items() if name.startswith("params")} == {"bfloat16"}
    logged = {}
    for row in metrics.read_metrics(tmp_path / "run/metrics.jsonl", "eval"):
        logged |= row
    for ema, key in ((True, "ema_loss"), (False, "loss")):
        loaded = run.load(str(tmp_path / "run"), ema=ema)
        dtype = "float32" if ema else "bfloat16"
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {dtype}
        [result] = loaded.evaluate().values()
        assert result.loss == pytest.approx(logged[key], rel=1e-5)
    assert len(str(loaded.generate("abc", max_tokens=5)[0])) == 8


@pytest.mark.parametrize(
    "prompt, message",
    [
        (None, "eval.sample_tokens=5, but the tokenizer 'chars' has neither an end-of-text token nor a line break"),
        ("abz", "eval.sample_prompt='abz': the text has 'z'"),
    ],
)
def test_a_sample_that_could_not_start_is_refused_before_the_first_step(values, tmp_path, prompt, message):
    asked = runs.changed(values, eval={"sample_tokens": 5, "sample_prompt": prompt})
    with pytest.raises(UserError, match=message):
        main.train(from_dict(asked), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
