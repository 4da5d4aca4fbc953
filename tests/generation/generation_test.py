import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import nnx

from gptjax import cli
from gptjax.commands import sample
from gptjax.data import tokenizers
from gptjax.errors import UserError
from gptjax.generation import beam, sampling
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import OPTIONS, Settings
from gptjax.generation.text import generate

PROMPTS = [[3], [1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8, 9, 7]]


@pytest.fixture(scope="module")
def engines():
    return {}


@pytest.fixture
def engine_of(engines, make_variant):
    """engine_of(name, apart) is an Engine of a variant; compiled programs are shared."""

    def of(name: str, apart: bool = False):
        if (name, apart) not in engines:
            tiny = make_variant(name)
            params = jax.device_put(tiny.params, jax.devices()[0])
            engines[name, apart] = made = Engine(tiny.graph, params)
            if not apart:
                made.layers = None
        return engines[name, apart]

    return of


def run(engine, prompts, seeds=None, eot_id=None, **settings):
    seeds = seeds or range(len(prompts))
    rows = [Row(np.array(prompt, np.int32), seed, Settings(**settings), eot_id) for prompt, seed in zip(prompts, seeds)]
    engine.run(rows)
    return rows


def uncached(engine, tokens) -> np.ndarray:
    """Logits of the next token [V] of the model without a cache."""
    padded = np.zeros((1, engine.config.context_length), np.int32)
    padded[0, : len(tokens)] = tokens
    forward = jax.jit(lambda params, token_BL: nnx.merge(engine.graph, params)(token_BL))
    if not hasattr(engine, "forward"):
        engine.forward = forward
    return np.asarray(engine.forward(engine.params, padded))[0, len(tokens) - 1]


def log_softmax(logit_V):
    logit_V = np.float64(logit_V)
    return logit_V - logit_V.max() - np.log(np.exp(logit_V - logit_V.max()).sum())


VARIANTS_APART = {
    "gpt1": False,
    "modern": False,
    "gpt3 apart": True,
    "lstm": False,
    "lstm apart": True,
    "gpt2": False,
    "gpt3": False,
    "wide_heads": False,
    "patterned": False,
    "patterned apart": True,
    "gemma": False,
}


@pytest.mark.parametrize(
    "name", runs.default_or_slow(VARIANTS_APART, ("gpt1", "modern", "gpt3 apart", "lstm apart", "patterned"))
)
def test_ragged_prompts_give_the_texts_and_log_probabilities_of_the_model_without_a_cache(engine_of, name):
    engine = engine_of(name.split()[0], VARIANTS_APART[name])
    for row in run(engine, PROMPTS, max_tokens=7, temperature=0, logprobs=True):
        assert len(row.new) == len(row.logprobs) == 7 and len(row.prompt_logprobs) == len(row.prompt) - 1
        for i, token in enumerate(row.tokens.tolist()[1:], start=1):
            expected = log_softmax(uncached(engine, row.tokens[:i]))
            found = [*row.prompt_logprobs, *row.logprobs][i - 1]
            assert found == pytest.approx(expected[token], abs=1e-5 * np.abs(expected).max())
            if i >= len(row.prompt):
                assert token == expected.argmax()


@pytest.mark.parametrize(
    "settings", [dict(top_k=5, temperature=0.7), dict(frequency_penalty=0.5, repetition_penalty=1.3)]
)
def test_a_text_depends_on_its_prompt_and_seed_alone(engine_of, settings):
    engine = engine_of("gpt2")
    together = run(engine, PROMPTS * 2, seeds=[7, 8, 9, 10, 11, 12], max_tokens=9, **settings)
    for i, row in enumerate(together):
        [alone] = run(engine, [PROMPTS[i % 3]], seeds=[row.seed], max_tokens=9, **settings)
        assert alone.new == row.new
    assert together[0].new != together[3].new


def test_a_text_does_not_depend_on_how_many_tokens_are_made_at_a_time(engine_of):
    engine = engine_of("gpt2")
    rows = [Row(np.array(PROMPTS[1], np.int32), 3, Settings(max_tokens=30)) for _ in range(3)]
    for row, chunk in zip(rows, (1, 4, 64)):
        engine.run([row], chunk=chunk)
    assert rows[0].new == rows[1].new == rows[2].new and len(rows[0].new) == 30


def test_text_longer_than_the_context_goes_on_from_its_last_half_whatever_its_neighbours(engine_of):
    """The context is 16 tokens: after 16 the last 8 are the prompt of what follows."""
    engine = engine_of("gpt3")
    rows = run(engine, PROMPTS, max_tokens=40, temperature=0)
    for row in rows:
        tokens = row.tokens.tolist()
        assert len(row.new) == 40
        for start in range(8, len(tokens) - 8, 8):
            [again] = run(engine, [tokens[start : start + 8]], max_tokens=8, temperature=0)
            assert again.new[: len(tokens) - start - 8] == tokens[start + 8 : start + 16]


def test_a_finished_neighbour_does_not_fill_the_context_of_those_that_go_on(engine_of):
    """What is read along comes once a round: a full context ends one, and the whole of every text is read anew."""
    engine = engine_of("gpt2")
    settings = Settings(max_tokens=6)
    long = Row(np.arange(engine.config.context_length - 1, dtype=np.int32) % 7, 0, settings)
    short = Row(np.array([3]), 1, settings)
    rounds = []

    def watch(row, new):
        rounds.append(row is short)
        return ("cancelled", 0) if row is long else None

    engine.run([long, short], watch=watch, chunk=100)
    assert not long.new and len(short.new) == 6 and sum(rounds) == 2


def test_a_prompt_longer_than_the_context_counts_by_its_end(engine_of):
    long = (np.arange(40) % 11).tolist()
    a, b = (run(engine_of("gpt2"), [prompt], max_tokens=1, temperature=0)[0] for prompt in (long, long[-15:]))
    assert a.new == b.new


def test_end_of_text_ends_a_text_and_is_not_part_of_it_while_others_go_on(engine_of):
    free = run(engine_of("gpt2"), PROMPTS, max_tokens=7, temperature=0)
    eot = free[0].new[3]
    for row, before in zip(run(engine_of("gpt2"), PROMPTS, max_tokens=7, temperature=0, eot_id=eot), free):
        ended = eot in before.new
        assert row.new == (before.new[: before.new.index(eot)] if ended else before.new)
        assert row.finished == ("eot" if ended else "length")


def test_a_cache_of_bfloat16_gives_nearly_the_same(engine_of, make_variant):
    tiny = make_variant("gpt2")
    narrow = Engine(tiny.graph, jax.device_put(tiny.params, jax.devices()[0]), cache_dtype="bfloat16")
    settings = dict(max_tokens=1, temperature=0, logprobs=True)
    [a], [b] = run(engine_of("gpt2"), [PROMPTS[2]], **settings), run(narrow, [PROMPTS[2]], **settings)
    assert a.logprobs == pytest.approx(b.logprobs, abs=0.05)
    with pytest.raises(UserError, match="cache_dtype='int8' is not known"):
        Engine(tiny.graph, tiny.params, cache_dtype="int8")


# ---- from logits to a token

PROBABILITY = np.array([[0.1, 0.4, 0.2, 0.3]])


def shaped(logit_BV, settings: list[Settings], counts=None):
    """Logits after all options but temperature: penalties if counts are given, else cuts."""
    options = [named for named in sampling.table() if named[0] != "temperature"]
    options = [named for named in options if named[1].drawing == (counts is None)]
    return sampling.apply(options, logit_BV, sampling.values(settings, len(settings)), counts)


RESTRICTED = [
    (dict(), [0, 1, 2, 3]),
    (dict(top_k=2), [1, 3]),
    (dict(top_k=1), [1]),
    (dict(top_k=9), [0, 1, 2, 3]),
    (dict(top_p=0.4), [1]),  # .4 alone reaches .4
    (dict(top_p=0.41), [1, 3]),
    (dict(top_p=0.71), [1, 2, 3]),
    (dict(top_k=2, top_p=0.55), [1]),  # of .4/.7 and .3/.7
    (dict(top_p=1e-9), [1]),
    (dict(min_p=0.49), [1, 2, 3]),  # .5 of .4 is .2
    (dict(min_p=0.51), [1, 3]),
    (dict(min_p=1.0), [1]),
    (dict(top_k=3, min_p=0.6), [1, 3]),
]


@pytest.mark.parametrize("settings,kept", RESTRICTED)
def test_top_k_top_p_and_min_p_keep_the_hand_worked_tokens(settings, kept):
    logit_BV = shaped(jnp.log(PROBABILITY), [Settings(**settings)])
    assert np.flatnonzero(np.isfinite(logit_BV[0])).tolist() == kept


def test_rows_may_have_settings_of_their_own():
    logit_BV = jnp.tile(jnp.log(PROBABILITY), (len(RESTRICTED), 1))
    logit_BV = shaped(logit_BV, [Settings(**settings) for settings, _ in RESTRICTED])
    for row, (_, kept) in zip(logit_BV, RESTRICTED):
        assert np.flatnonzero(np.isfinite(row)).tolist() == kept


def test_penalties_give_the_hand_worked_logits():
    logit_BV, seen_BV = jnp.array([[2.0, -2.0, 1.0, 0.5]]), jnp.array([[True, True, False, True]])
    count_BV = jnp.array([[0, 3, 0, 1]])  # token 0 is in the prompt only
    settings = Settings(repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=1.0)
    penalised = shaped(logit_BV, [settings], sampling.Counts(seen_BV, count_BV))
    np.testing.assert_allclose(penalised, [[1.0, -4.0 - 0.75 - 1, 1.0, 0.25 - 0.25 - 1]])


@pytest.mark.parametrize(
    "settings,share",
    [
        (dict(), [0.1, 0.4, 0.2, 0.3]),
        (dict(temperature=0.5, top_k=3), np.array([0, 0.16, 0.04, 0.09]) / 0.29),
        (dict(temperature=2.0, min_p=0.8), np.array([0, 0.4**0.5, 0, 0.3**0.5]) / (0.4**0.5 + 0.3**0.5)),
        (dict(top_p=0.6), np.array([0, 4, 0, 3]) / 7),
    ],
)
def test_drawn_tokens_have_the_hand_worked_shares(settings, share):
    n = 20_000
    logit_BV, key_B = jnp.tile(jnp.log(PROBABILITY), (n, 1)), jax.random.split(jax.random.key(0), n)
    value_B = sampling.values([Settings(**settings)] * n, n)
    drawn_B, _ = sampling.draw(sampling.table(), logit_BV, key_B, value_B, None)
    np.testing.assert_allclose(np.bincount(drawn_B, minlength=4) / n, share, atol=0.015)


def test_penalties_act_on_what_the_text_itself_has_said(engine_of):
    """Greedy, with a penalty that no logit outweighs: no token comes twice."""
    for row in run(engine_of("gpt2"), PROMPTS, max_tokens=20, temperature=0, presence_penalty=1e4):
        assert len(set(row.new)) == 20
    [row] = run(
        engine_of("gpt2"), [[3, 1, 4]], max_tokens=20, temperature=0, repetition_penalty=1e9, presence_penalty=1e4
    )
    assert len(set(row.tokens.tolist())) == 23


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_a_row_does_not_use_leaves_it_bit_for_bit_whatever_its_neighbour_uses(name):
    """Logits of 200 tokens with ties, zeros and an entry that is never said; probabilities that sum to 1 only nearly."""
    logit_V = np.random.default_rng(0).normal(size=200).astype(np.float32).round(1)
    logit_V[7] = -np.inf
    logit_BV = jnp.tile(logit_V, (2, 1))
    counts = sampling.Counts(logit_BV > 0, (logit_BV > 0).astype(jnp.int32))
    value = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.3}.get(name, 1.7)
    options = [named for named in sampling.table() if named[0] == name]
    value_B = sampling.values([Settings(), Settings(**{name: value})], 2)
    kept, changed = sampling.apply(options, logit_BV, value_B, counts)
    np.testing.assert_array_equal(kept, logit_V)
    assert (changed != logit_V).sum() > 50


OWN = [  # of each row its settings, those of neither a neighbour
    dict(temperature=0),
    dict(top_k=3, temperature=0.7, max_tokens=4),
    dict(top_p=0.5, frequency_penalty=0.5, logprobs=True),
    dict(repetition_penalty=1.5, min_p=0.2, max_tokens=20),
    dict(),
]


def own_rows(eot_id=None):
    prompts = [*PROMPTS, [3], list(range(14))]
    settings = [Settings(**dict(max_tokens=9) | values) for values in OWN]
    rows = zip(prompts, range(20, 25), settings)
    return [Row(np.array(prompt, np.int32), seed, each, eot_id) for prompt, seed, each in rows]


def test_rows_of_different_settings_say_together_what_each_says_alone(engine_of):
    engine, eot_id = engine_of("gpt2"), 40
    together, alone = own_rows(eot_id), own_rows(eot_id)
    together[1].eot_id = alone[1].eot_id = None
    engine.run(together)
    for row, other in zip(together, alone):
        engine.run([other])
        assert (row.new, row.finished) == (other.new, other.finished)
        assert len(row.logprobs) == len(other.logprobs) == (len(row.new) if row.settings.logprobs else 0)
    assert [len(row.new) for row in together][1] == 4


# ---- beams


@pytest.mark.parametrize("length_penalty,eot_id", [(1.0, None), (0.0, 3), (2.0, 3)])
def test_beams_as_wide_as_everything_find_the_likeliest_text_of_all(engine_of, length_penalty, eot_id):
    engine, steps, vocabulary = engine_of("gpt2"), 2, 65
    settings = Settings(max_tokens=steps, num_beams=vocabulary, length_penalty=length_penalty)
    found = beam.search(engine, np.array([5], np.int32), settings, () if eot_id is None else (eot_id,))
    first = log_softmax(uncached(engine, [5]))
    scores = {}
    for text in itertools.product(range(vocabulary), repeat=steps):
        if eot_id is not None and text[0] == eot_id:
            scores[()] = first[eot_id] / 1**length_penalty
            continue
        if text[0] not in scores:
            scores[text[0]] = log_softmax(uncached(engine, [5, text[0]]))
        total = (first[text[0]] + scores[text[0]][text[1]]) / steps**length_penalty
        scores[text[:1] if text[1] == eot_id else text] = total
    all_of_them = sorted(((v, k) for k, v in scores.items() if isinstance(k, tuple)), reverse=True)
    best, text = all_of_them[0]
    assert tuple(found[0].tokens) == text and found[0].score == pytest.approx(best, abs=1e-4)
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)


def test_one_beam_is_greedy(engine_of):
    engine = engine_of("gpt2")
    [row] = run(engine, [PROMPTS[1]], max_tokens=6, temperature=0)
    [found] = beam.search(engine, np.array(PROMPTS[1], np.int32), Settings(max_tokens=6), ())
    assert found.tokens == row.new


# ---- texts


class Spelled:
    """A tokenizer of 65 tokens that spell one, two or three bytes, cut within characters of UTF-8."""

    eot_id = bos_id = None
    spelling = [b"ab", b"\xe4", b"\xb8\xad", b"c", "é".encode(), b"\xc3", b"\xa9"] + [
        bytes([97 + i % 26]) for i in range(58)
    ]
    vocab_size = 65
    special = {}
    encode = staticmethod(lambda text: np.array([Spelled.spelling.index(bytes([b])) for b in text.encode()], np.int32))
    decode = tokenizers.Tokenizer.decode


SPELLED = Spelled()


def texts(engine, prompts, callback=None, **settings):
    return generate(engine, SPELLED, prompts, Settings(**settings), callback)


def test_completions_are_in_order_and_their_seeds_give_them_again(engine_of):
    engine = engine_of("gpt2")
    found = texts(engine, ["ccc", [3, 4]], max_tokens=6, num_return_sequences=2, seed=5)
    assert [c.prompt for c in found] == ["ccc", "ccc", "cé", "cé"] and [c.seed for c in found] == [5, 6, 7, 8]
    for completion in found:
        assert (
            completion.text == SPELLED.decode(completion.tokens)
            and str(completion) == completion.prompt + completion.text
        )
        [again] = texts(
            engine, completion.prompt if completion.prompt == "ccc" else [3, 4], max_tokens=6, seed=completion.seed
        )
        assert again.text == completion.text
    [a, b] = texts(engine, "ccc", max_tokens=6, num_return_sequences=2, seed=(6, 5))
    assert [a.text, b.text] == [found[1].text, found[0].text]
    with pytest.raises(UserError, match="seed has 2 values for 1 sequences"):
        texts(engine, "ccc", seed=(1, 2))


def test_prompts_may_have_settings_of_their_own(engine_of):
    """Beams, several sequences, stop strings and seeds among them."""
    engine, prompts = engine_of("gpt2"), ["c", [3, 4], "ccc"]
    each = [dict(seed=3, num_return_sequences=2), dict(num_beams=2), dict(stop="a", seed=9, temperature=0.5)]
    each = [Settings(max_tokens=6, **values) for values in each]
    together = generate(engine, SPELLED, prompts, each)
    alone = [c for prompt, settings in zip(prompts, each) for c in generate(engine, SPELLED, prompt, settings)]
    assert [(c.prompt, c.text, c.seed, c.score) for c in together] == [
        (c.prompt, c.text, c.seed, c.score) for c in alone
    ]
    assert [c.seed for c in together] == [3, 4, None, 9]
    with pytest.raises(UserError, match="there are settings for 3 of 1 prompts"):
        generate(engine, SPELLED, "c", each)


def test_a_stop_string_ends_a_text_wherever_it_lies_between_tokens(engine_of):
    engine = engine_of("gpt2")
    [free] = texts(engine, "c", max_tokens=30, seed=2)
    whole = free.text
    for start in range(1, len(whole) - 4, 3):
        stop = whole[start : start + 3]
        if "\ufffd" in whole[: start + 3]:
            continue
        at = whole.find(stop)
        [ended] = texts(engine, "c", max_tokens=30, seed=2, stop=("#never#", stop))
        assert ended.text == whole[:at] and ended.finish_reason == "stop"
        assert SPELLED.decode(ended.tokens[:-1]).find(stop) < 0 <= SPELLED.decode(ended.tokens).find(stop)
    [not_ended] = texts(engine, "c", max_tokens=30, seed=2, stop="#never#")
    assert not_ended.text == whole and not_ended.finish_reason == "length"


def test_pieces_that_are_streamed_make_the_text_and_never_show_a_part_of_a_stop_string(engine_of):
    engine = engine_of("gpt2")
    plain = texts(engine, ["c", "cc"], max_tokens=30, seed=2)
    stop = plain[0].text[9:12]
    pieces = {0: [], 1: []}
    found = texts(engine, ["c", "cc"], lambda i, piece: pieces[i].append(piece), max_tokens=30, seed=2, stop=stop)
    for i, completion in enumerate(found):
        assert "".join(pieces[i]) == completion.text and len(pieces[i]) > 3
    assert "\ufffd" not in "".join(pieces[0]) or "\ufffd" in found[0].text


def test_a_reader_who_has_enough_ends_its_text_alone(engine_of):
    seen = []

    def callback(index, piece):
        seen.append(index)
        return not (index == 0 and seen.count(0) == 3)

    a, b = texts(engine_of("gpt2"), ["c", "cc"], callback, max_tokens=30, seed=2)
    assert a.finish_reason == "cancelled" and 3 <= len(a.tokens) < 12 and b.finish_reason == "length"


def test_log_probabilities_are_the_models_own_whatever_the_settings(engine_of):
    engine = engine_of("gpt2")
    [found] = texts(engine, "ccc", max_tokens=5, temperature=0.5, top_k=2, presence_penalty=1.0, logprobs=True)
    tokens = [3, 3, 3, *found.tokens.tolist()]
    expected = [log_softmax(uncached(engine, tokens[:i]))[tokens[i]] for i in range(1, len(tokens))]
    np.testing.assert_allclose([*found.prompt_logprobs, *found.logprobs], expected, atol=2e-5)


BAD = {
    "temperature": (dict(temperature=-1), "--temperature=-1.0 is negative"),
    "top_k": (dict(top_k=0), "--top_k=0 is too small"),
    "top_p": (dict(top_p=1.5), r"--top_p=1.5 is not in \(0, 1\]"),
    "min_p": (dict(min_p=1.5), r"--min_p=1.5 is not in \[0, 1\]"),
    "max_tokens": (dict(max_tokens=0), "--max_tokens=0 is too small"),
    "repetition": (dict(repetition_penalty=0), "--repetition_penalty=0.0 must be positive"),
    "frequency": (dict(frequency_penalty=float("nan")), "--frequency_penalty=nan must be finite"),
    "stop": (dict(stop=""), "--stop is an empty string"),
    "beams": (dict(num_beams=2, num_return_sequences=3), "--num_return_sequences=3 of --num_beams=2"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_setting_out_of_range_is_refused(name):
    settings, message = BAD[name]
    with pytest.raises(UserError, match=message):
        Settings(**settings)


def test_entries_that_the_tokenizer_lacks_are_never_said(engine_of, make_variant):
    """All but eleven of 65 tokens, in draws and in beams; log-probabilities stay those of the whole model."""
    tiny = make_variant("gpt2")
    params = jax.device_put(tiny.params, jax.devices()[0])
    small = Engine(tiny.graph, params, entries=11)
    rows = run(small, PROMPTS, max_tokens=20, logprobs=True)
    assert max(token for row in rows for token in row.new) <= 10
    expected = log_softmax(uncached(engine_of("gpt2"), PROMPTS[1]))[rows[1].new[0]]
    assert rows[1].logprobs[0] == pytest.approx(expected, abs=1e-4)
    found = beam.search(small, np.array([5], np.int32), Settings(max_tokens=4, num_beams=3), ())
    assert all(token <= 10 for text in found for token in text.tokens)


def test_no_prompt_is_the_start_of_a_document(engine_of):
    """End-of-text, token 3 here, is not shown."""

    class Ended(Spelled):
        eot_id = bos_id = 3

    [a] = generate(engine_of("gpt2"), Ended(), None, Settings(max_tokens=6, temperature=0))
    [b] = generate(engine_of("gpt2"), Ended(), [3], Settings(max_tokens=6, temperature=0))
    assert (a.prompt, a.text) == ("", b.text)


def test_what_does_not_go_together_is_refused(engine_of):
    engine = engine_of("gpt2")
    for prompt, settings, message in (
        (np.zeros(0, np.int32), {}, "the prompt is empty"),
        ("c", dict(num_beams=2, stop="x", max_tokens=2), "leave out streaming and stop strings"),
        (
            "c",
            dict(num_beams=2, max_tokens=16),
            "the context is too short for beam search: 1 tokens of prompt and --max_tokens=16",
        ),
        ("c", dict(num_beams=2, max_tokens=2, presence_penalty=1.0), "cannot use penalties"),
    ):
        with pytest.raises(UserError, match=message):
            texts(engine, prompt, **settings)


def test_an_array_of_rows_is_a_prompt_each_and_what_is_no_prompt_is_refused(engine_of):
    engine = engine_of("gpt2")
    rows = np.array([[3, 4], [5, 6]], np.int32)
    found, again = (texts(engine, prompts, max_tokens=3, seed=1) for prompts in (rows, [[3, 4], [5, 6]]))
    assert [c.tokens.tolist() for c in found] == [c.tokens.tolist() for c in again] and len(found) == 2
    [one] = texts(engine, jnp.array([3, 4]), max_tokens=3, seed=1)
    assert one.tokens.tolist() == found[0].tokens.tolist()
    for prompt, message in (
        ([[3, engine.config.vocab_size]], f"token id {engine.config.vocab_size} is outside the vocabulary"),
        ([-1], "token id -1 is outside the vocabulary"),
        (np.array([1.5]), "float64 of shape .1,. is no prompt"),
        ([[[3, 4]]], "int64 of shape .1, 2. is no prompt"),
    ):
        with pytest.raises(UserError, match=message):
            texts(engine, prompt, max_tokens=1)


class Arguments:
    """What argparse gives `gptjax sample` without a flag."""

    def __init__(self, **given):
        parser = cli.parser()
        vars(self).update(vars(parser.parse_args(["sample", "--workdir=x"])) | given)


def test_flags_that_do_not_go_together_are_refused():
    for given, message in (
        (dict(prompt=["a"], prompts_file="x"), "--prompt and --prompts_file are both given"),
        (dict(logprobs=True), "--logprobs needs --json"),
        (dict(stream=True, num_beams=2), "--stream prints one text"),
        (dict(stream=True, prompt=["a", "b"]), "--stream prints one text"),
    ):
        with pytest.raises(UserError, match=message):
            sample.settings(Arguments(**given))
    with pytest.raises(UserError, match="--prompts_file=/none cannot be read"):
        sample._prompts(Arguments(prompts_file="/none"))
    assert (
        json.dumps(sample.settings(Arguments(top_k=3, stop=["x"]))) == '{"top_k": 3, "stop": ["x"], "logprobs": false}'
    )
