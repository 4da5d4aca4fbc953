"""notebooks/preference_ratings.py: what it makes of dialogues and ratings. Nothing is fetched or trained."""

import importlib
import sys

import pytest
from places import ROOT

from gptjax.data.pairs import forms


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        yield importlib.import_module("preference_ratings")
    finally:
        sys.path.remove(str(ROOT / "notebooks"))


def dialogue(ratings, *texts: str) -> dict:
    messages = [[{"sender": "xy"[i % 2], "text": text}] for i, text in enumerate(texts)]
    return {"messages": messages} | ({} if ratings is None else {"ratings": dict.fromkeys(DIMENSIONS, ratings)})


DIMENSIONS = ("witty", "interesting", "upbeat")


def test_people_have_letters_and_a_long_dialogue_its_beginning(script):
    assert script.text_of(dialogue(1, "Hi  there", "Hello to you")) == "A: Hi there\nB: Hello to"
    assert len(script.text_of(dialogue(1, "word " * 500))) <= script.CHARACTERS


def test_ratings_that_nobody_gave_are_left_out(script):
    made = script.rated([dialogue(None, "a b c"), dialogue(5, "d e f"), dialogue(9, "g h i"), dialogue(2, "j k l")])
    assert {text: score for text, score in made.items()} == {"A: g h": 27, "A: j k": 6}


def test_each_dialogue_is_in_one_record_that_can_be_read_and_says_something(script):
    scores = {f"text {i}": 3 if i < 4 else i for i in range(11)}
    [record] = script.comparisons(scores)
    assert record["completions"] == [f"text {i}" for i in range(4, 8)]
    assert forms.from_record(record, "here", "compared").scores == (7, 6, 5, 4)


def test_the_table_has_the_error_of_prompts_and_seeds_together(script):
    names = ("accuracy", "accuracy_longer", "accuracy_shorter", "chosen_longer", "ece", "length_correlation")
    results = [
        {"examples": 9, "pairs": 50} | dict.fromkeys(names, value) | {f"{name}_error": 0.03 for name in names}
        for value in (0.56, 0.64)
    ]
    head, accuracy, *_ = script.table(results)
    assert head == "9 prompts of the test, 50 pairs, 2 seeds"
    assert accuracy == "accuracy           0.6000 +- 0.0500 (0.5600, 0.6400), 2.0 errors above chance"
