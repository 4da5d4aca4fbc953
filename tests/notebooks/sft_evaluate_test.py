"""notebooks/sft_evaluate.py on a tiny run that has learnt one answer by heart: its numbers, its files and what it refuses."""

import importlib
import json
import shutil
import sys

import pytest
import runs
from places import ROOT

from gptjax import cli

pytestmark = pytest.mark.slow

RIGHT = {"task": "heart", "prompt": "Say it.", "answer": "yes"}
WRONG = {"task": "other", "prompt": "Say it.", "answer": "no"}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        yield importlib.import_module("sft_evaluate")
    finally:
        sys.path.remove(str(ROOT / "notebooks"))


def train(workdir, values, data: dict, train: dict) -> None:
    fields = runs.changed(
        values,
        model=dict(context_length=96, n_layers=1, residual_dropout=0.0),
        data=dict(tokenizer="bytes"),
        optim=dict(peak_lr=2e-2),
        train=dict(batch_size=8),
        checkpoint=dict(every_steps=None, keep=2),
    )
    fields = runs.changed(fields, data=data, train=train)
    if "source" in data:
        del fields["data"]["path"]
    file = workdir.with_name(f"{workdir.name}.json")
    file.write_text(json.dumps(fields))
    assert cli.main(["train", f"--config={file}", f"--workdir={workdir}"]) == 0


@pytest.fixture(scope="module")
def folder(values, tmp_path_factory):
    """RUN, trained from BASE on `chats.jsonl`, where every question has the answer "yes"."""
    folder = tmp_path_factory.mktemp("sft")
    lines = [{"messages": talk(f"Say it. {i}", "yes")} for i in range(40)] + [{"messages": talk("Say it.", "yes")}] * 40
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "exercises.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (RIGHT, WRONG, RIGHT)))
    chat = {"source": f"jsonl:{folder}/chats.jsonl", "chat": "gptjax", "packing": "best_fit", "val_split": "document"}
    train(folder / "BASE", values, data={}, train={"steps": 1})
    train(
        folder / "RUN", values, data=chat | {"val_fraction": 0.4}, train={"steps": 60, "start_from": f"{folder}/BASE"}
    )
    return folder


def talk(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def evaluated(script, folder):
    """The values written of RUN."""
    words = [str(folder / "RUN"), f"--exercises={folder}/exercises.jsonl", f"--out={folder}/out", "--max_tokens=8"]
    assert script.main(words) == 0
    return json.loads((folder / "out" / "evaluation.json").read_text("utf-8"))


def test_exact_match_is_counted_per_task_with_binomial_errors(evaluated):
    shares = evaluated["after"]["exact_match"]
    assert (shares["heart"]["share"], shares["other"]["share"]) == (1.0, 0.0)
    assert shares["all"] == {"share": pytest.approx(2 / 3), "standard_error": pytest.approx((2 / 27) ** 0.5), "n": 3}


def test_the_answers_end_after_fine_tuning_and_the_held_out_loss_falls(evaluated):
    before, after = evaluated["before"], evaluated["after"]
    assert (before["step"], after["step"]) == (0, 60)
    assert before["ended"]["share"] < 1 and after["ended"]["share"] == 1
    [loss_before], [loss_after] = (list(each["held_out"].values()) for each in (before, after))
    assert loss_after["loss"] < loss_before["loss"] - 10 * loss_before["standard_error"]


def test_the_table_has_both_steps_and_ten_dialogues_half_of_them_chinese(script, evaluated, folder):
    text = (folder / "out" / "evaluation.md").read_text("utf-8")
    assert text == script.markdown(evaluated["before"], evaluated["after"])
    assert "| exact match, all | 0.000 +- 0.000 | 0.667 +- 0.272 | of 3 |" in text
    questions = [each["question"] for each in evaluated["after"]["dialogues"]]
    assert len(questions) == 10 and sum(not question.isascii() for question in questions) == 5
    assert all(f"| {question} |" in text for question in questions)


def test_an_answer_in_the_table_stays_in_its_cell(script):
    assert script._cell("a|b\nc") == "a\\|b⏎c"


def test_held_out_conversations_may_be_others_and_an_error_of_one_row_is_null(script, folder, capsys):
    (folder / "more.jsonl").write_text(json.dumps({"messages": talk("Say it.", "never")}) + "\n")
    words = [str(folder / "RUN"), f"--exercises={folder}/exercises.jsonl", "--max_tokens=4"]
    assert script.main([*words, "--held_out", f"more=jsonl:{folder}/more.jsonl", f"--out={folder}/more"]) == 0
    assert "| held-out loss, more (nats/token) |" in capsys.readouterr().out
    values = json.loads((folder / "more" / "evaluation.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert values["after"]["held_out"]["more"]["standard_error"] is None


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is no file"),
        ("", "is empty"),
        (json.dumps(RIGHT) + "\n{}\n", "exercises.jsonl:2 is no exercise"),
        ("[1]\n", "exercises.jsonl:1 is no exercise"),
    ],
)
def test_exercises_that_are_none_are_refused_by_line(script, tmp_path, capsys, content, message):
    file = tmp_path / "exercises.jsonl"
    if content is not None:
        file.write_text(content)
    assert script.main(["nowhere", f"--exercises={file}"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_its_step_0_or_conversations_is_refused_unless_another_stands_for_before(
    script, trained, capsys, folder, tmp_path
):
    words = [f"--exercises={folder}/exercises.jsonl"]
    assert script.main([str(trained), *words]) == 2
    assert "was not trained on conversations" in capsys.readouterr().err
    shutil.copytree(folder / "RUN", tmp_path / "RUN")
    shutil.rmtree(tmp_path / "RUN" / "checkpoints" / "0")
    assert script.main([str(tmp_path / "RUN"), *words]) == 2
    assert "has the steps 60; expected 0 and a later one" in capsys.readouterr().err
    assert script.main([str(tmp_path / "RUN"), *words, f"--before={folder}/RUN", "--max_tokens=2"]) == 0
    assert "| | before, step 60 | after, step 60 | |" in capsys.readouterr().out
