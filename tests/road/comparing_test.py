"""Stages beside each other: hand-worked numbers, and the page that they are printed on."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from gptjax.errors import UserError
from gptjax.road import comparing, ledger, page, preferring
from gptjax.road import road as declaring


def evaluation(right: str, name: str = "one", nats=(2.0, 4.0), reward=0.0) -> dict:
    """right: "10" for a right and a wrong answer of each exercise in turn."""
    answers = [dict(text="x", right=bool(int(one)), ended=True, tokens=2) for one in right]
    losses = {"nats": list(nats), "tokens": [1.0, 3.0]}
    return {
        "run": name,
        "step": 3,
        "text": losses,
        "conversations": losses,
        "exercises": [
            {"task": "sums" if i % 2 else "words", "likeliest": one, "drawn": one | {"reward": reward + i}}
            for i, one in enumerate(answers)
        ],
        "dialogues": [{"question": "<b>Who?</b>", "answer": "<script>alert(1)</script>\nme", "ended": False}],
    }


def by_name(found: dict) -> dict[str, comparing.Measure]:
    return {one.name: one for one in comparing.measures(found)}


@pytest.mark.parametrize("gained,lost", [(0, 0), (5, 0), (3, 9), (40, 60), (7, 7)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert comparing.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)


def test_a_value_is_a_mean_over_tokens_or_over_exercises():
    measures = by_name(evaluation("1101"))
    assert comparing.value(measures["loss of text"], evaluation("1101")).mean == pytest.approx(6 / 4)
    assert comparing.value(measures["right answers"], evaluation("1101")) == comparing.Value(
        0.75, pytest.approx(np.std([1, 1, 0, 1], ddof=1) / 2), 4
    )
    assert comparing.value(measures["right answers, sums"], evaluation("1101")).mean == 1.0  # the second and the last
    assert comparing.value(measures["model reward, drawn"], evaluation("1101", reward=1.0)).mean == 2.5


def test_a_change_counts_pairs_and_its_verdict_knows_what_is_better():
    before, now = evaluation("0000000011"), evaluation("1111111110", nats=(2.5, 4.5))
    measures = by_name(before)
    right = comparing.change(measures["right answers"], before, now)
    assert (right.gained, right.lost) == (8, 1) and right.difference == pytest.approx(0.7)
    assert right.p_value == pytest.approx(2 * 10 / 2**9) and right.verdict == "better"
    assert comparing.change(measures["right answers"], now, before).verdict == "worse"
    text = comparing.change(measures["loss of text"], before, now)
    assert text.difference == pytest.approx(0.25) and text.verdict == "not shown"  # two windows show nothing
    worse = dataclasses.replace(text, p_value=0.01)
    assert worse.verdict == "worse"
    assert comparing.win_rate(before, now) == comparing.WinRate(0.85, pytest.approx(0.1067, abs=1e-3), 8, 1, 1)


def test_a_stage_beside_itself_differs_in_nothing():
    one = evaluation("1010")
    for measure in comparing.measures(one):
        found = comparing.change(measure, one, one)
        assert (found.difference, found.p_value, found.verdict) == (0.0, 1.0, "not shown")


def test_stages_judged_on_other_windows_are_not_compared():
    before, now = evaluation("10"), evaluation("10", "another")
    now["text"] = {"nats": [1.0], "tokens": [4.0]}
    with pytest.raises(UserError, match="one and another were not judged on the same loss of text"):
        comparing.change(by_name(before)["loss of text"], before, now)


# ---- the page


@pytest.fixture
def road(tmp_path):
    stages = tuple(declaring.script(name, "stage.py") for name in ("sft", "ppo"))
    policies = (
        declaring.Policy("sft", "sft", "fine-tuned"),
        declaring.Policy("ppo", "ppo", "PPO", "sft"),
    )
    made = declaring.Road("A road", stages, policies)
    entries = {
        name: ledger.Entry("key", {}, f"python {name}", True, 2, 1, 61.0, 90.0, "c0de") for name in ("sft", "ppo")
    }
    ledger.Ledger(tmp_path, "road.py", ("word=b",), entries).write()
    (tmp_path / "sft").write_text(json.dumps(evaluation("0000000011")))
    (tmp_path / "ppo").write_text(json.dumps(evaluation("1111111110")))
    return made


def test_the_page_says_what_is_better_and_what_did_not_improve(road, tmp_path):
    page.write(road, tmp_path, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    short, _, rest = text.partition("Every stage</h2>")
    assert "PPO, beside fine-tuned: better right answers" in short
    not_improved = rest.partition("What did not improve</h2>")[2].partition("</ul>")[0]
    assert "loss of text shows no difference" in not_improved and "right answers shows" not in not_improved
    assert "0.20 ± 0.13" in rest and "0.850 ± 0.107 (8 won, 1 alike, 1 lost)" in rest
    assert "1:01" in rest and "2 processes were killed" in rest and "gptjax road road.py --set=word=b" in rest


def test_what_a_model_says_is_text_on_the_page(road, tmp_path):
    page.write(road, tmp_path, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;⏎me" in text and "&lt;b&gt;Who?" in text
    assert "http://" not in text and "https://" not in text  # it needs nothing else


def test_a_damaged_evaluation_is_named(road, tmp_path):
    (tmp_path / "ppo").write_text("{")
    with pytest.raises(UserError, match=f"{tmp_path / 'ppo'}, the evaluation of a stage"):
        page.write(road, tmp_path, tmp_path / "index.html")


# ---- pairs


def test_a_pair_has_a_right_answer_over_another_or_an_ended_over_a_cut_one():
    import random

    def pair(*answers):
        return preferring.pair_of(list(answers), "7", random.Random(0))

    assert pair((" 7 ", True), ("8", True)) == (" 7 ", "8", preferring.RIGHT)
    assert pair(("7 and on", False), ("7", True)) == ("7", "7 and on", preferring.RIGHT)
    assert pair(("8", True), ("9 9 9", False)) == ("8", "9 9 9", preferring.ENDED)
    assert pair(("8", True), ("9", True)) is None and pair(("7", True), ("7", True)) is None
    assert pair(("7", False), ("8 8", False)) is None  # right and cut is not right
    assert pair(("", True), ("9 9", False)) is None  # an empty answer is none


def test_every_answer_and_prompt_is_counted():
    exercises = [{"task": "t", "prompt": f"p{i}", "answer": "7"} for i in range(3)]
    answers = [[("7", True), ("8", True)], [("8", True), ("9 9", False)], [("8", True), ("9", True)]]
    pairs, report = preferring.made(exercises, answers, 0)
    assert [(one["prompt"], one["reason"]) for one in pairs] == [("p0", preferring.RIGHT), ("p1", preferring.ENDED)]
    assert report == {
        "prompts": 3,
        "answers": 6,
        "right": 1,
        "cut": 1,
        "pairs": {preferring.RIGHT: 1, preferring.ENDED: 1},
        "prompts without a pair": 1,
    }
