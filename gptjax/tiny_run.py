"""A run to look at that two CPU cores make in under a minute: two layers that learn to repeat what they have read.

    gptjax train --config=gptjax/tiny_run.py --workdir=runs/tiny --config.data.path=TEXT

`make` writes TEXT and runs this; the notebooks do where they are given no other run. Each line of TEXT says one thing
again and again: words of the shipped plays, or letters drawn at random, which nobody can foresee but by finding where
they stood before. Expect a held-out loss that falls suddenly between steps 300 and 500, when the second layer has
learned to look there (notebooks/04_inside_the_model.ipynb), to about 1.3 nats per character.

Source: induction heads (Olsson et al. 2022); shape and rate were found by trying. Rotary positions and Muon make the
fall come early: with learned positions or AdamW it had not come by step 600.
"""

import importlib.resources
import pathlib
import random
import re
import string
import subprocess
import sys

from gptjax.errors import UserError

STEPS = 600
LINES, LINE_LENGTH, LONGEST = 20_000, 60, 30  # characters, of a line and of what it repeats


def get_config():
    from ml_collections import ConfigDict

    config = ConfigDict()
    config.model = dict(context_length=64, n_layers=2, d_model=64, n_heads=4, dtype="float32", scan_unroll=2)
    config.model.update(position="rope", rope_theta=100.0)
    config.data = dict(tokenizer="chars")
    config.optim = dict(name="muon", peak_lr=0.02, warmup_steps=30)
    config.mesh = dict(cpu_devices=1)
    config.train = dict(steps=STEPS, batch_size=32, steps_per_call=10, log_every=20, tensorboard=False)
    config.checkpoint = dict(every_steps=100, keep=10)
    config.eval = dict(every_steps=100, max_tokens=16_384, sample_tokens=60, sample_prompt="to be or not to be or ")
    return config


def repeated_lines(number: int = LINES, seed: int = 0) -> list[str]:
    """Lines that repeat words or letters two times or more."""
    files = importlib.resources.files("gptjax.data") / "corpus"
    plays = sorted((file for file in files.iterdir() if file.name.endswith(".txt")), key=lambda file: file.name)
    text = re.sub("[^a-z]+", " ", " ".join(play.read_text("utf-8") for play in plays).lower())
    rng = random.Random(seed)
    return [_line(_words(text, rng) if i % 2 else _letters(rng)) for i in range(number)]


def _size(rng) -> int:
    return min(rng.randint(3, LONGEST), rng.randint(3, LONGEST))  # more short ones, which are learned first


def _letters(rng) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=_size(rng)))


def _words(text: str, rng) -> str:
    start = text.index(" ", rng.randrange(len(text) - 1000)) + 1
    return text[start : text.index(" ", start + _size(rng))]


def _line(said: str) -> str:
    return " ".join([said] * max(2, round(LINE_LENGTH / (len(said) + 1))))


def make(workdir, quiet: bool = True) -> None:
    """Trains the run in a process of its own, or on where that was stopped; leaves any other run there as it is.

    quiet: without the log of the training. Raises UserError: training failed; its last line.
    """
    if "://" in str(workdir):
        return
    workdir = pathlib.Path(workdir)
    text = workdir.with_name(f"{workdir.name}.txt")
    if workdir.exists() and (not text.exists() or (workdir / "checkpoints" / str(STEPS)).exists()):
        return
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("\n".join(repeated_lines()) + "\n")
    flags = [f"--config={__file__}", f"--workdir={workdir}", f"--config.data.path={text}"]
    flags.append(f"--config.data.cache_dir={workdir.with_name(f'{workdir.name}.cache')}")
    print(f"{workdir} does not exist: a small run is trained there, in under a minute", flush=True)
    command = [sys.executable, "-m", "gptjax", "train", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        line = ""
        for line in process.stdout:
            if not quiet:
                print(line, end="", flush=True)
    if process.returncode:
        raise UserError(f"the run in {workdir} was not made, exit code {process.returncode}: {line.strip()}")
