"""Jobs for a batcher, and what their listeners heard."""

import threading

import jax
import numpy as np

from gptjax.data.tokenizers.simple import CharTokenizer
from gptjax.generation.engine import Engine
from gptjax.generation.settings import Settings
from gptjax.serve.jobs import Ending, Job, Piece, PromptScores

SECONDS = 120  # for anything a job is waited for: far more than it takes
# 64 characters of one, two and three bytes, and end-of-text.
TOKENIZER = CharTokenizer("".join(map(chr, [*range(97, 123), *range(0xE0, 0x100), *range(0x4E00, 0x4E06)])), True)


class Heard:
    """A listener, and what it was told."""

    def __init__(self):
        self.pieces: list[Piece] = []
        self.scores: PromptScores | None = None
        self.ending: Ending | None = None
        self._ended, self._begun = threading.Event(), threading.Event()

    def __call__(self, message) -> None:
        assert self.ending is None, "nothing follows an ending"
        if isinstance(message, Piece):
            self.pieces.append(message)
            self._begun.set()
        elif isinstance(message, PromptScores):
            assert not self.pieces and self.scores is None
            self.scores = message
        else:
            self.ending = message
            self._ended.set()

    def wait(self) -> "Heard":
        assert self._ended.wait(SECONDS), "no ending came"
        return self

    def wait_for_a_piece(self) -> None:
        assert self._begun.wait(SECONDS), "no piece came"

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def logprobs(self) -> list[float]:
        return [logprob for piece in self.pieces for logprob in piece.logprobs]

    @property
    def likeliest(self) -> list[tuple]:
        return [pairs for piece in self.pieces for pairs in piece.likeliest]

    @property
    def answer(self) -> tuple:
        """All that may not depend on other jobs, bit for bit."""
        return self.tokens, self.text, self.logprobs, self.likeliest, self.ending.reason, self.scores


def job(prompt, seed: int = 0, settings: dict | None = None, **fields) -> Job:
    """With a listener that is a Heard."""
    settings = Settings(**{"temperature": 0, "max_tokens": 8, "logprobs": True} | (settings or {}))
    return Job(np.array(prompt, np.int32), settings, seed, Heard(), **fields)


def heard(batcher, *jobs) -> list[Heard]:
    """What the listeners heard, once all jobs have ended."""
    batcher.submit(*jobs)
    return [each.listener.wait() for each in jobs]


def engine_of(tiny) -> Engine:
    """Of a model that seldom says end-of-text: an embedding of 0 is a logit of 0."""
    table = tiny.params["token_embedding"]
    params = tiny.params | {"token_embedding": table.at[TOKENIZER.eot_id].set(0)}
    return Engine(tiny.graph, jax.device_put(params, jax.devices()[0]), entries=TOKENIZER.vocab_size)


class BrokenEngine(Engine):
    """The same, but its device fails for `faults` calls, once `after` more have gone well."""

    after, faults = 0, 0

    @property
    def weights(self):
        if self.faults and self.after <= 0:
            self.faults -= 1
            raise RuntimeError("the device is lost")
        self.after -= 1
        return super().weights
