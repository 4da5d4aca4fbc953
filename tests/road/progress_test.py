"""How far a stage is, and the time that is left of a road: hand-worked numbers."""

import pytest

from gptjax.road import progress
from gptjax.road import road as declaring

STAGES = tuple(declaring.script(name, "stage.py", seconds=seconds) for name, seconds in {"a": 60, "b": 180}.items())


def test_the_newest_step_is_read_from_the_end_of_a_log_of_any_length(tmp_path):
    assert progress.steps_done(tmp_path) == 0
    rows = [f'{{"kind": "train", "step": {step}, "loss": 1.0}}\n' for step in range(2000)]
    (tmp_path / "metrics.jsonl").write_text("".join(rows) + '{"kind": "train", "st')  # a line that is being written
    assert progress.steps_done(tmp_path) == 1999


def test_time_left_is_what_the_file_expects_until_stages_have_told_their_pace():
    clock = progress.Clock(declaring.Road("", STAGES))
    one, two = STAGES
    assert clock.left(one, 20.0, None, [two]) == 40 + 180
    clock.took(one, 60 + 180.0)  # 240 s more than expected: (240 + 120) / (60 + 120) = 2
    assert clock.pace == pytest.approx(2.0)
    assert clock.left(two, 60.0, None, []) == pytest.approx(360 - 60)
    assert clock.left(two, 60.0, 0.25, []) == pytest.approx(180)  # by its own steps
    assert clock.left(two, 60.0, 0.01, []) == pytest.approx(300)  # too few of them to tell


def test_a_line_names_the_stage_its_progress_and_the_time_left():
    shown = progress.line(2, 9, STAGES[1], "step 3 of 10", 65.0, 3600.0)
    assert shown == "[2/9] b  step 3 of 10  1:05  road: 1:00:00 left"
