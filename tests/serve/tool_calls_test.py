"""Calls of tools: read from an answer whatever pieces it comes in, and said where they have to be."""

import json
import random

import jsonschema
import numpy as np
import pytest

from gptjax.data.chat import chat_format, parse_messages
from gptjax.data.tokenizers.simple import ByteTokenizer
from gptjax.errors import UserError
from gptjax.posttrain import tools as training_tools
from gptjax.serve import tool_calls
from gptjax.serve.tool_calls import Call

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Zürich"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
STRICT = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
SUM = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
CALCULATOR = {"type": "function", "function": {"name": "calculator", "parameters": SUM}}
TOOLS = [WEATHER, CALCULATOR]
TOKENIZER = ByteTokenizer()
GOOD = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1+1"}}\n</tool_call>'


def read(text: str, pieces: random.Random | None = None, **request) -> tuple[str, list[Call]]:
    """(text, calls) of an answer that comes in pieces, or at once."""
    reader, parts = tool_calls.of_request(**({"tools": TOOLS} | request)).reader(), []
    while text:
        size = len(text) if pieces is None else pieces.randint(1, 6)
        parts += reader.feed(text[:size])
        text = text[size:]
    parts += reader.end()
    assert [part for part in parts if isinstance(part, Call)] == reader.calls
    return "".join(part for part in parts if isinstance(part, str)), reader.calls


def said(calls) -> list[tuple[str, dict]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


SUM_CALL = ("calculator", {"expression": "1+1"})
ANSWERS = {
    GOOD: ("", [SUM_CALL]),
    f"I compute.\n{GOOD}\n": ("I compute.", [SUM_CALL]),
    f"  {GOOD}\n{GOOD}": ("", [SUM_CALL, SUM_CALL]),
    f"{GOOD}\nThen text ": ("\nThen text ", [SUM_CALL]),
    "<tool_call>calculator(1+1)</tool_call>": ("", [SUM_CALL]),
    '<tool_call>{"name": "calculator", "arguments": {"expression": "1+1"}}</tool_call>': ("", [SUM_CALL]),
    "no call < and <tool and  \n ": ("no call < and <tool and  \n ", []),
    "<tool_call>{broken}</tool_call> x": ("<tool_call>{broken}</tool_call> x", []),
    '<tool_call>{"name": "shell", "arguments": {}}</tool_call>': (
        '<tool_call>{"name": "shell", "arguments": {}}</tool_call>',
        [],
    ),
    "<tool_call>weather(Bern)</tool_call>": ("<tool_call>weather(Bern)</tool_call>", []),  # which has two parameters
    f"<tool_call>{{ {GOOD}": (f"<tool_call>{{ {GOOD}", []),
    'cut <tool_call>\n{"name": "calc': ('cut <tool_call>\n{"name": "calc', []),
    "größer <tool_": ("größer <tool_", []),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_in_any_pieces_has_the_same_text_and_calls(answer):
    text, calls = read(answer)
    assert (text, said(calls)) == ANSWERS[answer]
    for seed in range(30):
        in_pieces = read(answer, random.Random(seed))
        assert (in_pieces[0], said(in_pieces[1])) == ANSWERS[answer]


def test_text_goes_out_at_once_and_what_may_begin_a_call_is_held_back():
    reader = tool_calls.of_request(TOOLS).reader()
    assert reader.feed("Let me see <tool") == ["Let me see"]
    assert reader.feed("s> and") == [" <tools> and"]
    assert reader.feed("\n<tool_call>\n{") == []
    call = Call("call_1", "now", "{}")
    assert call.as_openai() == {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def test_calls_have_ids_of_their_own():
    _, calls = read(GOOD * 3)
    assert len({call.id for call in calls}) == 3 and all(call.id.startswith("call_") for call in calls)


def test_without_parallel_calls_the_second_stays_text():
    text, calls = read(f"{GOOD}\n{GOOD}", parallel_tool_calls=False)
    assert said(calls) == [SUM_CALL] and text.strip() == GOOD


def test_calls_are_those_that_training_answers():
    """One convention: what posttrain.tools makes of a call is what a client makes of it."""
    for answer, (_, calls) in ANSWERS.items():
        whole = [training_tools.parsed_call(inside) for inside in training_tools.calls.CALL.findall(answer)]
        whole = [each for each in whole if each is not None and each[0] == "calculator"]
        assert whole == [(name, arguments["expression"]) for name, arguments in calls if name == "calculator"]


def test_an_answer_sent_back_is_the_text_that_was_said():
    form, tokenizer = chat_format("chatml"), TOKENIZER.with_special(("<|im_start|>", "<|im_end|>"))
    answer = f"I compute.\n{GOOD}\n{GOOD}"
    text, calls = read(answer)
    question = {"role": "user", "content": "?"}
    message = {"role": "assistant", "content": text, "tool_calls": [call.as_openai() for call in calls]}
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "2"}
    ids = form.prompt(parse_messages([question, message, result], "messages", TOOLS), tokenizer)
    assert answer in tokenizer.decode(ids)


# ---- calls that have to be


def at_random(constraint, rng, begun: str = "", most: int = 400) -> str | None:
    """A text of tokens that are allowed, all alike; None: it did not end."""
    tokens = TOKENIZER.encode(begun).tolist()
    for token in tokens:
        assert constraint.allowed()[token], begun
        constraint.take(token)
    for _ in range(most):
        token = int(rng.choice(np.flatnonzero(constraint.allowed())))
        constraint.take(token)
        if token == TOKENIZER.eot_id:
            return TOKENIZER.decode(tokens)
        tokens.append(token)
    return None


CHOSEN = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    "choice, parallel, names",
    [("required", True, {"weather", "now"}), ("required", False, {"weather", "now"}), (CHOSEN, False, {"weather"})],
)
def test_a_required_call_is_one_with_arguments_of_its_schema(choice, parallel, names):
    now = {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}},
    }
    use = tool_calls.of_request([WEATHER, now], choice, parallel)
    counts, called = set(), set()
    for seed in range(12):
        answer = at_random(use.constraint(TOKENIZER, (256,)), np.random.default_rng(seed))
        reader = use.reader()
        assert all(isinstance(part, Call) for part in [*reader.feed(answer), *reader.end()]), answer
        counts.add(len(reader.calls))
        for name, arguments in said(reader.calls):
            called.add(name)
            jsonschema.validate(arguments, CITY if name == "weather" else {"maxProperties": 0})
    assert called == names and 0 not in counts and (max(counts) > 1) == parallel


def test_a_strict_tool_is_called_by_its_schema_in_the_middle_of_free_text():
    use = tool_calls.of_request([STRICT, CALCULATOR])
    for seed in range(4):
        begun = 'Well, <b>ä</b>:\n<tool_call>\n{"name": "weather", "arguments": {'
        answer = at_random(use.constraint(TOKENIZER, (256,)), np.random.default_rng(seed), begun, most=3000)
        text, calls = read(answer, tools=[STRICT, CALCULATOR])
        assert text.startswith("Well, <b>ä</b>:") and calls[0].name == "weather"
        jsonschema.validate(json.loads(calls[0].arguments), CITY)
    refused = use.constraint(TOKENIZER, (256,))
    for token in TOKENIZER.encode('<tool_call>\n{"name": "'):
        refused.take(int(token))
    assert [chr(i) for i in np.flatnonzero(refused.allowed())] == ["c", "w"]


def test_an_answer_is_free_where_no_call_is_asked_for():
    assert tool_calls.of_request(TOOLS).constraint(TOKENIZER, (256,)) is None
    assert tool_calls.of_request(TOOLS, "none") is None
    assert tool_calls.of_request() is None and tool_calls.of_request([], "none") is None


@pytest.mark.parametrize(
    "tools, choice, message",
    [
        (None, "auto", "tool_choice='auto' without tools"),
        (TOOLS, "always", "tool_choice='always'; expected one of: none, auto, required, or"),
        (TOOLS, 3, "tool_choice=3; expected one of"),
        (TOOLS, {"type": "function", "function": {"name": "wether"}}, "tool_choice names 'wether'; did you mean 'weather'?"),
        ([{"function": {"name": "a b"}}], None, "tools: tool 1 has the name"),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_one_line(tools, choice, message):
    with pytest.raises(UserError) as raised:
        tool_calls.of_request(tools, choice)
    assert message in str(raised.value)


def test_a_schema_that_cannot_be_kept_to_is_said_of_the_tools():
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"not": {}}}}
    with pytest.raises(UserError, match="^tools: odd: parameters: the schema has 'not'"):
        tool_calls.of_request([odd], "required").constraint(TOKENIZER, (256,))
