"""`gptjax bench --sft`: what both sides are given, and the measurement where TRL is installed."""

import json

import numpy as np
import pytest

from gptjax import cli
from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.diagnostics import bench_sft
from gptjax.errors import UserError

LENGTH = 64
CONFIG = Config(
    model=ModelConfig(vocab_size=50, context_length=LENGTH, n_layers=1, d_model=16, n_heads=2, residual_dropout=0.1),
    train=TrainConfig(steps=1, batch_size=8),
    mesh=MeshConfig(fsdp=8),
)


def test_rows_hold_every_conversation_whole_with_its_answers_and_nothing_else_as_targets():
    made = bench_sft.conversations(50, LENGTH)
    rows = bench_sft.packed(made, LENGTH)
    pieces = []
    for token_T, segment_T, weight_L, position_L in zip(*(rows[name] for name in ("token_BT", "segment_BT", "weight_BL", "position_BL"))):  # fmt: skip
        for segment in range(segment_T.max() + 1):
            place_P = np.flatnonzero(segment_T == segment)
            inputs_P = place_P[place_P < LENGTH]
            np.testing.assert_array_equal(position_L[inputs_P], np.arange(len(inputs_P)))
            pieces.append((token_T[place_P].tolist(), [False, *(weight_L[place_P[1:] - 1] > 0).tolist()]))
            assert place_P[0] == 0 or weight_L[place_P[0] - 1] == 0
    wanted = [(one.token_N.tolist(), one.is_answer_N.tolist()) for one in made]
    assert all(pair in pieces for pair in wanted)
    assert rows["weight_BL"].sum() == sum(one.is_answer_N.sum() for one in made)


def test_our_side_takes_steps_and_counts_the_tokens_of_answers():
    side = bench_sft.Ours(bench_sft.resolved(CONFIG, lora=False))
    weight_BL = bench_sft.packed(bench_sft.conversations(50, LENGTH), LENGTH)["weight_BL"]
    assert [side.step(), side.step()] == [weight_BL[:8].sum(), weight_BL[8:16].sum()]


def test_the_bound_of_a_step_is_measured_and_shown():
    config = bench_sft.resolved(CONFIG, lora=False)
    assert 1e6 < bench_sft.matmul_rate(config, times=2) < 1e15
    of_step = bench_sft._targets(config)
    assert bench_sft.Ours(config).step() == of_step[0] and max(of_step) <= 8 * LENGTH
    memory = {side: {"peak": 2**30, "before": 0} for side in bench_sft.SIDES}
    rates = {"ours": 200.0, "theirs": 100.0}
    results = {
        "lora": None,
        "batch_size": 8,
        "context_length": 64,
        "tokens_per_second": rates,
        "ratio": 2.0,
        "pairs": 3,
    }
    results |= {"flops_per_step": 4e6, "targets_per_step": 40.0, "matmul_flops_per_second": 5e7, "memory": memory}
    said = bench_sft.table(results)
    assert "100kFLOP for each" in said and "20MFLOP/s, TRL 10MFLOP/s" in said and "alone 50MFLOP/s" in said


def test_a_context_without_room_is_refused():
    with pytest.raises(
        UserError, match="model.context_length=32 has no room for the conversations that --sft measures"
    ):
        bench_sft.resolved(CONFIG.replace(model={"context_length": 32}), lora=False)


def test_lora_without_sft_is_refused(capsys):
    assert cli.main(["bench", "--config=configs/quickstart.py", "--lora"]) == 2
    assert "--lora is only for gptjax bench --sft; add --sft." in capsys.readouterr().err


@pytest.mark.slow
def test_both_sides_count_the_same_targets_in_the_same_conversations():
    for name in ("torch", "transformers", "trl", "datasets"):
        pytest.importorskip(name)
    results = bench_sft.bench(CONFIG, seconds=0.1)
    assert json.loads(json.dumps(results)) == results and results["pairs"] >= 3
    assert all(results["memory"][side]["peak"] > results["memory"][side]["before"] > 0 for side in bench_sft.SIDES)
    assert "times as fast" in bench_sft.table(results)
