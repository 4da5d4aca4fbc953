"""The sandbox: each thing that code may not do is stopped, and the outcome says why. Programs here are harmless where nothing
stops them, and short."""

import os
import pathlib
import signal
import socket
import sys

import pytest

from gptjax.errors import UserError
from gptjax.posttrain.rewards.code import code_of
from gptjax.posttrain.rewards.reward import Answer, chosen, scored
from gptjax.posttrain.sandbox import lockdown, seccomp, syscalls
from gptjax.posttrain.sandbox.sandbox import Job, Limits, Sandbox

LIMITS = Limits(cpu_seconds=1, wall_seconds=30.0, memory_bytes=256 << 20, output_bytes=10_000)
BOX = Sandbox(LIMITS)


def locks() -> tuple[str, ...]:
    """The mechanisms of this machine."""
    return Sandbox(LIMITS, unlocked=True).run("").locked


LOCKS = locks()
locked = pytest.mark.skipif(bool(lockdown.missing(list(LOCKS))), reason="this machine cannot lock a process down")

OUTCOMES = [  # program, result, a part of the detail
    ("assert sum(range(4)) == 6", "passed", ""),
    ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
    ("1 / 0", "error", "ZeroDivisionError"),
    ("def f(:", "error", "SyntaxError"),
    ("while True: pass", "timeout", ""),
    ("x = [0] * 10**9", "memory", "MemoryError"),
    ("import os; os.fork()", "denied", "PermissionError"),
    ("import subprocess; subprocess.run(['true'])", "denied", "PermissionError"),
    ("import threading; threading.Thread(target=print).start()", "error", "start new thread"),
    ("while True: print('x' * 1000)", "output", ""),
    ("import sys; sys.exit(0)", "exited", "sys.exit(0)"),
    ("import os; os._exit(0)", "exited", "exit code 0"),
    ("import os; os.abort()", "crashed", "SIG"),
    ("def f(): f()\nf()", "error", "RecursionError"),
    ("import numpy", "error", "ModuleNotFoundError"),
    ("import gptjax", "error", "ModuleNotFoundError"),
    ("import sys; sys.stdout = None", "exited", ""),
    ("import math, json, collections, itertools, hashlib, re, decimal, heapq, typing, string, random", "passed", ""),
]


@locked
@pytest.mark.parametrize(("program", "result", "detail"), OUTCOMES)
def test_an_outcome_says_how_a_program_ended(program, result, detail):
    outcome = BOX.run(program)
    assert outcome.result == result and detail in outcome.detail, outcome


@locked
def test_a_program_that_sleeps_is_stopped_by_the_clock():
    outcome = Sandbox(Limits(cpu_seconds=1, wall_seconds=1.0)).run("import time; time.sleep(60)")
    assert outcome.result == "timeout" and outcome.seconds < 20


def test_limits_are_set_before_a_program_runs():
    shown = "import resource as r\nfor kind in (r.RLIMIT_CPU, r.RLIMIT_AS, r.RLIMIT_FSIZE, r.RLIMIT_CORE): print(*r.getrlimit(kind))"
    limits = Sandbox(LIMITS, unlocked=True).run(shown).output.splitlines()
    assert limits == ["1 2", f"{256 << 20} {256 << 20}", "0 0", "0 0"]


WRITING = [
    "open({path!r}, 'w')",
    "open({path!r}, 'a').write('x')",
    "import os; os.remove({path!r})",
    "import os; os.rename({path!r}, {path!r} + '2')",
    "import os; os.mkdir({path!r} + '3')",
    "import os; os.chmod({path!r}, 0)",
    "import os; os.truncate({path!r}, 0)",
    "import os; os.symlink('x', {path!r} + '4')",
]
FILES = [(each,) for each in ("landlock", "seccomp") if each in LOCKS]


@pytest.mark.parametrize("mechanisms", [*FILES, lockdown.MECHANISMS] if FILES else [])
def test_no_file_is_written_removed_or_changed_by_either_mechanism_alone(tmp_path, mechanisms):
    file = tmp_path / "file"
    file.write_text("as it was")
    file.chmod(0o644)
    changes = WRITING if "seccomp" in mechanisms else [each for each in WRITING if "chmod" not in each]
    box = Sandbox(LIMITS, unlocked=True, mechanisms=mechanisms)
    for change in changes:
        assert box.run(change.format(path=str(file))).result == "denied", change
    assert os.listdir(tmp_path) == ["file"] and file.read_text() == "as it was" and file.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif("landlock" not in LOCKS, reason="needs Landlock")
def test_no_file_is_read_but_those_of_python(tmp_path):
    (tmp_path / "secret").write_text("x")
    assert BOX.run(f"open({str(tmp_path / 'secret')!r})").result == "denied"
    assert BOX.run("import os; os.listdir('/')").result == "denied"
    assert BOX.run("import os; open(os.__file__)").passed


NETWORK = [(each,) for each in ("namespaces", "seccomp") if each in LOCKS]


@pytest.mark.parametrize("mechanisms", [*NETWORK, lockdown.MECHANISMS] if NETWORK else [])
def test_no_connection_is_made_by_either_mechanism_alone(mechanisms):
    """To a server that listens here and is reached without them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5)"
        assert Sandbox(LIMITS, unlocked=True, mechanisms=()).run(connect).passed
        outcome = Sandbox(LIMITS, unlocked=True, mechanisms=mechanisms).run(connect)
        assert outcome.result in ("denied", "error") and "refused" not in outcome.detail, outcome
    if "seccomp" in mechanisms:
        for kind in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
            assert (
                Sandbox(LIMITS, unlocked=True, mechanisms=mechanisms)
                .run(f"import socket; socket.socket(socket.{kind}, socket.SOCK_DGRAM)")
                .result
                == "denied"
            )


@locked
def test_the_process_that_asked_gets_no_signal():
    arrived = []
    before = signal.signal(signal.SIGUSR1, lambda *_: arrived.append(1))
    try:
        outcome = BOX.run("import os, signal; os.kill(os.getppid(), signal.SIGUSR1)")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert outcome.result == "denied" and not arrived


@locked
def test_the_environment_is_empty_and_hashes_are_the_same_each_time(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    program = "import os; assert not {*os.environ} - {'PYTHONHASHSEED', 'LC_CTYPE'}; print(hash('a'))"
    outcomes = [BOX.run(program) for _ in range(2)]
    assert outcomes[0].passed and outcomes[0].output == outcomes[1].output


@locked
def children() -> set[str]:
    """Processes that this one has started and that are still there."""
    lists = pathlib.Path("/proc/self/task").glob("*/children")
    return {child for entry in lists for child in entry.read_text().split()}


def test_many_at_a_time_come_back_in_order_and_none_ends_the_others():
    before = children()  # of other tests
    jobs = [Job(("import os; os.abort()", f"print({i})", "assert False")[i % 3]) for i in range(12)]
    outcomes = BOX.run_all(jobs, workers=4)
    assert [outcome.result for outcome in outcomes] == ["crashed", "passed", "failed"] * 4
    assert [outcome.output for outcome in outcomes[1::3]] == [f"{i}\n" for i in range(1, 12, 3)]
    assert not children() - before


@locked
def test_a_program_reads_its_input_and_is_compared_by_what_it_prints():
    reverse = "print(input()[::-1])\nprint()\nimport sys; sys.exit()"
    assert BOX.run(reverse, "abc\n", "cba").passed
    assert BOX.run(reverse, "abc\n", "abc").result == "failed"
    assert BOX.run("print('é' * 3)", expected="ééé").passed


def test_where_something_cannot_be_denied_nothing_runs_unless_that_was_asked_for(tmp_path):
    with pytest.raises(UserError, match="cannot deny network and files .*on this machine"):
        Sandbox(LIMITS, mechanisms=()).run(f"open({str(tmp_path / 'trace')!r}, 'w')")
    assert not os.listdir(tmp_path)
    outcome = Sandbox(LIMITS, unlocked=True, mechanisms=()).run("print(1)")
    assert outcome.output == "1\n"


def test_a_child_that_does_not_come_to_its_program_is_an_error_and_no_failed_test(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"ended \(exit code 1\) before it ran the program; give it more than 256 MiB"):
        BOX.run("")


def test_limits_of_nothing_are_refused():
    with pytest.raises(UserError, match="wall_seconds=0; expected more than 0"):
        Limits(wall_seconds=0)


@pytest.mark.parametrize("machine", seccomp.AUDIT)
def test_the_filter_denies_each_call_of_the_table_and_lets_others_through(machine):
    """Run by an interpreter of its few instructions."""
    program = seccomp.filter_of(machine)

    def verdict(number: int, *arguments: int) -> int:
        data = {0: number, 4: seccomp.AUDIT[machine]}
        data |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}
        at, loaded = 0, 0
        while True:
            code, then, else_, k = program[at]
            at += 1
            if code == 0x06:
                return k
            if code == 0x20:
                loaded = data[k]
            else:
                holds = {0x15: loaded == k, 0x35: loaded >= k, 0x45: bool(loaded & k)}[code]
                at += then if holds else else_

    denied, absent, allowed = 0x00050001, 0x00050026, 0x7FFF0000
    assert all(verdict(number) == denied for number in syscalls.numbers(syscalls.DENIED, machine))
    assert all(verdict(number) == absent for number in syscalls.numbers(syscalls.ABSENT, machine))
    (openat,), (limit,) = (syscalls.numbers((name,), machine) for name in ("openat", "prlimit64"))
    assert verdict(openat, 3, 0, os.O_RDONLY | os.O_CLOEXEC) == allowed
    assert verdict(openat, 3, 0, os.O_WRONLY) == verdict(openat, 3, 0, os.O_CREAT) == denied
    assert (verdict(limit, 0), verdict(limit, 17)) == (allowed, denied)
    assert verdict(0x3FF) == allowed and verdict(0x40000001) == denied


# ---- the reward of code


def answer(text: str, **fields) -> Answer:
    import numpy as np

    return Answer((), text, np.zeros(1, np.int32), True, fields, "p.jsonl:3")


def test_code_is_the_last_fenced_block_or_all():
    assert code_of("So:\n```python\nx = 1\n```\nor\n```\nx = 2\n```\n.") == "x = 2"
    assert code_of("x = 3") == "x = 3"
    assert code_of("```py\nx = 4") == "x = 4"  # cut at the limit of tokens


@locked
def test_the_reward_of_code_is_1_where_all_tests_pass_or_the_share_that_does():
    asserted = dict(tests=["assert f(2) == 4", "assert f(3) == 9", "assert f(-1) == 1", "assert f(0) == 1"])
    printed = dict(tests=[{"input": "2\n", "output": "4\n"}, {"input": "3\n", "output": "9\n"}])
    square, program = "```python\ndef f(x):\n    return x * x\n```", "print(int(input()) ** 2)"
    answers = [
        answer(square, **asserted),
        answer(program, **printed),
        answer("def f(x): return x", tests="assert f(1)"),
    ]
    assert scored(answers, chosen(["code"])).total_B.tolist() == [0.0, 1.0, 1.0]
    assert scored(answers, chosen(["code(partial=True)"])).total_B.tolist() == [0.75, 1.0, 1.0]
    setup = answer("y = x", tests="assert y == 5", before="x = 5")
    assert scored([setup], chosen(["code(setup='before')"])).total_B.tolist() == [0.0]  # the code runs first


def test_a_record_without_tests_is_named():
    for tests in ([], [1]):
        with pytest.raises(UserError, match="p.jsonl:3: the record's field 'tests'"):
            scored([answer("x = 1", tests=tests)], chosen(["code"]))
