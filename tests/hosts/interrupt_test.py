"""SIGTERM and Ctrl-C, sent to this process itself, or to one whose main thread waits in C."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from gptjax.hosts import interrupt
from gptjax.training import report


def test_a_first_signal_is_a_wish_a_second_ctrl_c_interrupts_and_the_handlers_before_come_back(capfd):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt), interrupt.StopRequest() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop and stop.name == "SIGTERM"
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert capfd.readouterr().err.count("SIGTERM: saving a checkpoint, then stopping (press Ctrl-C again") == 1


def test_what_is_told_is_what_is_true_at_that_moment(capfd):
    with interrupt.StopRequest() as stop:
        stop.wish = lambda: f"stopping, {'asked' if stop else 'not asked'} in Python"
        signal.raise_signal(signal.SIGINT)
    assert "SIGINT: stopping, " in capfd.readouterr().err


def test_the_user_is_told_while_the_main_thread_waits_in_c():
    """As it does for a device. It is back when it is given a line, which is when the user has been told."""
    code = (
        "import ctypes; from gptjax.hosts import interrupt\n"
        "with interrupt.StopRequest('told at once') as stop:\n"
        "    ctypes.CDLL(None).system(b'echo ready; read line')\n"  # which waits on, whatever signal comes
        "    print('back', bool(stop), flush=True)\n"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code], text=True, start_new_session=True, **pipes)
    timer = threading.Timer(60, os.killpg, (process.pid, signal.SIGKILL))  # of a process that tells nothing
    timer.start()
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n" and "SIGTERM: told at once" in process.stderr.readline()
    out, _ = process.communicate("line\n")
    timer.cancel()
    assert out == "back True\n" and process.returncode == 0


@pytest.mark.parametrize(
    "doing,seconds,said",
    [
        ("training", 4.8, "the run finishes up to 20 steps that are under way (about 10 s), then saves a checkpoint"),
        ("training", 0.001, "the run finishes up to 20 steps that are under way (about 1 s), then"),
        ("training", None, "the run finishes up to 20 steps that are under way, then"),
        (
            "evaluating",
            4.8,
            "evaluating first has to reach a point where it can stop; then the run saves a checkpoint and stops",
        ),
    ],
)
def test_a_run_says_what_it_finishes_before_it_stops_and_for_how_long(doing, seconds, said):
    assert report.stopping(doing, 2, 10, seconds).startswith(said)
