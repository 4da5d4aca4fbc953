"""A learning-rate schedule from outside, with a parameter of its own: one class, one entry of a table, in a config file."""

import pytest

from gptjax import cli, schedule
from gptjax.config import config_file
from gptjax.config.fields import Config, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.rundir import run_directory
from gptjax.rundir.metrics import read_metrics

FILE = '''
from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from gptjax import schedule
from gptjax.errors import UserError


@dataclasses.dataclass
class Power(schedule.Schedule):
    """(1 - progress) ** exponent: 1 is linear."""

    exponent: float = 1.0
    floor: float = 0.0

    def __post_init__(self):
        if self.exponent <= 0:
            raise UserError(f"exponent={self.exponent} must be positive.")

    def fraction(self, at, optim):
        return max(self.floor, (1 - at.progress) ** self.exponent)


schedule.SCHEDULES["power"] = Power


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=16, n_layers=1, d_model=8, n_heads=1, dtype="float32")
    config.data = dict(source="text", path="{text}", tokenizer="bytes", cache_dir="{cache}")
    config.optim = dict(peak_lr=1e-3, schedule="power(exponent=2)", warmup_steps=2)
    config.train = dict(steps=10, batch_size=8, log_every=1, tensorboard=False)
    config.eval = dict(every_steps=None)
    return config
'''


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """Is as it was, once a test is over."""
    monkeypatch.setattr(schedule, "SCHEDULES", dict(schedule.SCHEDULES))


@pytest.fixture
def file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A small text that a model learns nothing from. " * 60)
    file = tmp_path / "power.py"
    file.write_text(FILE.replace("{text}", str(text)).replace("{cache}", str(tmp_path / "cache")))
    return file


def test_a_schedule_of_a_config_file_trains_by_its_parameter_and_its_run_is_read_without_it(file, tmp_path):
    workdir = tmp_path / "run"
    assert cli.main(["train", f"--config={file}", f"--workdir={workdir}", "--config.train.steps=10"]) == 0
    rates = [row["learning_rate"] for row in read_metrics(workdir / "metrics.jsonl", "train")]
    assert rates == pytest.approx([5e-4, 1e-3, *(1e-3 * (1 - k / 8) ** 2 for k in range(1, 9))])
    del schedule.SCHEDULES["power"]
    assert run_directory.open_run(str(workdir)).config().optim.schedule == "power(exponent=2)"


@pytest.mark.parametrize(
    "written, said",
    [
        ("power(exponent=-1)", "optim.schedule='power(exponent=-1)': exponent=-1.0 must be positive."),
        ("power(exponnt=2)", "has no parameter 'exponnt'; did you mean 'exponent'?; it has: exponent, floor."),
        ("power(exponent='2')", "exponent='2' is no float."),
        ("power(exponent=1e999)", "exponent=inf is no float."),
        ("power(2)", "cannot be read; expected NAME or NAME(PARAMETER=VALUE, ...)"),
        ("power(exponent=", "cannot be read; expected NAME or NAME(PARAMETER=VALUE, ...)"),
        ("power(**{'exponent': 2})", "cannot be read; expected NAME or NAME(PARAMETER=VALUE, ...)"),
        ("cosine(exponent=2)", "cosine has no parameter 'exponent'; it has: none."),
    ],
)
def test_a_parameter_that_cannot_be_is_one_line(file, written, said):
    config_file.load_config(str(file))  # which makes the schedule known
    with pytest.raises(UserError) as error:
        Config(optim=OptimConfig(schedule=written), train=TrainConfig(steps=10))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_command_line_gives_a_parameter_too(file):
    config = config_file.load_config(str(file), ["optim.schedule=power(exponent=3, floor=0.5)"])
    assert schedule.of(config.optim.schedule) == schedule.SCHEDULES["power"](exponent=3.0, floor=0.5)
    assert schedule.learning_rate(config, 9) == 0.5e-3
