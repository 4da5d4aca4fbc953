"""What a config of reinforcement learning may be."""

import pytest

from gptjax.config.config_file import from_dict
from gptjax.config.rl_checks import answers_of, reward_weights
from gptjax.errors import UserError

RL = dict(prompts="copying", rewards="exact", group=4)
TRAIN = dict(steps=12, batch_size=8, steps_per_call=4, log_every=4, loss="grpo")
VALUES = {"train": TRAIN, "rl": RL, "checkpoint": dict(every_steps=None), "eval": dict(every_steps=None)}


def config(**sections):
    return from_dict({name: VALUES.get(name, {}) | sections.get(name, {}) for name in {*VALUES, *sections}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(rl=dict(prompts=None)), "rl.rewards='exact' is of reinforcement learning, but rl.prompts is None"),
        (dict(rl=dict(rewards=None)), "rl.prompts has no rewards; set rl.rewards"),
        (dict(rl=dict(epochs=3)), "train.steps_per_call=4 is no multiple of rl.epochs=3"),
        (dict(rl=dict(group=5)), "train.batch_size=8 * train.steps_per_call=4 / rl.epochs=1 = 32 answers are no multiple of rl.group=5"),
        (dict(rl=dict(temperature=0)), "rl.temperature=0 samples one answer only"),
        (dict(rl=dict(top_p=1.5)), "rl.top_p=1.5 is not in (0, 1]"),
        (dict(rl=dict(kl_coef=-0.1)), "rl.kl_coef=-0.1 is too small; use at least 0"),
        (dict(rl=dict(group=0)), "rl.group=0 is too small; use at least 1"),
        (dict(rl=dict(max_tokens=1024)), "rl.max_tokens=1024 leaves no room for a prompt in model.context_length=1024"),
        (dict(rl=dict(ptx_rows=4)), "rl.ptx_rows=4 is of rl.ptx, which is None"),
        (dict(rl=dict(tools="calculator")), "rl.tools='calculator' are called in conversations; set data.chat"),
        (dict(train=dict(loss="next_token")), "train.loss does not go with rl.prompts: it learns no rewards"),
        (dict(data=dict(source="text", path="a.txt")), "data.source does not go with rl.prompts: prompts come from rl.prompts"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_a_line(sections, message):
    with pytest.raises(UserError) as raised:
        config(**sections)
    assert message in str(raised.value)


def test_an_iteration_has_the_answers_of_a_call_once_for_each_pass():
    assert answers_of(config()) == 32 and answers_of(config(rl=dict(epochs=2))) == 16


def test_rewards_are_read_with_their_weights():
    text = "0.5 * regex(pattern='a + b (c') + numeric+-1e-2*run:runs/x.y + choice"
    expected = {"regex(pattern='a + b (c')": 0.5, "numeric": 1.0, "run:runs/x.y": -0.01, "choice": 1.0}
    assert reward_weights(text) == expected


@pytest.mark.parametrize("text", ["", "a + ", "a + a", "1e*b", "+ a"])
def test_rewards_that_cannot_be_read_are_refused(text):
    with pytest.raises(UserError, match="rl.rewards=.* cannot be read at"):
        reward_weights(text)
