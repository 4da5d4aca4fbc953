"""What a request may say, field by field: OpenAI's names, and those that vLLM and llama.cpp have added.

Fields that are not here are ignored, as OpenAI's own server and vLLM do, so that clients of tomorrow still work; a value of
a wrong type or out of range is refused. These classes are also the schemas of /openapi.json.
"""

import typing

from pydantic import BaseModel, ConfigDict, Field, StrictInt

MOST_CHOICES, MOST_LIKELIEST = 128, 20
MOST_STOPS, MOST_STOP_CHARACTERS = 64, 1000  # each is looked for in every text, token by token
Token = typing.Annotated[StrictInt, Field(ge=0, lt=2**31)]
Seed = typing.Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)]
Tokens = list[Token]
Count = typing.Annotated[StrictInt, Field(ge=1, le=2**24)]
Penalty = typing.Annotated[float, Field(ge=-2, le=2)]


class Body(BaseModel):
    """strict: "5" is no number. Numbers are finite. protected names: a field may be called model."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", protected_namespaces=())

    model: str | None = Field(None, description="which of /v1/models; without it the first")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = Field(False, description="a last chunk with the numbers of tokens")


class Sampled(Body):
    """What chat and plain completions have in common."""

    temperature: float | None = Field(None, ge=0, le=100, description="0: the likeliest token (default: 1)")
    top_p: float | None = Field(None, gt=0, le=1, description="sample from so much of the probability")
    top_k: StrictInt | None = Field(None, ge=-1, lt=2**31, description="sample from so many; -1 or 0: from all")
    min_p: float | None = Field(None, ge=0, le=1, description="sample from tokens this likely beside the likeliest")
    frequency_penalty: Penalty | None = Field(None, description="taken from a logit for each time the token came")
    presence_penalty: Penalty | None = Field(None, description="taken from the logits of tokens that came")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="divides logits of tokens in the text")
    logit_bias: dict[str, float] | None = Field(None, description="token id: what is added to its logit, -100 to 100")
    seed: Seed | None = Field(None, description="of the first choice; without it one is drawn, and returned")
    n: StrictInt | None = Field(None, ge=1, le=MOST_CHOICES, description="answers (default: 1)")
    stop: str | list[str] | None = Field(None, description="strings that end the text and are no part of it")
    stop_token_ids: Tokens | None = Field(None, description="tokens that end the text and are no part of it")
    ignore_eos: bool = Field(False, description="go on to max_tokens, whatever would end the text")
    stream: bool | None = Field(None, description="server-sent events, a chunk for each piece of text")
    stream_options: StreamOptions | None = Field(None, description="with stream")
    response_format: dict[str, typing.Any] | None = Field(None, description="text, json_object or json_schema")
    regex: str | None = Field(None, description="what the whole text has to match")
    grammar: str | None = Field(None, description="a Lark grammar that the whole text has to follow")
    user: str | None = Field(None, description="taken, and not used")


class ChatBody(Sampled):
    messages: list[dict[str, typing.Any]] = Field(min_length=1, description="objects with role and content")
    max_tokens: Count | None = Field(None, description="new tokens at most (default: the room left in the context)")
    max_completion_tokens: Count | None = Field(None, description="the newer name of max_tokens")
    logprobs: bool | None = Field(None, description="log-probabilities of the answer's tokens")
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MOST_LIKELIEST, description="likeliest tokens at each place")
    tools: list[dict[str, typing.Any]] | None = Field(None, description="functions the model may call")
    tool_choice: str | dict[str, typing.Any] | None = Field(None, description="none, auto, required, or one by name")
    parallel_tool_calls: bool | None = Field(None, description="whether an answer may call several tools")
    continue_final_message: bool = Field(False, description="go on with the last message, an assistant's")
    recipe: str | None = Field(None, description="a recipe of the server's, which the messages are put into")
    recipe_values: dict[str, str] | None = Field(None, description="texts of its placeholders")
    chat_template_kwargs: dict[str, typing.Any] | None = Field(None, description="not supported: refused if given")


class CompletionBody(Sampled):
    prompt: str | list[str] | Tokens | list[Tokens] | None = Field(
        None, description="texts or token ids; none: the start of a document"
    )
    max_tokens: typing.Annotated[StrictInt, Field(ge=0, le=2**24)] | None = Field(
        None, description="new tokens at most (default: 16); 0 needs echo"
    )
    best_of: StrictInt | None = Field(None, ge=1, le=MOST_CHOICES, description="draw so many, return the n likeliest")
    echo: bool = Field(False, description="the prompt before the text, with its log-probabilities if asked for")
    logprobs: StrictInt | None = Field(None, ge=0, le=MOST_LIKELIEST, description="likeliest tokens at each place")
    suffix: str | None = Field(None, description="what follows the gap that is filled in, after the prompt")
    add_special_tokens: bool = Field(True, description="begin texts with what documents begin with in training")


class EmbeddingBody(Body):
    input: str | list[str] | Tokens | list[Tokens] = Field(description="texts or token ids")
    encoding_format: typing.Literal["float", "base64"] = Field("float", description="numbers, or float32 in base64")
    dimensions: Count | None = Field(None, description="the model's own width, or left out")
    user: str | None = Field(None, description="taken, and not used")


class TokenizeBody(Body):
    prompt: str | None = Field(None, description="a text; one that is the name of a control token is that token")
    messages: list[dict[str, typing.Any]] | None = Field(None, min_length=1, description="a conversation, instead")
    add_special_tokens: bool = Field(False, description="begin the text with what documents begin with in training")


class DetokenizeBody(Body):
    tokens: Tokens = Field(description="token ids")


class ReloadBody(Body):
    step: StrictInt | None = Field(None, ge=0, description="of its checkpoint (default: the newest)")


# What a field takes that may have several types, for messages: pydantic's own list what is wrong with each of them.
EXPECTED = {
    "prompt": "a text, a list of texts, token ids, or a list of lists of token ids",
    "input": "a text, a list of texts, token ids, or a list of lists of token ids",
    "stop": "a text or a list of texts",
    "tool_choice": "none, auto, required, or an object that names a function",
    "messages": "a list of objects with role and content, at least one",
    "logit_bias": "an object of token ids and numbers",
}
