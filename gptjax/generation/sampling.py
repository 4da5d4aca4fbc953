"""From logits to a token. Pure functions of arrays: B rows, V vocabulary; every setting is an array [B].

The order is that of Hugging Face's generate: penalties, temperature, top-k, top-p, min-p, each on what the one before
has left.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import bounds
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts are made. None: off."""

    max_tokens: int = 200  # new ones
    temperature: float = 1.0  # 0: always the likeliest
    top_k: int | None = None  # of the k likeliest only
    top_p: float | None = None  # of the likeliest with total probability p only (Holtzman et al. 2020)
    min_p: float | None = None  # of those at least p times as likely as the likeliest only (Nguyen et al. 2024)
    repetition_penalty: float = (
        1.0  # logits of tokens in prompt and text: over it if positive, else times it (Keskar et al. 2019)
    )
    frequency_penalty: float = 0.0  # taken from a logit for each time the token is in the new text (OpenAI's API)
    presence_penalty: float = 0.0  # taken from the logit of every token that is in the new text
    stop: tuple[str, ...] = ()  # strings that end a text, and are no part of it
    num_return_sequences: int = 1  # texts for each prompt
    num_beams: int = 1  # more than 1: beam search, in which nothing is drawn
    length_penalty: float = 1.0  # beam search: a text's log-probability is divided by its length to this power
    seed: int | tuple[int, ...] = 0  # of the first sequence, the next ones' follow; or one for each
    logprobs: bool = False  # log-probabilities of prompt and text, as the model gives them: before any setting

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        bounds.check_flags({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        for name in ("max_tokens", "num_return_sequences", "num_beams", "top_k"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name}={value} is too small; use at least 1.")
        _require(
            self.temperature >= 0,
            f"--temperature={self.temperature} is negative;"
            " use 0 for the likeliest token, 1 for the model's own distribution.",
        )
        _require(self.top_p is None or 0 < self.top_p <= 1, f"--top_p={self.top_p} is not in (0, 1].")
        _require(self.min_p is None or 0 <= self.min_p <= 1, f"--min_p={self.min_p} is not in [0, 1].")
        _require(
            self.repetition_penalty > 0,
            f"--repetition_penalty={self.repetition_penalty} must be positive; 1 is none, 1.2 is usual.",
        )
        _require("" not in stop, "--stop is an empty string, which every text has; leave it out.")
        _require(
            self.num_beams == 1 or self.num_return_sequences <= self.num_beams,
            f"--num_return_sequences={self.num_return_sequences} of --num_beams={self.num_beams}: a beam gives one text;"
            " use more beams.",
        )

    @property
    def restricts(self) -> bool:
        return self.top_k is not None or self.top_p is not None or bool(self.min_p)

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    def arrays(self, rows: int, vocab_size: int) -> "Arrays":
        """The same for each of so many rows."""
        top_k = min(self.top_k or vocab_size, vocab_size)
        values = (self.temperature, top_k, 1.0 if self.top_p is None else self.top_p, self.min_p or 0.0)
        values += (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return Arrays(*(np.full(rows, value, np.int32 if i == 1 else np.float32) for i, value in enumerate(values)))


def _require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


class Arrays(typing.NamedTuple):
    """Settings of each row, [B]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition: jax.Array
    frequency: jax.Array
    presence: jax.Array


def penalise(logit_BV, seen_BV, count_BV, a: Arrays):
    """seen_BV: whether a token is in prompt or text; count_BV: how often it is in the new text."""
    repeated_BV = jnp.where(logit_BV > 0, logit_BV / a.repetition[:, None], logit_BV * a.repetition[:, None])
    logit_BV = jnp.where(seen_BV, repeated_BV, logit_BV)
    return logit_BV - a.frequency[:, None] * count_BV - a.presence[:, None] * (count_BV > 0)


def restrict(logit_BV, a: Arrays):
    """Logits with all that top-k, top-p and min-p leave out at -inf. The likeliest token always stays."""
    sorted_BV = jnp.sort(logit_BV, axis=-1, descending=True)
    kth_B1 = jnp.take_along_axis(sorted_BV, a.top_k[:, None] - 1, axis=-1)
    probability_BV = jax.nn.softmax(jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # probability of all larger logits
    last_B1 = jnp.maximum((before_BV < a.top_p[:, None]).sum(-1, keepdims=True), 1) - 1
    smallest_B1 = jnp.maximum(kth_B1, jnp.take_along_axis(sorted_BV, last_B1, axis=-1))
    smallest_B1 = jnp.maximum(smallest_B1, sorted_BV[:, :1] + jnp.log(a.min_p[:, None]))
    return jnp.where(logit_BV >= smallest_B1, logit_BV, -jnp.inf)


def draw(logit_BV, key_B, a: Arrays, restricts: bool):
    """A token of each row by its own key: the likeliest at temperature 0."""
    scaled_BV = logit_BV / jnp.maximum(a.temperature, 1e-6)[:, None]
    scaled_BV = restrict(scaled_BV, a) if restricts else scaled_BV
    drawn_B = jax.vmap(jax.random.categorical)(key_B, scaled_BV)
    return jnp.where(a.temperature == 0, jnp.argmax(logit_BV, axis=-1), drawn_B).astype(jnp.int32)
