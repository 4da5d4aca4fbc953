"""What a model makes of a text, token by token: the loss of each, as numbers and as the text in colours."""

import dataclasses
import functools
import html
import math

import numpy as np

FULL_COLOUR = 10.0  # nats: the loss of a token whose background is of full strength
COLOUR = "220, 50, 47"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenLoss:
    """Of each token of a text; as a float, the mean.

    A token that no other comes before is not predicted: its loss is NaN. There is none where documents begin with an
    end-of-text token, which is then not among these tokens.
    """

    token_L: np.ndarray  # ids
    spelling: list[bytes]  # UTF-8 of each token; some are parts of a character
    loss_L: np.ndarray  # float32, nats

    @property
    def tokens(self) -> list[str]:
        """Bytes of a character that lies in several tokens are written as \\xe2."""
        return [piece.decode("utf-8", errors="backslashreplace") for piece in self.spelling]

    @property
    def text(self) -> str:
        return b"".join(self.spelling).decode("utf-8", errors="replace")

    @functools.cached_property
    def _predicted_L(self) -> np.ndarray:
        return ~np.isnan(self.loss_L)

    @property
    def total(self) -> float:
        """Nats of all that is predicted."""
        return float(self.loss_L[self._predicted_L].sum(dtype=np.float64))

    @property
    def mean(self) -> float:
        """Nats per token; NaN where nothing is predicted."""
        count = int(self._predicted_L.sum())
        return self.total / count if count else math.nan

    @property
    @np.errstate(over="ignore")  # infinite where the loss is hundreds of nats
    def perplexity(self) -> float:
        return float(np.exp(self.mean))

    @property
    def bits_per_byte(self) -> float:
        """Of the UTF-8 of what is predicted."""
        num_bytes = sum(len(piece) for piece, predicted in zip(self.spelling, self._predicted_L) if predicted)
        return self.total / math.log(2) / num_bytes if num_bytes else math.nan

    def __float__(self) -> float:
        return self.mean

    def __len__(self) -> int:
        return len(self.loss_L)

    def __repr__(self) -> str:
        return (
            f"TokenLoss({self.mean:.4f} nats/token, {self.bits_per_byte:.4f} bits/byte, perplexity"
            f" {self.perplexity:.2f}, {int(self._predicted_L.sum()):,} tokens)"
        )

    def _repr_html_(self) -> str:
        """The text, the redder the less it was expected, with the numbers of each token where the mouse is."""
        spans = "".join(self._span(first, end) for first, end in _characters(self.spelling))
        return (
            f'<div style="font-family: monospace; line-height: 1.6; white-space: pre-wrap">{spans}</div>'
            f'<div style="font-size: smaller">{html.escape(repr(self)[10:-1])}; full red: {FULL_COLOUR:g} nats</div>'
        )

    def _span(self, first: int, end: int) -> str:
        """Of the tokens of one piece of text, most often one; coloured by what all of it has cost."""
        text = b"".join(self.spelling[first:end]).decode("utf-8", errors="replace")
        losses = self.loss_L[first:end]
        told = "&#10;".join(
            html.escape(f"{token!r} (id {number}): {_numbers(nats)}")
            for token, number, nats in zip(self.tokens[first:end], self.token_L[first:end], losses.tolist())
        )
        strength = min(1.0, max(0.0, float(np.nansum(losses)) / FULL_COLOUR))
        style = f"background: rgba({COLOUR}, {strength:.2f})"
        return f'<span style="{style}" title="{told}">{html.escape(text)}</span>'


def _numbers(nats: float) -> str:
    if math.isnan(nats):
        return "not predicted"
    return f"{nats:.3f} nats, probability {math.exp(-nats):.3g}"


def _characters(spelling: list[bytes]):
    """(first, end) of runs of tokens, as short as can be, that spell whole characters."""
    first, held = 0, b""
    for i, piece in enumerate(spelling):
        held += piece
        if _is_whole(held):
            yield first, i + 1
            first, held = i + 1, b""
    if first < len(spelling):
        yield first, len(spelling)


def _is_whole(text: bytes) -> bool:
    """Whether more bytes could not make sense of it: it is UTF-8, or has bytes in it that never will be."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return True
