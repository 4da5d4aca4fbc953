"""Text to prepare, `gptjax prepare` as a process, and what its folder holds."""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from places import ROOT

VARIES = "performance.json"
"""The one file of a folder that differs from run to run."""

_WORDS = (
    "the of and to be in that have it for not on with as you do at this but his by from they we say her she or".split()
)


def write_documents(path: pathlib.Path, n: int, words: int = 60) -> list[str]:
    """A jsonl file of n documents of about so many words; every ninth repeats an earlier one."""
    rng = random.Random(0)
    texts = []
    for i in range(n):
        body = " ".join(rng.choices(_WORDS, k=rng.randint(1, 2 * words)))
        texts.append(
            texts[rng.randrange(i)]
            if i % 9 == 8
            else f"{i} a{i}@b.org é 漢字\u2581 {body}.\n<|endoftext|> {body[::-1]}"
        )
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "gptjax", "prepare", *flags]


def heeds_ctrl_c() -> None:
    """In a process that begins: what a shell runs in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*flags: str, **more) -> subprocess.Popen:
    """In a session of its own, so that it can be killed with its workers or alone."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(*flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **{"preexec_fn": heeds_ctrl_c} | more,
    )


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, but of VARIES."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != VARIES)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def documents(tokens) -> list[tuple[list[int], int]]:
    """Of each document of a gptjax.data.Tokens the tokens and the bytes."""
    span_D2, n_bytes_D = tokens.documents(0, tokens.n_documents)
    return [
        (tokens.read(span[:1], span[1] - span[0])[0].tolist(), int(n_bytes))
        for span, n_bytes in zip(span_D2, n_bytes_D)
    ]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asks about does not."""
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(pids: list[int]) -> None:
    until = time.monotonic() + 20
    while running := list(filter(alive, pids)):
        assert time.monotonic() < until, f"{running} still run"
        time.sleep(0.05)
