"""What a row of text is trained to do: next token, fill-in-the-middle, prefix LM, masked LM, span corruption.

An objective turns rows as they are packed into what the model takes. Its draws are hashes of each row's key, so that
a row comes out the same whatever rows it is read with, on any host.

In, R = source_tokens(T + 1), and with segment_BT and position_BL where documents are kept apart (see `packing`):

    token_BT     int32 [B, R]
    weight_BL    float32 [B, R - 1]   of predicting the token after each; 0 where that is padding or another document's

Out:

    token_BT     int32 [B, T + 1]
    weight_BL    float32 [B, T]       of the loss at each position
    target_BL    int32 [B, T]         what is predicted there, where it is not the next token              (masked_lm)
    prefix_BL    bool [B, T]          tokens that earlier ones of their segment see too    (not in next_token and fim)
    segment_BT   int32 [B, T + 1], position_BL int32 [B, T]                       (where documents are kept apart)

Held-out text is judged by the loss of the next token where that is what is trained (next_token, fim), otherwise by the
objective itself with keys made of the row's number: `held_out`, `evaluation_keys`.
"""

from typing import Protocol

import numpy as np

from gptjax.data.rows import pieces
from gptjax.data.rows.infilling import FillInTheMiddle
from gptjax.data.rows.packing import Batch
from gptjax.data.rows.spans import SpanCorruption
from gptjax.errors import UserError, choose

MASK = "<|mask|>"
_EVALUATION_STREAM = 1


class Objective(Protocol):
    symbols: tuple[str, ...]  # special tokens that its rows have beside those of the text
    judged_by_itself: bool  # on held-out text; otherwise by the loss of the next token

    def source_tokens(self, row_tokens: int) -> int:
        """Tokens of text that a row of row_tokens is made of."""

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        """Rows for the model. key_B: uint64, of each row's draws."""


class NextToken:
    """Of each token from all before it. The rows are those of the packing, untouched."""

    symbols = ()
    judged_by_itself = False

    def source_tokens(self, row_tokens: int) -> int:
        return row_tokens

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        return batch


class PrefixLM:
    """Raffel et al. 2020, section 3.2.1: a prefix of random length is seen both ways, and what follows it predicted.

    Each piece has a prefix where documents are kept apart, otherwise each row has one: at least one token, and at least
    one is left to predict.
    """

    symbols = ()
    judged_by_itself = True

    def source_tokens(self, row_tokens: int) -> int:
        return row_tokens

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        found = pieces.find(batch)
        length_P = 1 + pieces.below(pieces.draw(key_B[found.row], found.number), found.length - 1)
        shape = batch["token_BT"].shape
        prefix_BT = pieces.between(shape, found.row, found.column, found.column + length_P)
        return batch | {"weight_BL": batch["weight_BL"] * ~prefix_BT[:, 1:], "prefix_BL": prefix_BT[:, :-1]}


class MaskedLM:
    """BERT (Devlin et al. 2018, section 3.1): mask_rate of the tokens are predicted from all the others of their
    document, 80% of them hidden behind a mask, 10% behind a random token, 10% in sight.

    End-of-text is never one of them. A row in which chance picks none gets one.
    """

    symbols = (MASK,)
    judged_by_itself = True

    def __init__(self, config, tokenizer):
        tokenizer = tokenizer.with_special(self.symbols)
        self._rate, self._mask_id = config.mask_rate, tokenizer.special[MASK]
        self._is_text_V = np.asarray(tokenizer.token_bytes) > 0
        self._text_ids = np.flatnonzero(self._is_text_V).astype(np.int32)

    def source_tokens(self, row_tokens: int) -> int:
        return row_tokens - 1  # there is no next token to predict

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        target_BL = batch["token_BT"]
        chosen_BL, drawn_BL = self._choose(batch, key_B)
        hidden_BL = np.where(drawn_BL < 0.9, self._random_text(drawn_BL), target_BL)
        hidden_BL = np.where(drawn_BL < 0.8, self._mask_id, hidden_BL)
        token_BL = np.where(chosen_BL, hidden_BL, target_BL).astype(np.int32)
        return {
            "token_BT": np.pad(token_BL, ((0, 0), (0, 1))),  # the last is no input, and no target
            "weight_BL": chosen_BL.astype(np.float32),
            "target_BL": target_BL,
            "prefix_BL": np.ones(target_BL.shape, bool),
            **_one_more(batch),
        }

    def _choose(self, batch: Batch, key_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(boolean [B, L] of tokens to predict, [B, L] uniform in [0, 1) and independent of it)."""
        index_L = np.arange(batch["token_BT"].shape[1])
        may_BL = pieces.real_tokens(batch) & self._is_text_V[batch["token_BT"]]
        drawn_BL = np.where(may_BL, pieces.uniform(pieces.draw(pieces.draw(key_B, 0)[:, None], index_L)), 2.0)
        limit_B1 = np.maximum(self._rate, np.nextafter(drawn_BL.min(1, keepdims=True), 3))
        chosen_BL = may_BL & (drawn_BL < limit_B1)
        return chosen_BL, pieces.uniform(pieces.draw(pieces.draw(key_B, 1)[:, None], index_L))

    def _random_text(self, drawn_BL: np.ndarray) -> np.ndarray:
        """A token of text for each number in [0.8, 0.9)."""
        index_BL = (np.clip(drawn_BL * 10 - 8, 0, np.nextafter(1, 0)) * len(self._text_ids)).astype(np.int64)
        return self._text_ids[index_BL]


def _one_more(batch: Batch) -> Batch:
    """segment_BT and position_BL, if the batch has them, of rows longer by one token, which nothing reads."""
    if "segment_BT" not in batch:
        return {}
    segment_BL, position_BL = batch["segment_BT"], batch["position_BL"]
    same_B = segment_BL[:, -1] == segment_BL[:, -2]
    last_B1 = np.where(same_B, position_BL[:, -1] + 1, 0).astype(np.int32)[:, None]
    return {
        "segment_BT": np.pad(segment_BL, ((0, 0), (0, 1)), mode="edge"),
        "position_BL": np.concatenate([position_BL, last_B1], axis=1),
    }


OBJECTIVES = {
    "next_token": lambda config, tokenizer, context_length: NextToken(),
    "fim": lambda config, tokenizer, context_length: FillInTheMiddle(config, tokenizer),
    "prefix_lm": lambda config, tokenizer, context_length: PrefixLM(),
    "masked_lm": lambda config, tokenizer, context_length: MaskedLM(config, tokenizer),
    "span_corruption": lambda config, tokenizer, context_length: SpanCorruption(config, tokenizer, context_length + 1),
}


def make_objective(config, tokenizer, context_length: int) -> Objective:
    """That of a DataConfig. Its ids of special symbols are those of tokenizer.with_special(objective.symbols).

    Raises UserError: an unknown name, a context too short for it.
    """
    objective = choose(OBJECTIVES, config.objective, "data.objective")(config, tokenizer, context_length)
    if objective.source_tokens(context_length + 1) < 2:
        raise UserError(
            f"model.context_length={context_length} is too short for data.objective={config.objective!r}, whose rows"
            " would be made of a single token; use at least 2."
        )
    return objective


def held_out(objective: Objective) -> Objective:
    """What judges a model of this objective on held-out text."""
    return objective if objective.judged_by_itself else NextToken()


def evaluation_keys(first: int, stop: int) -> np.ndarray:
    """uint64 [stop - first]: keys of rows first to stop - 1 of held-out text, the same in every evaluation."""
    return pieces.draw(np.arange(first, stop, dtype=np.uint64), _EVALUATION_STREAM)


def targets(batch: Batch) -> np.ndarray:
    """int32 [B, T]: the token that the model is to predict at each position of rows from an objective."""
    return batch["target_BL"] if "target_BL" in batch else batch["token_BT"][:, 1:]
