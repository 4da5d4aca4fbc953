"""The quickstart's road, made tiny: every stage by the commands that people use, killed on its way."""

import json
import random
import time

import jax
import numpy as np
import pytest
import roads

import gptjax
from gptjax import cli

SIZES = dict(
    context_length=128, n_layers=2, d_model=32, n_heads=2, vocab_size=512, base_steps=20, sft_steps=40, prompts=60,
    reward_steps=20, dpo_steps=10, ppo_steps=32, batch=8, exercises=20,
)  # fmt: skip
TINY = [f"--set={name}={value}" for name, value in SIZES.items()]
QUICKSTART = "configs/roads/quickstart.py"


@pytest.mark.slow
def test_a_road_killed_in_many_places_comes_to_the_same_models_and_numbers(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = roads.start(QUICKSTART, whole, *TINY)
    assert process.communicate()[1] is not None and process.returncode == 0
    began, draw = time.monotonic(), random.Random(1)
    for _ in range(8):
        process = roads.start(QUICKSTART, killed, *TINY)
        time.sleep(draw.uniform(3, 40))
        process.kill()
        process.communicate()
    process = roads.start(QUICKSTART, killed, *TINY)
    assert process.communicate()[1] is not None and process.returncode == 0, time.monotonic() - began
    for run in ("base", "sft", "reward", "reward_scaled", "dpo", "ppo"):
        one, other = (gptjax.load(folder / run) for folder in (whole, killed))
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    for file in sorted((whole / "evaluations").iterdir()):
        assert json.loads(file.read_text()) == json.loads((killed / "evaluations" / file.name).read_text())
    assert (killed / "preferences" / "pairs.jsonl").read_text() == (whole / "preferences" / "pairs.jsonl").read_text()
    text = (killed / "index.html").read_text()
    assert "What did not improve" in text and "What was optimised, and what was meant" in text
    assert cli.main(["verify", str(killed / "ppo")]) == 0
