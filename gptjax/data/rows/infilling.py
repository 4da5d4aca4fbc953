"""Fill-in-the-middle (Bavarian et al. 2022): a document's middle is moved to its end, to be learnt left to right.

    PSM    PREFIX prefix SUFFIX suffix MIDDLE middle      (section 3)
    SPM    PREFIX SUFFIX suffix MIDDLE prefix middle      (its variant 2)

with the document's end-of-text last, if it lies in the row. Each piece of a document is rearranged with probability
fim_rate, by SPM with fim_spm_rate of those. The two cuts are any two places between characters. A token that is cut
is replaced by the tokens of its two halves; where UTF-8 characters are spread over several tokens, these are cut
together.

Three symbols, and the halves, make a piece longer than its text. Rows are read at full length, and what no longer fits
is left out at the end of a row's text (before it is rearranged, so that a middle is always whole): less than one
percent of the tokens at a thousand tokens a document. Every token of a row is predicted, symbols included.
"""

from typing import NamedTuple

import numpy as np

from gptjax.data.rows import pieces
from gptjax.data.rows.objectives import Objective
from gptjax.data.rows.packing import Batch

PREFIX, MIDDLE, SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"
_NOTHING = np.zeros(0, np.int32)


class Cut(NamedTuple):
    """Where a text is cut: all but tokens first to stop - 1 lie on either side, and their UTF-8 is cut at a byte."""

    first: int
    stop: int
    byte: int


class FillInTheMiddle(Objective):
    """Bavarian et al. 2022: the middle of a document moves to its end, so that a model learns to fill a gap."""

    symbols = (PREFIX, MIDDLE, SUFFIX)

    @classmethod
    def make(cls, config, tokenizer, context_length: int) -> "FillInTheMiddle":
        return cls(config, tokenizer)

    def __init__(self, config, tokenizer):
        self._tokenizer = tokenizer.with_special(self.symbols)
        self._rate, self._spm_rate = config.fim_rate, config.fim_spm_rate
        self._prefix, self._middle, self._suffix = (
            np.array([self._tokenizer.special[name]], np.int32) for name in self.symbols
        )
        spelling = self._tokenizer.spelling
        self._n_characters_V = np.array([len(_character_starts(s)) for s in spelling], np.int64)
        self._continues_V = np.array([bool(s) and _continues(s[0]) for s in spelling])

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        token_BT = batch["token_BT"]
        found = pieces.find(batch, self._tokenizer.eot_id)
        key_P = pieces.draw(key_B[found.row], found.number)
        drawn_P4 = pieces.uniform(pieces.draw(key_P[:, None], np.arange(4)))
        filled = _Rows(token_BT.shape)
        for row, column, length, drawn in zip(
            found.row.tolist(), found.column.tolist(), found.length.tolist(), drawn_P4.tolist()
        ):
            space = filled.space(row)
            text_L = token_BT[row, column : column + length]
            parts = self._rearranged(text_L, space, drawn) if drawn[0] < self._rate else None
            filled.add(row, [text_L[:space]] if parts is None else parts)
        return filled.batch("segment_BT" in batch)

    def _rearranged(self, text_L: np.ndarray, space: int, drawn) -> list[np.ndarray] | None:
        """The parts of a piece in their new order, at most `space` tokens; None if it cannot be cut."""
        _, spm, *places = drawn
        length, has_end = len(text_L), text_L[-1] == self._tokenizer.eot_id
        while length >= 2:
            body_L = text_L[: length - (has_end and length == len(text_L))]
            cuts = self._cuts(body_L, places)
            if cuts is None:
                return None
            prefix, middle, suffix = self._sections(body_L, *cuts)
            added = sum(map(len, (*prefix, *middle, *suffix))) - len(body_L) + len(self.symbols)
            excess = length + added - space
            if excess <= 0:  # if below, a text was shortened by more than it had to be
                stop = min(length - excess, len(text_L))
                body_stop = stop - (has_end and stop == len(text_L))
                suffix, end = [*suffix, text_L[len(body_L) : body_stop]], text_L[body_stop:stop]
                if spm < self._spm_rate:
                    return [self._prefix, self._suffix, *suffix, self._middle, *prefix, *middle, end]
                return [self._prefix, *prefix, self._suffix, *suffix, self._middle, *middle, end]
            length -= excess
        return None

    def _cuts(self, body_L: np.ndarray, places: list[float]) -> tuple[Cut, Cut] | None:
        """Two cuts, each before any of the characters or behind the last; None if there are none to cut between."""
        until_L = np.cumsum(self._n_characters_V[body_L])
        total = int(until_L[-1]) if len(until_L) else 0
        if not total:
            return None
        first, second = sorted(int(place * (total + 1)) for place in places)
        a, b = (self._cut_before(body_L, until_L, character) for character in (first, second))
        return None if a is None or b is None else (a, b)

    def _cut_before(self, body_L, until_L, character: int) -> Cut | None:
        """None where the tokens that have to be cut are no text: a row's end tore their character."""
        if character == until_L[-1]:
            return Cut(len(body_L), len(body_L), 0)
        token = int(np.searchsorted(until_L, character, side="right"))
        spelling = self._tokenizer.spelling
        starts = _character_starts(spelling[body_L[token]])
        within = starts[character - int(until_L[token])]  # counted from the last
        if within == 0:
            return Cut(token, token, 0)
        first, stop = token, token + 1
        while first > 0 and self._continues_V[body_L[first]]:
            first -= 1
        while stop < len(body_L) and self._continues_V[body_L[stop]]:
            stop += 1
        try:
            self._text(body_L[first:stop]).decode()
        except UnicodeDecodeError:
            return None
        return Cut(first, stop, len(self._text(body_L[first:token])) + within)

    def _sections(self, body_L, a: Cut, b: Cut) -> tuple[list, list, list]:
        """Prefix, middle and suffix, each a list of arrays of tokens."""
        text_a, text_b = self._text(body_L[a.first : a.stop]), self._text(body_L[b.first : b.stop])
        prefix = [body_L[: a.first], self._encode(text_a[: a.byte])]
        suffix = [self._encode(text_b[b.byte :]), body_L[b.stop :]]
        if a.first == b.first and a.stop == b.stop:
            return prefix, [self._encode(text_a[a.byte : b.byte])], suffix
        middle = [self._encode(text_a[a.byte :]), body_L[a.stop : b.first], self._encode(text_b[: b.byte])]
        return prefix, middle, suffix

    def _text(self, token_L: np.ndarray) -> bytes:
        return b"".join(self._tokenizer.spelling[i] for i in token_L.tolist())

    def _encode(self, text: bytes) -> np.ndarray:
        return self._tokenizer.encode(text.decode()) if text else _NOTHING


def _continues(byte: int) -> bool:
    """Whether a byte of UTF-8 goes on with a character."""
    return byte & 0xC0 == 0x80


def _character_starts(spelling: bytes) -> list[int]:
    return [i for i, byte in enumerate(spelling) if not _continues(byte)]


class _Rows:
    """Rows that pieces are put into one after another."""

    def __init__(self, shape: tuple[int, int]):
        self._token_BT = np.zeros(shape, np.int32)
        self._used = [0] * shape[0]
        self._row, self._column = [], []  # of each piece

    def space(self, row: int) -> int:
        return self._token_BT.shape[1] - self._used[row]

    def add(self, row: int, parts: list[np.ndarray]) -> None:
        token_L = np.concatenate(parts)
        if not len(token_L):
            return
        first = self._used[row]
        self._row.append(row)
        self._column.append(first)
        self._used[row] = first + len(token_L)
        self._token_BT[row, first : self._used[row]] = token_L

    def batch(self, apart: bool) -> Batch:
        """What the rows hold; beyond is token 0 of weight 0."""
        used_B = np.array(self._used)
        weight_BL = (np.arange(1, self._token_BT.shape[1]) < used_B[:, None]).astype(np.float32)
        if not apart:
            return {"token_BT": self._token_BT, "weight_BL": weight_BL}
        masks = pieces.keep_apart(self._token_BT.shape, self._row, self._column, used_B)
        weight_BL *= masks["segment_BT"][:, 1:] == masks["segment_BT"][:, :-1]
        return {"token_BT": self._token_BT, "weight_BL": weight_BL, **masks}
