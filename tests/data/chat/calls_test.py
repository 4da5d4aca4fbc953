"""Tools and calls as text: the same tokens in training and serving, whatever the format."""

import json

import numpy as np
import pytest

from gptjax.data.chat import Conversation, Message, chat_format, from_record, parse_messages
from gptjax.data.chat.template import TemplateFormat
from gptjax.data.tokenizers.simple import ByteTokenizer
from gptjax.errors import UserError

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says <|im_end|> and <|end|>, as text.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def call(name, number, **arguments):
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


MESSAGES = [
    {"role": "user", "content": "Weather in Zürich, and the time?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [call("weather", 1, city="Zürich"), call("now", 2)]},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "assistant", "content": "Rain at noon."},
]
CALLED = """\
I look.
<tool_call>
{"name": "weather", "arguments": {"city": "Zürich"}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call>"""
# A template that knows tools, written as Hermes' models and Qwen2 have them.
KNOWING = """\
{%- if tools %}<|im_start|>system{{ '\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- '<tools>' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}{{ '\\n</tools>, called by <tool_call>' }}<|im_end|>
{{- '\\n' }}{% endif %}{% for m in messages %}{% if not (loop.first and tools and m.role == 'system') %}<|im_start|>{{ m.role + '\\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}
{{- '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"""
FORMATS = {name: chat_format(name) for name in ("gptjax", "chatml", "smollm2", "llama3")}
FORMATS |= {
    "template": TemplateFormat("template:t", FORMATS["chatml"].template),
    "template that knows tools": TemplateFormat("template:k", KNOWING),
}


def tokenizer_for(form):
    return ByteTokenizer().with_special(form.symbols)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_conversation_with_calls_has_the_same_tokens_in_training_and_serving(name, system):
    form = FORMATS[name]
    tokenizer = tokenizer_for(form)
    values = ([{"role": "system", "content": system}] if system else []) + MESSAGES
    conversation = from_record({"messages": values, "tools": [WEATHER, NOW]}, "FILE:1")
    trained = form.render(conversation, tokenizer)
    for n in (1, 4):  # the prompt of the call, and of the answer to its results
        served = parse_messages(values[: len(values) - len(MESSAGES) + n], "messages", [WEATHER, NOW])
        prompt_L = form.prompt(served, tokenizer)
        assert np.array_equal(prompt_L, trained.token_L[: len(prompt_L)])
        answer = tokenizer.decode(trained.token_L[len(prompt_L) :])
        assert answer.startswith(CALLED if n == 1 else "Rain at noon."), answer
    targets = tokenizer.decode(trained.token_L[trained.weight_L > 0])
    assert targets == CALLED + "Rain at noon."
    text = tokenizer.decode(trained.token_L)
    assert json.dumps(WEATHER, ensure_ascii=False) in text
    assert text.index("rain") < text.index("noon"), "results stand in the order of their calls"
    if system:
        assert text.index("Be brief.") < text.index("<tools>")


@pytest.mark.parametrize("name", FORMATS)
def test_a_tool_spells_no_control_token(name):
    form = FORMATS[name]
    tokenizer = tokenizer_for(form)

    def controls(tools) -> list[int]:
        ids = form.prompt(parse_messages(MESSAGES[:1], "messages", tools), tokenizer)
        return [i for i in ids.tolist() if i in tokenizer.special.values()]

    plain = WEATHER | {"function": WEATHER["function"] | {"description": "Says nothing."}}
    assert controls([WEATHER]) == controls([plain])


def test_smollm2_keeps_its_own_system_message_before_the_tools():
    form = FORMATS["smollm2"]
    text = tokenizer_for(form).decode(form.prompt(parse_messages(MESSAGES[:1], "m", [NOW]), tokenizer_for(form)))
    assert text.startswith(
        "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n\nYou can call"
    )


def test_without_tools_nothing_changes():
    assert (
        parse_messages(MESSAGES[:1], "m")
        == parse_messages(MESSAGES[:1], "m", [])
        == (Message("user", MESSAGES[0]["content"]),)
    )
    conversation = Conversation(parse_messages([{"role": "system", "content": ""}, MESSAGES[0]], "m"), "m")
    assert "SmolLM" not in tokenizer_for(FORMATS["smollm2"]).decode(
        FORMATS["smollm2"].render(conversation, tokenizer_for(FORMATS["smollm2"])).token_L
    )


def test_tools_of_a_parquet_column_are_read_from_their_text():
    messages = [MESSAGES[0], MESSAGES[4]]
    as_text = from_record({"messages": messages, "tools": json.dumps([NOW])}, "f")
    assert as_text == from_record({"messages": messages, "tools": [NOW]}, "f")
    assert from_record({"messages": messages, "tools": ""}, "f") == from_record({"messages": messages}, "f")


def bad_call(**function):
    return [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}]


@pytest.mark.parametrize(
    "messages, tools, message",
    [
        (MESSAGES, "x", "F:1: tools is no JSON"),
        (MESSAGES, {"a": 1}, "F:1: tools is a dict; expected a list."),
        (MESSAGES, [{"name": "now"}], 'F:1: tool 1 is {\'name\': \'now\'}; expected {"type": "function"'),
        (MESSAGES, [NOW, NOW], "F:1: two tools have the name 'now'; give each its own."),
        (MESSAGES, [{"function": {"name": "a b"}}], "F:1: tool 1 has the name 'a b'; expected 1 to 64 letters"),
        (MESSAGES, [{"function": {"name": "a", "parameters": []}}], None),
        (MESSAGES, [{"function": {"name": "a", "parameters": {"type": "array"}}}], "F:1: tool 1 (a): parameters is no JSON schema"),
        (bad_call(arguments="{}"), None, "F:1: message 2: tool call 1 has no function"),
        (bad_call(name="a", arguments="{"), None, "F:1: message 2: tool call 1: arguments is no JSON"),
        (bad_call(name="a", arguments="[1]"), None, "F:1: message 2: tool call 1: arguments is [1]; expected an object."),
        ([*MESSAGES[:2], {"role": "tool", "tool_call_id": "x", "content": "1"}], None,
         "F:1: message 3 (tool) has the tool_call_id 'x'; the calls before it are: call_1, call_2."),
        ([MESSAGES[0], {"role": "assistant", "content": None}], None, "F:1: message 2 has no content; expected a text."),
    ],
)  # fmt: skip
def test_what_is_no_tool_and_no_call_is_one_line(messages, tools, message):
    if message is None:
        assert from_record({"messages": messages, "tools": tools}, "F:1")
        return
    with pytest.raises(UserError) as raised:
        from_record({"messages": messages, "tools": tools}, "F:1")
    assert message in str(raised.value) and "\n" not in str(raised.value)
