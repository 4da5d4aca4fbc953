"""A sampler option from outside: one function and one entry of a table, used through the command and `gptjax.load`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

import gptjax
from gptjax import cli
from gptjax.errors import UserError
from gptjax.generation.settings import OPTIONS, Option

RUN = str(ROOT / "tests" / "golden" / "checkpoints" / "schema2")
PROMPT = "the cat "


def typical(logit_BV, mass_B1, counts):
    """Meister et al. 2023: of the tokens whose surprisal is nearest to its mean only, with so much probability in all."""
    probability_BV = jnp.exp(logit_BV - jnp.log(jnp.exp(logit_BV).sum(-1, keepdims=True)))
    surprisal_BV = -jnp.log(probability_BV)
    distance_BV = jnp.abs(surprisal_BV - (probability_BV * surprisal_BV).sum(-1, keepdims=True))
    order_BV = jnp.argsort(distance_BV, axis=-1)
    ordered_BV = jnp.take_along_axis(probability_BV, order_BV, axis=-1)
    before_BV = jnp.cumsum(ordered_BV, axis=-1) - ordered_BV
    kept_BV = jnp.take_along_axis(before_BV < mass_B1, jnp.argsort(order_BV, axis=-1), axis=-1)
    return jnp.where(kept_BV, logit_BV, -jnp.inf)


def avoided(logit_BV, token_B1, counts):
    return jnp.where(jnp.arange(logit_BV.shape[-1]) == token_B1, -1e9, logit_BV)


@pytest.fixture
def with_options(monkeypatch):
    at_most_1 = {"valid": lambda value: 0 < value <= 1, "expected": "is not in (0, 1]."}
    entry = Option("draw from typical tokens of total probability p", rule=typical, off=2.0, drawing=True, **at_most_1)
    monkeypatch.setitem(OPTIONS, "typical_p", entry)
    monkeypatch.setitem(OPTIONS, "avoid", Option("a token that is never said", rule=avoided, off=-1, kind=int))


def most_typical(run, tokens) -> int:
    logit_V = np.float64(run.logits(tokens)[-1])
    log_probability_V = logit_V - np.log(np.exp(logit_V).sum())
    entropy = -(np.exp(log_probability_V) * log_probability_V).sum()
    return int(np.abs(-log_probability_V - entropy).argmin())


def test_an_option_from_outside_is_a_flag_and_a_keyword(with_options, capsys):
    run, flags = gptjax.load(RUN), ["--max_tokens=4", "--seed=3"]
    assert cli.main(["sample", f"--workdir={RUN}", f"--prompt={PROMPT}", "--typical_p=1e-6", "--json", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    tokens = run.tokens(PROMPT).tolist()
    for token in printed["tokens"]:
        assert token == most_typical(run, tokens)
        tokens.append(token)
    [completion] = run.generate(PROMPT, max_tokens=4, typical_p=1e-6)
    [free] = run.generate(PROMPT, max_tokens=4, seed=3)
    assert completion.tokens.tolist() == printed["tokens"] != free.tokens.tolist()

    assert cli.main(["sample", f"--workdir={RUN}", "--typical_p=1.5"]) == 2
    assert "--typical_p=1.5 is not in (0, 1]." in capsys.readouterr().err
    with pytest.raises(UserError, match="no argument 'tpyical_p'; did you mean 'typical_p'"):
        run.generate(PROMPT, tpyical_p=0.5)


def test_an_option_from_outside_that_is_not_of_drawing_changes_the_likeliest_token_and_is_refused_by_beams(
    with_options,
):
    run = gptjax.load(RUN)
    tokens = run.tokens(PROMPT)
    first, second = np.argsort(-run.logits(tokens)[-1])[:2].tolist()
    likeliest, next_to_it = (run.generate(PROMPT, max_tokens=1, temperature=0, avoid=i)[0] for i in (None, first))
    assert likeliest.tokens.tolist() == [first] and next_to_it.tokens.tolist() == [second]
    with pytest.raises(UserError, match="beam search cannot use penalties .avoid."):
        run.generate(PROMPT, num_beams=2, max_tokens=2, avoid=first)
