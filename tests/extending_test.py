"""Everything that can be added to gptjax from outside, each as one class or function and one entry of one table.

KINDS says where each table is and which test adds one from outside and uses it through the public command or `gptjax.load`;
docs/extending.md says the same to people. Tasks and chips are added here, the others beside what they are of.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import runs
from places import ROOT

import gptjax
from gptjax import cli, hardware
from gptjax.rundir import metrics
from gptjax.tasks import task

EXTENDING = (ROOT / "docs" / "extending.md").read_text()
KINDS = {  # kind -> (its table, file::test that adds one)
    "optimizer": (
        "gptjax.optim.optimizers.OPTIMIZERS",
        "tests/extending_models_test.py::test_an_optimizer_is_a_direction_and_an_entry_with_decay_and_mup",
    ),
    "learning-rate schedule": (
        "gptjax.schedule.SCHEDULES",
        "tests/extending_schedule_test.py"
        "::test_a_schedule_of_a_config_file_trains_by_its_parameter_and_its_run_is_read_without_it",
    ),
    "data source": (
        "gptjax.config.text_kinds.SOURCES",
        "tests/data/extending_data_test.py"
        "::test_a_source_a_tokenizer_and_an_objective_from_outside_train_by_the_public_command",
    ),
    "tokenizer": (
        "gptjax.config.text_kinds.TOKENIZERS",
        "tests/data/extending_data_test.py"
        "::test_a_source_a_tokenizer_and_an_objective_from_outside_train_by_the_public_command",
    ),
    "objective": (
        "gptjax.config.text_kinds.OBJECTIVES",
        "tests/data/extending_data_test.py"
        "::test_a_source_a_tokenizer_and_an_objective_from_outside_train_by_the_public_command",
    ),
    "loss": (
        "gptjax.training.losses.LOSSES",
        "tests/training/extending_loss_test.py"
        "::test_gptjax_train_minimises_it_and_logs_its_numbers_the_same_in_any_number_of_microbatches",
    ),
    "model": (
        "gptjax.config.catalogue.ARCHITECTURES",
        "tests/extending_models_test.py::test_a_model_is_a_changed_copy_with_its_counts_and_an_entry",
    ),
    "attention kernel": (
        "gptjax.models.attention.KERNELS",
        "tests/extending_models_test.py::test_an_attention_kernel_is_a_function_and_an_entry",
    ),
    "evaluation task": (
        "gptjax.tasks.task.TASKS",
        "tests/extending_test.py::test_a_task_is_a_class_and_an_entry_for_gptjax_eval_and_while_training",
    ),
    "hook": (
        "gptjax.training.hooks.HOOKS",
        "tests/training/extending_hook_test.py"
        "::test_a_hook_from_outside_runs_where_it_is_due_and_its_rows_stand_behind_those_of_its_step",
    ),
    "fit method": (
        "gptjax.study.methods.catalogue.METHODS",
        "tests/extending_fit_method_test.py::test_a_fit_method_of_ones_own_is_fitted_judged_reported_and_drawn",
    ),
    "sampler option": (
        "gptjax.generation.settings.OPTIONS",
        "tests/extending_sampler_test.py::test_an_option_from_outside_is_a_flag_and_a_keyword",
    ),
    "launcher": (
        "gptjax.study.running.launching.LAUNCHERS",
        "tests/extending_launcher_test.py::test_a_launcher_of_ones_own_trains_the_runs_of_a_study",
    ),
    "chip": ("gptjax.hardware.CHIPS", "tests/extending_test.py::test_a_chip_is_an_entry_for_plans_and_for_mfu"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_table_a_test_a_row_of_the_docs_and_a_word_of_the_readme(kind):
    address, written = KINDS[kind]
    module, _, name = address.rpartition(".")
    table = getattr(importlib.import_module(module), name)
    assert isinstance(table, Mapping) and table and all(isinstance(key, str) for key in table)

    file, _, test = written.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

    section = (ROOT / "README.md").read_text().split("## To add a ...")[1].split("\n## ")[0]
    assert f"{kind} (`{name}`)" in " ".join(section.split())
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in EXTENDING.splitlines()]
    [row] = [row for row in rows if row[0] == kind]
    path = module.replace(".", "/").removeprefix("gptjax/")
    assert row[2].startswith(f"`{path}.py` `{name}`") and row[3] == f"`{file.removeprefix('tests/')}`"


# An evaluation task


class Likelier(task.Task):
    """Of two endings, the one that this small language says after the words before."""

    metrics = {"acc": True, "margin": True}

    def documents(self):
        return [{"before": "the cat", "endings": ["sat", "zzz"], "right": k % 2} for k in range(4)]

    def examples(self):
        return [{"before": "a dog", "endings": ["ran", "qqq"], "right": 0}]

    def question(self, document):
        return document["before"]

    def choices(self, document):
        return document["endings"]

    def answer(self, document):
        return document["right"]

    def scores(self, document, answer):
        first, second = answer
        return {"acc": float(np.argmax(answer) == document["right"]), "margin": first - second}


class Forgetful(Likelier):
    def scores(self, document, answer):
        return {"acc": 1.0}


class Faulty(Likelier):
    def scores(self, document, answer):
        return {"acc": document["wrong"], "margin": 0.0}


@pytest.fixture(scope="module")
def trained(values, tmp_path_factory):
    """A run of two steps that evaluated such a task at its end."""
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    folder = tmp_path_factory.mktemp("tasks")
    short = runs.changed(
        values,
        data=dict(tokenizer="bytes"),
        train=dict(steps=2, profile_steps=None),
        optim=dict(ema_decay=None),
        eval=dict(every_steps=None, tasks="likelier", sample_tokens=0),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(task.TASKS, "likelier", f"{__name__}:Likelier")
        assert cli.main(["train", runs.write_config(short, folder / "fields.py"), f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def rows(said: str) -> dict[str, dict]:
    return {row["metric"]: row for row in json.loads(said)["tasks"]}


def test_a_task_is_a_class_and_an_entry_for_gptjax_eval_and_while_training(trained, monkeypatch, capsys):
    monkeypatch.setitem(task.TASKS, "likelier", f"{__name__}:Likelier")
    [logged] = metrics.read_metrics(trained / "metrics.jsonl", "tasks")
    assert cli.main(["eval", f"--workdir={trained}", "--tasks=likelier", "--json"]) == 0
    found = rows(capsys.readouterr().out)
    for name in ("acc", "margin"):
        assert found[name]["value"] == pytest.approx(logged[f"likelier/{name}"], rel=1e-10)
    assert found["acc"]["value"] == 0.5 and found["acc"]["samples"] == 4  # half of the answers are the second

    run = gptjax.load(trained)

    def nats(text: str) -> float:
        token_T = run.tokenizer.encode(text)  # without the end-of-text that `run.tokens` puts before it
        logit_LV = np.float64(run.logits(token_T))
        log_probability_LV = logit_LV - np.log(np.exp(logit_LV).sum(-1, keepdims=True))
        return sum(log_probability_LV[t - 1, token_T[t]] for t in range(len("the cat"), len(token_T)))

    margin = nats("the cat sat") - nats("the cat zzz")
    assert found["margin"]["value"] == pytest.approx(margin, abs=1e-4) and abs(margin) > 1e-3


def test_shots_of_a_task_come_from_its_examples(trained, monkeypatch, capsys):
    monkeypatch.setitem(task.TASKS, "likelier", Likelier)
    command = ["eval", f"--workdir={trained}", "--tasks=likelier", "--json"]
    assert cli.main([*command, "--num_fewshot=0,1"]) == 0
    margins = {r["shots"]: r["value"] for r in json.loads(capsys.readouterr().out)["tasks"] if r["metric"] == "margin"}
    assert margins.keys() == {0, 1} and margins[0] != margins[1]
    assert cli.main([*command, "--num_fewshot=2"]) == 2
    assert "the task 'likelier' has 1 examples to draw 2 shots from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entry, said",
    [
        (Forgetful, "the task 'mine' scores acc; its `metrics` are acc, margin."),
        (Faulty, "KeyError: 'wrong'"),
        ("nowhere.tasks:Mine", "--tasks=mine is nowhere.tasks:Mine, but Python finds no module nowhere"),
    ],
)
def test_a_mistake_in_a_task_is_a_line_that_names_it(trained, entry, said, monkeypatch, capsys):
    monkeypatch.setitem(task.TASKS, "mine", entry)
    assert cli.main(["eval", f"--workdir={trained}", "--tasks=mine"]) == 2
    error = capsys.readouterr().err
    assert said in error and "mine" in error and "Traceback" not in error


def test_the_sums_that_ship_are_asked_in_words():
    sums = task.of("two_digit_addition")
    documents = sums.documents()
    assert len(documents) == 2000 and not [one for one in sums.examples() if one in documents]
    assert sums.question({"a": 48, "b": 76}) == "Q: What is 48 plus 76?\nA:"
    assert sums.scores({"a": 48, "b": 76}, " 124") == {"acc": 1.0} and sums.scores({"a": 4, "b": 6}, "1") == {"acc": 0}


# A chip

PLAN = """
import sys
from gptjax import cli, hardware

rates = hardware.Peak(4e15, 200 * 2**30)
hardware.CHIPS["x100"] = hardware.Chip("X100", rates, 8e12, 0, 900e9, 100e9, "its data sheet")
sys.exit(max(cli.main(["plan", *sys.argv[1:], f"--topology={chip}:8"]) for chip in ("x100", "h100")))
"""


def test_a_chip_is_an_entry_for_plans_and_for_mfu(monkeypatch):
    words = [f"--config={ROOT / 'configs' / 'gpt3_1_3b.py'}", "--mesh=fsdp=8", "--json"]
    done = subprocess.run([sys.executable, "-c", PLAN, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout, done.stderr
    ours, theirs = (json.loads(plan) for plan in re.split(r"(?<=^\})\n(?=\{)", done.stdout, flags=re.M))
    assert ours["num_chips"] == theirs["num_chips"] == 8 and ours["step_seconds"] < theirs["step_seconds"]

    assert hardware.peak_flops("ACME X100 200GB") is None
    rates = hardware.Peak(4e15, 200 * 2**30)
    monkeypatch.setitem(hardware.CHIPS, "x100", hardware.Chip("X100", rates, 8e12, 0, 900e9, 100e9, "its data sheet"))
    assert hardware.peak_flops("ACME X100 200GB") == 4e15 and hardware.hbm_bytes("ACME X100 200GB") == 200 * 2**30
    assert hardware.peak_flops("NVIDIA H100 PCIe") == 756e12, "the longest name in a device's counts"


def test_names_of_kinds_are_words_that_the_docs_say_once():
    kinds = [
        line.strip("|").split(" | ")[0].strip() for line in EXTENDING.splitlines() if re.match(r"\| [a-zA-Z]", line)
    ]
    assert len(kinds) == len(set(kinds)) and set(KINDS) < set(kinds)
