"""The time a study still takes: starting is no running, and what starts yet has to start."""

import pytest

from gptjax.study.running.pace import Pace

SPEED, START = 1e9, 60.0  # FLOPs a second of a process that runs; seconds in which it loads and compiles


def watched(runs: list[float], seconds: float, at_once: int = 1, every: float = 1.0):
    """(Pace, FLOPs left, processes to start) after so many seconds of a study of one process a run, and what it then takes."""
    pace, now, waiting = Pace(), 0.0, list(enumerate(runs))
    done, going, began = dict.fromkeys(map(str, range(len(runs))), 0.0), [], {}
    end, told = None, None
    while end is None:
        for i in [i for i in going if done[str(i)] >= runs[i]]:
            going.remove(i)
        while waiting and len(going) < at_once:
            i, _ = waiting.pop(0)
            going, began = [*going, i], began | {i: now}
        pace.look(now, dict(done), {i: (str(i),) for i in going})
        if told is None and now >= seconds:
            left = sum(runs) - sum(done.values())
            told = now, pace.seconds_left(now, left, len(waiting))
        if not going and not waiting:
            end = now
        now += every
        for i in going:
            done[str(i)] = min(runs[i], max(0.0, (now - began[i] - START) * SPEED))
    return told[1], end - told[0]


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("seconds", [67, 80, 150, 400])
def test_what_is_left_is_told_within_a_tenth_from_the_first_minute_on(seconds, at_once):
    """Twelve runs of two to four minutes. By all seconds since the beginning, the first of these told nine times too much."""
    told, took = watched([1.2e11, 2.4e11, 1.8e11] * 4, seconds, at_once)
    assert told == pytest.approx(took, rel=0.1, abs=30)


def test_nothing_is_told_before_anything_has_run_for_seconds():
    for seconds in (0, 30, 60, 63):
        assert watched([1.2e11] * 3, seconds)[0] is None


def test_runs_that_end_before_they_are_seen_to_run_count_as_starts():
    told, took = watched([1.0] * 10, 200.0)
    assert told == pytest.approx(took, rel=0.1, abs=5)


def test_a_run_that_goes_on_from_a_checkpoint_has_not_done_that_in_no_time():
    pace = Pace()
    for now, done in ((0, 5e12), (60, 5e12), (61, 5.001e12), (71, 5.011e12)):
        pace.look(float(now), {"a": done}, {0: ("a",)})
    assert pace.seconds_left(71.0, 1e11, 0) == pytest.approx(100)
