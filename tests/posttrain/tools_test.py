"""Tools: a row goes on with what the chat format itself would have written, and a calculator that only calculates."""

import numpy as np
import pytest

from gptjax.data import tokenizers
from gptjax.data.chat import Message, chat_format
from gptjax.errors import UserError
from gptjax.posttrain import tools
from gptjax.posttrain.calculator import calculate

CALL = "First <tool_call>calculator(12*3)</tool_call>"
SYMBOLS = "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
TEMPLATE = f"{{% for m in messages %}}{SYMBOLS}{{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"


@pytest.fixture(scope="module", params=["gptjax", "chatml", "llama3", "smollm2", "template"])
def formatted(request, tmp_path_factory):
    """(format, tokenizer with its symbols, a Responder)."""
    name = request.param
    if name == "template":
        pytest.importorskip("jinja2")
        file = tmp_path_factory.mktemp("template") / "own.jinja"
        file.write_text(TEMPLATE)
        name = f"template:{file}"
    form = chat_format(name, "data.chat")
    symbols = form.symbols or ("<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
    tokenizer = tokenizers.from_spec("bytes").with_special(symbols)
    return form, tokenizer, tools.responder(["calculator"], form, tokenizer)


def row_of(form, tokenizer, messages, said: str) -> np.ndarray:
    """Prompt, answer, end token."""
    prompt_L = form.prompt(messages, tokenizer)
    return np.concatenate([prompt_L, tokenizer.encode(said), form.stop_ids(tokenizer)[:1]])


def test_a_row_with_the_tool_s_turn_is_the_conversation_as_the_format_writes_it(formatted):
    form, tokenizer, respond = formatted
    asked = (Message("user", "What?"),)
    for said, results in (
        (CALL, ["36"]),
        (CALL + " and " + CALL.replace("12*3", "1/0"), ["36", "error: division by zero"]),
        ('<tool_call>{"name": "calculator", "arguments": {"expression": "1/8"}}</tool_call>', ["0.125"]),
    ):
        row_L = row_of(form, tokenizer, asked, said)
        whole = (*asked, Message("assistant", said), *(Message("tool", result) for result in results))
        np.testing.assert_array_equal([*row_L, *respond(row_L.tolist())], form.prompt(whole, tokenizer))


def test_a_second_call_in_a_row_is_answered_too(formatted):
    form, tokenizer, respond = formatted
    before = (Message("user", "What?"), Message("assistant", CALL), Message("tool", "36"))
    row_L = row_of(form, tokenizer, before, CALL.replace("12*3", "36+6"))
    assert "42" in tokenizer.decode(respond(row_L)) and "36" not in tokenizer.decode(respond(row_L))


def test_without_a_call_of_the_assistant_there_is_no_tool_s_turn(formatted):
    form, tokenizer, respond = formatted
    assert respond(row_of(form, tokenizer, (Message("user", CALL),), "No.")) is None
    assert respond(row_of(form, tokenizer, (Message("user", "?"),), CALL + "..")[:-1]) is None  # not ended yet
    assert respond(row_of(form, tokenizer, (Message("user", "?"),), "<tool_call>calculator(1)")) is None
    assert respond([]) is None


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("calculator(2+2)", "4"),
        ("calculator 2+2", "error: the call is neither JSON with name and arguments nor NAME(ARGUMENT)"),
        ('{"name": "calculator"}', "error: the call is neither JSON with name and arguments nor NAME(ARGUMENT)"),
        ("browser(x)", "error: no tool browser; there are: calculator, broken"),
        ("broken(x)", "error: KeyError: 'x'"),
    ],
)
def test_a_wrong_call_is_answered_with_what_is_wrong_with_it(call, result):
    assert tools.result_of(call, {"calculator": calculate, "broken": lambda text: {}[text]}) == result


def test_a_tool_of_ones_own_is_an_address(formatted):
    form, tokenizer, _ = formatted
    assert tools.responder(["html:escape"], form, tokenizer).tools["escape"]("<") == "&lt;"
    with pytest.raises(UserError, match="did you mean 'calculator'"):
        tools.responder(["calculater"], form, tokenizer)
    with pytest.raises(UserError, match="rl.tools='math:pi' is a float; expected a function from text to text"):
        tools.responder(["math:pi"], form, tokenizer)


def test_a_tool_that_gives_no_text_is_named():
    with pytest.raises(UserError, match="the tool 'length' gave 3, no text; have it give a str"):
        tools.result_of("length(abc)", {"length": len})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12*3", "36"),
        ("0.1+0.2", "0.3"),
        ("-7//2 + 7%4", "-1"),
        ("2**-2", "0.25"),
        ("2**0.5", "1.41421356237"),
        ("(1+2)/3", "1"),
        (" 1e3 ", "1000"),
    ],
)
def test_the_calculator_calculates(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1/(2-2)", "division by zero"),
        ("0**-1", "division by zero"),
        ("9**9**9", "too large"),
        ("1e999", "too large"),
        ("2**100000", "too large"),
        ("2**2000 * 2**2000", "too large"),
        ("(-8)**0.5", "negative number"),
        ("1,234", "only numbers"),
        ("abs(1)", "only numbers"),
        ("__import__('os')", "only numbers"),
        ("True + 1", "only numbers"),
        ("'a' * 3", "only numbers"),
        ("1 +", "no arithmetic expression"),
        ("", "no arithmetic expression"),
        ("(" * 400, "no arithmetic expression"),
        ("1" * 501, "501 characters"),
    ],
)
def test_the_calculator_says_what_it_cannot(expression, message):
    with pytest.raises(UserError, match=message):
        calculate(expression)
