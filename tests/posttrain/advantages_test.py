"""Advantages: NumPy written token by token, hand-worked numbers, and what a score, a penalty and a tool's answer do."""

import json

import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.posttrain import advantages
from gptjax.posttrain.advantages import Answers


def some_answers(**fields) -> Answers:
    """Six answers to two prompts, of unequal lengths, one with a tool's answer inside, which nobody drew."""
    rng = np.random.default_rng(0)
    weight_BL = (np.arange(9) >= 2) & (np.arange(9) < np.array([9, 4, 7, 3, 8, 9])[:, None])
    weight_BL[4, 4:6] = False
    floats = {name: rng.normal(size=(6, 9)).astype(np.float32) for name in ("logprob_BL", "reference_BL", "value_BL")}
    given = dict(score_B=np.array([0.5, -0.25, 1, 0, 0.125, 2], np.float32), group=3, kl_coef=0.1)
    return Answers(**{"weight_BL": weight_BL.astype(np.float32)} | floats | given | fields)


def drawn_places(answers: Answers, row: int) -> list[int]:
    return np.flatnonzero(answers.weight_BL[row]).tolist()


def test_gae_is_the_sum_of_discounted_errors_of_each_answer_s_drawn_tokens():
    answers = some_answers()
    made = advantages.of("gae(gamma=0.9, lam=0.8, whiten=False)")(answers)
    for row in range(6):
        places = drawn_places(answers, row)
        reward = [-0.1 * (float(answers.logprob_BL[row, t]) - float(answers.reference_BL[row, t])) for t in places]
        reward[-1] += float(answers.score_B[row])
        value = [float(answers.value_BL[row, t]) for t in places] + [0.0]
        error = [r + 0.9 * after - before for r, before, after in zip(reward, value, value[1:])]
        for i, t in enumerate(places):
            expected = sum((0.9 * 0.8) ** (j - i) * error[j] for j in range(i, len(error)))
            assert made.advantage_BL[row, t] == pytest.approx(expected, abs=1e-6)
            assert made.return_BL[row, t] == pytest.approx(expected + value[i], abs=1e-6)
    assert not made.advantage_BL[answers.weight_BL == 0].any() and not made.return_BL[answers.weight_BL == 0].any()


def test_whitening_changes_advantages_and_not_what_a_critic_should_have_said():
    plain, whitened = (advantages.of(f"gae(whiten={whiten})")(some_answers()) for whiten in (False, True))
    np.testing.assert_array_equal(whitened.return_BL, plain.return_BL)
    assert np.abs(whitened.advantage_BL - plain.advantage_BL).max() > 0.1


def test_without_discount_lam_1_and_a_critic_that_says_0_an_advantage_is_the_reward_still_to_come():
    answers = some_answers(value_BL=np.zeros((6, 9), np.float32), kl_coef=0.0)
    made = advantages.of("gae(lam=1, whiten=False)")(answers)
    np.testing.assert_array_equal(made.advantage_BL, answers.score_B[:, None] * answers.weight_BL)


def test_the_score_sits_on_the_last_drawn_token_and_fractions_of_it_survive():
    answers = some_answers(kl_coef=0.0)
    reward_BL = advantages.token_rewards(answers)
    for row in range(6):
        assert np.flatnonzero(reward_BL[row]).tolist() == drawn_places(answers, row)[-1:] * bool(answers.score_B[row])
    np.testing.assert_array_equal(reward_BL.sum(-1), answers.score_B)
    whole = advantages.with_end_penalty([0.75, 0.75], [True, False], 0.5)
    assert whole.dtype == np.float32 and whole.tolist() == [0.75, 0.25]
    assert advantages.with_end_penalty([0.75], [False], None).tolist() == [0.75]


def test_whitening_has_mean_0_or_its_own_and_does_not_see_padding():
    answers = some_answers()
    drawn = answers.weight_BL > 0
    value_BL = np.float64(answers.value_BL) + 3
    for shift, mean in ((True, 0.0), (False, value_BL[drawn].mean())):
        whitened_BL = advantages.whiten(value_BL, answers.weight_BL, shift)
        assert whitened_BL[drawn].mean() == pytest.approx(mean)
        assert whitened_BL[drawn].std(ddof=1) == pytest.approx(1, rel=1e-6)
        assert not whitened_BL[~drawn].any()
        other = np.where(drawn, value_BL, 1e6)
        np.testing.assert_array_equal(advantages.whiten(other, answers.weight_BL, shift), whitened_BL)


def test_of_groups_by_hand():
    answers = some_answers(kl_coef=0.0)
    reward_PG = answers.score_B.reshape(2, 3).astype(float)
    mean = reward_PG.mean(-1, keepdims=True)
    expected = {
        "group": (reward_PG - mean) / (reward_PG.std(-1, ddof=1, keepdims=True) + 1e-4),
        "group(scale='batch')": (reward_PG - mean) / (reward_PG.std(ddof=1) + 1e-4),
        "group(scale='none')": reward_PG - mean,
        "leave_one_out": 3 / 2 * (reward_PG - mean),
        "baseline": reward_PG - reward_PG.mean(),
        "baseline(scale='batch')": (reward_PG - reward_PG.mean()) / (reward_PG.std(ddof=1) + 1e-4),
    }
    loo = expected["leave_one_out"]
    expected["leave_one_out(normalize=True)"] = (loo - loo.mean()) / (loo.std(ddof=1) + 1e-4)
    for text, advantage_PG in expected.items():
        made = advantages.of(text)(answers)
        np.testing.assert_allclose(made.advantage_BL, advantage_PG.reshape(6, 1) * answers.weight_BL, rtol=1e-6)
        assert made.return_BL is None and made.advantage_BL.dtype == np.float32


def test_a_penalty_of_the_divergence_is_part_of_an_answer_s_reward():
    answers = some_answers()
    k1_B = [sum(float(answers.logprob_BL[r, t]) - float(answers.reference_BL[r, t]) for t in drawn_places(answers, r)) for r in range(6)]  # fmt: skip
    plain = some_answers(score_B=answers.score_B - 0.1 * np.array(k1_B), kl_coef=0.0)
    made, expected = (advantages.of("leave_one_out")(each).advantage_BL for each in (answers, plain))
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_equal_rewards_teach_nothing_and_are_counted():
    answers = some_answers(score_B=np.array([0.1, 0.1, 0.1, 0, 1, 0], np.float32), kl_coef=0.0)
    made = advantages.of("group")(answers)
    assert made.numbers == {"equal_groups": 0.5}
    assert not made.advantage_BL[:3].any() and np.isfinite(made.advantage_BL).all() and made.advantage_BL[3:].any()
    assert advantages.has_equal_rewards(answers.score_B, 3).tolist() == [True, False]


def test_the_coefficient_follows_the_divergence_and_comes_back_from_json_to_the_bit():
    adaptive = advantages.controller("adaptive(target=6, horizon=10000)")
    assert adaptive(0.15, 6.0, 512) == 0.15
    assert adaptive(0.15, 60.0, 512) == 0.15 * (1 + 0.2 * 512 / 10000)  # Ziegler et al.'s bounds
    assert adaptive(0.15, -60.0, 512) == 0.15 * (1 - 0.2 * 512 / 10000)
    assert adaptive(0.15, 6.6, 512) == pytest.approx(0.15 * (1 + 0.1 * 512 / 10000))
    rng, whole, stopped = np.random.default_rng(0), 0.15, 0.15
    for kl in rng.gamma(2, 3, 100):
        whole = adaptive(whole, kl, 512)
        stopped = adaptive(json.loads(json.dumps(stopped)), kl, 512)
    assert whole == stopped != 0.15
    assert advantages.controller("fixed")(0.15, 60.0, 512) == 0.15


@pytest.mark.parametrize(
    "text, fields, said",
    [
        ("group", dict(group=1), "rl.group=1: answers to a prompt are compared with one another; use at least rl.group=2."),
        ("gae(lam=1.5)", {}, "lam=1.5 is not in [0, 1]."),
        ("gae(kl='k2')", {}, "kl='k2' is not known"),
        ("group(scale='max')", {}, "scale='max' is not known"),
        ("gea", {}, "'gae'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(text, fields, said):
    with pytest.raises(UserError) as error:
        advantages.of(text)(some_answers(**fields))
    assert said in str(error.value)
