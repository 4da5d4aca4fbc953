"""What gptjax bench --prefs measures, and what it refuses. That it runs beside TRL: a slow test, where TRL is installed."""

import numpy as np
import pytest

from gptjax import cli
from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.diagnostics import bench_prefs
from gptjax.errors import UserError

SHAPE = Config(
    model=ModelConfig(vocab_size=64, context_length=32, n_layers=1, d_model=16, n_heads=8, residual_dropout=0.1),
    train=TrainConfig(steps=4, batch_size=2, steps_per_call=2),
)


def test_answers_stand_behind_their_prompt_the_best_first_and_fit_the_context():
    for example in bench_prefs.examples(64, 32, answers=3, count=8):
        prompt = example.sequences[0][: example.prompt_length]
        for token_T, is_target_T in zip(example.sequences, example.targets, strict=True):
            np.testing.assert_array_equal(token_T[: len(prompt)], prompt)
            assert is_target_T.sum() == len(token_T) - len(prompt) > 0 and len(token_T) <= 32
        assert list(example.score_K) == [3, 2, 1]
        assert bench_prefs.pairs(example) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("kind, head", [("dpo", None), ("reward", "score(dropout=0.0)")])
def test_the_loss_is_measured_in_float32_one_step_a_call(kind, head):
    config = bench_prefs.resolved(SHAPE, kind, 2)
    assert (config.model.dtype, config.model.max_dropout, config.model.task_head) == ("float32", 0.0, head)
    assert (config.train.loss, config.train.steps_per_call) == (kind, 1)


def test_three_answers_are_three_pairs_of_a_step():
    config = bench_prefs.resolved(SHAPE.replace(mesh={"fsdp": 1, "tensor": -1}), "reward", 3)
    ours = bench_prefs.Ours(config, bench_prefs.examples(64, 32, 3, 4))
    assert ours.step() == 6


@pytest.mark.parametrize(
    "kind, answers, context, message",
    [
        ("reward", 1, 32, "--answers=1 makes no pair"),
        ("dpo", 3, 32, "--answers=3 is of --prefs=reward"),
        ("dpo", 2, 16, "model.context_length=16 has no room for the answers"),
    ],
)
def test_what_cannot_be_measured_is_refused(kind, answers, context, message):
    with pytest.raises(UserError, match=message):
        bench_prefs.resolved(SHAPE.replace(model={"context_length": context}), kind, answers)


def test_answers_are_of_prefs_alone(capsys):
    assert cli.main(["bench", "--config=configs/quickstart.py", "--answers=3"]) == 2
    assert "--answers=3 is only for gptjax bench --prefs" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind, answers", [("dpo", 2), ("reward", 3)])
def test_both_sides_take_turns(kind, answers):
    pytest.importorskip("trl")
    results = bench_prefs.bench(SHAPE.replace(mesh={"fsdp": 1, "tensor": -1}), 0.1, kind, answers)
    assert results["steps"] == 3 and all(rate > 0 for rate in results["pairs_per_second"].values())
    assert f"of {answers} answers" in bench_prefs.table(results)
