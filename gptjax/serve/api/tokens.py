"""/tokenize, /detokenize and /tokenizer_info: a model's tokens, as vLLM's endpoints of these names give them."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from gptjax.serve.api import bodies, logprobs, reading, work
from gptjax.serve.api.faults import wrong


async def tokenize(request: Request) -> JSONResponse:
    body = await reading.body_of(request, bodies.TokenizeBody)
    served = request.app.state.service.models.get(body.model)
    return await run_in_threadpool(_tokenized, served, body)


def _tokenized(served, body: bodies.TokenizeBody) -> JSONResponse:
    ids = _ids(served, body)
    pieces = [logprobs.shown(served.run.tokenizer, i) for i in ids]
    answer = {"tokens": ids, "count": len(ids), "pieces": pieces, "max_model_len": served.context_length}
    return JSONResponse(answer)


def _ids(served, body: bodies.TokenizeBody) -> list[int]:
    """Raises ApiError: neither a text nor messages, or both."""
    if (body.prompt is None) == (body.messages is None):
        raise wrong("expected prompt or messages, one of them.", "prompt")
    if body.messages is not None:
        return work.of_messages(served, body.messages).token_L.tolist()
    tokenizer = served.run.tokenizer
    if body.prompt in tokenizer.special:
        return [tokenizer.special[body.prompt]]
    start = [tokenizer.bos_id] if body.add_special_tokens and tokenizer.bos_id is not None else []
    return start + tokenizer.encode(body.prompt).tolist()


async def detokenize(request: Request) -> JSONResponse:
    body = await reading.body_of(request, bodies.DetokenizeBody)
    served = request.app.state.service.models.get(body.model)
    return await run_in_threadpool(_detokenized, served, body)


def _detokenized(served, body: bodies.DetokenizeBody) -> JSONResponse:
    work.check_ids(served, body.tokens, "tokens")
    return JSONResponse({"prompt": served.run.tokenizer.decode(body.tokens, special=True)})


async def tokenizer_info(request: Request) -> JSONResponse:
    """What lm-evaluation-harness asks of the first model's tokenizer."""
    served = request.app.state.service.models.get(request.query_params.get("model"))
    tokenizer = served.run.tokenizer
    name_of = {i: name for name, i in reversed(tokenizer.special.items())}
    template = None if served.form is None else served.form.jinja(tokenizer)
    return JSONResponse(
        {
            "tokenizer_class": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "eos_token": name_of.get(tokenizer.eot_id),
            "bos_token": name_of.get(tokenizer.bos_id),
            "chat_template": template,
        }
    )
