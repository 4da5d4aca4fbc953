"""A job's row: what it says to its listener as its tokens come."""

import dataclasses
import logging

import numpy as np

from gptjax.errors import UserError
from gptjax.generation import engine
from gptjax.generation.decoding import LIKELIEST
from gptjax.generation.reading import Reading
from gptjax.generation.watching import Watcher
from gptjax.serve.jobs import CONSTRAINT_FAILED, Ending, Job, Piece, PromptScores

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class JobRow(engine.Row):
    """Made by `row_of`. An error of its constraint or its listener ends this row and no other."""

    job: Job | None = None
    watcher: Watcher | None = None
    most: int = 0  # new tokens that it has room for
    vocab_size: int = 0
    static_bias_V: np.ndarray | None = None  # of the job
    cached_tokens: int = 0
    error: str | None = None

    @property
    def limit(self) -> int:
        return min(self.settings.max_tokens, self.most)

    def begin(self, reading: Reading) -> None:
        """Tells the scores of the prompt, which was read. The row is finished where nothing is to be made."""
        self.cached_tokens = reading.cached_tokens
        if self.job.prompt_scores:
            self._send(_scores(reading, self.job.likeliest))
        if self.job.prompt_only:
            self.finished = self.finished or "length"
        elif self._constrained(()):
            self.finished = "eot"

    def hear(self, new) -> tuple[str, int] | None:
        """Tells its next tokens. Returns (reason, tokens to keep) if they end it before its time; see `Engine.run`."""
        before = len(self.new) - len(new)
        is_complete = self._constrained(new)
        text, keep = self.watcher.feed(new, final=is_complete or self.finished is not None)
        end = len(self.new) if keep is None else keep
        logprobs = tuple(self.logprobs[before:end])  # empty unless settings ask
        piece = Piece(text, tuple(self.new[before:end]), logprobs, tuple(self.likeliest[before:end]))
        if piece.text or piece.tokens:
            self._send(piece)
        if self.error is not None:
            return "failed", end
        if keep is not None:
            return "stop", keep
        return ("eot", end) if is_complete else None

    def end(self) -> None:
        """Tells that it is finished."""
        self._send(Ending(self.finished, self.error, len(self.new), self.cached_tokens))

    def _constrained(self, new) -> bool:
        """Whether the text is complete: its constraint lets nothing follow but its end. Otherwise its bias is set."""
        constraint = self.job.constraint
        if constraint is None or self.finished not in (
            None,
            "length",
        ):  # complete with its last token, it ended by itself
            return False
        try:
            for token in new:
                constraint.take(int(token))
            allowed_V = np.zeros(self.vocab_size, bool)
            allowed = np.asarray(constraint.allowed(), bool)
            allowed_V[: len(allowed)] = allowed
        except Exception as error:
            self._fail(CONSTRAINT_FAILED, error)
            return False
        ends = list(self.ends)
        allowed_V[ends] = allowed_V[ends].any()  # the end of a turn ends the text too
        goes_on = allowed_V.sum() > allowed_V[ends].sum()
        bias_V = np.where(allowed_V, np.float32(0), np.float32(-np.inf))
        self.bias_V = bias_V if self.static_bias_V is None else bias_V + self.static_bias_V
        return not goes_on

    def _send(self, message) -> None:
        try:
            self.job.listener(message)
        except Exception as error:
            self._fail("the listener failed", error)

    def _fail(self, what: str, error: Exception) -> None:
        log.exception("%s: job %s", what, self.job.id or "without id")
        self.error, self.finished = f"{what}: {type(error).__name__}: {error}", "failed"


def row_of(job: Job, tokenizer, config, places: int) -> JobRow:
    """The row of a job in a cache of so many places, for a model of a ModelConfig. Raises UserError: it can't be made."""
    prompt_L = np.asarray(job.prompt_L)
    _check(job, prompt_L, config.vocab_size, places)
    return JobRow(
        prompt_L.astype(np.int32),
        job.seed,
        job.settings,
        eot_id=None if job.ignore_eot else tokenizer.eot_id,
        stop_ids=() if job.ignore_eot else tuple(job.stop_ids),
        bias_V=_bias(job.bias, config.vocab_size),
        top=job.likeliest,
        job=job,
        watcher=Watcher(tokenizer, job.settings.stop),
        most=places - len(prompt_L),
        vocab_size=config.vocab_size,
        static_bias_V=_bias(job.bias, config.vocab_size),
    )


def _check(job: Job, prompt_L, vocab_size: int, places: int) -> None:
    if prompt_L.ndim != 1 or prompt_L.dtype.kind not in "iu" or prompt_L.size == 0:
        raise UserError(
            f"{prompt_L.dtype} of shape {prompt_L.shape} is no prompt; expected token ids [L], at least one."
        )
    room = "fewer" if job.prompt_only else "fewer, so that a token of the answer has room"
    if len(prompt_L) >= places + job.prompt_only:
        raise UserError(f"the prompt has {len(prompt_L)} tokens, and the context {places}; expected {room}.")
    for name, ids in (("prompt", prompt_L), ("bias", [*job.bias]), ("stop_ids", job.stop_ids)):
        outside = [int(i) for i in ids if not 0 <= i < vocab_size]
        if outside:
            raise UserError(f"{name}: token id {outside[0]} is outside the vocabulary; expected 0 to {vocab_size - 1}.")
    if not all(np.isfinite(value) for value in job.bias.values()):
        raise UserError(f"bias: {job.bias} has a value that is not finite; expected numbers such as -100.")
    if not 0 <= job.seed < 2**64:
        raise UserError(f"seed={job.seed} is out of range; expected 0 to 2 ** 64 - 1.")
    if not 0 <= job.likeliest <= LIKELIEST:
        raise UserError(f"likeliest={job.likeliest} is out of range; expected 0 to {LIKELIEST}.")
    if job.settings.num_beams > 1 or job.settings.num_return_sequences > 1:
        raise UserError("a job is one text without beam search; submit a job for each text.")
    if job.constraint is not None and job.ignore_eot:
        raise UserError("a constraint says where the text may end, which ignore_eot forbids; leave one of them out.")


def _bias(bias: dict[int, float], vocab_size: int) -> np.ndarray | None:
    if not bias:
        return None
    bias_V = np.zeros(vocab_size, np.float32)
    bias_V[[*bias.keys()]] = [*bias.values()]
    return bias_V


def _scores(reading: Reading, likeliest: int) -> PromptScores:
    scores = reading.all_scores()
    named = engine.named(scores.token_LK, scores.likeliest_logprob_LK, likeliest) if likeliest else ()
    return PromptScores(tuple(scores.logprob_L.tolist()), tuple(named))
