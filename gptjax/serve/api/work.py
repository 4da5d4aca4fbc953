"""A body to jobs: prompts in tokens, settings, a seed for each, and the room that the context has for them."""

import math
import secrets
import typing

import numpy as np

from gptjax.data.chat import Message, parse_messages
from gptjax.errors import UserError
from gptjax.generation.settings import Settings
from gptjax.generation.text import prompt_ids
from gptjax.serve import jobs
from gptjax.serve.api import bodies
from gptjax.serve.api.faults import ApiError, wrong

OPTIONS = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
DRAWN_SEED_BITS = 32  # of a seed that a client did not give: few enough for JavaScript's numbers


class Prompt(typing.NamedTuple):
    token_L: np.ndarray  # int32
    text: str  # that is echoed
    lead: int = 0  # tokens before the text that are not echoed: what documents begin with


def of_texts(served, value, param: str, special: bool = True) -> list[Prompt]:
    """Prompts of a field that is a text, texts, token ids, or lists of them. special: texts begin as documents do.

    Raises ApiError: an empty list, ids that are none, an empty prompt that nothing can stand before."""
    is_one = value is None or isinstance(value, str) or (value and isinstance(value[0], int))
    values = [value] if is_one else value
    if not values:
        raise wrong(f"{param} is an empty list; give a text, token ids, or several of them.", param)
    prompts = [
        _of_text(served, each, special) if each is None or isinstance(each, str) else _of_ids(served, each, param)
        for each in values
    ]
    for prompt in prompts:
        if not len(prompt.token_L):
            raise wrong(f"{param} is empty, and there is no token that documents begin with; give a text.", param)
    return prompts


def _of_text(served, text: str | None, special: bool) -> Prompt:
    tokenizer = served.run.tokenizer
    token_L = prompt_ids(tokenizer, text) if special or not text else tokenizer.encode(text)
    return Prompt(token_L, text or "", int(tokenizer.bos_id is not None and (special or not text)))


def _of_ids(served, ids: list[int], param: str) -> Prompt:
    check_ids(served, ids, param)
    return Prompt(np.array(ids, np.int32), served.run.tokenizer.decode(ids, special=True))


def check_ids(served, ids, param: str) -> None:
    """Raises ApiError: an id that the tokenizer has not."""
    outside = next((i for i in ids if not 0 <= i < served.run.tokenizer.vocab_size), None)
    if outside is not None:
        last = served.run.tokenizer.vocab_size - 1
        raise wrong(f"{param}: token id {outside} is outside the vocabulary; expected 0 to {last}.", param)


def of_messages(served, values: list[dict], continues: bool = False, tools=None) -> Prompt:
    """The conversation in the model's chat format. continues: its last message is an answer to go on with. tools: that an
    answer may call, as data.chat takes them.

    Raises ApiError: a model without a chat format, messages that are none or out of place."""
    if served.form is None:
        raise wrong(
            f"the model {served.name!r} has no chat format: it goes on with a text, as /v1/completions asks it to.",
            "model",
        )
    try:
        messages = parse_messages(values, "messages", tools)
        if continues:
            return _continued(served, messages)
        if messages[-1].role == "assistant":
            raise wrong("the last message is the assistant's; set continue_final_message to go on with it.", "messages")
        token_L = served.form.prompt(messages, served.run.tokenizer)
    except UserError as error:
        raise wrong(str(error), "messages") from None
    return Prompt(token_L, "")


def _continued(served, messages: tuple[Message, ...]) -> Prompt:
    if messages[-1].role != "assistant":
        raise wrong("continue_final_message needs a last message of the assistant's.", "continue_final_message")
    tokenizer = served.run.tokenizer
    begun_L = tokenizer.encode(messages[-1].content)
    return Prompt(np.concatenate([served.form.prompt(messages[:-1], tokenizer), begun_L]), "")


def room(served, prompt: Prompt, max_tokens: int | None, param: str) -> int:
    """How many tokens may be made: max_tokens, or without it what the context has room for. Raises ApiError: they don't fit."""
    length, context = len(prompt.token_L), served.context_length
    left = context - length
    if left < (1 if max_tokens is None else max_tokens):
        asked = "" if max_tokens is None else f" and max_tokens={max_tokens}"
        raise wrong(
            f"this model's context has {context} tokens; the prompt has {length}{asked}. Shorten the prompt"
            + (" or max_tokens." if max_tokens else "."),
            param,
            "context_length_exceeded",
        )
    return left if max_tokens is None else max_tokens


def settings(body: bodies.Sampled, max_tokens: int, logprobs: bool) -> Settings:
    """max_tokens: 0 is 1 here, for a job that makes none. Raises ApiError: a value that generation refuses."""
    chosen = {name: getattr(body, name) for name in OPTIONS if getattr(body, name) is not None}
    if body.top_k is not None and body.top_k > 0:
        chosen["top_k"] = body.top_k
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > bodies.MOST_STOPS:
        raise wrong(f"stop has {len(stop)} strings; expected at most {bodies.MOST_STOPS}.", "stop")
    longest = max(map(len, stop), default=0)
    if longest > bodies.MOST_STOP_CHARACTERS:
        raise wrong(
            f"stop has a string of {longest} characters; expected at most {bodies.MOST_STOP_CHARACTERS}.", "stop"
        )
    if "" in stop:
        raise wrong("stop has an empty string, which every text contains; leave it out.", "stop")
    try:
        return Settings(max_tokens=max(1, max_tokens), stop=stop, logprobs=logprobs, **chosen)
    except UserError as error:
        raise wrong(str(error).removeprefix("--")) from None


def bias(served, body: bodies.Sampled) -> dict[int, float]:
    """Raises ApiError: a key that is no token id, a value out of range."""
    biases = {}
    for key, value in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise wrong("logit_bias: a key is no token id; expected the digits of one.", "logit_bias")
        if not -100 <= value <= 100 or not math.isfinite(value):
            raise wrong(f"logit_bias: {value} of token {key} is not in [-100, 100].", "logit_bias")
        biases[int(key)] = value
    check_ids(served, biases, "logit_bias")
    return biases


def first_seed(body: bodies.Sampled) -> int:
    return secrets.randbits(DRAWN_SEED_BITS) if body.seed is None else body.seed % 2**64


def seeds(first: int, count: int) -> list[int]:
    return [(first + i) % 2**64 for i in range(count)]


def constraint_of(
    served, body: bodies.Sampled, stop_ids: tuple[int, ...]
) -> typing.Callable[[], jobs.Constraint | None]:
    """Makes the Constraint of one text, each of its own. Raises ApiError: a response_format, regex or grammar that is none."""
    given = {name: getattr(body, name) for name in ("response_format", "regex", "grammar")}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return lambda: None
    if body.ignore_eos:
        raise wrong("ignore_eos goes on where the text has to end; leave it out.", "ignore_eos")
    from gptjax.serve import constraints

    return constrained(lambda: constraints.of_request(served.run.tokenizer, ends(served, stop_ids), **given), *given)


def ends(served, stop_ids: tuple[int, ...]) -> tuple[int, ...]:
    """What may end a text: stop_ids, and end-of-text. Raises ApiError: nothing may."""
    found = tuple(dict.fromkeys(i for i in (*stop_ids, served.run.tokenizer.eot_id) if i is not None))
    if not found:
        raise wrong(
            "this model has no token that ends a text, which a text that is kept to a form needs; give stop_token_ids."
        )
    return found


def constrained(make: typing.Callable, *fields: str) -> typing.Callable:
    """make, tried once. Raises ApiError: it refuses what one of the fields says."""
    try:
        make()
    except UserError as error:
        named = next((field for field in fields if str(error).startswith(field)), fields[0])
        raise wrong(str(error), named) from None
    return make


def check_stream(body: bodies.Sampled) -> None:
    """Raises ApiError: options of a stream for an answer that is none."""
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options is for streams; set stream, or leave it out.", "stream_options")


def check_count(served, count: int, param: str) -> None:
    """Raises ApiError: more texts than this server could ever hold."""
    if count > served.most_jobs:
        raise ApiError(
            400, f"the request asks for {count} texts; this server takes {served.most_jobs} at once.", param=param
        )
