"""Generated problems: functions of their number, held out apart, each answered as Python answers it."""

import re
import sys

import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.posttrain.problems import problem
from gptjax.posttrain.rewards import reward

CHOICES = [
    "arithmetic",
    "arithmetic(digits=3, terms=4, operators='+-*', template='What is {}?')",
    "comparison",
    "copying",
    "reversing(longest=9)",
    "sorting(alphabet='cba')",
    "counting",
]


def solved(prompt: str) -> str:
    """By Python, from the prompt alone."""
    word = prompt.rstrip(":").split()[-1]
    if prompt.startswith("larger"):
        return str(max(map(int, re.findall(r"\d+", prompt))))
    solve = {
        "copy": lambda: word,
        "reverse": lambda: "".join(reversed(word)),
        "sort": lambda: "c" * word.count("c") + "b" * word.count("b") + "a" * word.count("a"),
        "count": lambda: str(word.count(prompt.split()[1])),
    }
    verb = prompt.split()[0]
    return solve[verb]() if verb in solve else str(eval(re.search(r"[\d+*-]+", prompt)[0].strip()))


@pytest.mark.parametrize("text", CHOICES)
def test_answers_are_right_and_worth_1_and_others_are_not(text):
    problems = problem.chosen(text, seed=3)
    rewards = reward.chosen([problems.generator.reward])
    drawn = [problems[i] for i in range(50)]
    answers = [
        reward.Answer(each.messages, solution, np.zeros(1, np.int32), True, each.fields, each.where)
        for each in drawn
        for solution in (solved(each.prompt), solved(each.prompt) + "1")
    ]
    np.testing.assert_array_equal(reward.scored(answers, rewards).total_B.reshape(-1, 2), [[1.0, 0.0]] * 50)


@pytest.mark.parametrize("text", CHOICES)
def test_a_problem_is_a_function_of_seed_split_and_number(text):
    again = [problem.chosen(text, seed=3)[i] for i in (5, 0, 5)]
    assert again[0] == again[2] == problem.chosen(text, seed=3)[5] and again[0] != again[1]
    assert [problem.chosen(text, seed=s)[5].prompt for s in range(20)] != [again[0].prompt] * 20


def test_what_is_held_out_is_never_trained_on_whatever_the_seeds():
    """Of all sums of two numbers of one digit."""
    prompts = {
        split: {problem.chosen("arithmetic(digits=1)", seed, split)[i].prompt for seed in range(4) for i in range(300)}
        for split in problem.SPLITS
    }
    assert not prompts["train"] & prompts["held_out"]
    assert len(prompts["train"] | prompts["held_out"]) == 100 and 2 < len(prompts["held_out"]) < 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arithmetik", "did you mean 'arithmetic'"),
        ("arithmetic(digits=0)", "digits=0; expected 1 to 100"),
        ("arithmetic(operators='/')", "operators='/'; expected some of"),
        ("arithmetic(template='x')", "has no {}"),
        ("copying(shortest=4, longest=3)", "expected 1 or more, in this order"),
    ],
)
def test_a_generator_that_there_is_not_or_its_parameters_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        problem.chosen(text)


def test_a_split_that_hardly_has_a_problem_is_refused():
    only = next(a for a in "abcdefghij" if not problem.is_held_out(f"copy {a}:") and not problem.is_held_out("copy z:"))
    with pytest.raises(UserError, match="gave no problem for held_out in 1000 draws"):
        problem.chosen(f"copying(shortest=1, longest=1, alphabet='{only}z')", split="held_out")[0]


def test_reasoning_gym_makes_problems_and_scores_them():
    pytest.importorskip("reasoning_gym")
    problems = problem.chosen("reasoning_gym(dataset='leg_counting', settings=\"{'max_animals': 3}\")")
    drawn = problems[4]
    assert drawn == problems[4] and drawn.prompt != problems[5].prompt
    answers = [
        reward.Answer(drawn.messages, text, np.zeros(1, np.int32), True, drawn.fields)
        for text in (f"<answer>{drawn.fields['answer']}</answer>", "<answer>none</answer>")
    ]
    assert reward.scored(answers, reward.chosen(["reasoning_gym(form='tag')"])).total_B.tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match="expected a dict with some of: .*max_animals"):
        problem.chosen("reasoning_gym(dataset='leg_counting', settings=\"{'legs': 3}\")")
    with pytest.raises(UserError, match="did you mean 'leg_counting'"):
        problem.chosen("reasoning_gym(dataset='leg_count')")


def test_without_reasoning_gym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(
        UserError, match=r"the generator reasoning_gym needs reasoning_gym; pip install 'gptjax\[reasoning\]'"
    ):
        problem.chosen("reasoning_gym(dataset='spell_backward')")
