"""Layers that are not all alike: which patterns a config may have, and what it is told of others."""

import pytest

from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import gpt_counts

SHAPE = dict(vocab_size=65, context_length=16, n_layers=4, d_model=32, n_heads=4, position="rope")


def config_of(**fields) -> Config:
    return Config(model=ModelConfig(**SHAPE | fields), train=TrainConfig(steps=1, batch_size=8))


BAD = {
    "letters": (
        dict(band_width=3, window_pattern="LX"),
        "window_pattern='LX' cannot be read; expected letters L and S",
    ),
    "empty": (dict(rope_pattern=""), "rope_pattern='' cannot be read; expected letters R and N"),
    "no width": (dict(window_pattern="S"), "window_pattern='S' has no width; set model.band_width"),
    "no layer": (dict(band_width=3, window_pattern="L"), "band_width=3 is of S layers, and .*'L' has none"),
    "learned": (
        dict(position="learned", rope_pattern="RN"),
        "rope_pattern='RN' with model.position='learned'; use 'rope'",
    ),
    "scaled": (dict(position="learned", rope_scaling="linear(factor=2)"), "use 'rope', or None"),
    "layers": (
        dict(band_width=3, rope_pattern="RRN"),
        "n_layers=4 is no multiple of the 6 layers after which .* repeat; use 6, or other patterns",
    ),
    "parts": (dict(linear_bias="qkv,in"), "linear_bias='qkv,in' cannot be read; expected names of qkv, out, mlp"),
    "no parts": (dict(linear_bias=""), "linear_bias='' cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_pattern_that_cannot_be_is_refused(name):
    fields, message = BAD[name]
    with pytest.raises(UserError, match=message):
        config_of(**fields)


PERIODS = {
    "all alike": (dict(), [(None, True)]),
    "GPT-3": (dict(band_width=3), [(None, True), (3, True)]),
    "Mistral": (dict(band_width=3, window_pattern="S"), [(3, True)]),
    "SmolLM3": (dict(rope_pattern="RRRN"), [(None, True)] * 3 + [(None, False)]),
    "both": (dict(band_width=3, rope_pattern="RRN", n_layers=6), list(zip([None, 3] * 3, [True, True, False] * 2))),
}


@pytest.mark.parametrize("name", PERIODS)
def test_a_period_is_as_long_as_both_patterns_take_to_repeat_together(name):
    fields, expected = PERIODS[name]
    model = config_of(**fields).model
    assert [tuple(kind) for kind in gpt_counts.layer_kinds(model)] == expected
    assert model.layer_period == len(expected)
