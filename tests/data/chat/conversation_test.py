import pytest

from gptjax.data.chat import Conversation, Message, from_record, parse_messages
from gptjax.errors import UserError

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = (Message("user", "q"), Message("assistant", "a"))


@pytest.mark.parametrize(
    "record, messages",
    [
        ({"messages": [U, A]}, PAIR),
        ({"messages": [{"role": "developer", "content": "s"}, U, A]}, (Message("system", "s"), *PAIR)),
        ({"messages": [U, A | {"weight": 0}, U, A | {"weight": 1.5}]}, (*PAIR[:1], Message("assistant", "a", 0.0), PAIR[0], Message("assistant", "a", 1.5))),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, "r"]}, A]}, (Message("user", "qr"), PAIR[1])),
        ({"messages": [U, A, {"role": "tool", "content": ""}, A]}, (*PAIR, Message("tool", ""), PAIR[1])),
        ({"messages": [U, U, A, A]}, (PAIR[0], PAIR[0], PAIR[1], PAIR[1])),
        ({"prompt": "q", "completion": "a", "messages": None}, PAIR),
        ({"prompt": [U, A, U], "completion": [A]}, (PAIR[0], Message("assistant", "a", 0.0), *PAIR)),
        ({"instruction": "q", "input": "", "output": "a"}, PAIR),
        ({"instruction": "q", "input": "i", "output": "a", "system": "s"}, (Message("system", "s"), Message("user", "q\n\ni"), PAIR[1])),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
        ({"conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, (Message("system", ""), *PAIR)),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}, (Message("system", "s"), *PAIR)),
        ({"conversations": [U, A]}, PAIR),
    ],
)  # fmt: skip
def test_a_record_of_each_form_is_read(record, messages):
    assert from_record(record, "f:1") == Conversation(messages, "f:1")


def test_answers_alone_are_targets():
    weights = [message.loss_weight for message in (*PAIR, Message("assistant", "a", 0.0), Message("tool", "t"))]
    assert weights == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "record, message",
    [
        ([U, A], "holds a list; expected an object with messages."),
        (
            {"text": "x", "label": 1},
            "is no conversation: it has the fields 'text', 'label'; expected one of: messages;",
        ),
        ({"messages": []}, "has no messages; expected a list"),
        ({"messages": "hi"}, "has no messages; expected a list"),
        ({"messages": ["hi"]}, "message 1 is a str; expected an object with role and content."),
        ({"messages": [{"content": "x"}]}, "message 1 has no role; expected one of: system, user, assistant, tool"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "message 1: role='usr' is not known; did you mean 'user'"),
        ({"messages": [U, {"role": "assistant"}]}, "message 2 has no content; expected a text."),
        ({"messages": [U, {"role": "assistant", "content": 3}]}, "message 2 has content of type int; expected a text."),
        ({"messages": [U, {"role": "assistant", "content": " \n"}]}, "message 2 (assistant) is empty"),
        ({"messages": [{"role": "user", "content": ""}, A]}, "message 1 (user) is empty"),
        ({"messages": [U, {"role": "assistant", "content": "\ud800"}]}, "message 2 has half of a surrogate pair"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]},
            "part of type 'image_url'; only text",
        ),
        (
            {"messages": [U, A, {"role": "system", "content": "s"}]},
            "message 3 (system) is out of place; a system message",
        ),
        ({"messages": [{"role": "system", "content": "s"}] * 2}, "message 2 (system) is out of place"),
        (
            {"messages": [U, {"role": "tool", "content": "t"}, A]},
            "message 2 (tool) is out of place; it has to follow an",
        ),
        ({"messages": None}, "is no conversation: it has the fields 'messages' (null); expected one of: messages;"),
        ({"messages": [U]}, "has no target: it has no assistant's message"),
        ({"messages": [U, A | {"weight": 0}]}, "has no target: it has only weights of 0"),
        ({"messages": [U, A | {"weight": -1}]}, "message 2: weight=-1; expected a number of at least 0."),
        ({"messages": [U, A | {"weight": float("nan")}]}, "message 2: weight=nan; expected"),
        ({"messages": [U, A | {"weight": True}]}, "message 2: weight=True; expected"),
        (
            {"messages": [U | {"weight": 1}, A]},
            "message 1 (user) has a weight; only an assistant's message is a target",
        ),
        ({"prompt": 3, "completion": "a"}, "prompt is a int; expected a text or a list of messages."),
        ({"prompt": "q", "completion": [U]}, "has no target"),
        ({"instruction": "q", "output": 3}, "output is a int; expected a text."),
        ({"instruction": "", "output": "a"}, "message 1 (user) is empty"),
        ({"conversations": {"a": 1}}, "conversations is a dict; expected a list of from and value."),
        ({"conversations": ["x"]}, "message 1 does not say from whom it is"),
        (
            {"conversations": [{"from": "humn", "value": "q"}]},
            "message 1: from='humn' is not known; did you mean 'human'",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            "message 1 (assistant) is out of place; human and gpt take",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}] * 2},
            "message 2 (user) is out of place; human and gpt take",
        ),
    ],
)
def test_a_bad_record_is_one_line_that_begins_with_where_it_stands(record, message):
    with pytest.raises(UserError) as error:
        from_record(record, "f.jsonl:7")
    said = str(error.value)
    assert said.startswith("f.jsonl:7") and message in said and "\n" not in said and said.endswith((".", "?"))


def test_messages_without_an_answer_are_those_of_a_prompt():
    assert parse_messages([U, Message("assistant", "a"), U], "chat") == (*PAIR, PAIR[0])
