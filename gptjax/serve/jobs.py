"""A text that somebody waits for, and what they are told of it while it is made.

    job = Job(prompt_L, Settings(max_tokens=50, temperature=0.7), seed=1, listener=queue.put)
    batcher.submit(job)     # Full, Draining or Failed, if it can't be taken
    ...                     # Piece, Piece, ..., Ending
    batcher.cancel(job)     # its Ending says "cancelled"; its slot is free one step later

What stands between HTTP (api) and the thread that makes text (batcher): no module here knows both.
"""

import dataclasses
import typing

import numpy as np

from gptjax.generation.settings import Settings

CONSTRAINT_FAILED = "the constraint failed"  # begins the error of an Ending whose text cannot be kept to its form


class Piece(typing.NamedTuple):
    """What has been made since the piece before. Tokens may come before their text: a character has several tokens, and the
    end of a text may turn out to begin a stop string."""

    text: str  # whole characters
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # of each of tokens in nats, as the model gives them before any setting; if wanted
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()  # (token, log-probability) at each of tokens, if wanted


class Ending(typing.NamedTuple):
    """The last that a listener hears of a job."""

    reason: str  # eot | stop | length | cancelled | failed
    error: str | None = None  # why it failed
    new_tokens: int = 0  # what they cost: those of a stop string included
    cached_tokens: int = 0  # of the prompt, that were not read again


class PromptScores(typing.NamedTuple):
    """Before the first piece of a job that wants them: of each token of its prompt but the first."""

    logprobs: tuple[float, ...]
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()


class Constraint(typing.Protocol):
    """What a text has to conform to, one object a text."""

    def allowed(self) -> np.ndarray:
        """bool [V]: which tokens may come next; end-of-text among them where the text may end. Where nothing but that may come,
        the text ends at once."""

    def take(self, token: int) -> None:
        """What came."""


@dataclasses.dataclass(eq=False)
class Job:
    """One text. `listener` is called on the batcher's thread, must not block, and may not raise."""

    prompt_L: np.ndarray  # int32
    settings: Settings  # of one text, its stop strings among them; logprobs: whether pieces have them
    seed: int  # with the prompt and the settings, it decides the text
    listener: typing.Callable[[Piece | PromptScores | Ending], None]
    stop_ids: tuple[int, ...] = ()  # tokens that end it, beside end-of-text, such as the end of a turn
    ignore_eot: bool = False  # neither end-of-text nor stop_ids end it
    bias: dict[int, float] = dataclasses.field(default_factory=dict)  # added to the logits of tokens
    constraint: Constraint | None = None
    likeliest: int = 0  # how many tokens to name at each place, at most 20
    prompt_scores: bool = False
    prompt_only: bool = False  # nothing is made, whatever settings.max_tokens; it ends with "length"
    id: str = ""  # for logs


class Refused(Exception):
    """A job that is not taken; nothing of it was begun."""


class Full(Refused):
    """The queue is full."""


class Draining(Refused):
    """The batcher finishes what it has, and takes nothing more."""


class Failed(Refused):
    """The batcher has met an error that it did not recover from."""
