"""Tasks are done by processes of their own, whose mistakes and deaths reach the parent, and which don't outlive it."""

import errno
import os
import signal
import subprocess
import sys
import time

import preparing
import pytest
from places import ROOT

from gptjax.data.preparing import workers
from gptjax.errors import SaveFailed, UserError


def squarer():
    return square


def square(task, report):
    report(("begun", task))
    return task, task**2, os.getpid()


def test_every_task_is_done_once_by_as_many_processes_as_wanted():
    reports = []
    results = list(workers.run(squarer, range(7), 2, reports.append))
    assert sorted(result[:2] for result in results) == [(i, i * i) for i in range(7)]
    assert sorted(reports) == [("begun", i) for i in range(7)]
    assert len({pid for _, _, pid in results}) == 2 and os.getpid() not in {pid for _, _, pid in results}


def test_of_no_task_there_is_no_process():
    assert list(workers.run(None, [], 3, None)) == []


def failing():
    return fail


def fail(task, report):
    if task == "user":
        raise UserError("the line is bad")
    if task == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file")
    if task == "end":
        raise EOFError("the file ends too early")
    if task == "memory":
        return bytes(1 << 62)
    if task == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(3)
    return {}["missing\nkey"]


@pytest.mark.parametrize(
    "task, kind, message",
    [
        ("user", UserError, "^the line is bad$"),
        ("disk", OSError, "No space left on device: '/a/file'"),
        ("memory", SaveFailed, "a worker has no memory left .use fewer --workers.; finished shards are kept"),
        ("killed", SaveFailed, "a worker was killed by SIGKILL .is the memory full.*run the same command again"),
        ("exit", SaveFailed, "a worker ended with exit code 3; finished shards are kept"),
        ("end", workers.WorkerFailed, "^a worker failed: EOFError: the file ends too early$"),
        ("mistake", workers.WorkerFailed, "^a worker failed: KeyError: 'missing.nkey'$"),
    ],
)
def test_what_ends_a_worker_is_raised_in_the_parent(task, kind, message):
    with pytest.raises(kind, match=message) as error:
        list(workers.run(failing, [task], 1, None))
    assert "\n" not in str(error.value)
    if task == "mistake":
        assert 'return {}["missing\\nkey"]' in error.value.trace


def sleeper():
    return sleep


def sleep(task, report):
    report(os.getpid())
    if task == 0:
        time.sleep(600)
    return task


def test_the_others_are_ended_where_one_fails_and_where_no_more_is_wanted():
    pids = []
    for result in workers.run(sleeper, [0, 1], 2, pids.append):
        assert result == 1
        break
    assert not any(map(preparing.alive, pids))


def patient():
    return wait


def wait(task, report):
    report(os.getpid())
    time.sleep(0.3)
    return task


def test_ctrl_c_is_for_the_parent_alone():
    assert list(workers.run(patient, ["done"], 1, lambda pid: os.kill(pid, signal.SIGINT))) == ["done"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


SCRIPT = """
import workers_test, sys
from gptjax.data.preparing import workers
if __name__ == "__main__":
    list(workers.run(workers_test.sleeper, [0, 0], 2, lambda pid: print(pid, flush=True)))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("tests/data", "tests/support", ""))
    }
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(preparing.alive, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    preparing.wait_for_end(pids)
