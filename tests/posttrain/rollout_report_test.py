"""Alarms, groups drawn again, and what does not go together."""

import numpy as np
import pytest

from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.posttrain import compatibility
from gptjax.posttrain.rollout_report import WINDOW, alarms

WELL = {"reward": 0.5, "end_rate": 0.9, "entropy": 1.0, "kl": 0.1, "kl_error": 0.05}


def test_iterations_that_go_well_sound_no_alarm():
    assert alarms([WELL] * 20) == {}
    assert alarms([WELL | {"kl": -0.1}]) == {}, "within the error of an estimate"
    assert alarms([{name: value for name, value in WELL.items() if not name.startswith("kl")}]) == {}


def test_each_alarm_names_its_numbers():
    assert "-0.3000 +- 0.0500 nats per answer" in alarms([WELL | {"kl": -0.3}])["negative_kl"]
    assert alarms([WELL | {"kl": -1e-6, "kl_error": 1e-7}]) == {}, "a policy that is its reference, by other roundings"
    assert "0.001 nats per token" in alarms([WELL | {"entropy": 0.001}])["collapsed_entropy"]
    rising = [WELL] * WINDOW + [WELL | {"reward": 0.8, "end_rate": 0.3}] * WINDOW
    assert (
        "rises from 0.500 to 0.800 while fewer answers end (90.0%, now 30.0%)" in alarms(rising)["reward_without_end"]
    )
    assert not alarms([WELL | {"end_rate": 0.3}] * WINDOW + [WELL | {"reward": 0.8, "end_rate": 0.4}] * WINDOW)


VALUES = {
    "model": dict(context_length=32, critic=None),
    "train": dict(steps=4, batch_size=8, loss="grpo", log_every=2),
    "rl": dict(prompts="copying", rewards="exact", group=4, max_tokens=8),
}


@pytest.mark.parametrize(
    ("sections", "unit", "message"),
    [
        (dict(train=dict(loss="classify")), 1, "train.loss='classify' learns no rewards; use one of: ppo, grpo"),
        (dict(rl=dict(advantage="gae")), 1, "rl.advantage='gae' and train.loss='grpo': one has a critic"),
        (dict(train=dict(loss="grpo(beta=0.1)"), rl=dict(reference=None)), 1, "rl.reference=None, but"),
        (dict(rl=dict(ptx="corpus")), 1, "rl.ptx='corpus' with train.loss='grpo'"),
        (dict(train=dict(loss="grpo(ptx_coef=1.0)")), 1, "rl.ptx=None with train.loss='grpo(ptx_coef=1.0)'"),
        (dict(rl=dict(rewards="exakt")), 1, "exakt"),
        (dict(rl=dict(group=1)), 1, "rl.group=1: answers to a prompt are compared with one another"),
        (dict(train=dict(loss="rloo"), rl=dict(group=1, advantage="leave_one_out")), 1, "use at least rl.group=2"),
        (dict(), 3, "train.batch_size=8 answers do not divide over 3"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_first_step(sections, unit, message):
    config = from_dict({name: VALUES[name] | sections.get(name, {}) for name in VALUES})
    with pytest.raises(UserError) as raised:
        compatibility.check(config, unit)
    assert message in str(raised.value)
    compatibility.check(from_dict(VALUES), 8)


def test_groups_whose_rewards_differ_are_told_from_those_whose_do_not():
    from gptjax.posttrain.advantages import has_equal_rewards

    assert has_equal_rewards(np.array([1, 1, 0, 1], np.float32), 2).tolist() == [True, False]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("grpo", "train.loss='grpo' learns from rewards of answers, and rl.prompts is None"),
        (
            "classify",
            "train.loss='classify' trains a head, and model.task_head is None; set model.task_head='classes'.",
        ),
    ],
)
def test_a_loss_of_text_that_learns_from_something_else_is_refused(loss, message):
    from gptjax.training.session import check_rows

    with pytest.raises(UserError) as raised:
        check_rows(from_dict({"train": dict(steps=4, batch_size=8, loss=loss)}))
    assert message in str(raised.value)
