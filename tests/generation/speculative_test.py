"""Speculative decoding: guesses change how fast a text comes, and nothing else."""

import itertools

import jax
import numpy as np
import pytest
import runs
from scipy import stats

from gptjax.errors import UserError
from gptjax.generation import speculative
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.generation.speculative import DraftModel, Ngrams, Speculative

PROMPTS = [[3], [1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8, 9, 7], list(range(30))]  # the context is 16 tokens


@pytest.fixture(scope="module")
def engines():
    return {}


@pytest.fixture
def engine_of(engines, make_variant):
    def of(name: str, **fields) -> Engine:
        key = name, *fields.items()
        if key not in engines:
            tiny = make_variant(name, **fields)
            engines[key] = Engine(tiny.graph, jax.device_put(tiny.params, jax.devices()[0]))
        return engines[key]

    return of


@pytest.fixture
def drafts(engine_of):
    """{name: a draft for a model of 65 entries}."""
    return {
        "n-grams": Ngrams(5),
        "another model": DraftModel(engine_of("gpt2", n_layers=1), 3),
        "itself": DraftModel(engine_of("gpt3"), 3),
    }


def make_rows(eot_id=None, **settings) -> list[Row]:
    chosen = Settings(**{"max_tokens": 20, "temperature": 0} | settings)
    return [Row(np.array(p, np.int32), i, chosen, eot_id) for i, p in enumerate(PROMPTS)]


@pytest.mark.parametrize("draft", ["n-grams", "another model", "itself"])
def test_greedy_texts_are_those_without_guesses(engine_of, drafts, draft):
    """Of rows of unequal length, beyond the context, with penalties, up to end-of-text and with log-probabilities."""
    engine = engine_of("gpt3")
    for settings in ({}, {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "logprobs": True}):
        endless = make_rows(**settings)
        engine.run(endless)
        eot_id = endless[1].new[7]
        plain, guessed = make_rows(eot_id, **settings), make_rows(eot_id, **settings)
        engine.run(plain)
        Speculative(engine, drafts[draft]).run(guessed)
        for one, other in zip(plain, guessed):
            assert (one.new, one.finished) == (other.new, other.finished)
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
        assert {row.finished for row in plain} == {"eot", "length"}


class Limited(Row):
    """A row whose limit is not its settings', as a server's may be."""

    @property
    def limit(self) -> int:
        return 5


def test_a_row_s_own_limit_is_kept_and_what_guesses_cannot_do_is_refused(engine_of, drafts):
    engine = engine_of("gpt3")
    rows = [Limited(np.array(p, np.int32), 0, Settings(max_tokens=20, temperature=0)) for p in PROMPTS[:2]]
    plain = [Row(row.prompt, 0, Settings(max_tokens=5, temperature=0)) for row in rows]
    guessing = Speculative(engine, drafts["n-grams"])
    guessing.run(rows)
    engine.run(plain)
    assert [row.new for row in rows] == [row.new for row in plain]
    one = PROMPTS[1]
    with pytest.raises(ValueError, match="likeliest"):
        guessing.run([Row(np.array(one), 0, top=3)])
    for each in (engine, guessing):
        with pytest.raises(ValueError, match="bias_V"):
            each.run([Row(np.array(one), 0, bias_V=np.zeros(65, np.float32))])


def test_a_model_that_guesses_for_itself_is_always_right_and_another_is_not(engine_of, drafts):
    for name, least, most in (("itself", 1.0, 1.0), ("another model", 0.0, 0.9)):
        engine = Speculative(engine_of("gpt3"), drafts[name])
        engine.run(make_rows(max_tokens=9))
        assert engine.guessed > 0 and least <= engine.kept / engine.guessed <= most


def test_a_row_does_not_depend_on_the_others(engine_of, drafts):
    """Each keeps guesses for itself, and draws with keys of its own."""
    engine = Speculative(engine_of("gpt3"), drafts["another model"])
    settings = {"temperature": 0.8, "top_k": 9, "presence_penalty": 0.5}
    together = make_rows(**settings)
    engine.run(together)
    for row, alone in zip(together, make_rows(**settings)):
        engine.run([alone])
        assert alone.new == row.new


def test_watchers_end_a_row_between_readings(engine_of, drafts):
    watched = []

    def watch(row, new):
        watched.append(len(new))
        return ("stop", 4) if len(row.new) >= 4 else None

    rows = make_rows()[:1]
    Speculative(engine_of("gpt3"), drafts["itself"]).run(rows, watch)
    assert rows[0].finished == "stop" and len(rows[0].new) == 4 and watched == [1, 4]


# ---- the distribution of what is drawn

SETTINGS = {
    "plain": {},
    "shaped": {"temperature": 1.4, "top_p": 0.8, "repetition_penalty": 1.5, "presence_penalty": 0.5},
}
TEXTS, TOKENS, ENTRIES = 3200, 3, 5


def chances_of_texts(engine, prompt, settings) -> dict:
    """{each text of TOKENS tokens: its probability}, by the rules of plain drawing and the model read without a cache."""
    value_B = speculative.sampling.values([settings], 1)
    chances = {(): 1.0}
    for _ in range(TOKENS):
        longer = {}
        for text, chance in chances.items():
            tokens = np.array([*prompt, *text], np.int32)
            logit_V = np.asarray(engine.read(engine.params, tokens[None]))[0, -1]
            row = Row(np.array(prompt, np.int32), 0, settings, new=list(text))
            counts = engine._counts([row], 1)
            p_BV = speculative.probabilities(engine.setup, value_B, logit_V[None], counts)
            longer |= {(*text, token): chance * float(p) for token, p in enumerate(np.asarray(p_BV)[0])}
        chances = longer
    return chances


@pytest.fixture
def five(engine_of):
    """An engine of five entries."""
    from flax import nnx

    engine = engine_of("gpt2", vocab_size=ENTRIES)
    engine.read = jax.jit(lambda params, token_BL: nnx.merge(engine.graph, params)(token_BL))
    return engine


CASES = ["n-grams, shaped", "another model, plain", "n-grams, plain", "another model, shaped"]


@pytest.mark.parametrize("case", runs.default_or_slow(CASES, CASES[:1]))
def test_drawn_texts_have_the_shares_that_the_model_gives_them(engine_of, five, case):
    """Chi-square of 3,200 texts of three tokens over all 125 there are; their probabilities are enumerated."""
    draft, settings = case.split(", ")
    prompt, chosen = [1, 2, 3, 1, 2], Settings(max_tokens=TOKENS, **SETTINGS[settings])
    other = DraftModel(engine_of("gpt2", vocab_size=ENTRIES, n_layers=1), 2)
    engine = Speculative(five, Ngrams(2) if draft == "n-grams" else other)
    rows = [Row(np.array(prompt, np.int32), seed, chosen) for seed in range(TEXTS)]
    engine.run(rows)
    assert 0.02 < engine.kept / engine.guessed < 0.95  # both ways are taken
    chances = chances_of_texts(five, prompt, chosen)
    texts = list(itertools.product(range(ENTRIES), repeat=TOKENS))
    drawn = [tuple(row.new) for row in rows]
    seen, expected = np.array([[drawn.count(text), TEXTS * chances[text]] for text in texts]).T
    assert seen[expected == 0].sum() == 0
    rare = expected < 5  # one cell of them
    cells = [np.append(a[~rare], a[rare].sum()) for a in (seen, expected)]
    seen, expected = (a[cells[1] > 0] for a in cells)
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-3


# ---- n-grams


@pytest.mark.parametrize(
    "tokens,guess",
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),  # after 1, 2
        ([1, 2, 7, 9, 2, 8, 1, 2], [7, 9, 2, 8]),  # the longer run, though 2 came later alone
        ([5, 6, 5, 6], [5, 6, 5, 6]),  # a period goes on
        ([4, 4, 4], [4, 4, 4, 4]),
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_the_hand_worked_continuations(tokens, guess):
    assert speculative.continuation(np.array(tokens, np.int32), 4).tolist() == guess


def test_n_grams_are_right_where_a_text_repeats_itself(engine_of):
    """The greedy text of a tiny model falls into a cycle."""
    engine = Speculative(engine_of("gpt2"), Ngrams(4))
    rows = [Row(np.array([3], np.int32), 0, Settings(max_tokens=60, temperature=0))]
    engine.run(rows)
    assert engine.kept > 20


def test_a_draft_that_does_not_fit_is_refused(engine_of):
    engine = engine_of("gpt3")
    for draft, said in (
        (Ngrams(0), "--draft_tokens=0 is out of range; use 1 to 15"),
        (
            DraftModel(engine_of("gpt2", context_length=8), 2),
            "the draft has a context of 8 tokens, and the model of 16",
        ),
        (DraftModel(engine_of("gpt2", vocab_size=5), 2), "the draft can say 5 tokens and the model 65"),
        (DraftModel(engine_of("lstm"), 2), "the draft's model.architecture='lstm' cannot take back"),
    ):
        with pytest.raises(UserError, match=said):
            Speculative(engine, draft)
    with pytest.raises(UserError, match="the run's model.architecture='lstm' cannot"):
        Speculative(engine_of("lstm"), Ngrams(2))
