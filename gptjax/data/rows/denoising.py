"""Objectives that see both ways: a prefix before what is predicted, or all that is not hidden."""

import numpy as np

from gptjax.data.rows import pieces
from gptjax.data.rows.objectives import Objective
from gptjax.data.rows.packing import Batch

MASK = "<|mask|>"


class PrefixLM(Objective):
    """Raffel et al. 2020, section 3.2.1: a prefix of random length is seen both ways, and what follows it predicted.

    Each piece has a prefix where documents are kept apart, otherwise each row has one: at least one token, and at least
    one is left to predict.
    """

    judged_by_itself = True

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        found = pieces.find(batch)
        length_P = 1 + pieces.below(pieces.draw(key_B[found.row], found.number), found.length - 1)
        shape = batch["token_BT"].shape
        prefix_BT = pieces.between(shape, found.row, found.column, found.column + length_P)
        return batch | {"weight_BL": batch["weight_BL"] * ~prefix_BT[:, 1:], "prefix_BL": prefix_BT[:, :-1]}


class MaskedLM(Objective):
    """BERT (Devlin et al. 2018, section 3.1): mask_rate of the tokens are predicted from all the others of their
    document, 80% of them hidden behind a mask, 10% behind a random token, 10% in sight.

    End-of-text is never one of them. A row in which chance picks none gets one.
    """

    symbols = (MASK,)
    judged_by_itself = True

    @classmethod
    def make(cls, config, tokenizer, context_length: int) -> "MaskedLM":
        return cls(config, tokenizer)

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
