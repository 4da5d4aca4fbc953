"""Policy losses of given log-probabilities: each number against loops over tokens in NumPy, without a model."""

import math

import numpy as np
import pytest

from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.posttrain import policy_losses, sampled
from gptjax.training import losses

ROWS, LENGTH = 6, 5
TOLERANCE = dict(rtol=2e-5, atol=1e-6)  # of float32
CHOICES = [
    "grpo",
    "dapo",
    "gspo",
    "rloo",
    "reinforce",
    "grpo(clip=0.1, clip_high=0.5, dual_clip=1.6)",
    "grpo(clip=0.0)",
    "grpo(beta=0.3, kl='k1')",
    "grpo(beta=0.3, kl='k2')",
    "grpo(beta=0.3, kl='k3')",
    "grpo(beta=0.3, kl='k1', kl_ratio=True)",
    "gspo(clip=0.2, clip_high=0.3, beta=0.1, kl_ratio=True)",
    "grpo(correction='token_truncate', cap=1.1)",
    "grpo(correction='token_mask', cap=1.1)",
    "grpo(correction='sequence_truncate', cap=1.1, beta=0.2)",
    "grpo(correction='sequence_mask', cap=1.1)",
    "rloo(correction='token_mask', cap=1.1)",
]


def some_batch() -> tuple[np.ndarray, dict]:
    """(log-probabilities now, batch): answers of 0 to 5 tokens, one with a gap; ratios on both sides of every clip."""
    rng = np.random.default_rng(3)
    weight_BL = (np.arange(LENGTH) < np.array([5, 3, 1, 0, 4, 5])[:, None]).astype(np.float32)
    weight_BL[5, 2] = 0
    floats = lambda spread: rng.normal(-2, spread, (ROWS, LENGTH)).astype(np.float32)  # noqa: E731
    batch = {"weight_BL": weight_BL, "advantage_BL": rng.normal(size=(ROWS, LENGTH)).astype(np.float32)}
    logprob_BL, batch["logprob_BL"] = floats(0.4), floats(0.4)
    return logprob_BL, batch | {"old_BL": floats(0.3), "reference_BL": floats(0.5)}


def of_answer(rule, now_L, row: dict) -> tuple[dict[int, float], dict[int, dict]]:
    """({place: loss of its token}, {place: what is logged of it}) of one answer, token by token."""
    drawn = np.flatnonzero(row["weight_BL"])
    before_L = row["old_BL"] if rule.correction != "none" else row["logprob_BL"]
    difference = {t: float(now_L[t]) - float(before_L[t]) for t in drawn}
    lag = {t: float(row["old_BL"][t]) - float(row["logprob_BL"][t]) for t in drawn}
    loss, logged = {}, {}
    for t in drawn:
        log_ratio = {
            "token": difference[t],
            "sequence_mean": sum(difference.values()) / len(drawn),
            "sequence": sum(difference.values()),
        }[rule.level]
        ratio, gain = math.exp(log_ratio), float(row["advantage_BL"][t])
        low, high = 1 - rule.clip, 1 + (rule.clip if rule.clip_high is None else rule.clip_high)
        if isinstance(rule, policy_losses.Reinforce):
            loss[t], clips = -gain * float(now_L[t]), {}
        else:
            kept = min(ratio, rule.dual_clip) if rule.dual_clip is not None else ratio
            loss[t] = -min(kept * gain, min(max(ratio, low), high) * gain)
            clips = {"clip_low": float(ratio < low and gain < 0), "clip_high": float(ratio > high and gain > 0)}
        if rule.correction != "none":
            weight = math.exp(sum(lag.values()) if rule.correction.startswith("sequence") else lag[t])
            clips |= {"sampler_ratio_mean": weight, "sampler_ratio_max": weight, "sampler_difference": abs(lag[t])}
            too_large = 0.0 if rule.correction.endswith("mask") else rule.cap
            loss[t] *= too_large if weight > rule.cap else weight
        k1 = float(now_L[t]) - float(row["reference_BL"][t])
        estimates = {"k1": k1, "k2": k1**2 / 2, "k3": math.exp(-k1) - 1 + k1}
        loss[t] += rule.beta * estimates[rule.kl] * (ratio if rule.kl_ratio else 1)
        logged[t] = clips | {"kl_k1": k1, "kl_k3": estimates["k3"], "ratio_mean": ratio, "ratio_max": ratio}
        logged[t]["approx_kl"] = math.exp(difference[t]) - 1 - difference[t]
    return loss, logged


@pytest.mark.parametrize("text", CHOICES)
def test_the_loss_of_each_token_and_what_is_logged_are_those_of_a_loop(text):
    rule, (logprob_BL, batch) = losses.chosen(text), some_batch()
    made_BL, numbers = rule.of_tokens(logprob_BL, batch)
    logged = []
    for b in range(ROWS):
        loss, of_row = of_answer(rule, logprob_BL[b], {name: array[b] for name, array in batch.items()})
        logged += of_row.values()
        for t, expected in loss.items():
            np.testing.assert_allclose(made_BL[b, t], expected, **TOLERANCE)
    assert numbers.keys() == logged[0].keys()
    for name, number in numbers.items():
        values = [one[name] for one in logged]
        largest = name.endswith("_max") or name == "sampler_difference"
        expected = max(values) if largest else sum(values) / len(values)
        np.testing.assert_allclose(number.value, expected, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("text", ["rloo(beta=0.2)", "grpo(beta=0.2, kl_ratio=True, correction='token_truncate')"])
def test_what_stands_where_nothing_was_drawn_changes_nothing(text):
    """Ratios there that float32 cannot hold, of prompts and padding that no policy drew."""
    rule, (logprob_BL, batch) = losses.chosen(text), some_batch()
    loss_BL, numbers = rule.of_tokens(logprob_BL, batch)
    undrawn = batch["weight_BL"] == 0
    wild = {name: np.where(undrawn, value, batch[name]) for name, value in (("logprob_BL", -900), ("old_BL", -300))}
    wild_BL, wild_numbers = rule.of_tokens(
        np.where(undrawn, -1, logprob_BL),
        batch | wild | {"reference_BL": np.where(undrawn, 800, batch["reference_BL"])},
    )
    np.testing.assert_array_equal(
        rule.total(wild_BL, batch["weight_BL"], 5), rule.total(loss_BL, batch["weight_BL"], 5)
    )
    for name, number in numbers.items():
        np.testing.assert_array_equal(wild_numbers[name].value, number.value, err_msg=name)


def test_the_largest_ratio_is_of_drawn_tokens_also_where_all_are_below_one():
    logprob_BL, batch = some_batch()
    numbers = losses.chosen("grpo").of_tokens(batch["logprob_BL"] - 0.5, batch)[1]
    np.testing.assert_allclose(numbers["ratio_max"].value, math.exp(-0.5), rtol=1e-5)


@pytest.mark.parametrize("text", ["gspo", "grpo", "grpo(kl='k1')"])
def test_the_divergence_is_logged_and_no_part_of_a_loss_without_beta(text):
    logprob_BL, batch = some_batch()
    alone = {name: array for name, array in batch.items() if name != "reference_BL"}
    loss_BL, numbers = losses.chosen(text).of_tokens(logprob_BL, batch)
    without_BL, fewer = losses.chosen(text).of_tokens(logprob_BL, alone)
    np.testing.assert_array_equal(loss_BL, without_BL)
    assert numbers.keys() - fewer.keys() == {"kl_k1", "kl_k3"}


def test_a_divergence_in_the_loss_of_a_batch_without_a_reference_is_refused():
    logprob_BL, batch = some_batch()
    batch.pop("reference_BL")
    with pytest.raises(UserError, match="beta=0.1 is of a reference model"):
        losses.chosen("grpo(beta=0.1)").of_tokens(logprob_BL, batch)


@pytest.mark.parametrize("text", ["grpo", "dapo", "grpo(aggregate='constant', length=7)"])
def test_what_the_mean_is_over(text):
    """By hand: of each answer's tokens and then of answers, of tokens, of answers' sums over a constant."""
    rule, weight_BL = losses.chosen(text), some_batch()[1]["weight_BL"]
    loss_BL = np.random.default_rng(0).normal(size=weight_BL.shape).astype(np.float32)
    sums = [float((loss_BL[b] * weight_BL[b]).sum()) for b in range(ROWS)]
    tokens = [float(weight_BL[b].sum()) for b in range(ROWS)]
    expected = {
        "sequence": (sum(each / max(count, 1) for each, count in zip(sums, tokens)), ROWS),
        "token": (sum(sums), sum(tokens)),
        "constant": (sum(each / 7 for each in sums), ROWS),
    }[rule.aggregate]
    made = rule.total(loss_BL, weight_BL, 7), rule.weight(weight_BL)
    np.testing.assert_allclose(made, expected, **TOLERANCE)


@pytest.mark.parametrize("value_clip", [0.2, 0.0, None])
def test_a_value_s_loss_is_half_the_larger_of_two_squared_errors(value_clip):
    rule, rng = losses.chosen(f"ppo(value_clip={value_clip})"), np.random.default_rng(1)
    weight_BL = some_batch()[1]["weight_BL"]
    value_BL, before_BL, return_BL = rng.normal(0, 0.4, (3, ROWS, LENGTH)).astype(np.float32)
    batch = {"weight_BL": weight_BL, "value_BL": before_BL, "return_BL": return_BL}
    loss_BL, numbers = rule.of_values(value_BL, batch)
    expected, clipped = [], []
    for b, t in zip(*np.nonzero(weight_BL)):
        value, before, wanted = (float(array[b, t]) for array in (value_BL, before_BL, return_BL))
        near = value if value_clip is None else min(max(value, before - value_clip), before + value_clip)
        expected.append(max((value - wanted) ** 2, (near - wanted) ** 2) / 2)
        clipped.append((near - wanted) ** 2 > (value - wanted) ** 2)
    np.testing.assert_allclose(loss_BL[weight_BL > 0], expected, **TOLERANCE)
    np.testing.assert_allclose(numbers["value_loss"].value, np.mean(expected), **TOLERANCE)
    np.testing.assert_allclose(numbers["value_clip"].value, np.mean(clipped), **TOLERANCE)
    drawn = weight_BL > 0
    explained = 1 - np.var((return_BL - before_BL)[drawn]) / np.var(return_BL[drawn])
    np.testing.assert_allclose(numbers["explained_variance"].value, explained, rtol=1e-4)


def test_a_critic_s_explained_variance_of_parts_is_that_of_the_whole():
    rng, weight_BL = np.random.default_rng(2), some_batch()[1]["weight_BL"]
    value_BL, return_BL = rng.normal(size=(2, ROWS, LENGTH)).astype(np.float32)
    whole = policy_losses.explained_variance(value_BL, return_BL, weight_BL)
    halves = [policy_losses.explained_variance(*(a[part] for a in (value_BL, return_BL, weight_BL)))
              for part in (slice(0, 3), slice(3, ROWS))]  # fmt: skip
    merged = policy_losses.ExplainedVariance(np.stack([half.moments for half in halves])).merged()
    np.testing.assert_allclose(merged.value, whole.value, rtol=1e-5)


def test_a_token_that_today_s_cut_leaves_out_adds_nothing_to_any_divergence():
    """log p is -10,000 then, and one such token in a thousand would add ten nats to their mean."""
    logprob_BL, batch = some_batch()
    whole = losses.chosen("grpo").of_tokens(logprob_BL, batch)[1]
    logprob_BL[0, 0] = sampled.CUT_LOGPROB
    numbers = losses.chosen("grpo").of_tokens(logprob_BL, batch)[1]
    for name in ("approx_kl", "kl_k1", "kl_k3"):
        assert abs(numbers[name].value) < 10 and numbers[name].value != whole[name].value, name
    assert float(numbers["approx_kl"].weight) == batch["weight_BL"].sum()


def test_weights_of_text_sum_to_the_policy_s_and_keep_their_proportions():
    weight_BL = np.array([[1, 0, 2], [0.5, 0.5, 0]], np.float32)
    made_BL = policy_losses.ptx_weights(weight_BL, 12.0)
    assert made_BL.dtype == np.float32 and made_BL.sum() == 12 and made_BL[0, 2] == 2 * made_BL[0, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grpo(dual_clip=1.2)", "use more than 1.2"),
        ("grpo(clip_high=0.5, dual_clip=1.4)", "use more than 1.5"),
        ("grpo(aggregate='constant', length=0)", "length=0 with aggregate='constant'"),
        ("grpo(beta=-0.1)", "beta=-0.1 is negative"),
        ("grpo(clip_high=-0.1)", "clip_high=-0.1 is negative"),
        ("grpo(cap=-0.1)", "cap=-0.1 is negative"),
        ("ppo(ptx_coef=-0.1)", "ptx_coef=-0.1 is negative"),
        ("ppo(value_clip=-0.1)", "value_clip=-0.1 is negative"),
        ("grpo(level='answer')", "level='answer' is not known"),
        ("grpo(kl='k4')", "kl='k4' is not known"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(text, said):
    with pytest.raises(UserError) as error:
        losses.chosen(text)
    assert said in str(error.value)


def test_a_policy_is_the_distribution_that_the_config_samples_from():
    model, rl = dict(context_length=32), dict(prompts="copying", rewards="exact", max_tokens=7)
    values = {"model": model, "train": dict(steps=1, batch_size=8, loss="grpo")}
    config = from_dict(values | {"rl": rl | dict(temperature=0.7, top_k=11, top_p=0.9)})
    assert policy_losses.sampling_of(config) == sampled.Sampling(0.7, 11, 0.9, max_tokens=7)
    plain = policy_losses.sampling_of(from_dict(values | {"rl": rl}))
    assert plain == sampled.Sampling(1.0, None, None, max_tokens=7) and not plain.cuts


def test_the_defaults_are_those_of_their_papers():
    parameters = {
        "grpo": (0.2, 0.2, "sequence", "token"),
        "dapo": (0.2, 0.28, "token", "token"),
        "gspo": (3e-4, 4e-4, "sequence", "sequence_mean"),
        "rloo": (0.2, 0.2, "sequence", "sequence"),
        "reinforce": (0.2, 0.2, "token", "token"),
        "ppo": (0.2, 0.2, "token", "token"),
    }
    for text, expected in parameters.items():
        rule = losses.chosen(text)
        assert (rule.clip, rule.high, rule.aggregate, rule.level) == expected, text
        assert rule.needs_critic == (text == "ppo")
    ppo = losses.chosen("ppo")
    assert (ppo.value_clip, ppo.value_coef, ppo.beta, ppo.ptx_coef, ppo.correction) == (0.2, 0.1, 0.0, 0.0, "none")
