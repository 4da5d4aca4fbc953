"""/v1/completions: text that goes on from prompts."""

import dataclasses
import functools
import secrets
import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gptjax.errors import UserError
from gptjax.serve import jobs
from gptjax.serve.api import answering, bodies, logprobs, reading, screening, streaming, work
from gptjax.serve.api.faults import wrong
from gptjax.serve.service import Record

DEFAULT_TOKENS = 16  # OpenAI's


@dataclasses.dataclass
class Plan:
    """What a body asks for, in tokens."""

    served: object
    body: bodies.CompletionBody
    prompts: list[work.Prompt]
    max_tokens: int
    first_seed: int
    draws: int  # texts of each prompt that are made
    kept: int  # that are returned
    biases: dict[int, float]
    constraint: object

    @property
    def wants_logprobs(self) -> bool:
        return self.body.logprobs is not None

    @property
    def scores_one(self) -> bool:
        """Whether it is a prompt that counts, as lm-evaluation-harness asks: with one token behind it, whichever it is."""
        return self.body.echo and self.wants_logprobs and self.max_tokens == 1

    def prompt_of(self, index: int) -> work.Prompt:
        return self.prompts[index // self.draws]

    def jobs(self, listener) -> list[jobs.Job]:
        observes = self.wants_logprobs or self.draws > self.kept
        settings = work.settings(self.body, self.max_tokens, observes)
        seeds = work.seeds(self.first_seed, len(self.prompts) * self.draws)
        return [
            jobs.Job(
                self.prompt_of(i).token_L,
                settings,
                seed,
                listener(i),
                stop_ids=tuple(self.body.stop_token_ids or ()),
                ignore_eot=self.body.ignore_eos or self.scores_one,
                bias=self.biases,
                constraint=self.constraint(),
                likeliest=self.body.logprobs or 0,
                prompt_scores=self.body.echo and self.wants_logprobs,
                prompt_only=self.max_tokens == 0,
            )
            for i, seed in enumerate(seeds)
        ]


def plan(served, body: bodies.CompletionBody) -> Plan:
    """Raises ApiError: what cannot be."""
    work.check_stream(body)
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise wrong(
            "max_tokens=0 makes no text; give at least 1, or set echo to see the prompt's scores.", "max_tokens"
        )
    kept = body.n or 1
    draws = body.best_of or kept
    if draws < kept:
        raise wrong(f"best_of={draws} is less than n={kept}; draw at least as many as are returned.", "best_of")
    if draws > kept and body.stream:
        raise wrong("best_of has its texts only at the end; leave out stream, or best_of.", "best_of")
    prompts = (
        work.of_texts(served, body.prompt, "prompt", body.add_special_tokens)
        if not body.suffix
        else _around_gap(served, body)
    )
    work.check_count(served, len(prompts) * draws, "n")
    for prompt in prompts:
        work.room(served, prompt, max_tokens, "prompt")
    work.check_ids(served, body.stop_token_ids or (), "stop_token_ids")
    constraint = work.constraint_of(served, body, tuple(body.stop_token_ids or ()))
    seed, biases = work.first_seed(body), work.bias(served, body)
    made = Plan(served, body, prompts, max_tokens, seed, draws, kept, biases, constraint)
    work.settings(body, max_tokens, False)  # wrong ones are said here
    return made


def _around_gap(served, body: bodies.CompletionBody) -> list[work.Prompt]:
    """Prompts whose text is what stands between them and the suffix. Raises ApiError: a model that fills no gaps, prompts of
    token ids, echo."""
    from gptjax.applications import infilling

    texts = [body.prompt or ""] if body.prompt is None or isinstance(body.prompt, str) else body.prompt
    if not texts or not all(isinstance(text, str) for text in texts):
        raise wrong("suffix goes with prompts that are texts; leave it out, or send text.", "suffix")
    if body.echo:
        raise wrong(
            "echo shows a text from its start, and with suffix the answer is its middle; leave one out.", "echo"
        )
    try:
        ids = [infilling.prompt_ids(served.run.tokenizer, text, body.suffix) for text in texts]
    except UserError as error:
        raise wrong(f"suffix: {error}", "suffix") from None
    return [work.Prompt(token_L, text) for token_L, text in zip(ids, texts)]


def _planned(service, body: bodies.CompletionBody) -> tuple[Plan, str | None]:
    """(its plan, None, or the refusal to say instead of a text). Raises ApiError."""
    served = service.models.get(body.model)
    body, refusal = screening.of_completion(service.filters, served, body)
    return plan(served, body), refusal


async def completions(request: Request) -> Response:
    service = request.app.state.service
    body = await reading.body_of(request, bodies.CompletionBody)
    planned, refusal = await run_in_threadpool(_planned, service, body)
    timings = service.metrics.timings(planned.served.name)
    made = answering.Work(planned.jobs, timings, filters=service.filters, refusal=refusal)
    service.submit(planned.served, made)
    head = _head(planned, service)
    if body.stream:
        return streaming.EventStream(made, _chunks(made, planned, head, service))
    with made:
        texts = await answering.while_connected(request.receive, made.finish())
    if texts is None:
        return Response(status_code=answering.GONE)
    return JSONResponse(_whole(texts, planned, head, service))


def _head(planned: Plan, service) -> dict:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": planned.served.name,
        "system_fingerprint": planned.served.fingerprint,
        "seed": planned.first_seed,
    }


def _whole(texts: list[answering.Text], planned: Plan, head: dict, service) -> dict:
    choices = []
    for first in range(0, len(texts), planned.draws):
        drawn = texts[first : first + planned.draws]
        if planned.draws > planned.kept:
            drawn = sorted(drawn, key=_mean_logprob, reverse=True)[: planned.kept]
        choices += [_choice(len(choices) + i, text, planned, planned.prompt_of(first)) for i, text in enumerate(drawn)]
    _finished(texts, planned, head, service)
    return head | {"choices": choices, "usage": _usage(texts, planned, service)}


def _usage(texts, planned: Plan, service) -> dict:
    used = answering.usage(texts, sum(len(prompt.token_L) for prompt in planned.prompts))
    service.metrics.count_tokens(planned.served.name, used)
    return used


def _mean_logprob(text: answering.Text) -> float:
    """Nats a token."""
    return sum(text.logprobs) / len(text.logprobs) if text.logprobs else -float("inf")


def _choice(index: int, text: answering.Text, planned: Plan, prompt: work.Prompt) -> dict:
    body, tokenizer, scored = planned.body, planned.served.run.tokenizer, None
    if planned.wants_logprobs:
        lead = prompt.lead if body.echo else len(prompt.token_L)
        named = len(prompt.token_L) - lead
        offsets = logprobs.Offsets()
        scored = logprobs.of_completion(tokenizer, *logprobs.with_prompt(text, lead), body.logprobs, offsets, named)
    shown = (prompt.text if body.echo else "") + text.text
    return {"index": index, "text": shown, "logprobs": scored, "finish_reason": _reason(text, planned)}


def _reason(text: answering.Text, planned: Plan) -> str:
    """The finish_reason. Where only the prompt counts, the one token that follows may be an end: that is "stop"."""
    ends = {planned.served.run.tokenizer.eot_id, *(planned.body.stop_token_ids or ())}
    ended = planned.scores_one and not planned.body.ignore_eos and bool({*text.tokens[-1:]} & ends)
    return "stop" if ended else text.reason


async def _chunks(made: answering.Work, planned: Plan, head: dict, service):
    body, with_usage = planned.body, bool(planned.body.stream_options and planned.body.stream_options.include_usage)
    rest = {"usage": None} if with_usage else {}
    offsets, started = [logprobs.Offsets() for _ in made.texts], set()
    async for news in made.events():
        if news is None:
            yield None
            continue
        index, text, event = news
        if isinstance(event, jobs.PromptScores):
            continue
        choice = functools.partial(_delta, index, text, planned, offsets[index])
        if index not in started:
            started.add(index)
            if body.echo:
                yield head | {"choices": [_echo(index, text, planned, offsets[index])]} | rest
        if isinstance(event, jobs.Piece):
            yield head | {"choices": [choice(event)]} | rest
        else:
            end = {"index": index, "text": "", "logprobs": None, "finish_reason": _reason(text, planned)}
            yield head | {"choices": [end]} | rest
    _finished(made.texts, planned, head, service)
    used = _usage(made.texts, planned, service)
    if with_usage:
        yield head | {"choices": [], "usage": used}


def _echo(index: int, text: answering.Text, planned: Plan, offsets) -> dict:
    """The prompt, as the first piece of its text."""
    prompt, scored = planned.prompt_of(index), None
    if planned.wants_logprobs:
        bare = dataclasses.replace(text, tokens=[], logprobs=[], likeliest=[])
        parts = logprobs.with_prompt(bare, prompt.lead)
        tokenizer = planned.served.run.tokenizer
        scored = logprobs.of_completion(tokenizer, *parts, planned.body.logprobs, offsets, len(parts[0]))
    return {"index": index, "text": prompt.text, "logprobs": scored, "finish_reason": None}


def _delta(index: int, text: answering.Text, planned: Plan, offsets, piece: jobs.Piece) -> dict:
    scored = None
    if planned.wants_logprobs:
        top = piece.likeliest or [()] * len(piece.tokens)
        tokenizer = planned.served.run.tokenizer
        parts = piece.tokens, piece.logprobs, top
        scored = logprobs.of_completion(tokenizer, *parts, planned.body.logprobs, offsets)
    return {"index": index, "text": piece.text, "logprobs": scored, "finish_reason": None}


def _finished(texts, planned: Plan, head: dict, service) -> None:
    for i, text in enumerate(texts):
        service.observe(Record(head["id"], planned.served, None, planned.prompt_of(i).text, text))
