import io
import json
import math

import pytest
from etils import epath

from gptjax import terminal
from gptjax.rundir import metrics


def log(directory, resume_step=0):
    return metrics.MetricsLog(
        epath.Path(directory), resume_step=resume_step, tensorboard=False, wandb_project=None, config=None
    )


def test_rows_of_steps_that_will_be_run_again_are_dropped_and_a_torn_line_too(tmp_path):
    first = log(tmp_path)
    for step in (1, 2, 3):
        first.write("train", step, loss=float(step))
    first.close()
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"kind": "train", "st')
    log(tmp_path, resume_step=2).write("train", 3, loss=9.0)
    assert [(row["step"], row["loss"]) for row in metrics.read_metrics(file, "train")] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_new_run_starts_an_empty_file(tmp_path):
    log(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    here = log(tmp_path)
    here.write("train", 1, loss=math.nan, rms=[1.0, math.inf])
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["rms"] == [1.0, "inf"]


def test_float32_losses_survive_the_file_bit_for_bit(tmp_path):
    import numpy as np

    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    here = log(tmp_path)
    for i, value in enumerate(values):
        here.write("train", i + 1, loss=float(value))
    read = [row["loss"] for row in metrics.read_metrics(tmp_path / "metrics.jsonl")]
    assert np.array_equal(np.float32(read), values)


def test_progress_without_a_terminal_prints_whole_lines_now_and_then():
    stream = io.StringIO()
    progress = terminal.Progress(stream, seconds_between_lines=3600)
    for step in range(5):
        progress.update(f"step {step}")
    progress.message("note")
    progress.close()
    assert stream.getvalue().splitlines() == ["step 0", "note", "step 4"]


def test_progress_on_a_terminal_overwrites_its_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = terminal.Progress(stream)
    progress.update("a long first line")
    progress.update("short")
    assert stream.getvalue() == "\ra long first line\rshort            "


@pytest.mark.parametrize("seconds,text", [(0.4, "0:00"), (61, "1:01"), (3600 + 5, "1:00:05"), (90_000, "25:00:00")])
def test_durations_read_as_clocks_do(seconds, text):
    assert terminal.duration(seconds) == text


def test_columns_are_as_wide_as_their_widest_cell_and_leave_no_blanks_behind():
    rows = [("run", "N", ""), ("a long one", "10", "refused"), ("b", "", "")]
    assert terminal.columns(rows) == ["run         N", "a long one  10  refused", "b"]
    assert terminal.columns(rows, left=1) == ["run          N", "a long one  10  refused", "b"]
    assert terminal.columns([]) == []


@pytest.mark.parametrize(
    "value,text", [(0, "0"), (999, "999"), (999.6, "1k"), (124_439_808, "124M"), (3.14e23, "314Z")]
)
def test_large_numbers_are_shown_with_si_prefixes(value, text):
    assert terminal.si(value) == text
