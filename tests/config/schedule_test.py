"""Learning rates and batch sizes against numbers worked by hand, and sums against running totals."""

import math

import numpy as np
import pytest

from gptjax import schedule
from gptjax.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError

GPT3 = Config(  # Brown et al. 2020, App. B, in steps of 500,000 tokens so that its landmarks are whole steps
    model=ModelConfig(context_length=2000),
    optim=OptimConfig(peak_lr=6e-5, warmup_tokens=375_000_000, decay_tokens=260_000_000_000, final_lr_fraction=0.1),
    train=TrainConfig(tokens=300_000_000_000, batch_size=250),
)
RAMP = Config(  # steps of 2, 4, 6 and 8 rows of 10 tokens; each of the first three lasts 200 tokens
    model=ModelConfig(context_length=10),
    train=TrainConfig(
        tokens=1000, batch_size=8, batch_ramp_start=2, batch_ramp_increment=2, batch_ramp_tokens=600, log_every=1
    ),
)


def config(steps=100, **optim):
    return Config(model=ModelConfig(context_length=8), optim=OptimConfig(**optim), train=TrainConfig(steps=steps))


def rate_after(config, steps_taken: int) -> float:
    """Of the update that ends with so many steps taken, as a fraction of the peak."""
    return schedule.learning_rate(config, steps_taken - 1) / config.optim.peak_lr


# Learning rate


@pytest.mark.parametrize(
    "tokens,fraction",
    [
        (187_500_000, 0.5),  # half of the warmup
        (375_000_000, 1.0),
        (130_187_500_000, 0.55),  # half of the decay: (1 + 0.1) / 2
        (130_000_000_000, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 129.625 / 259.625))),
        (260_000_000_000, 0.1),
        (299_000_000_000, 0.1),
    ],
)
def test_gpt3_learning_rate_at_the_landmarks_of_the_paper(tokens, fraction):
    assert rate_after(GPT3, tokens // 500_000) == pytest.approx(fraction, rel=1e-12)


def test_gpt3_learning_rate_is_exactly_a_tenth_of_the_peak_once_decayed():
    steps_to_260_billion = 520_000
    for steps_taken in (steps_to_260_billion, steps_to_260_billion + 1, schedule.total_steps(GPT3)):
        assert schedule.learning_rate(GPT3, steps_taken - 1) == 6e-5 * 0.1
    assert schedule.learning_rate(GPT3, steps_to_260_billion - 2) > 6e-5 * 0.1


def test_gpt3_learning_rate_falls_from_the_end_of_the_warmup_on():
    rates = [rate_after(GPT3, taken) for taken in range(750, 600_001, 5000)]
    assert rates[0] == max(rates) == 1.0
    assert all(a >= b for a, b in zip(rates, rates[1:]))


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_warmup_is_linear_reaches_the_peak_and_never_gives_rate_zero(name):
    warm = config(schedule=name, warmup_steps=10)
    assert [rate_after(warm, s) for s in range(1, 11)] == pytest.approx([s / 10 for s in range(1, 11)])


@pytest.mark.parametrize("name", schedule.SCHEDULES)
@pytest.mark.parametrize("warmup", [1, 10])
def test_no_step_has_a_rate_of_zero_or_above_the_peak_before_the_decay_ends(name, warmup):
    zero_final = config(schedule=name, warmup_steps=warmup, final_lr_fraction=0.0)
    assert all(0 < rate_after(zero_final, s) <= 1 for s in range(1, 100))


@pytest.mark.parametrize("name", sorted(set(schedule.SCHEDULES) - {"rsqrt"}))
def test_without_a_warmup_the_first_step_is_near_the_peak(name):
    cold = config(schedule=name, warmup_steps=None, final_lr_fraction=0.0)
    assert 0.98 < rate_after(cold, 1) <= 1


@pytest.mark.parametrize(
    "name,values",  # after 20 steps of warmup; the decay goes from 20 to 100
    [
        ("constant", {20: 1.0, 60: 1.0, 100: 1.0}),
        ("linear", {20: 1.0, 40: 0.775, 60: 0.55, 80: 0.325, 100: 0.1}),
        ("cosine", {20: 1.0, 40: 0.1 + 0.9 * (2 + math.sqrt(2)) / 4, 60: 0.55, 100: 0.1}),
        ("rsqrt", {20: 1.0, 45: 2 / 3, 80: 0.5}),
        ("wsd", {20: 1.0, 80: 1.0, 85: 0.55, 95: 0.1 + 0.9 * (1 - math.sqrt(0.75)), 100: 0.1}),
    ],
)
def test_schedules_have_their_values_worked_by_hand(name, values):
    worked = config(schedule=name, warmup_steps=20, final_lr_fraction=0.1)
    assert {s: rate_after(worked, s) for s in values} == pytest.approx(values)


def test_a_wsd_run_keeps_its_peak_to_the_last_step_before_the_cooldown_and_ends_at_its_final_rate():
    """Of 20,000 pairs of a trunk and a cooldown, a fifth had left the peak a step early, by rounding alone."""
    random = np.random.default_rng(0)
    trunks, cooldowns = (10 ** random.uniform(0, most, 5000) for most in (7, 6))
    for s, k in zip(trunks.astype(int).tolist(), cooldowns.astype(int).tolist()):
        worked = config(s + k, schedule="wsd", cooldown_fraction=k / (s + k), final_lr_fraction=0.0)
        peak = worked.optim.peak_lr
        assert schedule.learning_rate(worked, s - 1) == schedule.learning_rate(worked, s // 2) == peak, (s, k)
        assert 0 < schedule.learning_rate(worked, s) < peak or k == 1, (s, k)
        assert schedule.learning_rate(worked, s + k - 1) == 0, (s, k)


def test_in_tokens_too_a_wsd_run_keeps_its_peak_to_the_last_step_before_the_cooldown():
    for s, k in ((1, 1), (7, 3), (1000, 1), (99_999, 7), (123_456, 65_432)):
        worked = config(s + k, schedule="wsd", cooldown_fraction=k / (s + k), warmup_tokens=0, final_lr_fraction=0.0)
        rates = [rate_after(worked, taken) for taken in (s, s + 1, s + k)]
        assert rates[0] == 1.0 and rates[-1] == 0.0 and (0 < rates[1] < 1 or k == 1)


def test_rsqrt_without_a_warmup_raises():
    with pytest.raises(UserError, match="optim.schedule='rsqrt': it starts at the end of the warmup"):
        config(schedule="rsqrt")


def test_rsqrt_stops_falling_at_the_final_fraction():
    worked = config(schedule="rsqrt", warmup_steps=1, final_lr_fraction=0.2)
    assert (rate_after(worked, 16), rate_after(worked, 100)) == pytest.approx((0.25, 0.2))


def test_the_decay_may_end_before_the_run_does():
    short = config(schedule="linear", decay_steps=50, final_lr_fraction=0.1)
    assert [rate_after(short, s) for s in (25, 50, 99)] == pytest.approx([0.55, 0.1, 0.1])


def test_a_schedule_in_tokens_equals_the_same_one_in_steps():
    in_steps = config(warmup_steps=10, decay_steps=80)
    tokens_per_step = in_steps.tokens_per_step
    in_tokens = in_steps.replace(
        optim=dict(
            warmup_steps=None, decay_steps=None, warmup_tokens=10 * tokens_per_step, decay_tokens=80 * tokens_per_step
        )
    )
    mixed = in_steps.replace(optim=dict(decay_steps=None, decay_tokens=80 * tokens_per_step))
    for s in range(1, 101):
        assert rate_after(in_steps, s) == pytest.approx(rate_after(in_tokens, s), rel=1e-12)
        assert rate_after(in_steps, s) == pytest.approx(rate_after(mixed, s), rel=1e-12)


def test_a_longer_run_with_the_same_decay_repeats_the_shorter_one():
    short, long = config(100, decay_steps=100), config(200, decay_steps=100)
    assert [rate_after(short, s) for s in range(1, 101)] == [rate_after(long, s) for s in range(1, 101)]


def test_under_a_batch_ramp_a_schedule_in_tokens_counts_the_tokens_read():
    ramped = RAMP.replace(optim=dict(schedule="linear", warmup_tokens=200, decay_tokens=1000, final_lr_fraction=0.0))
    assert rate_after(ramped, 1) == pytest.approx(0.1)  # 20 of 200 tokens
    assert rate_after(ramped, 10) == pytest.approx(1.0)  # 10 steps of 20 tokens
    assert rate_after(ramped, 15) == pytest.approx(1 - 200 / 800)  # and 5 of 40: 400 tokens


def test_an_unknown_schedule_raises_with_the_names_there_are():
    with pytest.raises(UserError, match="optim.schedule='cosin' is not known; did you mean 'cosine'"):
        schedule.learning_rate(config(schedule="cosin"), 0)


# Batch ramp


def test_batch_ramp_stages_are_those_worked_by_hand():
    # 200 tokens are 20 rows: 10 steps of 2. Then 20 rows: 5 steps of 4. Then 20 rows: 4 steps of 6, which make 24.
    sizes = [schedule.batch_size(RAMP, s) for s in range(22)]
    assert sizes == [2] * 10 + [4] * 5 + [6] * 4 + [8] * 3
    assert [schedule.rows_before(RAMP, s) for s in (0, 1, 10, 15, 19, 20)] == [0, 2, 20, 40, 64, 72]
    assert schedule.tokens_before(RAMP, 15) == 400


@pytest.mark.parametrize("ramp_tokens", [1, 37, 600, 12_345])
@pytest.mark.parametrize("start,increment", [(2, 2), (1, 1), (4, 4), (2, 6)])
def test_rows_before_a_step_are_the_sum_of_the_batches_before_it(ramp_tokens, start, increment):
    ramped = RAMP.replace(
        train=dict(batch_ramp_start=start, batch_ramp_increment=increment, batch_ramp_tokens=ramp_tokens)
    )
    rows, sizes = 0, []
    for s in range(1000):
        assert schedule.rows_before(ramped, s) == rows
        sizes.append(schedule.batch_size(ramped, s))
        rows += sizes[-1]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (start, 8)
    assert set(sizes) == set(range(start, 9, increment))  # no stage is skipped, however short the ramp


def test_the_full_batch_comes_within_a_step_of_each_stage_of_the_ramps_tokens():
    ramped = GPT3.replace(
        train=dict(batch_size=1536, batch_ramp_start=192, batch_ramp_increment=192, batch_ramp_tokens=12_000_000_000)
    )
    first_full = next(s for s in range(100_000) if schedule.batch_size(ramped, s) == 1536)
    overshoot = schedule.tokens_before(ramped, first_full) - 12_000_000_000
    assert 0 <= overshoot <= 1536 * 2000


# Length of the run


@pytest.mark.parametrize("tokens", [1, 10, 20, 21, 200, 201, 399, 400, 401, 600, 640, 641, 1000, 12_345])
def test_a_run_in_tokens_is_the_shortest_that_reaches_them(tokens):
    run = RAMP.replace(train=dict(tokens=tokens))
    steps = schedule.total_steps(run)
    assert schedule.tokens_before(run, steps - 1) < tokens <= schedule.tokens_before(run, steps)
    assert schedule.run_tokens(run) == schedule.tokens_before(run, steps)


@pytest.mark.parametrize("tokens,steps", [(1, 5), (5 * 64, 5), (5 * 64 + 1, 10), (1000, 20)])
def test_a_run_in_tokens_is_rounded_up_to_whole_calls(tokens, steps):
    run = Config(
        model=ModelConfig(context_length=16),
        train=TrainConfig(tokens=tokens, batch_size=4, steps_per_call=5),
    )
    assert schedule.total_steps(run) == steps


def test_gpt3_takes_300_billion_tokens():
    assert schedule.total_steps(GPT3) == 600_000
    assert schedule.run_tokens(GPT3) == 300_000_000_000
