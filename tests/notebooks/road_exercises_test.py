"""Exercises of a road: none is asked twice, and none that is held out is ever drawn on."""

import json
import subprocess
import sys

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("exercises")

    def make(name: str, *flags: str):
        command = [sys.executable, str(ROOT / "notebooks" / "road_exercises.py"), f"--out={out / name}", *flags]
        subprocess.run(command, check=True, capture_output=True)
        return {
            file.stem: [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            for file in (out / name).iterdir()
        }

    return make


def test_questions_are_in_one_part_only_and_the_same_each_time(made):
    flags = ("--tasks=reading,classification", "--first=0", "--train=200", "--prompts=80", "--held_out=20")
    found = made("one", *flags)
    train = [record["messages"][0]["content"] for record in found["train"]]
    prompts = [record["prompt"] for record in found["prompts"]]
    held_out = [record["prompt"] for record in found["exercises"]]
    everything = train + prompts + held_out
    assert len(everything) == len(set(everything)) and len(prompts) > 100 and len(train) == 400
    assert found == made("two", *flags)
    assert [record["messages"][0]["content"] for record in found["held_out"]] == held_out


def test_they_go_on_where_sft_registry_ends(made):
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        import sft_registry
    finally:
        sys.path.pop(0)
    found = made("further", "--tasks=reading", "--prompts=50", "--held_out=10")
    earlier = {messages[0]["content"]: messages[1]["content"] for _, messages in sft_registry.exercises("reading")}
    assert not earlier.keys() & {record["prompt"] for record in found["prompts"]}
    assert len(found["prompts"]) == 50 and found["train"] == []
    held_out = {record["prompt"] for record in found["exercises"]}
    assert all(sft_registry.is_held_out(prompt.rpartition(". ")[0] + ".") for prompt in held_out)
