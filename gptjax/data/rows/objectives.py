"""What a row of text is trained to do: the next token here; others in infilling, denoising, spans, named in text_kinds.

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

import abc

import numpy as np

from gptjax.config.text_kinds import OBJECTIVES
from gptjax.data.rows.hashing import draw
from gptjax.data.rows.packing import Batch
from gptjax.errors import UserError, choose, imported

_EVALUATION_STREAM = 1


class Objective(abc.ABC):
    symbols: tuple[str, ...] = ()  # special tokens that its rows have beside those of the text
    judged_by_itself = False  # on held-out text; otherwise by the loss of the next token

    @classmethod
    def make(cls, config, tokenizer, context_length: int) -> "Objective":
        """That of a DataConfig. Raises UserError: the context is too short for it."""
        return cls()

    def source_tokens(self, row_tokens: int) -> int:
        """Tokens of text that a row of row_tokens is made of."""
        return row_tokens

    @abc.abstractmethod
    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        """Rows for the model. key_B: uint64, of each row's draws."""


class NextToken(Objective):
    """Of each token from all before it. The rows are those of the packing, untouched."""

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        return batch


def make_objective(config, tokenizer, context_length: int) -> Objective:
    """That of a DataConfig. Its ids of special symbols are those of tokenizer.with_special(objective.symbols).

    Raises UserError: an unknown name, a context too short for it.
    """
    kind = imported(choose(OBJECTIVES, config.objective, "data.objective").code, f"data.objective={config.objective!r}")
    objective = kind.make(config, tokenizer, context_length)
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
    return draw(np.arange(first, stop, dtype=np.uint64), _EVALUATION_STREAM)


def targets(batch: Batch) -> np.ndarray:
    """int32 [B, T]: the token that the model is to predict at each position of rows from an objective."""
    return batch["target_BL"] if "target_BL" in batch else batch["token_BT"][:, 1:]
