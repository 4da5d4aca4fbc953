"""Fields that a config once had: runs that were made with them open, and go on where no number comes out otherwise."""

import json
import shutil

import pytest
from places import ROOT

from gptjax.config import config_file, removed
from gptjax.config.fields import Config, TrainConfig
from gptjax.errors import UserError
from gptjax.rundir import resuming, run_directory
from gptjax.training import branching

OLD = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
HARMLESS = {"train.watchdog_factor": None, "train.watchdog_other_seconds": 60.0, "train.rollback_margin": 3}
HARMLESS |= {"train.watchdog_seconds": 60.0, "data.prefetch": 0}
DECIDING = {"data.tokenizer_train_bytes": 5}


def values(**sections) -> dict:
    return {"train": {"steps": 3}, **sections}


def nested(fields: dict) -> dict:
    found = values()
    for key, value in fields.items():
        section, _, name = key.partition(".")
        found.setdefault(section, {})[name] = value
    return found


@pytest.fixture
def old_run(tmp_path):
    """What an older gptjax left, and a function that edits its config.json as it might have been."""
    shutil.copytree(OLD, tmp_path / "run")

    def edited(fields: dict) -> run_directory.RunDirectory:
        file = tmp_path / "run" / "config.json"
        config = json.loads(file.read_text())
        for key, value in fields.items():
            section, _, name = key.partition(".")
            config[section][name] = value
        file.write_text(json.dumps(config))
        return run_directory.open_run(str(tmp_path / "run"))

    return edited


def test_every_removed_field_is_one_here_and_no_field_of_a_config_now():
    assert {*HARMLESS, *DECIDING} == set(removed.REMOVED)
    with pytest.raises(UserError, match="unknown train field 'watchdog'"):
        config_file.from_dict(values(train={"steps": 3, "watchdog": 1}))


@pytest.mark.parametrize("key", removed.REMOVED)
def test_the_value_that_it_always_has_is_accepted_everywhere(key, tmp_path):
    plain, value = config_file.from_dict(values()), removed.REMOVED[key].value
    assert config_file.from_dict(nested({key: value})) == plain
    file = tmp_path / "fields.py"
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({nested({key: value})})"
    )
    assert config_file.load_config(str(file), [f"{key}={value}"]) == plain


@pytest.mark.parametrize("key, value", {**HARMLESS, **DECIDING}.items())
def test_another_value_that_a_user_writes_is_refused_with_what_to_do(key, value, tmp_path):
    said = rf"^{key}={value} can no longer be set: it is always .*; leave it out \(.+\)\.$"
    with pytest.raises(UserError, match=said):
        config_file.from_dict(nested({key: value}))
    file = tmp_path / "fields.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({values()})")
    with pytest.raises(UserError, match=said):
        config_file.load_config(str(file), [f"{key}={value}"])


def test_a_file_that_gptjax_wrote_may_have_other_values_that_decide_no_number(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(nested(HARMLESS)))
    assert config_file.load_config(str(file)) == config_file.from_dict(values())
    file.write_text(json.dumps(nested(DECIDING)))
    with pytest.raises(UserError, match="data.tokenizer_train_bytes=5 can no longer be set"):
        config_file.load_config(str(file))


def test_an_old_run_opens_and_goes_on_whatever_decided_no_number(old_run):
    plain = old_run({}).config()
    run = old_run(HARMLESS)
    assert run.config() == plain
    resuming.check_resume(run.config(), plain, (), run.removed_fields())


def test_an_old_run_is_read_and_not_gone_on_with_where_numbers_would_come_out_otherwise(old_run):
    plain = old_run({}).config()
    run = old_run(DECIDING)
    assert run.config() == plain
    with pytest.raises(UserError, match=r"data.tokenizer_train_bytes \(5 -> 100000000\).*--allow_change=data.tok"):
        resuming.check_resume(run.config(), plain, (), run.removed_fields())
    resuming.check_resume(run.config(), plain, ("data.tokenizer_train_bytes",), run.removed_fields())
    origin = branching.Origin(run, 6)
    with pytest.raises(UserError, match=r"data.tokenizer_train_bytes \(5 there, 100000000 here\)"):
        branching._check_config(origin, branching.config_at(origin), plain, ())


def test_an_allowance_that_is_no_time_is_refused():
    with pytest.raises(UserError, match="train.stall_seconds=0.0 must be positive; None is off"):
        Config(train=TrainConfig(steps=1, stall_seconds=0.0))
