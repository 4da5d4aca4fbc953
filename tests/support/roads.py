"""Roads whose stages are small scripts: they take steps, count their starts, and go on from where they were killed."""

import os
import pathlib
import subprocess
import sys

from places import ROOT

COUNTING = """
import argparse, json, pathlib, time
parser = argparse.ArgumentParser()
for flag in ("--out", "--reads", "--seconds", "--word", "--fails", "--silent"):
    parser.add_argument(flag)
args = parser.parse_args()
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
with open(out.with_suffix(".starts"), "a") as starts:
    starts.write("x")
text = pathlib.Path(args.reads, "steps.txt").read_text() if args.reads else ""
steps = out / "steps.txt"
done = steps.read_text().count("\\n") if steps.exists() else 0
for step in range(done, 10):
    time.sleep(float(args.seconds or 0) / 10)
    with open(steps, "a") as file:
        file.write(f"{step} {args.word} {len(text)}\\n")
if args.fails:
    raise SystemExit(f"a reason: {args.fails}")
"""

ROAD = """
from gptjax.road.road import Road, script

def get_road(word="a", seconds=0.0):
    flags = dict(resumes=True, seconds=1)
    return Road("three stages", (
        script("one", "stage.py", word=word, **flags | dict(seconds=1)),
        script("two", "stage.py", ["one"], reads="one", word="b", **flags),
        script("apart", "stage.py", word="c", **flags),
    ))
"""


def write(folder: pathlib.Path, road: str = ROAD) -> pathlib.Path:
    """The road file, beside the script of its stages."""
    (folder / "stage.py").write_text(COUNTING)
    (folder / "road.py").write_text(road)
    return folder / "road.py"


def command(road: pathlib.Path, out: pathlib.Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "gptjax", "road", str(road), f"--out={out}", *flags]


def start(road: pathlib.Path, out: pathlib.Path, *flags: str) -> subprocess.Popen:
    """`gptjax road` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command(road, out, *flags), stderr=subprocess.PIPE, text=True, env=environment)


def outputs(out: pathlib.Path) -> dict[str, str]:
    """What the stages made."""
    return {file.parent.name: file.read_text() for file in sorted(out.glob("*/steps.txt"))}


def steps(out: pathlib.Path) -> int:
    """How many steps the stages have taken so far."""
    return sum(text.count("\n") for text in outputs(out).values())


def starts(out: pathlib.Path) -> dict[str, int]:
    return {file.stem: len(file.read_text()) for file in sorted(out.glob("*.starts"))}
