"""A stage's evaluation, and the pairs that a policy's answers give, of a tiny run that was trained on conversations."""

import json

import numpy as np
import pytest
import runs

import gptjax
from gptjax import cli, errors
from gptjax.road import comparing, evaluating, preferring

EXERCISES = [{"task": "echo", "prompt": f"say {letter}", "answer": letter} for letter in "abcdefgh"]
CONFIG = {
    "model": dict(context_length=32, n_layers=1, d_model=16, n_heads=2, dtype="float32"),
    "data": dict(chat="gptjax", tokenizer="bytes", packing="best_fit", val_split="document", val_fraction=0.25),
    "optim": dict(peak_lr=3e-2, warmup_steps=2),
    "train": dict(steps=24, batch_size=16, log_every=8),
    "checkpoint": dict(every_steps=12, keep=3),
    "eval": dict(every_steps=None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a run, its data, and text."""
    folder = tmp_path_factory.mktemp("stages")
    talks = [
        {"messages": [{"role": "user", "content": each["prompt"]}, {"role": "assistant", "content": each["answer"]}]}
        for each in EXERCISES * 4
    ]
    for name, records in {"talks": talks, "exercises": EXERCISES}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "questions.txt").write_text("say a\n\nhello\n")
    runs.write_text(folder / "text.txt")
    values = runs.changed(CONFIG, data=dict(source=f"jsonl:{folder / 'talks.jsonl'}"))
    assert cli.main(["train", runs.write_config(values, folder / "c.py"), f"--workdir={folder / 'run'}"]) == 0
    return folder


def evaluated(folder, *flags: str) -> dict:
    words = [f"--run={folder / 'run'}", f"--like={folder / 'run'}", f"--text=text:{folder / 'text.txt'}"]
    words += [f"--conversations=jsonl:{folder / 'talks.jsonl'}", f"--exercises={folder / 'exercises.jsonl'}"]
    words += [f"--questions={folder / 'questions.txt'}", "--text_tokens=200", "--max_tokens=4"]
    assert evaluating.main([*words, f"--out={folder / 'found.json'}", *flags]) == 0
    return comparing.read(folder / "found.json")


def test_an_evaluation_holds_the_parts_of_what_eval_and_chat_say(folder):
    found, run = evaluated(folder), gptjax.load(folder / "run")
    measures = {one.name: one for one in comparing.measures(found)}
    for name, spec, limit in (
        ("loss of text", f"text:{folder / 'text.txt'}", 200),
        ("loss of held-out answers", f"jsonl:{folder / 'talks.jsonl'}", None),
    ):
        [expected] = run.evaluate(spec, max_tokens=limit).values()
        value = comparing.value(measures[name], found)
        np.testing.assert_allclose(
            [value.mean, value.standard_error], [expected.loss, expected.standard_error], rtol=1e-6
        )
    answers = [run.chat(each["prompt"], temperature=0, max_tokens=4) for each in EXERCISES]
    assert [one["likeliest"]["text"] for one in found["exercises"]] == [answer.text for answer in answers]
    right = [a.text.strip() == e["answer"] and a.finish_reason == "eot" for a, e in zip(answers, EXERCISES)]
    assert [one["likeliest"]["right"] for one in found["exercises"]] == right
    assert [one["question"] for one in found["dialogues"]] == ["say a", "hello"]
    assert found["step"] == 24 and found["exercises"][0]["drawn"]["reward"] is None


def test_an_earlier_step_is_judged_on_the_same_pairs_and_a_repetition_is_the_same(folder):
    now, before = evaluated(folder), evaluated(folder, "--step=12")
    assert before["step"] == 12 and evaluated(folder) == now
    loss = next(one for one in comparing.measures(now) if one.name == "loss of held-out answers")
    assert comparing.change(loss, before, now).difference < 0


def test_pairs_are_answers_of_the_run_and_the_same_each_time(folder):
    words = [f"--run={folder / 'run'}", f"--prompts={folder / 'exercises.jsonl'}", "--group=8", "--max_tokens=4"]
    made = []
    for name in ("one", "two"):
        assert preferring.main([*words, f"--out={folder / name}"]) == 0
        made.append((folder / name / "pairs.jsonl").read_text())
    assert made[0] == made[1]
    pairs = [json.loads(line) for line in made[0].splitlines()]
    report = json.loads((folder / "one" / "report.json").read_text())
    assert len(pairs) == sum(report["pairs"].values()) and report["answers"] == 64 and report["prompts"] == 8
    answer_of = {each["prompt"]: each["answer"] for each in EXERCISES}
    for pair in pairs:
        is_right = pair["chosen"].strip() == answer_of[pair["prompt"]]
        assert is_right == (pair["reason"] == preferring.RIGHT) and pair["chosen"] != pair["rejected"]


@pytest.mark.parametrize(
    "flag,expected",
    [
        ("--exercises=missing.jsonl", "--exercises=missing.jsonl is no file; expected lines of task, prompt, answer."),
        ("--questions=missing.txt", "--questions=missing.txt has no question"),
        ("--run=nowhere", "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folder, flag, expected, capsys):
    words = [f"--run={folder / 'run'}", f"--like={folder / 'run'}", f"--text=text:{folder / 'text.txt'}"]
    words += [f"--conversations=jsonl:{folder / 'talks.jsonl'}", f"--exercises={folder / 'exercises.jsonl'}"]
    words += [f"--questions={folder / 'questions.txt'}", f"--out={folder / 'wrong.json'}", flag]
    assert evaluating.main(words) == errors.USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluating: ") and expected in line and not (folder / "wrong.json").exists()
