"""A run that is gone on with under a changed config: what is refused, and the commands that are named."""

import dataclasses
import re
import shlex
import shutil
import sys

import pytest
import runs

from gptjax import cli, schedule
from gptjax.config.fields import Config, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.rundir import resuming, run_directory

CONFIG = Config(optim=OptimConfig(peak_lr=1.0), train=TrainConfig(steps=10))


def named_command(said: str) -> list[str]:
    """The words of the command that ends a line."""
    return shlex.split(said[said.rindex(": gptjax train") :].removeprefix(": ").strip())


@pytest.fixture
def typed(trained, tmp_path, monkeypatch):
    """typed(*flags) gives `gptjax train` of a copy of a finished run of 6 steps, and returns its exit code."""
    shutil.copytree(trained, tmp_path / "a run")
    values = run_directory.open_run(trained).config().to_dict()
    config = runs.write_config(values | {"model": values["model"] | {"vocab_size": None}}, tmp_path / "fields.py")

    def give(*words):
        monkeypatch.setattr(sys, "argv", ["/bin/gptjax", *words])
        return cli.main()

    return lambda *flags: give("train", config, f"--workdir={tmp_path / 'a run'}", *flags)


@pytest.mark.parametrize("allowed", [(), ("--allow_change=train.steps",)])
def test_a_run_is_not_made_shorter_than_it_is(typed, tmp_path, capfd, allowed):
    """It said that all of fewer steps were taken, and wrote them into config.json."""
    before = (tmp_path / "a run" / "config.json").read_text()
    assert typed("--config.train.steps=4", *allowed) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "gptjax: this run has taken 6 steps, and train.steps=4 ends it at step 4: steps cannot be taken back."
    )
    assert (tmp_path / "a run" / "config.json").read_text() == before


@pytest.mark.slow
def test_the_command_that_a_refusal_names_makes_a_finished_run_longer(typed, tmp_path, capfd):
    assert typed("--config.train.steps=8", "--config.checkpoint.keep=2") == 2
    said = capfd.readouterr().err
    assert "train.steps (6 -> 8)" in said and "since the decay then ends at step 8" in said
    command = named_command(said)
    assert command[-1] == "--allow_change=train.steps" and command[3] == f"--workdir={tmp_path / 'a run'}"
    assert typed(*command[4:]) == 0
    rates = {row["step"]: row["learning_rate"] for row in runs.train_rows(tmp_path / "a run")}
    assert max(rates) == 8 and f"{rates[6]:.3g} at step 6 and will be {rates[7]:.3g} at step 7" in said


def test_a_finished_run_says_the_command_that_makes_it_longer(typed, tmp_path, capfd):
    assert typed("--config.train.steps", "6") == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if ": gptjax train" in line]
    assert len(lines) == 1 and "for example 12 steps" in lines[0]
    command = named_command(lines[0])
    assert command[4:] == ["--config.train.steps=12", "--allow_change=train.steps"], "in place of what was typed"
    assert typed(*command[4:]) == 0
    assert run_directory.open_run(tmp_path / "a run").steps()[-1] == 12
    assert "nothing left to train" not in capfd.readouterr().err, "it was not finished before"


def test_every_changed_field_and_what_was_allowed_before_are_in_the_command(typed, capfd):
    assert typed("--allow_change", "eval", "--config.optim.beta2=0.9", "--config.train.seed=1") == 2
    command = named_command(capfd.readouterr().err)
    assert command[-1] == "--allow_change=eval,optim.beta2,train.seed"
    assert sum(word.startswith("--allow_change") for word in command) == 1


def test_another_text_is_refused_with_the_command_that_allows_it(typed, tmp_path, capfd):
    (tmp_path / "other.txt").write_text("hgfedcba " * 2000)
    flags = [f"--config.data.path={tmp_path / 'other.txt'}", "--allow_change=data.path"]
    assert typed(*flags) == 2
    assert named_command(capfd.readouterr().err)[-1] == "--allow_change=data.path,data"


@pytest.mark.parametrize("names", ["train.stepz", "trian", "train.steps,model.widht"])
def test_a_name_that_no_field_has_is_refused_with_the_nearest(names):
    wrong = names.rpartition(",")[2]
    with pytest.raises(UserError, match=f"^--allow_change={names}: a config has no field '{wrong}'; did you mean '"):
        resuming.asked(names)


def test_fields_sections_and_fields_of_the_past_may_be_allowed():
    names = ("train.steps", "data", "data.tokenizer_train_bytes")
    assert resuming.asked(",".join(names)) == names and resuming.asked("") == ()


def test_without_a_command_of_gptjax_the_flag_alone_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook"])
    with pytest.raises(UserError, match=r"add --allow_change=train.steps\.$"):
        resuming.check_resume(CONFIG, CONFIG.replace(train={"steps": 20}))


@pytest.mark.parametrize("schedule_name", ["cosine", "linear", "wsd"])
def test_the_rate_that_is_told_is_the_schedule_s_and_the_advice_keeps_it(schedule_name):
    config = CONFIG.replace(optim={"schedule": schedule_name})
    longer = config.replace(train={"steps": 20})
    said = resuming.rate_change(config, longer, 10)
    before, after = schedule.learning_rate(config, 9), schedule.learning_rate(longer, 10)
    assert f"is {before:.3g} at step 10 and will be {after:.3g} at step 11" in said and before < after
    advice = int(re.search(r"--config.optim.decay_steps=(\d+)", said).group(1))
    kept = longer.replace(optim={"decay_steps": advice})
    assert {schedule.learning_rate(kept, step) for step in range(9, 20)} == {before}
    assert resuming.rate_change(config, kept, 10) == ""


@pytest.mark.parametrize("fields", [dict(schedule="constant"), dict(schedule="cosine", decay_steps=8)])
def test_nothing_is_said_of_a_rate_that_goes_on_as_it_would(fields):
    config = CONFIG.replace(optim=fields)
    assert resuming.rate_change(config, config.replace(train={"steps": 20}), 10) == ""


def test_another_peak_is_told_without_advice_on_the_decay():
    config = CONFIG.replace(optim={"schedule": "constant"})
    said = resuming.rate_change(
        config, dataclasses.replace(config, optim=OptimConfig(peak_lr=0.5, schedule="constant")), 4
    )
    assert said == "its learning rate is 1 at step 4 and will be 0.5 at step 5"
