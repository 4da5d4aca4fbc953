"""Filters of requests and answers. All that they look for here is harmless: made-up words, and numbers that are nobody's."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.errors import UserError
from gptjax.serve.filters import Filters, Refusal
from gptjax.serve.personal_data import iban, luhn

CARD, IBAN = "4111 1111 1111 1111", "GB82 WEST 1234 5698 7654 32"  # published for tests
PERSONAL = {"name": "personal", "at": "both", "action": "redact", "personal_data": ["email", "card", "iban", "phone"]}
REDACT = {
    "name": "hidden",
    "at": "both",
    "action": "redact",
    "patterns": ["flurb(?:le)?", r"\bab+c\b", "x(?=yz)", "(?<!q)zap"],
}
REFUSE = {"name": "grommet", "at": "both", "action": "refuse", "patterns": ["(?i)how to bend a grommet", "grom+et!"]}


def filters(*rules, **fields) -> Filters:
    return Filters.of([{"rules": list(rules), **fields}])


def streamed(made: Filters, pieces) -> tuple[str, object]:
    """(all that was shown, what the end said)"""
    output = made.output()
    shown = "".join(output.feed(piece) for piece in pieces)
    end = output.end()
    return (shown + end, None) if isinstance(end, str) else (shown, end)


WORDS = [
    "flurb",
    "flurble",
    "flur",
    "ab",
    "bbc",
    "abc ",
    "x",
    "yz",
    "zap",
    "qzap",
    "grommet",
    "!",
    "how to bend a ",
    "How ",
    " ",
    "4111",
    "1111",
    "-",
    "a@b.co",
    ".org",
    "@",
    "é",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12), st.randoms(use_true_random=False))
def test_an_answer_in_pieces_is_filtered_as_if_it_came_at_once(words, random):
    text = "".join(words)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    for one in (filters(PERSONAL, REDACT, REFUSE), filters(REDACT, REFUSE)):  # addresses alone hold back whole words
        assert streamed(one, pieces) == streamed(one, [text]) == streamed(one, list(text))


def test_what_stands_before_a_match_is_seen_when_it_has_been_shown_already():
    assert streamed(filters(REDACT), list("qzap zap")) == ("qzap [hidden]", None)


def test_what_was_held_back_comes_as_soon_as_it_can_be_no_match():
    output = filters(REDACT).output()
    assert [output.feed(c) for c in "a flurb flurp"] == [
        "",
        "a ",
        "",
        "",
        "",
        "",
        "",
        "[hidden] ",
        "",
        "",
        "",
        "",
        "flurp",
    ]
    assert output.feed("flurbl") == "" and output.end() == "[hidden]l"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Write to jo.park+x@mail.example.org.", "Write to [email]."),
        ("no address: @home, a@b, 3 @ 5", "no address: @home, a@b, 3 @ 5"),
        (f"card {CARD}, please", "card [card], please"),
        (f"card {CARD} 2 items", "card [card] 2 items"),
        ("card 4111 1111 1111 1112", "card 4111 1111 1111 1112"),
        (f"to {IBAN} AND soon", "to [iban] AND soon"),
        ("to GB82 WEST 1234 5698 7654 33 now", "to GB82 WEST 1234 5698 7654 33 now"),
        ("call +44 20 7946 0958 or (555) 010-9999", "call [phone] or [phone]"),
        ("in 2024, 1000000 things, 12.5 and 3-4", "in 2024, 1000000 things, 12.5 and 3-4"),
        ("ring 13800138000!", "ring [phone]!"),
    ],
)
def test_personal_data_is_redacted_and_what_only_looks_like_it_is_not(text, kept):
    assert streamed(filters(PERSONAL), [text]) == (kept, None) == streamed(filters(PERSONAL), list(text))


def test_checksums_are_those_of_the_standards():
    assert luhn(CARD) and iban(IBAN) and luhn("5555-5555-5555-4444") and iban("DE89370400440532013000")
    drawn = random.Random(0)
    digits = "".join(filter(str.isdigit, CARD))
    for i in range(len(digits)):  # every change of one digit is seen
        other = drawn.choice([d for d in "0123456789" if d != digits[i]])
        assert not luhn(digits[:i] + other + digits[i + 1 :])


def test_a_refused_answer_shows_what_stood_before_says_the_refusal_and_can_be_stopped():
    one = filters(REFUSE, refusal="Not here.")
    output = one.output()
    assert output.feed("Sure. How to bend a grom") == "Sure. " and not output.refused
    assert output.feed("met is") == "" and output.refused
    assert output.feed("more") == "" and output.end() == Refusal("Not here.", "grommet") == output.end()
    assert one.counts.snapshot() == {("output", "grommet", "refuse"): 1}


def test_a_request_is_redacted_in_a_copy_or_refused_and_the_assistant_s_own_words_are_left_alone():
    one = filters(PERSONAL, REFUSE, refusal="Not here.")
    parts = [{"type": "text", "text": "a@b.org"}, {"type": "image_url", "image_url": {}}]
    messages = [
        {"role": "user", "content": "I am a@b.org"},
        {"role": "assistant", "content": "a@b.org"},
        {"role": "user", "content": parts},
    ]
    verdict = one.check_input(messages)
    assert [m["content"] for m in verdict.messages] == [
        "I am [email]",
        "a@b.org",
        [{"type": "text", "text": "[email]"}, parts[1]],
    ]
    assert messages[0]["content"] == "I am a@b.org" and verdict.refusal is None and verdict.rules == ("personal",)
    refused = one.check_input([{"role": "user", "content": "HOW TO BEND A GROMMET"}])
    assert refused.refusal == "Not here." and refused.rules == ("grommet",)
    assert one.counts.snapshot() == {("input", "personal", "redact"): 1, ("input", "grommet", "refuse"): 1}
    assert one.check_input([{"role": "assistant", "content": None, "tool_calls": []}]).refusal is None


def test_counts_are_written_for_prometheus():
    one = filters(REDACT | {"name": 'a "rule"'})
    streamed(one, ["flurb zap"])
    streamed(one, ["nothing"])
    assert one.counts.prometheus().splitlines()[1:] == [
        "# TYPE gptjax_filter_total counter",
        r'gptjax_filter_total{place="output",rule="a \"rule\"",action="redact"} 1',
    ]


def test_a_classifier_judges_a_request_and_a_whole_answer():
    rule = {
        "name": "rude",
        "at": "both",
        "action": "refuse",
        "classifier": "a run",
        "labels": ["rude"],
        "threshold": 0.7,
    }
    share = lambda text: {"rude": text.count("r") / len(text), "kind": 1 - text.count("r") / len(text)}  # noqa: E731
    one = Filters.of([{"rules": [rule, REDACT]}], judge_of=lambda path: share)
    assert (
        one.check_input([{"role": "user", "content": "rrrr"}]).refusal
        and not one.check_input([{"role": "user", "content": "hi"}]).refusal
    )
    output = one.output()
    assert output.feed("rrr") == output.feed("rrr") == "" and isinstance(output.end(), Refusal)
    assert streamed(one, ["kind ", "flurb"]) == ("kind [hidden]", None)
    with pytest.raises(UserError, match="a run has no label loud; it has: rude, kind"):
        Filters.of([{"rules": [rule | {"labels": ["loud"]}]}], judge_of=lambda path: share)


def test_without_rules_every_piece_passes_as_it_comes():
    output = Filters.of([]).output()
    assert output.feed("a@b") == "a@b" and output.end() == ""


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"nam": "x"}, "has a key 'nam'; did you mean 'name'"),
        ({"at": "both"}, "has no name"),
        (REDACT | {"action": "drop"}, "action='drop' is not known"),
        (REDACT | {"at": "inside"}, "at='inside' is not known"),
        (REDACT | {"patterns": []}, "has nothing to look for"),
        (REDACT | {"personal_data": ["email"]}, "has patterns and personal_data"),
        (REDACT | {"patterns": ["("]}, "the pattern '(' cannot be read"),
        (REDACT | {"patterns": ["a*"]}, "finds an empty text"),
        (PERSONAL | {"personal_data": ["mail"]}, "personal_data='mail' is not known; did you mean 'email'"),
        (
            {"name": "x", "at": "input", "action": "redact", "classifier": "r", "labels": ["a"]},
            "names no part of a text",
        ),
        ({"name": "x", "at": "input", "action": "refuse", "classifier": "r", "labels": []}, "needs labels that refuse"),
    ],
)
def test_what_is_wrong_in_a_rule_is_said(tmp_path, rule, message):
    with pytest.raises(UserError) as error:
        filters(rule)
    assert message in str(error.value) and str(error.value).startswith("filters: rule 1")


def test_a_file_that_is_not_there_or_no_toml_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Filters.of([str(tmp_path / "absent")])
    (tmp_path / "own.toml").write_text("rules = [")
    with pytest.raises(UserError, match="is no TOML"):
        Filters.of([str(tmp_path / "own.toml")])
    with pytest.raises(UserError, match="filters: expected refusal, a text, and"):
        Filters.of([{"rule": []}])
