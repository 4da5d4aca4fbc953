"""Instructions that a program can check: each with a text that follows it and one that does not."""

import json

import numpy as np
import pytest
from places import ROOT

from gptjax.errors import UserError
from gptjax.posttrain.rewards.instructions import CHECKS, followed
from gptjax.posttrain.rewards.reward import Answer, reward_of

FOLLOWED = [  # instruction, parameters, a text that follows it, one that does not
    ("keywords:existence", {"keywords": ["Red", "blue"]}, "red, BLUE", "red"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b A", "a b"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a catalogue", "a Cat."),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "be", "bee"),
    ("language:script", {"script": "cyrillic"}, "Привет, мир", "hello"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "So. It is 3.5!", "So 1.5"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "好。好。", "好。好。好。"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two, three", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Yes"},
        "a b\n\nyes, b",
        "yes b\n\na",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi\nP. S. one more", "Hi"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a b* and **c**", "* a\n* b"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1",
    ),
    ("detectable_format:json_format", {}, '{"a": 1}', "a: 1"),
    ("detectable_format:title", {}, "<<Joy>>\nx", "<< >>"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why?"}, "Why? So.", "So."),
    ("startend:end_checker", {"end_phrase": "Bye."}, "Well. bye. ", "Bye. Well"),
    ("startend:start_checker", {"start_phrase": "My"}, "my turn", "Your turn"),
    ("startend:quotation", {}, '"a"', '"a'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "AN IBM",
        "An IBM",
    ),
    ("change_case:english_capital", {}, "A 1!", "Aa"),
    ("change_case:english_lowercase", {}, "a 1!", "Aa"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


@pytest.mark.parametrize(("name", "parameters", "good", "bad"), FOLLOWED)
def test_a_text_follows_an_instruction_or_not(name, parameters, good, bad):
    assert followed(name, good, parameters) and not followed(name, bad, parameters)
    assert not followed(name, " \n", parameters)


def test_instructions_are_judged_as_lm_evals_implementation_does():
    """Of golden/ifeval.json, made by make_ifeval.py beside it."""
    golden = json.loads((ROOT / "tests" / "golden" / "ifeval.json").read_text())
    different = [
        (case["name"], case["parameters"], text)
        for case in golden["cases"]
        for text, theirs in zip(golden["texts"], case["followed"], strict=True)
        if followed(case["name"], text, case["parameters"]) != theirs
    ]
    assert len(golden["cases"]) == 36 and not different


def test_every_check_is_tested():
    assert {*CHECKS} - {name for name, *_ in FOLLOWED} == {"language:response_language"}


def test_a_language_is_told():
    pytest.importorskip("py3langid")
    german = "Das ist ein schöner Tag, und wir gehen zusammen in die Stadt."
    assert followed("language:response_language", german, {"language": "de"})
    assert not followed("language:response_language", german, {"language": "en"})


def answer(text: str, **fields) -> Answer:
    return Answer((), text, np.zeros(1, np.int32), True, fields)


TWO = dict(
    instruction_id_list=["punctuation:no_comma", "length_constraints:number_words"],
    kwargs=[{"num_words": None}, {"num_words": 3, "relation": "at least"}],  # as Parquet has IFEval's
)


def test_the_reward_is_the_share_of_instructions_or_all_of_them():
    assert reward_of("instructions")(answer("a b c", **TWO)) == 1.0
    assert reward_of("instructions")(answer("a b", **TWO)) == 0.5
    assert reward_of("instructions(all_of=True)")(answer("a b", **TWO)) == 0.0


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("punctuation:no_coma", {}, "did you mean 'punctuation:no_comma'"),
        ("punctuation:no_comma", {"n": 1}, "parameter 'n'; it takes: none"),
        ("startend:end_checker", {}, "'end_phrase'; it takes: end_phrase"),
        ("length_constraints:number_words", {"num_words": 1, "relation": "around"}, "relation='around' is not known"),
    ],
)
def test_an_instruction_that_there_is_not_or_its_parameters_are_refused(name, parameters, message):
    with pytest.raises(UserError, match=message):
        followed(name, "text", parameters)
