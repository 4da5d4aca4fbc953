"""Rates of rotary positions for longer contexts: transformers' own (golden/make_rope_scaling.py), and by hand."""

import json
import math

import numpy as np
import pytest
from places import ROOT

from gptjax.errors import UserError, make_chosen
from gptjax.models import rotary

GOLDEN = json.loads((ROOT / "tests" / "golden" / "rope_scaling.json").read_text())


def scaling_of(text: str):
    return make_chosen(text, rotary.SCALINGS, "model.rope_scaling")


@pytest.mark.parametrize("text", GOLDEN)
def test_rates_and_gain_are_those_of_transformers(text):
    expected, scaling = GOLDEN[text], scaling_of(text)
    np.testing.assert_allclose(scaling.rates(expected["theta"], len(expected["rates"])), expected["rates"], rtol=1e-6)
    assert scaling.gain == pytest.approx(expected["gain"], rel=1e-6)


def test_every_way_of_scaling_is_compared():
    assert {text.partition("(")[0] for text in GOLDEN} == rotary.SCALINGS.keys()


def test_llama3_keeps_what_turns_often_divides_what_turns_rarely_and_blends_between():
    """Theta 2 pi and a head of 2 K: rates (2 pi)^(-i / K), so that a context of c tokens turns c (2 pi)^(-1 - i / K) times."""
    scaling = scaling_of("llama3(factor=2, original_context_length=512, low_freq_factor=1, high_freq_factor=9)")
    rate_K = (2 * math.pi) ** (-np.arange(2) / 2)
    turns_K = 512 / (2 * math.pi) * rate_K  # 81 and 33: both often
    assert min(turns_K) > 9
    np.testing.assert_allclose(scaling.rates(2 * math.pi, 2), rate_K, rtol=1e-6)
    rare, between = 3.0 / 512 * 2 * math.pi / 10, 5.0 / 512 * 2 * math.pi  # 0.3 turns and 5
    theta = lambda rate: rate**-2  # noqa: E731  the second of two rates is theta^(-1/2)
    assert scaling.rates(theta(rare), 2)[1] == pytest.approx(rare / 2, rel=1e-6)
    assert scaling.rates(theta(between), 2)[1] == pytest.approx(between * (0.5 + 0.5 / 2), rel=1e-6)


def test_a_linear_factor_turns_a_token_as_far_as_one_at_a_part_of_its_position():
    x_BLHK = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    position_BL = np.array([[8, 4, 100]])
    scaled = rotary.rotate(x_BLHK, position_BL, 100.0, scaling_of("linear(factor=4)"))
    np.testing.assert_allclose(scaled, rotary.rotate(x_BLHK, position_BL // 4, 100.0), atol=1e-6)


BAD = {
    "linear": "'linear': factor is missing; write linear",
    "linear(factor=0)": "factor=0.0 must be positive",
    "linear(factor='x')": "factor='x' is no float",
    "llama3(factor=8)": "original_context_length is missing",
    "llama3(factor=8, original_context_length=8, low_freq_factor=4, high_freq_factor=4)": "is not above low_freq_factor",
    "yarn(factor=2, original_context_length=8.5)": "original_context_length=8.5 is no int",
    "ntk(factor=2)": "'ntk' is not known.*linear, dynamic, llama3, yarn",
    "linear factor": "cannot be read",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_scaling_is_refused(text):
    with pytest.raises(UserError, match=f"model.rope_scaling=.*{BAD[text]}"):
        scaling_of(text)


def test_yarn_refuses_a_period_that_its_ramp_cannot_be_computed_of():
    with pytest.raises(UserError, match="yarn needs a base period above 1, but model.rope_theta=1.0"):
        scaling_of("yarn(factor=2, original_context_length=8)").rates(1.0, 4)
