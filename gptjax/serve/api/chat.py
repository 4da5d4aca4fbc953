"""/v1/chat/completions: the answer to a conversation."""

import dataclasses
import secrets
import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gptjax.errors import UserError
from gptjax.serve import jobs, recipes
from gptjax.serve.api import answering, bodies, calls, logprobs, reading, screening, streaming, work
from gptjax.serve.api.faults import wrong
from gptjax.serve.service import Record


@dataclasses.dataclass
class Plan:
    """What a body asks for, in tokens."""

    served: object
    body: bodies.ChatBody
    prompt: work.Prompt
    max_tokens: int
    first_seed: int
    stop_ids: tuple[int, ...]
    biases: dict[int, float]
    constraint: object
    tools: object | None  # tool_calls.ToolUse

    def jobs(self, listener) -> list[jobs.Job]:
        settings = work.settings(self.body, self.max_tokens, bool(self.body.logprobs))
        return [
            jobs.Job(
                self.prompt.token_L,
                settings,
                seed,
                listener(i),
                stop_ids=self.stop_ids,
                ignore_eot=self.body.ignore_eos,
                bias=self.biases,
                constraint=self.constraint(),
                likeliest=self.body.top_logprobs or 0,
            )
            for i, seed in enumerate(work.seeds(self.first_seed, self.body.n or 1))
        ]


def plan(served, body: bodies.ChatBody) -> Plan:
    """Raises ApiError: what cannot be."""
    work.check_stream(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise wrong("top_logprobs needs logprobs; set it, or leave top_logprobs out.", "top_logprobs")
    if body.chat_template_kwargs:
        raise wrong(
            "chat_template_kwargs is not supported: a model's chat format has no options.", "chat_template_kwargs"
        )
    work.check_count(served, body.n or 1, "n")
    tools = calls.of_body(served, body)
    shown = None if tools is None else body.tools
    prompt = work.of_messages(served, body.messages, body.continue_final_message, shown)
    given = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    max_tokens = work.room(served, prompt, given, "messages")
    own = tuple(body.stop_token_ids or ())
    work.check_ids(served, own, "stop_token_ids")
    stop_ids = tuple(dict.fromkeys([*served.form.stop_ids(served.run.tokenizer), *own]))
    constraint = calls.constraint_of(served, body, tools, stop_ids)
    seed, biases = work.first_seed(body), work.bias(served, body)
    work.settings(body, max_tokens, False)  # wrong ones are said here
    return Plan(served, body, prompt, max_tokens, seed, stop_ids, biases, constraint, tools)


def _planned(service, body: bodies.ChatBody) -> tuple[Plan, str | None]:
    """(its plan, None, or the refusal to say instead of an answer). Raises ApiError."""
    try:
        body = recipes.applied(service.recipes, body)
    except UserError as error:
        named = next(name for name in ("recipe_values", "recipe", "messages") if str(error).startswith(name))
        raise wrong(str(error), named) from None
    body, refusal = screening.of_chat(service.filters, body)
    return plan(service.models.get(body.model), body), refusal


async def chat(request: Request) -> Response:
    service = request.app.state.service
    body = await reading.body_of(request, bodies.ChatBody)
    planned, refusal = await run_in_threadpool(_planned, service, body)
    timings = service.metrics.timings(planned.served.name)
    made = answering.Work(planned.jobs, timings, filters=service.filters, refusal=refusal)
    service.submit(planned.served, made)
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(time.time()),
        "model": planned.served.name,
        "system_fingerprint": planned.served.fingerprint,
        "seed": planned.first_seed,
    }
    if body.stream:
        return streaming.EventStream(made, _chunks(made, planned, head, service))
    with made:
        texts = await answering.while_connected(request.receive, made.finish())
    if texts is None:
        return Response(status_code=answering.GONE)
    choices = [_choice(i, text, planned) for i, text in enumerate(texts)]
    return JSONResponse(head | {"choices": choices, "usage": _finished(texts, planned, head, service)})


def _finished(texts: list[answering.Text], planned: Plan, head: dict, service) -> dict:
    """The counts of tokens, which are also kept."""
    used = answering.usage(texts, len(planned.prompt.token_L))
    service.metrics.count_tokens(planned.served.name, used)
    for text in texts:
        service.observe(Record(head["id"], planned.served, planned.body.messages, "", text))
    return used


def _choice(index: int, text: answering.Text, planned: Plan) -> dict:
    message, reason = {"role": "assistant", "content": text.text, "refusal": None}, text.reason
    if planned.tools is not None:
        message["content"], made = calls.parsed(planned.tools, text.text)
        if made:
            message["tool_calls"], reason = made, calls.reason(reason)
    scored = _scored(planned, text.tokens, text.logprobs, text.likeliest)
    return {"index": index, "message": message, "logprobs": scored, "finish_reason": reason}


def _scored(planned: Plan, tokens, scores, likeliest) -> dict | None:
    if not planned.body.logprobs:
        return None
    return logprobs.of_chat(planned.served.run.tokenizer, tokens, scores, likeliest, planned.body.top_logprobs or 0)


async def _chunks(made: answering.Work, planned: Plan, head: dict, service):
    options = planned.body.stream_options
    rest = {"usage": None} if options and options.include_usage else {}
    for index in range(len(made.texts)):
        yield head | {"choices": [_delta(index, {"role": "assistant", "content": ""})]} | rest
    readers = [calls.Deltas(planned.tools) for _ in made.texts]
    async for news in made.events():
        if news is None:
            yield None
            continue
        index, text, event = news
        if isinstance(event, jobs.Piece):
            scored = _scored(planned, event.tokens, event.logprobs, event.likeliest)
            deltas = readers[index].feed(event.text)
            if scored is not None and not deltas:
                deltas = [{"content": ""}]  # tokens whose text comes later, or is held back
            for delta in deltas:
                yield head | {"choices": [_delta(index, delta, scored)]} | rest
                scored = None
        else:
            for delta in readers[index].finish():
                yield head | {"choices": [_delta(index, delta)]} | rest
            reason = calls.reason(text.reason) if readers[index].called else text.reason
            yield head | {"choices": [_delta(index, {}, reason=reason)]} | rest
    used = _finished(made.texts, planned, head, service)
    if rest:
        yield head | {"choices": [], "usage": used}


def _delta(index: int, delta: dict, scored: dict | None = None, reason: str | None = None) -> dict:
    return {"index": index, "delta": delta, "logprobs": scored, "finish_reason": reason}
