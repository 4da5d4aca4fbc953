"""Filters around an answer: what of a request goes on to a model. What of its answer goes out is answering's."""

from gptjax.serve.api import bodies, work
from gptjax.serve.api.faults import wrong


def of_chat(filters, body: bodies.ChatBody) -> tuple[bodies.ChatBody, str | None]:
    """(the body with its messages as they may go on, None; or the refusal to say instead). Raises ApiError: log-probabilities,
    which would show what is filtered. filters: serve.filters.Filters; None: there are none."""
    if filters is None:
        return body, None
    _check_logprobs(filters, bool(body.logprobs))
    verdict = filters.check_input(body.messages)
    return body.model_copy(update={"messages": verdict.messages}), verdict.refusal


def of_completion(filters, served, body: bodies.CompletionBody) -> tuple[bodies.CompletionBody, str | None]:
    """The same of prompts: one that is refused refuses the request. Raises ApiError also where token ids are to be replaced."""
    if filters is None:
        return body, None
    _check_logprobs(filters, body.logprobs is not None)
    is_one = body.prompt is None or isinstance(body.prompt, str) or (body.prompt and isinstance(body.prompt[0], int))
    prompts = [body.prompt] if is_one else body.prompt
    texts = [_text(served, prompt) for prompt in prompts]
    asked = [*texts, body.suffix or ""]
    verdict = filters.check_input([{"role": "user", "content": text} for text in asked])
    *kept, suffix = [message["content"] for message in verdict.messages]
    for prompt, text, after in zip(prompts, texts, kept):
        if isinstance(prompt, list) and text != after:
            raise wrong(
                "the filters replace a part of the prompt, which token ids have no place for; send text.", "prompt"
            )
    kept = [
        None if prompt is None else prompt if isinstance(prompt, list) else after
        for prompt, after in zip(prompts, kept)
    ]
    update = {"prompt": kept[0] if is_one else kept, "suffix": suffix or None}
    return body.model_copy(update=update), verdict.refusal


def _text(served, prompt: str | list[int] | None) -> str:
    if not isinstance(prompt, list):
        return prompt or ""
    work.check_ids(served, prompt, "prompt")
    return served.run.tokenizer.decode(prompt, special=True)


def _check_logprobs(filters, wanted: bool) -> None:
    if wanted and filters.looks_at_answers:
        raise wrong(
            "logprobs show tokens that this server's filters may take out of an answer; leave it out.", "logprobs"
        )
