"""When the loss of a run is said to be too high."""

import math

import numpy as np
import pytest
import runs

from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.rundir import metrics
from gptjax.training import main
from gptjax.training.recovery import WorseThanGuessing

UNIFORM = math.log(1000)


def warned_at(losses, loss: str = "next_token") -> list[int]:
    config = Config(model=ModelConfig(vocab_size=1000), train=TrainConfig(steps=10, loss=loss))
    watch = WorseThanGuessing(config)
    return [step for step, value in enumerate(losses, 1) if watch.begins(value)]


def test_a_run_whose_loss_stays_above_that_of_guessing_is_warned_once():
    assert warned_at([UNIFORM] + [2 * UNIFORM] * 500) == [21]
    assert warned_at([0.5 * UNIFORM] + [2 * UNIFORM] * 500) == [21], "also one that was resumed"
    assert warned_at([UNIFORM] + ([2 * UNIFORM] * 60 + [1.0]) * 3) == [21]


@pytest.mark.parametrize(
    "losses",
    {
        "as every run begins": np.linspace(1.02, 0.5, 500),
        "a learning rate of nearly 0": 1.02 + 0.03 * np.random.default_rng(0).standard_normal(500),
        "a large init": np.linspace(4, 0.9, 500),
        "spikes": np.append(1.0, np.where(np.arange(500) % 20 == 19, 0.9, 3.0)),
        "a harder text": np.append(np.full(100, 0.3), np.full(400, 0.9)),
        "a large init, resumed": np.linspace(4, 0.9, 500)[100:],
        "too high, resumed after it was told": np.full(500, 2.0),
        "not finite": np.full(500, np.nan),
    }.items(),
    ids=lambda item: item[0],
)
def test_nothing_is_said_of_a_run_that_does_no_worse_than_it_began_or_than_guessing(losses):
    assert warned_at(UNIFORM * losses[1]) == []


def test_a_loss_of_another_kind_has_no_such_bound():
    assert warned_at([UNIFORM] + [2 * UNIFORM] * 100, loss="reward") == []


@pytest.mark.slow
def test_too_high_a_learning_rate_is_said_on_the_screen_and_in_the_log(values, tmp_path, capfd):
    short = dict(model=dict(n_layers=1, d_model=16, residual_dropout=0.0), eval=dict(every_steps=None, max_tokens=64))
    for peak_lr, warnings in ((30.0, 1), (3e-3, 0)):
        run = tmp_path / f"{peak_lr}"
        changed = runs.changed(values, optim=dict(peak_lr=peak_lr), train=values["train"] | dict(steps=70), **short)
        assert main.train(from_dict(changed), str(run)) == 0
        events = [
            row for row in metrics.read_metrics(run / "metrics.jsonl", "event") if row["event"] == "loss_above_uniform"
        ]
        said = capfd.readouterr().err
        assert len(events) == warnings == said.count("lower optim.peak_lr=30.")
    assert "warning" not in said
