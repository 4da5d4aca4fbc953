"""Whole runs of DPO and KTO: their start and their reference, resumed as uninterrupted, on any mesh, and evaluated."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
import runs

import gptjax
from gptjax import cli
from gptjax.data.pairs.encoding import Example
from gptjax.errors import UserError
from gptjax.posttrain import answers, mismatched, reference
from gptjax.rundir import metrics, run_directory


def write_sums(file, record_of, count: int = 60) -> None:
    """One record of each of some sums, as record_of(prompt, right answer, wrong answer, number) makes it."""
    rng = np.random.default_rng(0)
    with file.open("w") as stream:
        for i in range(count):
            a, b, off = (int(n) for n in rng.integers(1, 9, 3))
            stream.write(json.dumps(record_of(f"{a}+{b}", str(a + b), str(a + b + off), i)) + "\n")


def pair(prompt, right, wrong, i) -> dict:
    return {"prompt": prompt, "chosen": right, "rejected": wrong}


def thumb(prompt, right, wrong, i) -> dict:
    return {"prompt": prompt, "completion": (wrong, right)[i % 2], "label": i % 2 == 1}


def values_of(folder, file: str, preferences: str, **train) -> dict:
    shared = dict(tokenizer="bytes", chat="gptjax", val_fraction=0.2, cache_dir=str(folder / "cache"))
    steps = dict(steps=8, batch_size=16, log_every=1, tensorboard=False)
    return {
        "model": dict(context_length=16, n_layers=1, d_model=16, n_heads=2, dtype="float32", init_std=0.3),
        "data": dict(source="jsonl", path=str(folder / file), preferences=preferences) | shared,
        "optim": dict(peak_lr=1e-2, schedule="constant"),
        "train": steps | train,
        "checkpoint": dict(every_steps=4),
        "eval": dict(every_steps=None),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("preferences")
    write_sums(made / "pairs.jsonl", pair)
    write_sums(made / "thumbs.jsonl", thumb)
    return made


@pytest.fixture(scope="module")
def values(folder):
    return values_of(folder, "pairs.jsonl", "compared", loss="dpo(beta=0.5)")


def train(values: dict, workdir) -> None:
    config = runs.write_config(values, workdir.parent / f"{workdir.name}.py")
    assert cli.main(["train", config, f"--workdir={workdir}"]) == 0


@pytest.fixture(scope="module")
def run(values, folder):
    train(values, folder / "run")
    return folder / "run"


def references(workdir) -> dict[str, np.ndarray]:
    return {file.name: np.load(file) for file in (workdir / "reference").glob("*.npy")}


def test_a_run_starts_at_log_2_as_its_reference_is_what_it_starts_from_and_learns(run):
    rows = runs.train_rows(run)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and rows[-1]["loss"] < 0.6
    assert rows[-1]["reward_accuracy"] > rows[0]["reward_accuracy"] - 0.5 and rows[-1]["reward_margin"] > 0.2
    assert json.loads((run / "reference" / "parameters.json").read_text()) == {"initialised": 0}


def test_resumed_from_the_middle_it_is_as_uninterrupted_to_the_bit_and_reads_its_reference(run, values, folder, capsys):
    resumed = folder / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoints" / "8")
    shutil.move(folder / "cache" / "reference", folder / "cache" / "away")
    try:
        train(values, resumed)
    finally:
        shutil.move(folder / "cache" / "away", folder / "cache" / "reference")
    assert f"48 examples, {resumed / 'reference'}" in capsys.readouterr().err
    runs.assert_same_state(run, resumed, 8)


def test_gptjax_eval_gives_the_numbers_of_training_and_judges_other_pairs(run, folder, capsys):
    assert cli.main(["eval", f"--workdir={run}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    [*_, logged] = metrics.read_metrics(run / "metrics.jsonl", "eval")
    for name in ("loss", "accuracy", "margin", "length_correlation"):
        assert told[name] == pytest.approx(logged[name], rel=1e-5), name
    assert cli.main(["eval", f"--workdir={run}", f"--data=jsonl:{folder / 'pairs.jsonl'}", "--json"]) == 0
    others = json.loads(capsys.readouterr().out)
    assert others["examples"] == 60 and others["accuracy"] > 0.7
    assert len(references(run)) == 2, "an evaluation writes nothing into the run"


@pytest.mark.slow
def test_on_another_mesh_reference_and_losses_are_the_same(run, values, folder):
    whole = runs.changed(values, mesh=dict(fsdp=4, tensor=2), data=dict(cache_dir=str(folder / "another cache")))
    train(whole, folder / "another mesh")
    ours, theirs = references(folder / "another mesh"), references(run)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5)
    for row, other in zip(runs.train_rows(folder / "another mesh"), runs.train_rows(run), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-5)


@pytest.fixture(scope="module")
def adapted(run, values, folder):
    """(workdir, workdir of the same with a reference of its own) of runs with an adapter on the first one's model."""
    short = runs.changed(values, train=dict(steps=4, start_from=str(run)), model=dict(adapter="lora(rank=2)"))
    train(short, folder / "adapted")
    train(runs.changed(short, train=dict(reference=str(run))), folder / "adapted apart")
    return folder / "adapted", folder / "adapted apart"


@pytest.mark.slow
def test_an_adapter_switched_off_is_the_reference_that_the_model_below_it_is(adapted):
    on_the_fly, apart = (runs.train_rows(workdir) for workdir in adapted)
    assert not (adapted[0] / "reference").exists() and len(references(adapted[1])) == 2
    for row, other in zip(on_the_fly, apart, strict=True):
        for name in ("loss", "reward_margin", "grad_norm", "logprob_chosen"):
            assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
    assert on_the_fly[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and on_the_fly[-1]["loss"] < 0.69


@pytest.mark.slow
def test_below_a_trained_adapter_lies_the_base_to_the_bit(adapted, run):
    adapted, base = gptjax.load(adapted[0]), gptjax.load(run)
    graph, params = answers.base_model(adapted.params, adapted.graph, adapted.config)
    ours, theirs = (jax.tree_util.tree_leaves_with_path(tree) for tree in (params, base.params))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(ours, theirs))


def test_a_reference_that_a_run_has_lost_is_not_chosen_anew(adapted, values, run, folder, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(adapted[1], broken)
    shutil.rmtree(broken / "reference")
    changed = runs.changed(values, train=dict(steps=8, start_from=str(run), reference=str(run)), model=dict(adapter="lora(rank=2)"))  # fmt: skip
    config = runs.write_config(changed, tmp_path / "c.py")
    assert cli.main(["train", config, f"--workdir={broken}"]) == 2


def test_kto_learns_from_thumbs_and_logs_both_kinds(folder):
    train(values_of(folder, "thumbs.jsonl", "judged", loss="kto(beta=0.5)"), folder / "thumbs")
    first, *_, last = runs.train_rows(folder / "thumbs")
    assert first["loss"] == pytest.approx(0.5, abs=1e-6) and last["loss"] < 0.45
    assert last["reward_good"] > last["reward_bad"] and last["reference_divergence"] >= 0
    [*_, judged] = metrics.read_metrics(folder / "thumbs" / "metrics.jsonl", "eval")
    assert judged["auc"] > 0.5


def test_mismatched_answers_stand_behind_other_prompts_and_each_is_used_once():
    def example(i: int) -> Example:
        token_T = np.array([i, i, 10 + i, 20 + i], np.int32)
        return Example((token_T,), (np.array([False, False, True, True]),), 2, np.zeros(1, np.float32), 0.0, 1)

    made = mismatched.with_mismatched([example(i) for i in range(5)], length=3)
    assert [each.sequences[1].tolist() for each in made] == [[i, i, 10 + (i + 2) % 5] for i in range(5)]
    assert all(each.targets[1].tolist() == [False, False, True] and len(each.sequences[0]) == 4 for each in made)
    with pytest.raises(UserError, match="needs answers to at least 2 prompts"):
        mismatched.with_mismatched([example(0)], 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(loss="simpo", reference="there"), "train.loss='simpo' has no reference"),
        (dict(reference="nowhere"), "train.reference='.*nowhere' is not a run directory"),
        (dict(loss="kto"), "train.loss='kto' does not learn from data.preferences='compared'"),
    ],
)
def test_a_reference_or_loss_that_does_not_fit_is_refused(fields, message, values, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = runs.write_config(runs.changed(values, train=fields), tmp_path / "c.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error) and not (tmp_path / "run").exists(), error


@pytest.mark.parametrize("up", [True, False])
def test_thumbs_of_one_kind_are_refused_before_anything_is_written(up, folder, tmp_path, capsys):
    write_sums(folder / "alike.jsonl", lambda *of: thumb(*of) | {"label": up})
    config = runs.write_config(values_of(folder, "alike.jsonl", "judged", loss="kto(beta=0.5)"), tmp_path / "c.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"all training answers of the data are {'up' if up else 'down'}; give both" in error
    assert not (tmp_path / "run").exists()


def test_the_key_of_a_reference_changes_with_its_parameters_and_with_the_answers(run, values, folder):
    loaded = run_directory.open_run(str(run)).config()

    def key(about: dict, *tokens: int) -> str:
        token_T = np.array(tokens, np.int32)
        example = Example((token_T,), (token_T > 1,), 1, np.zeros(1), 0.0, None)
        return reference.ReferenceLogprobs(about, loaded, None, None, None).key([example])

    keys = [key({"initialised": 0}, 1, 2, 3), key({"initialised": 1}, 1, 2, 3), key({"initialised": 0}, 1, 2, 4)]
    assert len({*keys}) == 3 and key({"initialised": 0}, 1, 2, 3) == keys[0]


@pytest.mark.slow
def test_two_processes_have_the_reference_and_the_losses_of_one(run, values, folder, tmp_path):
    apart = runs.changed(values, data=dict(cache_dir=str(tmp_path / "cache")))
    with runs.processes(apart, tmp_path / "run", tmp_path, count=2) as both:
        for process in both:
            process.ends_with(0)
    assert references(tmp_path / "run").keys() == references(run).keys()
    for name, array in references(run).items():
        np.testing.assert_allclose(references(tmp_path / "run")[name], array, atol=1e-5)
    for row, other in zip(runs.train_rows(tmp_path / "run"), runs.train_rows(run), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-5)
