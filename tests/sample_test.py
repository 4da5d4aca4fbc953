import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptjax import model, sample
from gptjax.config import ModelConfig
from gptjax.errors import UserError

CONFIG = ModelConfig(
    vocab_size=11, context_length=16, n_layers=2, d_model=16, n_heads=2, dtype="float32", init_std=0.5, band_width=3
)


@pytest.fixture(scope="module")
def gpt():
    graph, params, _ = model.split(model.GPT(CONFIG, jax.random.key(0)))
    return graph, params


def test_greedy_text_is_that_of_the_model_run_without_a_cache(gpt):
    graph, params = gpt
    prompt = [3, 1, 4]
    [new] = sample.generate(graph, params, prompt, max_tokens=13, temperature=0)
    tokens = list(prompt)
    forward = jax.jit(lambda t: nnx.merge(graph, params)(t))
    for _ in range(13):
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(forward(padded)[0, len(tokens) - 1].argmax()))
    assert new.tolist() == tokens[3:]


def test_text_longer_than_the_context_goes_on_from_its_last_half(gpt):
    graph, params = gpt
    [new] = sample.generate(graph, params, [3, 1, 4], max_tokens=30, temperature=0)
    assert len(new) == 30
    whole = [3, 1, 4, *new.tolist()]
    [again] = sample.generate(graph, params, whole[8:16], max_tokens=8, temperature=0)
    assert whole[16:24] == again.tolist()


def test_a_prompt_longer_than_the_context_counts_by_its_end(gpt):
    graph, params = gpt
    long = np.arange(40) % 11
    [a] = sample.generate(graph, params, long, max_tokens=1, temperature=0)
    [b] = sample.generate(graph, params, long[-15:], max_tokens=1, temperature=0)
    assert a.tolist() == b.tolist()


def test_a_seed_gives_the_same_text_and_another_seed_another(gpt):
    graph, params = gpt
    texts = [
        [t.tolist() for t in sample.generate(graph, params, [1], num_samples=2, max_tokens=12, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]


def test_end_of_text_ends_a_sample_and_is_not_part_of_it(gpt):
    graph, params = gpt
    [free] = sample.generate(graph, params, [3, 1, 4], max_tokens=13, temperature=0)
    eot = int(free[5])
    [ended] = sample.generate(graph, params, [3, 1, 4], max_tokens=13, temperature=0, eot_id=eot)
    assert ended.tolist() == free.tolist()[: free.tolist().index(eot)]


PROBABILITY = np.array([[0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    "top_k,top_p,kept",
    [
        (4, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [1, 3]),
        (1, 1.0, [1]),
        (4, 0.4, [1]),  # .4 alone reaches .4
        (4, 0.41, [1, 3]),
        (4, 0.71, [1, 2, 3]),
        (2, 0.55, [1]),  # of .4/.7 and .3/.7
        (4, 1e-9, [1]),
    ],
)
def test_top_k_and_top_p_keep_the_hand_worked_tokens(top_k, top_p, kept):
    logits = sample.restrict(jnp.log(PROBABILITY), top_k, top_p)
    assert np.flatnonzero(np.isfinite(logits[0])).tolist() == kept


def test_temperature_and_top_k_give_the_hand_worked_distribution():
    logits = jnp.tile(jnp.log(PROBABILITY), (20_000, 1))
    drawn = sample.pick(logits, jax.random.key(0), 0.5, 3, 1.0, restricted=True)
    share = np.bincount(drawn, minlength=4) / 20_000
    squared = np.array([0, 0.16, 0.04, 0.09])
    np.testing.assert_allclose(share, squared / squared.sum(), atol=0.015)


@pytest.mark.parametrize(
    "setting,message",
    [
        ({"prompt": []}, "prompt is empty"),
        ({"temperature": -1}, "--temperature=-1 is negative"),
        ({"top_k": 0}, "--top_k=0 is too small"),
        ({"top_p": 1.5}, "--top_p=1.5 is not in"),
        ({"max_tokens": 0}, "--max_tokens=0 is too small"),
    ],
)
def test_a_setting_out_of_range_is_refused(gpt, setting, message):
    graph, params = gpt
    with pytest.raises(UserError, match=message):
        sample.generate(graph, params, **{"prompt": [1], **setting})


def test_the_last_position_of_the_context_can_be_filled(gpt):
    graph, params = gpt
    config = dataclasses.replace(CONFIG, context_length=16)
    [new] = sample.generate(graph, params, [1] * 15, max_tokens=1, temperature=0)
    logits = nnx.merge(graph, params)(jnp.ones((1, 15), jnp.int32))
    assert config.context_length == 16 and new.tolist() == [int(logits[0, -1].argmax())]
