"""Objectives: what goes in can be put together again from what comes out, and draws are those of the row alone."""

import copy
import dataclasses
import functools
import pickle

import numpy as np
import pytest

from gptjax.config.fields import Config, DataConfig, TrainConfig
from gptjax.data.rows import denoising, infilling, objectives, packing, pieces, spans
from gptjax.data.tokenizers import TOKENIZERS, train_tokenizer
from gptjax.errors import UserError

WORDS = "the of and fill middle naïve café 中文 文字模型 🙂 Ünïcödé don't 3.1415 \t\n x".split(" ")


def text_of(seed: int, length: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, size=length))


class PairTokenizer(TOKENIZERS["bytes"]):
    """Any two bytes are a token, so that characters are spread over tokens as in GPT-2's BPE, and begin within them."""

    def __init__(self):
        super().__init__()
        self.spelling = self.spelling + [bytes([a, b]) for a in range(256) for b in range(256)]

    def encode(self, text: str) -> np.ndarray:
        data = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        pairs = data[: len(data) // 2 * 2].reshape(-1, 2)
        return np.append(257 + 256 * pairs[:, 0] + pairs[:, 1], data[len(pairs) * 2 :]).astype(np.int32)


@functools.cache
def tokenizer_of(kind: str):
    if kind == "pairs":
        return PairTokenizer()
    config = DataConfig(tokenizer=kind, tokenizer_vocab_size=340)
    return train_tokenizer(config, [text_of(seed, 500) for seed in range(4)])


def documents_of(kind: str, count: int, mean_words: int, seed: int = 0) -> list[np.ndarray]:
    """Documents of random lengths, each ended by end-of-text."""
    tokenizer, rng = tokenizer_of(kind), np.random.default_rng(seed)
    texts = (text_of(1000 * seed + i, 1 + rng.geometric(1 / mean_words)) for i in range(count))
    return [np.append(tokenizer.encode(text), tokenizer.eot_id).astype(np.int32) for text in texts]


def rows_of(documents, row_tokens: int, apart: bool) -> packing.Batch:
    """Documents end to end, cut into rows."""
    token_N, number_N = np.concatenate(documents), np.repeat(np.arange(len(documents)), list(map(len, documents)))
    count = len(token_N) // row_tokens
    token_BT, number_BT = (a[: count * row_tokens].reshape(count, row_tokens) for a in (token_N, number_N))
    if not apart:
        return {"token_BT": token_BT, "weight_BL": np.ones((count, row_tokens - 1), np.float32)}
    starts_BT = np.diff(number_BT, axis=1, prepend=number_BT[:, :1]) != 0
    index_T = np.arange(row_tokens)
    return {
        "token_BT": token_BT,
        "weight_BL": (~starts_BT[:, 1:]).astype(np.float32),
        "segment_BT": starts_BT.cumsum(1).astype(np.int32),
        "position_BL": (index_T - np.maximum.accumulate(index_T * starts_BT, axis=1))[:, :-1].astype(np.int32),
    }


def keys(count: int) -> np.ndarray:
    return pieces.draw(np.arange(count, dtype=np.uint64), 17)


@functools.cache
def example(name: str, kind: str = "bytes", apart: bool = False, context=128, count=300, mean_words=15, **settings):
    """(objective, rows as they are packed, rows from it)."""
    config = dataclasses.replace(DataConfig(objective=name, mask_documents=apart), **settings)
    objective = objectives.make_objective(config, tokenizer_of(kind), context)
    given = rows_of(documents_of(kind, count, mean_words), objective.source_tokens(context + 1), apart)
    return objective, given, objective(copy.deepcopy(given), keys(len(given["token_BT"])))


def special_of(kind: str, objective) -> dict[str, int]:
    return tokenizer_of(kind).with_special(objective.symbols).special


def segments_of(rows: packing.Batch, row: int):
    """(first, stop) of the segments of a row; the whole row without them."""
    if "segment_BT" not in rows:
        return [(0, rows["token_BT"].shape[1])]
    edges = np.flatnonzero(np.diff(rows["segment_BT"][row], prepend=-1, append=-1))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist()))


def within(count: int, n: int, rate: float) -> bool:
    """Whether so many of n are what a rate gives, within 3 standard errors."""
    return abs(count - n * rate) < 3 * np.sqrt(n * rate * (1 - rate))


# ---- all of them

ALL = [(name, apart) for name in objectives.OBJECTIVES for apart in (False, True)]


@pytest.mark.parametrize("name,apart", ALL)
def test_a_row_is_the_same_whatever_rows_it_is_read_with(name, apart):
    objective, given, rows = example(name, apart=apart)
    key_B = keys(len(given["token_BT"]))
    for some in (slice(5, 6), slice(2, 9), slice(None, None, -7)):
        part = objective({key: a[some] for key, a in given.items()}, key_B[some])
        assert part.keys() == rows.keys()
        for key, a in part.items():
            np.testing.assert_array_equal(a, rows[key][some])


@pytest.mark.parametrize("name,apart", ALL)
def test_rows_have_the_arrays_that_the_config_says(name, apart):
    objective, given, rows = example(name, apart=apart)
    config, count = DataConfig(objective=name, mask_documents=apart), len(given["token_BT"])
    shapes = {"token_BT": ((count, 129), np.int32), "weight_BL": ((count, 128), np.float32)}
    if apart:
        shapes |= {"segment_BT": ((count, 129), np.int32), "position_BL": ((count, 128), np.int32)}
    shapes |= {"prefix_BL": ((count, 128), np.bool_)} if config.sees_ahead else {}
    shapes |= {"target_BL": ((count, 128), np.int32)} if config.predicts_in_place else {}
    assert {key: (a.shape, a.dtype) for key, a in rows.items()} == shapes
    for row in range(count if apart else 0):
        for first, stop in segments_of(rows, row):
            assert rows["position_BL"][row, first:stop].tolist() == list(range(min(stop, 128) - first))


@pytest.mark.parametrize("name", [name for name in objectives.OBJECTIVES if name != "next_token"])
def test_other_keys_give_other_draws_and_the_same_key_the_same(name):
    objective, given, rows = example(name)
    key_B = keys(len(given["token_BT"]))
    again, others = objective(given, key_B), objective(given, key_B + np.uint64(1))
    for key, a in again.items():
        np.testing.assert_array_equal(a, rows[key])
    differ_B = (rows["token_BT"] != others["token_BT"]).any(1) | (rows["weight_BL"] != others["weight_BL"]).any(1)
    assert differ_B.mean() > 0.8


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_another_process_gets_the_same_rows(name):
    objective, given, rows = example(name, "sentencepiece")
    copied = pickle.loads(pickle.dumps(objective))
    np.testing.assert_array_equal(copied(given, keys(len(given["token_BT"])))["token_BT"], rows["token_BT"])


@pytest.mark.parametrize("name,apart", ALL)
def test_what_has_no_weight_in_the_packing_is_not_trained_on(name, apart):
    """The last row of held-out text, of which 40 tokens are predicted; and one beyond it."""
    objective, given, _ = example(name, apart=apart)
    some = {key: a[:2].copy() for key, a in given.items()}
    some["token_BT"][0, 41:] = some["token_BT"][1] = 255  # is no UTF-8: in no text
    some["weight_BL"][0, 40:] = some["weight_BL"][1] = 0
    rows = objective(some, keys(2))
    assert rows["weight_BL"][0].sum() > 0 and rows["weight_BL"][1].sum() == 0
    assert not (objectives.targets(rows)[rows["weight_BL"] > 0] == 255).any()
    if "prefix_BL" in rows and name != "masked_lm":
        assert not (rows["prefix_BL"] & (rows["token_BT"][:, :-1] == 255)).any()


def test_next_token_leaves_rows_as_they_are():
    objective, given, _ = example("next_token", apart=True)
    assert objective(given, None) is given and objective.source_tokens(129) == 129


def test_held_out_text_is_judged_by_the_next_token_or_by_the_objective_with_keys_of_the_row():
    judges = {name: objectives.held_out(example(name)[0]) for name in objectives.OBJECTIVES}
    by_itself = {name for name, judge in judges.items() if not isinstance(judge, objectives.NextToken)}
    assert by_itself == {"prefix_lm", "masked_lm", "span_corruption"}
    key_B = objectives.evaluation_keys(0, 10)
    assert len(set(key_B.tolist())) == 10
    np.testing.assert_array_equal(objectives.evaluation_keys(4, 7), key_B[4:7])


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"objective": "denoise"}, "data.objective='denoise' is not known"),
        ({"objective": "masked_lm", "context": 1}, "model.context_length=1 is too short for .*'masked_lm'"),
        ({"objective": "span_corruption", "context": 3}, "model.context_length=3 is too short"),
        ({"fim_rate": 1.5}, "data.fim_rate=1.5 is not in"),
        ({"mask_rate": 0.0}, "data.mask_rate=0.0 is not in"),
        ({"objective": "span_corruption", "span_length": 0.5}, "data.span_length=0.5 is too small"),
        ({"objective": "span_corruption", "mask_rate": 0.8}, "use a rate of at most 0.75"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    context = settings.pop("context", 16)
    with pytest.raises(UserError, match=message):
        config = Config(data=DataConfig(**settings), train=TrainConfig(steps=1))
        objectives.make_objective(config.data, tokenizer_of("bytes"), context)


# ---- fill in the middle


def fim_pieces(kind: str, apart: bool, **settings):
    """For each row, of each piece: (its tokens as they are packed, those from the objective)."""
    objective, given, rows = example("fim", kind, apart, **settings)
    eot = tokenizer_of(kind).eot_id

    def pieces_of(batch, row):
        token_T, real_T = batch["token_BT"][row], pieces.real_tokens(batch)[row]
        if apart:
            return [token_T[a:b].tolist() for a, b in segments_of(batch, row) if real_T[a]]
        ends = np.flatnonzero(token_T == eot) + 1
        return [part.tolist() for part in np.split(token_T, ends) if len(part)]

    for row in range(len(rows["token_BT"])):
        yield list(zip(pieces_of(given, row), pieces_of(rows, row)))


@functools.cache
def fim_tokenizer_of(kind: str):
    return tokenizer_of(kind).with_special(infilling.FillInTheMiddle.symbols)


def fim_sections(ids: list[int], kind: str, spm: bool | None = None) -> tuple:
    """("PSM" | "SPM", prefix, middle, suffix) as bytes, or ("plain", all of it, b"", b"").

    Without its prefix a PSM reads as an SPM without its own; spm tells which it is.
    """
    tokenizer = fim_tokenizer_of(kind)

    def spelled(part):
        assert not set(part) & set(tokenizer.special.values())
        return b"".join(tokenizer.spelling[i] for i in part)

    ids = ids[:-1] if ids[-1] == tokenizer.eot_id else ids
    symbols = [tokenizer.special[name] for name in ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")]
    if not set(symbols) & set(ids):
        return "plain", spelled(ids), b"", b""
    at_prefix, at_middle, at_suffix = (ids.index(symbol) for symbol in symbols)
    assert at_prefix == 0
    suffix, last = spelled(ids[at_suffix + 1 : at_middle]), spelled(ids[at_middle + 1 :])
    if at_suffix == 1 and spm is not False:
        return "SPM", last, b"", suffix
    return "PSM", spelled(ids[1:at_suffix]), last, suffix


@pytest.mark.parametrize("kind", ["bytes", "chars", "sentencepiece", "pairs"])
@pytest.mark.parametrize("apart", [False, True])
def test_prefix_middle_and_suffix_are_the_text_byte_for_byte(kind, apart):
    """But for a row's last piece, whose end may be left out; and end-of-text stays where a document ends."""
    tokenizer, count = tokenizer_of(kind), {"PSM": 0, "SPM": 0, "plain": 0}
    for row in fim_pieces(kind, apart):
        for i, (source, out) in enumerate(row):
            text = b"".join(tokenizer.spelling[i] for i in source)
            order, *sections = fim_sections(out, kind)
            count[order] += 1
            ended = [ids[-1] == tokenizer.eot_id for ids in (source, out)]
            if i < len(row) - 1:
                assert b"".join(sections) == text and ended[0] == ended[1]
            else:
                assert text.startswith(b"".join(sections))
                assert b"".join(sections) == text and ended[0] or not ended[1]
    assert min(count.values()) > 50


@pytest.mark.parametrize("apart", [False, True])
def test_rows_are_as_full_as_before_so_that_only_what_does_not_fit_is_left_out(apart):
    _, given, rows = example("fim", "sentencepiece", apart)
    if not apart:
        assert (rows["weight_BL"] == 1).all()
    given_B, rows_B = (pieces.real_tokens(batch).sum(1) for batch in (given, rows))
    assert (rows_B >= given_B - apart).all()  # one token alone is no piece


@pytest.mark.parametrize("settings", [{}, {"fim_rate": 0.9, "fim_spm_rate": 0.1}, {"fim_rate": 0.0}], ids=str)
def test_pieces_are_rearranged_at_the_rates_asked_for(settings):
    rates = {"fim_rate": 0.5, "fim_spm_rate": 0.5} | settings
    sizes = dict(count=400, mean_words=150, context=512)  # so long that a prefix is hardly ever empty
    rows = fim_pieces("sentencepiece", True, **sizes, **settings)
    found = [fim_sections(out, "sentencepiece")[0] for row in rows for source, out in row if len(source) > 20]
    n, spm = len(found), found.count("SPM")
    assert n > 500
    if not rates["fim_rate"]:
        assert set(found) == {"plain"}
        return
    assert within(n - found.count("plain"), n, rates["fim_rate"])
    assert within(spm, n - found.count("plain"), rates["fim_spm_rate"])


@pytest.mark.parametrize("kind", ["sentencepiece", "pairs"])
def test_cuts_fall_between_any_two_characters_alike_also_within_tokens(kind):
    """Cuts of a document of 40 characters whose rows are all it: each of the 41 places as often as another."""
    tokenizer = tokenizer_of(kind)
    text = "fill middle naïve café 中文 文字模型 🙂 the of and"[:40]
    token_T = tokenizer.encode(text).astype(np.int32)
    assert len(token_T) < 35 and len(text) == 40
    config = DataConfig(objective="fim", fim_rate=1.0, fim_spm_rate=0.0)
    objective = objectives.make_objective(config, tokenizer, 95)
    rows = np.zeros((4000, 96), np.int32)
    rows[:, : len(token_T)] = token_T
    weight_BL = np.zeros((4000, 95), np.float32)
    weight_BL[:, : len(token_T) - 1] = 1
    out = objective({"token_BT": rows, "weight_BL": weight_BL}, keys(4000))
    count = np.zeros(41)
    for ids_T, weight_L in zip(out["token_BT"], out["weight_BL"]):
        ids = ids_T[: int(weight_L.sum()) + 1].tolist()
        _, prefix, middle, suffix = fim_sections(ids, kind, spm=False)
        assert prefix + middle + suffix == text.encode()
        count[len(prefix.decode())] += 1
        count[len((prefix + middle).decode())] += 1
    chi2 = np.square(count - 8000 / 41).sum() / (8000 / 41)
    assert chi2 < 40 + 3 * np.sqrt(80)


# ---- prefix LM


@pytest.mark.parametrize("apart", [False, True])
def test_a_prefix_has_any_length_and_only_what_follows_it_is_predicted(apart):
    _, given, rows = example("prefix_lm", apart=apart, context=64)
    part, lengths = [], []
    for row in range(len(given["token_BT"])):
        for first, stop in segments_of(given, row):
            prefix_L = rows["prefix_BL"][row, first : stop - 1]
            length = int(prefix_L.sum())
            weight_L = rows["weight_BL"][row, first : stop - 1]
            if stop - first > 1:
                assert 1 <= length < stop - first and prefix_L[:length].all()
                assert weight_L.tolist() == [float(i >= length - 1) for i in range(stop - first - 1)]
                part.append((length - 0.5) / (stop - first - 1))
                lengths.append(stop - first)
    part = np.array(part)
    assert len(part) > 200
    assert abs(part.mean() - 0.5) < 3 * np.sqrt(1 / 12 / len(part))
    np.testing.assert_array_equal(rows["token_BT"], given["token_BT"])


# ---- masked LM


@pytest.mark.parametrize("settings", [{}, {"mask_rate": 0.4}], ids=str)
def test_masked_tokens_are_hidden_swapped_or_left_at_berts_rates(settings):
    objective, given, rows = example("masked_lm", "sentencepiece", True, count=600, **settings)
    rate, mask_id = settings.get("mask_rate", 0.15), special_of("sentencepiece", objective)[denoising.MASK]
    text_BL, token_BL, chosen_BL = given["token_BT"], rows["token_BT"][:, :-1], rows["weight_BL"] > 0
    eot_BL = text_BL == tokenizer_of("sentencepiece").eot_id
    np.testing.assert_array_equal(rows["target_BL"], text_BL)
    np.testing.assert_array_equal(token_BL[~chosen_BL], text_BL[~chosen_BL])
    assert not (chosen_BL & eot_BL).any() and rows["prefix_BL"].all()
    n = int(chosen_BL.sum())
    assert n > 1500 and within(n, int((pieces.real_tokens(given) & ~eot_BL).sum()), rate)
    hidden_BL, same_BL = token_BL == mask_id, token_BL == text_BL
    assert within(int(hidden_BL.sum()), n, 0.8)
    assert within(int((chosen_BL & same_BL).sum()), n, 0.1)  # and a random token may be the same, one in 340
    swapped = token_BL[chosen_BL & ~hidden_BL & ~same_BL]
    assert len(np.unique(swapped)) > 0.3 * min(340, len(swapped))
    assert (tokenizer_of("sentencepiece").token_bytes[swapped] > 0).all()


def test_every_row_has_a_token_to_predict():
    objective, given, _ = example("masked_lm", context=4)
    weight_BL = objective(given, keys(len(given["token_BT"])))["weight_BL"]
    may_B = (given["token_BT"] != 256).any(1)
    np.testing.assert_array_equal(weight_BL.sum(1) > 0, may_B)
    assert 1 < weight_BL.sum(1).max()


# ---- span corruption


def merged(token_L, weight_L, special: dict[str, int]) -> tuple[list[int], list[int]]:
    """(the text that inputs and targets of a segment are made of, lengths of its spans)."""
    number = {special[name]: i for i, name in enumerate(name for name in special if name.startswith("<|span_"))}
    targets = int(np.flatnonzero(weight_L)[0]) + 1  # the first token that is predicted
    inputs, spans_of = token_L[:targets].tolist(), []
    for token in token_L[targets:].tolist():
        if token in number:
            assert number[token] == len(spans_of)  # in order
            spans_of.append([])
        else:
            spans_of[-1].append(token)
    assert spans_of.pop() == []  # the last symbol ends the last span
    assert [number[token] for token in inputs if token in number] == list(range(len(spans_of)))
    text = [t for token in inputs for t in (spans_of[number[token]] if token in number else [token])]
    return text, [len(span) for span in spans_of]


@pytest.mark.parametrize(
    "settings", [{}, {"mask_rate": 0.5, "span_length": 8.0}, {"mask_rate": 0.5, "span_length": 1.0}]
)
@pytest.mark.parametrize("context", [16, 128, 129, 130, 131])
def test_a_row_of_one_text_is_filled_exactly_at_the_rates_asked_for(context, settings):
    objective, given, rows = example("span_corruption", context=context, **settings)
    rate, length = settings.get("mask_rate", 0.15), settings.get("span_length", 3.0)
    lengths, n = [], given["token_BT"].shape[1]
    for row, text_L in enumerate(given["token_BT"]):
        weight_L, prefix_L = rows["weight_BL"][row], rows["prefix_BL"][row]
        text, of_row = merged(rows["token_BT"][row], weight_L, special_of("bytes", objective))
        assert text == text_L.tolist()
        first = int(np.flatnonzero(weight_L)[0])
        assert weight_L[first:].all() and prefix_L.sum() == first + 1 and prefix_L[: first + 1].all()
        assert abs(sum(of_row) - n * rate) < 1 and abs(len(of_row) - n * rate / length) <= 1 + 0.5 * rate / length
        lengths += of_row
    assert np.mean(lengths) == pytest.approx(length, rel=0.5 if context == 16 else 0.15)
    assert len(set(lengths)) > 1 or context == 16 or length == 1


def test_pieces_kept_apart_are_cut_on_their_own_at_the_rates_asked_for():
    objective, given, rows = example("span_corruption", apart=True, context=512, count=500, mean_words=30)
    noise = tokens = n_spans = pieces_seen = left_out = 0
    for row in range(len(rows["token_BT"])):
        before, after = segments_of(given, row), segments_of(rows, row)
        texts = [given["token_BT"][row, a:b].tolist() for a, b in before if b - a > 1]
        for (first, stop), source in zip(after, texts):
            weight_L = rows["weight_BL"][row, first : stop - 1]
            if not weight_L.any():
                continue  # what pads a row
            text, lengths = merged(rows["token_BT"][row, first:stop], weight_L, special_of("bytes", objective))
            assert text == source[: len(text)]
            left_out += len(source) - len(text)
            noise, tokens, n_spans = noise + sum(lengths), tokens + len(text), n_spans + len(lengths)
            pieces_seen += 1
            assert weight_L.sum() == sum(lengths) + len(lengths) + 1
        assert (rows["weight_BL"][row][np.diff(rows["segment_BT"][row]) > 0] == 0).all()
    assert pieces_seen > 300 and left_out < 0.02 * tokens
    assert noise / tokens == pytest.approx(0.15, abs=3 * np.sqrt(0.25 * pieces_seen) / tokens + 0.001)
    assert noise / n_spans == pytest.approx(3.0, rel=0.05)
    assert (rows["segment_BT"].max(1) > 0).any()


def test_all_ways_to_cut_out_so_many_spans_are_equally_likely():
    """Five tokens, three of them in two spans: 2 ways to part three, 3 to choose two of three places."""
    draws = 6000
    n_P = np.full(draws, 5)
    starts_N, noise_N = spans._cut_out(n_P, np.full(draws, 3), np.full(draws, 2), keys(draws))
    ways, count = np.unique(np.hstack([starts_N.reshape(-1, 5), noise_N.reshape(-1, 5)]), axis=0, return_counts=True)
    assert len(ways) == 6 and (ways[:, 5:].sum(1) == 3).all() and (ways[:, :5].sum(1) == 2).all()
    assert np.square(count - draws / 6).sum() / (draws / 6) < 5 + 3 * np.sqrt(10)
