"""Rewards: each by worked answers, several with weights, and what is said where one cannot be computed."""

import dataclasses
import fractions
import sys

import numpy as np
import pytest

from gptjax.data.chat.conversation import Message
from gptjax.errors import UserError
from gptjax.posttrain.rewards import extraction
from gptjax.posttrain.rewards.reward import REWARDS, Answer, Weighted, chosen, reward_of, scored


def answer(text: str, tokens=(1, 2, 3), ended=True, where="prompts.jsonl:1", **fields) -> Answer:
    return Answer((Message("user", "?"),), text, np.array(tokens, np.int32), ended, fields, where)


WORKED = [  # reward, text, the record's answer, value
    ("exact", " Paris \n", "Paris", 1.0),
    ("exact", "paris", "Paris", 0.0),
    ("exact(ignore_case=True)", "paris", ["Rome", "Paris"], 1.0),
    ("exact(form='tag')", "<think>Rome</think><answer> Paris </answer>", "Paris", 1.0),
    ("exact(form='tag')", "Paris", "Paris", 0.0),
    ("numeric", "12 and 30 make 42 apples.", 42, 1.0),
    ("numeric", "1,234.50", "1234.5", 1.0),
    ("numeric", "so 0.75", "3/4", 1.0),
    ("numeric", r"$\frac{3}{4}$", "0.75", 1.0),
    ("numeric", "-7", 7, 0.0),
    ("numeric", "5-3", 3, 1.0),
    ("numeric", "it is 15%", "15", 1.0),
    ("numeric", "the answer is 9", "5 + 4 = <<5+4=9>>9\n#### 9", 1.0),
    ("numeric", "none", 1, 0.0),
    ("numeric", "", 1, 0.0),
    ("numeric", "9" * 10_000, 1, 0.0),
    ("numeric(tolerance=0.01)", "3.14", "3.14159", 1.0),
    ("numeric(tolerance=0.0001)", "3.14", "3.14159", 0.0),
    ("numeric(alone=True)", " $42. ", 42, 1.0),
    ("numeric(alone=True)", "42 apples", 42, 0.0),
    ("numeric(form='boxed')", r"1 \boxed{2} 3 \boxed{\frac{1}{2}} 4", "0.5", 1.0),
    ("numeric(form='boxed')", "0.5", "0.5", 0.0),
    ("numeric(form='answer')", "Answer: 5\nthat was 7", 5, 1.0),
    ("numeric(form='answer')", "Answer: 5\nno, the answer is: 6", 6, 1.0),
    ("numeric(form='last_line')", "7\n5\n", 5, 1.0),
    ("choice", "A is wrong, so (B).", "B", 1.0),
    ("choice", "Because", "B", 0.0),
    ("contains(words=('red','blue'))", "Red and green", None, 0.5),
    ("contains(any_of=True)", "a cat", ["dog", "cat"], 1.0),
    (r"regex(pattern='\\d+')", " 123 ", None, 1.0),
    (r"regex(pattern='\\d+')", "n 123", None, 0.0),
    (r"regex(pattern='\\d+', part=True)", "n 123", None, 1.0),
    ("json", '```json\n{"a": [1]}\n```', None, 1.0),
    ("json", "{'a': 1}", None, 0.0),
    ("json", "NaN", None, 0.0),
    ("json(keys=('a','b'))", '{"a": 1}', None, 0.0),
    ("json(keys='a')", '{"a": 1}', None, 1.0),
    ("tags", "<think>x</think>\n<answer>y</answer>", None, 1.0),
    ("tags", "<answer>y</answer><think>x</think>", None, 0.0),
    ("tags", "<think>x</think><think>x</think><answer>y</answer>", None, 0.0),
    ("length(target=4)", "", None, 0.75),  # of 3 tokens
    ("length(target=2,unit='words')", "a b c d e f g h", None, -1.0),
    ("overlong(limit=4,buffer=2)", "", None, -0.5),
    ("overlong(limit=3)", "", None, 0.0),
    ("overlong(limit=2)", "", None, -1.0),
    ("repetition(n=1)", "", None, 0.0),
    ("ended", "", None, 1.0),
]


@pytest.mark.parametrize(("reward", "text", "right", "value"), WORKED)
def test_a_reward_is_what_one_works_out_by_hand(reward, text, right, value):
    assert reward_of(reward)(answer(text, answer=right)) == value


def test_repetition_is_the_share_of_ngrams_that_stood_before():
    assert reward_of("repetition(n=2)")(answer("", tokens=(1, 2, 1, 2, 1))) == pytest.approx(2 / 4 - 1)
    assert reward_of("repetition(n=2)")(answer("", tokens=(1,))) == 0.0


def test_numbers_are_exact_and_denominators_of_zero_are_none():
    assert extraction.numbers("0.1 1/3 4/0 -2e-3 −5") == [
        fractions.Fraction(1, 10),
        fractions.Fraction(1, 3),
        fractions.Fraction(-1, 500),
        fractions.Fraction(-5),
    ]


def test_several_rewards_keep_their_names_and_add_up_with_their_weights():
    rewards = chosen({"numeric": 1.0, "length(target=4)": 0.5, "length(target=3)": -2})
    scores = scored([answer("42", answer=42), answer("41", answer=42)], rewards)
    assert list(scores.by_name) == ["numeric", "length", "length_2"]
    np.testing.assert_array_equal(scores.by_name["numeric"], np.float32([1, 0]))
    np.testing.assert_allclose(scores.total_B, [1 + 0.375 - 2, 0.375 - 2], rtol=1e-6)
    assert scores.total_B.dtype == np.float32 and scores.failed == {}


def test_fractions_survive():
    """No reward is rounded, whatever is beside it."""
    scores = scored([answer("Red", answer=["red", "blue", "green"])], chosen({"contains": 0.3}))
    assert scores.total_B[0] == pytest.approx(0.1, rel=1e-6)


FILE = """
import dataclasses


def by_length(answer):
    if not answer.text:
        raise ZeroDivisionError("nothing there")
    return len(answer.text) / 8


def nothing(answer):
    return float("nan")


@dataclasses.dataclass(frozen=True)
class Counts:
    letter: str
    factor: float = 1.0

    def __call__(self, answer):
        return self.factor * answer.text.count(self.letter)
"""


@pytest.fixture(scope="module")
def own_module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_rewards.py").write_text(FILE)
    sys.path.insert(0, str(folder))
    yield "own_rewards"
    sys.path.remove(str(folder))


def test_a_reward_of_ones_own_is_a_function_or_a_class_with_parameters(own_module):
    rewards = chosen([f"{own_module}:by_length", f"{own_module}:Counts(letter='a', factor=2)"])
    scores = scored([answer("banana")], rewards)
    assert {name: value.tolist() for name, value in scores.by_name.items()} == {"by_length": [0.75], "Counts": [6.0]}


def test_a_class_in_the_table_is_chosen_by_its_name(own_module, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Vowels:
        """The number of vowels."""

        def __call__(self, answer):
            return float(sum(letter in "aeiou" for letter in answer.text))

    monkeypatch.setitem(REWARDS, "vowels", Vowels)
    assert scored([answer("banana")], chosen(["vowels"])).total_B == [3.0]


def test_what_a_reward_raises_names_the_reward_and_the_record(own_module):
    rewards = chosen([f"{own_module}:by_length"])
    answers = [answer("ab", where="p.jsonl:7"), answer("", where="p.jsonl:8")]
    with pytest.raises(UserError, match="p.jsonl:8: the reward 'own_rewards:by_length' failed: ZeroDivisionError"):
        scored(answers, rewards)
    scores = scored(answers, rewards, on_error="zero")
    assert scores.total_B.tolist() == [0.25, 0.0] and scores.failed == {"by_length": 1}


def test_a_reward_that_is_no_number_stops_the_scoring(own_module):
    with pytest.raises(UserError, match="own_rewards:nothing' is nan; expected a finite number"):
        scored([answer("x")], chosen([f"{own_module}:nothing"]))


@dataclasses.dataclass(frozen=True)
class Gives:
    """A reward that gives what it was told, or raises it."""

    value: object = 0.0

    def __call__(self, answer) -> float:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "gave None; expected a number"),
        ("0.5", "gave '0.5'; expected a number"),
        (np.ones(1), "expected a number"),
        (1e300, "expected a finite number, at most 3.4"),
        (-np.inf, "expected a finite number"),
        (SystemExit(3), "failed: SystemExit: 3; correct the reward"),
    ],
)
def test_what_is_no_number_of_float32_ends_the_scoring_and_names_the_record(value, message):
    gives = [Weighted("gives", 1.0, Gives(value), "own:gives")]
    with pytest.raises(UserError, match=message) as caught:
        scored([answer("x", where="p.jsonl:7")], gives)
    assert str(caught.value).startswith("p.jsonl:7: the reward 'own:gives'")


def test_bools_and_numbers_of_numpy_are_rewards():
    for value in (True, np.float32(1), np.ones(())):
        assert scored([answer("x")], [Weighted("gives", 1.0, Gives(value), "gives")]).total_B == [1.0]


def test_a_sum_beyond_float32_is_refused():
    with pytest.raises(UserError, match="the weighted sum of rewards is 1e.60"):
        scored([answer("x")], [Weighted("gives", 1e30, Gives(1e30), "gives")])


REFUSED = [
    (lambda: chosen([":x"]), "rl.rewards=':x' is :x, which names no module"),
    (lambda: chosen(["..x:y"]), "which names no module"),
    (lambda: chosen([]), "rl.rewards is empty"),
    (lambda: chosen({"exact": "a lot"}), "gives 'exact' the weight 'a lot'; expected a number"),
    (lambda: chosen(["numerik"]), "did you mean 'numeric'"),
    (lambda: chosen(["exact(form='box')"]), "form='box' is not known"),
    (lambda: chosen(["regex(pattern='(')"]), "is no regular expression"),
    (lambda: chosen(["overlong(limit=2,buffer=2)"]), "buffer=2 is not within the limit"),
    (lambda: chosen(["math:pi"]), "'math:pi' is a float; expected a function of an Answer"),
    (lambda: scored([answer("1")], chosen(["numeric"])), "the record has no field 'answer'"),
    (lambda: scored([answer("1", answer="none")], chosen(["numeric"])), "has no number: 'none'"),
    (lambda: scored([answer("A", answer="E")], chosen(["choice"])), "is 'E'; expected one letter of 'ABCD'"),
    (lambda: scored([], chosen(["exact"]), on_error="skip"), "on_error='skip' is not known"),
]


@pytest.mark.parametrize(("act", "message"), REFUSED)
def test_what_cannot_be_scored_is_refused_in_one_line(act, message):
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
