"""What reinforcement learning holds on a device, and the batch that its train step is planned with."""

import jax
import numpy as np
import pytest

from gptjax import cli, flops
from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.config.rl_fields import RLConfig
from gptjax.parallel import meshes, numerics
from gptjax.planning import info, plan, rl
from gptjax.training import program as programs

MODEL = ModelConfig(vocab_size=128, context_length=16, n_layers=2, d_model=32, n_heads=4, critic="separate(n_layers=1)")
RL = RLConfig(
    prompts="jsonl:prompts.jsonl", rewards="numeric", advantage="gae", group=2, max_tokens=8, slots=8, ptx="corpus"
)
CONFIG = Config(
    model=MODEL, train=TrainConfig(steps=4, batch_size=16, loss="ppo(ptx_coef=2, correction='token_mask')"), rl=RL
)


def test_the_models_are_those_of_the_state_and_their_copies():
    policy, critic, reference, reward = rl.models(CONFIG, devices=8)
    facts = info.info(CONFIG, devices=8)["bytes_per_device"]
    assert policy["params"] + critic["params"] == facts["params"]
    assert policy["moments"] + critic["moments"] == pytest.approx(facts["optimizer"], abs=8)  # and a count
    assert policy["parameters"] == flops.parameters(MODEL).total == reference["parameters"]
    assert critic["parameters"] == flops.critic_parameters(MODEL) == reward["parameters"] + 33
    assert reference["params"] == policy["params"] and reference["gradients"] == reference["moments"] == 0
    assert policy["cache"] == 2 * 2 * 8 * 16 * 32 * 2 // 8
    alone = rl.models(CONFIG.replace(model=dict(critic="shared"), rl=dict(reference=None)), devices=8)
    assert [row["name"] for row in alone] == ["policy", "critic"] and alone[1]["parameters"] == 33


def test_a_step_is_traced_with_the_batch_that_a_plan_makes():
    program = programs.build(CONFIG, meshes.make_mesh(CONFIG, jax.devices()), "xla")
    state, batch, rates = plan.abstract_arguments(CONFIG, program)
    assert {name for name in batch if name.endswith("_BL")} >= {"old_BL", "value_BL", "ptx_weight_BL", "reference_BL"}
    assert batch["ptx_token_BT"].shape == (1, 16, 17) and batch["token_BT"].dtype == np.int32
    with numerics.on_mesh(program.mesh):
        _, metrics = jax.eval_shape(program.train, state, batch, rates)
    assert {"loss", "value_loss", "ptx_loss", "kl_k3", "explained_variance"} <= metrics.keys()


def test_a_table_without_reinforcement_learning_is_refused(capsys, tmp_path):
    file = tmp_path / "config.py"
    file.write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n")
    vocabulary = "--config.model.vocab_size=128"
    assert cli.main(["info", f"--config={file}", "--config.train.steps=1", vocabulary, "--rl"]) == 2
    assert "--rl is of reinforcement learning, but rl.prompts is None" in capsys.readouterr().err
