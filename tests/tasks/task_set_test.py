import json
import math
import random
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

import asked  # noqa: E402

from gptjax.errors import UserError  # noqa: E402
from gptjax.evaluation import scoring  # noqa: E402
from gptjax.tasks import harness  # noqa: E402
from gptjax.tasks import task_set as tasks

SPECS = [str(asked.TASKS / f"{name}.yaml") for name in ("last_word", "scene")]


@pytest.fixture(scope="module")
def lm():
    return harness.GptjaxLM(asked.make_run("gpt2_bytes"))


@pytest.fixture(scope="module")
def task_set():
    return tasks.TaskSet(SPECS, limit=3)


@pytest.fixture(scope="module")
def results(lm, task_set):
    return task_set.evaluate(lm, (0, 2))


def test_a_row_for_each_task_metric_and_number_of_shots_but_none_for_what_has_no_shots(results):
    found = [(row.task, row.metric, row.shots) for row in results.rows]
    words = [("shakespeare_last_word", metric, n) for metric in ("acc", "perplexity") for n in (0, 2)]
    scenes = [("shakespeare_scene", m, 0) for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    assert sorted(found) == sorted(words + scenes)
    assert all(row.samples == 3 and row.filter == "none" for row in results.rows)
    lines = tasks.table(results).splitlines()
    assert lines[0].split() == ["task", "metric", "documents", "0", "shots", "2", "shots"] and len(lines) >= 7
    assert any("requests were longer than the context and cut from the left" in note for note in results.notes)


def test_values_are_those_of_lm_evals_own_call(lm, results, monkeypatch):
    import lm_eval

    monkeypatch.chdir(asked.TASKS)  # where lm-eval looks for data
    manager = lm_eval.tasks.TaskManager(include_path=".", include_defaults=False)
    theirs = lm_eval.simple_evaluate(
        model=lm,
        tasks=["shakespeare_last_word"],
        task_manager=manager,
        num_fewshot=2,
        limit=3,
        bootstrap_iters=0,
    )["results"]["shakespeare_last_word"]
    ours = {row.metric: row for row in results.rows if row.shots == 2}
    for metric in ("acc", "perplexity"):
        assert ours[metric].value == pytest.approx(theirs[f"{metric},none"], rel=1e-12)


def test_the_same_again_gives_the_same_examples_and_rows_and_leaves_random_numbers_alone(lm, task_set, results, capfd):
    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5), np.random.seed(5)
    assert task_set.evaluate(lm, (0, 2)).rows == results.rows
    assert (random.random(), np.random.random()) == expected
    assert capfd.readouterr() == ("", "")


def test_more_shots_than_examples_are_refused(lm, task_set):
    with pytest.raises(
        UserError, match="'shakespeare_last_word' has 40 examples to draw 41 shots from; use at most 40"
    ):
        task_set.evaluate(lm, (41,))


def test_what_a_model_cannot_be_asked_is_found_without_computing():
    with_task = tasks.TaskSet([str(asked.TASKS / "unscramble.yaml")], limit=2)
    run = asked.make_run("gpt2_bytes")
    with_task.check(harness.DryLM(run), 1)
    with_task._loaded["tasks"]["unscramble_cycled"].config.generation_kwargs["max_gen_toks"] = 200
    with pytest.raises(UserError, match="asks for 200 new tokens"):
        with_task.check(harness.DryLM(run), 1)


def test_a_ratios_standard_error_is_the_spread_of_what_resampling_gives():
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 50, 400).astype(float)
    pairs = np.stack([-weight * (1 + 0.3 * rng.standard_normal(400)), weight], axis=1)
    drawn = pairs[rng.integers(0, 400, (2000, 400))].sum(1)
    ratio = drawn[:, 0] / drawn[:, 1]
    errors = {name: function(pairs) for name, function in tasks.STANDARD_ERRORS.items() if name != "perplexity"}
    assert errors["weighted_perplexity"] == pytest.approx(np.exp(-ratio).std(), rel=0.1)
    assert errors["bits_per_byte"] == pytest.approx(ratio.std() / math.log(2), rel=0.1)


def test_a_perplexitys_standard_error_worked_by_hand():
    values = np.array([-1.0, -3.0])  # mean -2, deviation sqrt 2, error 1
    assert tasks.STANDARD_ERRORS["perplexity"](values) == pytest.approx(math.exp(2))


def test_only_the_thread_that_evaluates_is_silent(capsys):
    with tasks._quiet():
        print("bars and logs", file=sys.stderr)
        other = threading.Thread(target=lambda: print("a process was lost", file=sys.stderr))
        other.start()
        other.join()
    assert capsys.readouterr().err == "a process was lost\n"


def test_a_limit_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="a limit of 0 documents is too small"):
        tasks.TaskSet(SPECS, limit=0)


@pytest.fixture
def brier(tmp_path):
    """brier(counts) is a TaskSet that asks for the Brier score of documents with so many choices each, in a group too."""

    def of(counts):
        rows = [
            {"text": f"{'abc' * i} is", "choices": [f"word{i}{j}" for j in range(n)], "label": i % 2}
            for i, n in enumerate(counts)
        ]
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "task.yaml").write_text(BRIER)
        (tmp_path / "group.yaml").write_text(GROUP)
        return tasks.TaskSet([str(tmp_path / "group.yaml")])

    return of


BRIER = """
task: guessing
dataset_path: json
dataset_kwargs: {data_files: {test: docs.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: brier_score}, {metric: acc}]
metadata: {version: 1.0}
"""
GROUP = """
group: all_guesses
task: [guessing]
aggregate_metric_list: [{metric: brier_score, aggregation: mean, weight_by_size: true}]
metadata: {version: 1.0}
"""


def test_a_metric_that_lm_eval_has_no_error_of_gets_that_of_resampling(lm, brier):
    found = {(row.task, row.metric): row for row in brier([3] * 24).evaluate(lm).rows}
    row = found["guessing", "brier_score"]
    assert found["guessing", "acc"].standard_error is not None
    score_N = brier_scores(lm, 24)
    assert row.value == pytest.approx(score_N.mean(), rel=1e-6)
    assert row.standard_error == pytest.approx(score_N.std(ddof=1) / math.sqrt(24), rel=0.3)
    assert found["all_guesses", "brier_score"].standard_error == pytest.approx(row.standard_error)


def brier_scores(lm, count: int) -> np.ndarray:
    """Of three choices each: the mean over documents is the score, so that its error is that of a mean."""
    scores = []
    for i in range(count):
        pairs = [lm._encode_pair(f"{'abc' * i} is", f" word{i}{j}") for j in range(3)]
        logit_C = np.array([s.log_likelihood for s in lm._score([scoring.Request(*pair) for pair in pairs])])
        probability_C = np.exp(logit_C - logit_C.max()) / np.exp(logit_C - logit_C.max()).sum()
        scores.append(np.square(probability_C - np.eye(3)[i % 2]).sum())
    return np.array(scores)


def test_a_metric_that_fails_in_lm_eval_is_named(lm, brier):
    said = "lm-eval's metric 'brier_score' of the task 'guessing' failed: ValueError: setting an array element"
    with pytest.raises(tasks.TaskFailed, match=said):
        brier([3, 4]).evaluate(lm)


def test_no_number_of_some_resamplings_is_no_standard_error():
    assert tasks._resampled_error(lambda values: 1 / (len(set(values)) - 3), [1, 2, 3, 4]) == "N/A"
    assert tasks._resampled_error(np.mean, [2.0, 2.0]) == 0


def test_a_mistake_of_ours_below_lm_eval_is_not_taken_for_one_of_the_task(task_set):
    class Broken(harness.DryLM):
        def _score(self, requests):
            raise ValueError("shapes (3,) and (4,) do not go together")

    lm = Broken(asked.make_run("gpt2_bytes"))
    for ask in (lambda: task_set.evaluate(lm), lambda: task_set.check(lm, None)):
        with pytest.raises(ValueError, match="do not go together") as caught:
            ask()
        assert not isinstance(caught.value, UserError)
