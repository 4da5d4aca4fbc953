"""A run whose length is given in epochs of its text."""

import json
import math

import pytest
import runs
from judging import trained_values

from gptjax import cli, schedule
from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.run import run
from gptjax.training import epochs


@pytest.fixture(scope="module")
def short(values, tmp_path_factory):
    """A run of 9 letters' text, of few rows, as nested dicts; its length is still to be given."""
    file = tmp_path_factory.mktemp("epochs") / "text.txt"
    file.write_text(("abcdefgh " * 120)[:1001])
    ours = runs.changed(trained_values(values), data=dict(path=str(file)), eval=dict(every_steps=None))
    ours["train"].pop("steps")
    return ours


@pytest.mark.slow
def test_a_run_of_epochs_is_the_run_of_their_steps_bit_for_bit(short, tmp_path):
    lengths = {"epochs": dict(epochs=1.5), "again": dict(epochs=1.5)}
    for name, length in lengths.items():
        config = runs.write_config(runs.changed(short, train=length), tmp_path / f"{name}.py")
        assert cli.main(["train", config, f"--workdir={tmp_path / 'epochs'}"]) == 0, "the second time it is resumed"
    saved = json.loads((tmp_path / "epochs" / "config.json").read_text())["train"]
    last = runs.train_rows(tmp_path / "epochs")[-1]
    assert saved["epochs"] is None and saved["steps"] == last["step"]
    assert 1.5 <= last["epochs"] < 1.5 + 8 / ((1001 * 0.9) // 16 - 1), "less than a step of 8 rows more"
    config = runs.write_config(runs.changed(short, train=dict(steps=saved["steps"])), tmp_path / "steps.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'steps'}"]) == 0
    assert runs.losses(tmp_path / "epochs") == runs.losses(tmp_path / "steps")
    runs.assert_same_state(tmp_path / "epochs", tmp_path / "steps", saved["steps"])
    assert run.load(tmp_path / "epochs").step == saved["steps"]


@pytest.mark.parametrize("length", [0.1, 0.155, 1.0, 2.5])
@pytest.mark.parametrize("fields", [{}, {"steps_per_call": 4}, {"batch_ramp_start": 2}])
def test_steps_are_the_fewest_that_read_so_many_epochs(short, length, fields):
    ramp = dict(batch_ramp_increment=2, batch_ramp_tokens=256) if "batch_ramp_start" in fields else {}
    every = dict(checkpoint=dict(every_steps=None), train=dict(epochs=length, log_every=4, **fields, **ramp))
    config = epochs.resolved(from_dict(runs.changed(short, **every)))
    rows, per_call = (
        math.ceil(length * 55),
        config.train.steps_per_call,
    )  # 900 tokens: 56 windows of 16, one for the offset
    steps = schedule.total_steps(config)
    assert schedule.rows_before(config, steps - per_call) < rows <= schedule.rows_before(config, steps)


def test_what_cannot_be_told_in_epochs_is_refused_by_name(short, tmp_path):
    with pytest.raises(UserError, match="train.steps and train.epochs are both set"):
        from_dict(runs.changed(short, train=dict(steps=3, epochs=1.0)))
    with pytest.raises(UserError, match="train.epochs=0.0 must be positive"):
        from_dict(runs.changed(short, train=dict(epochs=0.0)))
    of_epochs = from_dict(runs.changed(short, train=dict(epochs=2.0)))
    with pytest.raises(UserError, match="train.epochs=2 is a length in epochs of the text, which is not read here"):
        schedule.total_steps(of_epochs)
    mixed = runs.changed(short, train=dict(epochs=1.0), data=dict(path=None, mixture={"a": "text:x", "b": "text:y"}))
    with pytest.raises(UserError, match="counts passes through one text, and data.mixture has 2; give train.steps"):
        epochs.resolved(from_dict(mixed))
