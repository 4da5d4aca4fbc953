"""Studies of runs that learn from rewards: what they learn from, how long an iteration is, and when a run is done."""

import pytest
from ml_collections import ConfigDict
from places import ROOT

from gptjax import study
from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.posttrain.prompts import open_prompts
from gptjax.study.declare import declaration
from gptjax.study.running import identity, status


def base_of(**rl) -> ConfigDict:
    base = ConfigDict()
    base.model = dict(context_length=32, n_layers=1, d_model=16, n_heads=2)
    base.data = dict(tokenizer="bytes", chat="gptjax")
    base.train = dict(batch_size=8, steps_per_call=4, log_every=4, loss="grpo")
    base.rl = dict(prompts="copying", problems=20, rewards="exact", group=4, max_tokens=4, epochs=2) | rl
    base.checkpoint = dict(every_steps=None)
    base.eval = dict(every_steps=None)
    return base


def planned(base, tokens: float) -> list:
    sizes = {"narrow": {"model.d_model": 16}, "wide": {"model.d_model": 32}}
    return declaration.runs(study.Study(base=base, sizes=sizes, tokens=(tokens,)), identity.vocab_size(base))


def test_the_vocabulary_and_the_fingerprint_are_those_of_the_prompts():
    base = base_of()
    [narrow, wide] = planned(base, 12 * 8 * 32)
    store = open_prompts(narrow.config)
    assert narrow.config.model.vocab_size == store.tokenizer.vocab_size == identity.vocab_size(base)
    texts = identity.Texts()
    assert texts.of(narrow.config).fingerprint == store.fingerprint == texts.of(wide.config).fingerprint
    [other, _] = planned(base_of(prompts="sorting"), 12 * 8 * 32)
    assert texts.of(other.config).fingerprint != store.fingerprint


def test_a_run_has_whole_iterations_of_the_size_that_the_base_gives_them():
    """Where the calls of text would be made shorter to meet a budget to a percent."""
    for steps in (100, 99.5):
        lengths = {
            (run.config.train.steps, run.config.train.steps_per_call) for run in planned(base_of(), steps * 8 * 32)
        }
        assert lengths == {(100, 4)}
    with pytest.raises(UserError, match="the nearest are 24,576"):
        planned(base_of(), 98 * 8 * 32)


def test_a_reward_counts_as_minus_a_loss():
    rows = [
        {"kind": "eval", "step": 4, "reward": 0.1},
        {"kind": "rollout", "step": 8, "reward": 0.9},
        {"kind": "eval", "step": 8, "reward": 0.25},
    ]
    assert (status.evaluated_loss(rows, 8), status.evaluated_loss(rows, 4)) == (-0.25, -0.1)
    assert status.evaluated_loss([*rows, {"kind": "eval", "step": 8, "loss": 2.0}], 8) == 2.0
    assert status.evaluated_loss(rows, 12) is status.evaluated_loss([{"kind": "eval", "step": 8}], 8) is None


def test_the_study_of_over_optimisation_plans_a_run_for_each_proxy(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = declaration.load("configs/studies/overoptimisation.py")
    runs = declaration.runs(made, identity.vocab_size(made.base))
    rewards = {run.config.rl.rewards for run in runs}
    assert rewards == {f"score(run='runs/proxy_{n}') + 0*numeric" for n in (30, 120, 480)}
    assert {(run.config.train.steps, run.config.train.steps_per_call) for run in runs} == {(512, 8)}
    assert from_dict(runs[0].config.to_dict()) == runs[0].config
