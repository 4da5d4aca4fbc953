"""What gptjax bench --rl measures, and what it refuses. That it runs beside TRL: a slow test, where TRL is installed."""

import importlib.util
import sys

import pytest

from gptjax import cli
from gptjax.config.fields import Config, DataConfig, ModelConfig, RLConfig, TrainConfig
from gptjax.diagnostics import bench_rl, bench_rl_tunix
from gptjax.errors import UserError
from gptjax.training import losses

SHAPE = dict(context_length=32, n_layers=1, d_model=16, n_heads=2)
GRPO = Config(
    model=ModelConfig(**SHAPE, residual_dropout=0.1),
    data=DataConfig(chat="gptjax", tokenizer="bytes"),
    train=TrainConfig(steps=4, batch_size=8, steps_per_call=2, loss="grpo(beta=0.1)"),
    rl=RLConfig(prompts="arithmetic(digits=1)", rewards="numeric", group=4, max_tokens=6),
)
LLAMA = dict(norm="rmsnorm", mlp="swiglu", bias=False, position="rope")


def test_a_run_from_random_parameters_in_float32_is_measured_with_the_updates_of_the_config():
    config = bench_rl.resolved(GRPO.replace(train={"start_from": "runs/base"}))
    assert (config.model.dtype, config.model.max_dropout, config.train.start_from) == ("float32", 0.0, None)
    assert (config.train.loss, config.train.batch_size, config.train.steps_per_call) == ("grpo(beta=0.1)", 8, 2)
    assert config.rl == GRPO.rl


@pytest.mark.parametrize("changes", [dict(train={"loss": "dapo"}), dict(rl={"advantage": "leave_one_out"})])
def test_what_is_no_grpo_is_refused(changes):
    with pytest.raises(UserError, match="--rl measures GRPO; give a config with"):
        bench_rl.resolved(GRPO.replace(**changes))


def test_tunix_is_given_the_same_shape_prompts_and_updates():
    config = GRPO.replace(model={**LLAMA, "vocab_size": 260, "d_ff": 40})
    wanted = bench_rl_tunix._wanted(config, [[1, 2], [3]], losses.chosen(config.train.loss), 7)
    assert wanted["shape"]["hidden_dim"] == 40 and wanted["shape"]["head_dim"] == 8
    assert (wanted["prompts"], wanted["prompt_length"], wanted["end_id"]) == (["1 2", "3"], 2, 7)
    assert (wanted["count"], wanted["minibatch"], wanted["beta"]) == (4, 2, 0.1)


def test_shapes_and_interpreters_that_tunix_cannot_do_with_are_refused(capsys):
    loss = losses.chosen(GRPO.train.loss)
    with pytest.raises(UserError, match="--tunix has no model of this shape; give a Llama's"):
        bench_rl_tunix.Theirs(GRPO, [[1]], loss, 7, sys.executable)
    llama = GRPO.replace(model={**LLAMA, "vocab_size": 260})
    with pytest.raises(UserError, match="--tunix=/nowhere/python: No such file"):
        bench_rl_tunix.Theirs(llama, [[1]], loss, 7, "/nowhere/python")
    if importlib.util.find_spec("tunix") is None:
        with pytest.raises(UserError, match="--tunix: its interpreter ended: .*No module named"):
            bench_rl_tunix.Theirs(llama, [[1]], loss, 7, sys.executable)
    assert cli.main(["bench", "--config=configs/grpo_quickstart.py", "--tunix=python"]) == 2
    assert "--tunix=python is only for gptjax bench --rl" in capsys.readouterr().err


@pytest.mark.slow
def test_both_sides_take_turns():
    pytest.importorskip("trl")
    results = bench_rl.bench(GRPO.replace(mesh={"fsdp": 1, "tensor": -1}), seconds=0.1)
    assert results["iterations"] == 3 and results["answers"] == 16
    assert all(side["seconds"] > side["seconds_of_answers"] > 0 for side in results["sides"].values())
    assert "TRL" in bench_rl.table(results)
