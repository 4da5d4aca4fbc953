"""Training on labelled examples by the loop that exists: the same on every mesh and in any number of microbatches, to the bit
after an interruption, with metrics in the log, from another run's parameters, and classifying new texts at the end."""

import functools
import json
import math

import jax
import numpy as np
import pytest
import runs
from flax.traverse_util import flatten_dict

import gptjax
from gptjax import cli
from gptjax.config import task_heads
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.data.chat import Message
from gptjax.data.examples.store import open_examples
from gptjax.errors import UserError
from gptjax.parallel import numerics
from gptjax.posttrain.rewards import reward
from gptjax.rundir import metrics
from gptjax.training import epochs, trainable
from gptjax.training import program as programs

KINDS = {  # loss: (head, task)
    "classify": ("classes(n=3, dropout=0.0)", "classify"),
    "choice": (
        "choice(dropout=0.0, bias=False)",
        "choice",
    ),  # a bias moves all scores alike: its gradient is rounding alone
    "tag": ("token_classes(n=4, dropout=0.0)", "tag"),
    "span": ("span(dropout=0.0, bias=False)", "answer"),  # likewise
    "regress": ("regression(n=2, dropout=0.0)", "classify"),
}


def config_of(loss: str, **sections) -> Config:
    head, task = KINDS[loss]
    config = Config(
        ModelConfig(
            vocab_size=65, context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32", task_head=head
        ),
        DataConfig(task=task),
        OptimConfig(eps=1e-3),
        train=TrainConfig(steps=2, batch_size=8, loss=loss, lm_coef=0.5),
        mesh=MeshConfig(fsdp=1),
    )
    return config.replace(**sections)


@functools.cache
def batches(loss: str) -> dict:
    """Of two steps, with lengths, and tokens that have labels, in unequal numbers."""
    rng = np.random.default_rng(0)
    S, B, C, L = 2, 8, 3 if loss == "choice" else 1, 16
    length_SBC = rng.integers(3, L + 1, (S, B, C)).astype(np.int32)
    token = rng.integers(0, 60, (S, B, C, L)) * (np.arange(L) < length_SBC[..., None])
    labels = {
        "classify": {"label_B": rng.integers(0, 3, (S, B))},
        "choice": {"label_B": rng.integers(0, 3, (S, B))},
        "tag": {
            "label_BL": rng.integers(0, 4, (S, B, L)),
            "weight_BL": rng.integers(0, 2, (S, B, L)).astype(np.float32),
        },
        "span": {"label_B2": rng.integers(0, 3, (S, B, 2))},
        "regress": {"label_BO": rng.standard_normal((S, B, 2)).astype(np.float32)},
    }[loss]
    labels = {name: a if a.dtype == np.float32 else a.astype(np.int32) for name, a in labels.items()}
    weight = np.ones((S, B), np.float32)
    return {"token_BCL": token.astype(np.int32), "length_BC": length_SBC, "weight_B": weight, **labels}


@functools.cache
def trained(config: Config):
    """(parameters, numbers) after two steps."""
    program = programs.of(
        config, jax.devices()[: int(np.prod([config.mesh.fsdp, config.mesh.tensor, config.mesh.sequence]))]
    )
    with numerics.on_mesh(program.mesh):
        batch = jax.device_put(batches(config.train.loss), program.train_batch_sharding)
        state, numbers = program.train(program.init(), batch, np.full(2, 1e-2, np.float32))
        return jax.device_get((state.params, numbers))


@pytest.mark.parametrize("loss", runs.default_or_slow(KINDS, ["choice", "tag"]))
@pytest.mark.parametrize(
    "changes",
    [dict(mesh=dict(fsdp=2, tensor=2, sequence=2)), dict(train=dict(microbatches=4))],
    ids=["8 devices", "4 microbatches"],
)
def test_examples_train_the_same_on_eight_devices_and_in_microbatches(loss, changes):
    params, numbers = trained(config_of(loss))
    ours, our_numbers = trained(config_of(loss, **changes))
    assert numbers["loss"][1] != numbers["loss"][0] and "lm_loss" in numbers
    for name in numbers:
        np.testing.assert_allclose(our_numbers[name], numbers[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(params), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3)


def test_without_lm_coef_the_language_model_has_no_loss():
    _, numbers = trained(config_of("classify", train=dict(lm_coef=0.0)))
    assert "lm_loss" not in numbers
    np.testing.assert_allclose(numbers["loss"][0], trained(config_of("classify"))[1]["loss"][0], rtol=1e-6)


def test_examples_of_no_weight_change_nothing():
    """As in the first batches of a ramp, which are padded to the devices."""
    config = config_of("classify")
    program = programs.of(config, jax.devices()[:1])
    found = []
    for token in (0, 7):
        batch = {name: array.copy() for name, array in batches("classify").items()}
        batch["weight_B"][:, 5:], batch["token_BCL"][:, 5:] = 0, token
        with numerics.on_mesh(program.mesh):
            placed = jax.device_put(batch, program.train_batch_sharding)
            state, numbers = program.train(program.init(), placed, np.full(2, 1e-2, np.float32))
            found.append(jax.device_get((numbers["loss"], state.params["task_head"]["weight"])))
    for a, b in zip(*found):
        np.testing.assert_array_equal(a, b)


# ---- whole runs


def write_set(file, n: int = 120) -> None:
    """Texts whose class is whether an a is in them."""
    rng = np.random.default_rng(0)
    with file.open("w") as stream:
        for _ in range(n):
            label = int(rng.integers(0, 2))
            letters = rng.choice(list("bcdefgh"), rng.integers(3, 9))
            letters[rng.integers(0, len(letters))] = "a" if label else "b"
            stream.write(json.dumps({"text": "".join(letters), "label": ["without", "with"][label]}) + "\n")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The values of a run on a labelled set of 120 texts."""
    folder = tmp_path_factory.mktemp("labelled")
    write_set(folder / "set.jsonl")
    return {
        "model": dict(context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32", residual_dropout=0.1)
        | {"task_head": "classes(n=2)"},
        "data": dict(path=str(folder / "set.jsonl"), tokenizer="bytes", task="classify(labels='without,with')")
        | {"val_fraction": 0.2, "cache_dir": str(folder)},
        "optim": dict(peak_lr=1e-2, warmup_steps=5),
        "train": dict(steps=120, batch_size=16, log_every=10, tensorboard=False, loss="classify", lm_coef=0.1),
        "checkpoint": dict(every_steps=60),
        "eval": dict(every_steps=60),
    }


@pytest.mark.slow
def test_a_classifier_is_sent_on_to_its_evaluation_and_not_to_text(labelled, tmp_path, capsys):
    short = runs.changed(labelled, train={"steps": 2}, checkpoint={"every_steps": None}, eval={"every_steps": None})
    assert cli.main(["train", runs.write_config(short, tmp_path / "short.py"), f"--workdir={tmp_path / 'run'}"]) == 0
    printed = "".join(capsys.readouterr())
    assert "next:\n  gptjax eval" in printed and "gptjax sample" not in printed


@pytest.mark.parametrize("head", ["classes(n=1)", "token_classes(n=0)"])
def test_a_head_of_fewer_than_two_classes_is_refused(head):
    with pytest.raises(UserError, match="n=[01] is too small; use at least 2."):
        task_heads.of(ModelConfig(task_head=head))


@pytest.fixture(scope="module")
def classifier(labelled, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classifier") / "run"
    config = runs.write_config(labelled, workdir.parent / "fields.py")
    assert cli.main(["train", config, f"--workdir={workdir}"]) == 0
    return workdir


def test_a_classifier_learns_and_its_log_has_metrics_with_errors(classifier):
    [first, last] = metrics.read_metrics(classifier / "metrics.jsonl", "eval")
    assert (first["step"], last["step"]) == (60, 120)
    assert last["accuracy"] > 0.9 and last["examples"] == 24
    names = ("accuracy", "precision", "recall", "f1", "f1_macro", "matthews")
    assert all(name in last and f"{name}_error" in last for name in names)
    rows = runs.train_rows(classifier)
    assert {"loss", "accuracy", "lm_loss", "epochs"} <= rows[-1].keys() and rows[-1]["loss"] < rows[0]["loss"] / 2


def test_gptjax_eval_gives_the_numbers_of_training(classifier, capsys):
    assert cli.main(["eval", f"--workdir={classifier}", "--step=all", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    logged = metrics.read_metrics(classifier / "metrics.jsonl", "eval")
    for ours, theirs in zip(told["steps"], logged, strict=True):
        for name in ("loss", "accuracy", "f1_macro", "accuracy_error", "matthews_error"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name
    assert "binomial" in told["convention"]["standard_error"]


def test_two_classifiers_are_compared_example_by_example(classifier, labelled, capsys):
    """By hand, of what gptjax eval and run.classify say of the same examples."""
    flags = ["--step_a=60", "--step_b=120", "--json"]
    assert cli.main(["compare", str(classifier), str(classifier), *flags]) == 0
    [of_set] = json.loads(capsys.readouterr().out)["differences"].values()
    logged = metrics.read_metrics(classifier / "metrics.jsonl", "eval")
    for side, row in zip("ab", logged, strict=True):
        assert of_set["loss"][side] == pytest.approx(row["loss"], rel=1e-5)
        assert of_set["accuracy"][side] == pytest.approx(row["accuracy"], rel=1e-6)
    assert of_set["loss"]["pairs"] == of_set["accuracy"]["pairs"] == 24
    spec = f"--data=jsonl:{labelled['data']['path']}"
    assert cli.main(["compare", str(classifier), str(classifier), spec]) == 0
    out = capsys.readouterr().out
    assert "A and B are the same on this text" in out and "(120 pairs" in out and "accuracy: A " in out


def test_gptjax_eval_judges_other_sets_whole_and_says_what_it_is(classifier, labelled, capsys):
    assert cli.main(["eval", f"--workdir={classifier}", f"--data=jsonl:{labelled['data']['path']}"]) == 0
    out = capsys.readouterr().out
    assert "(120 examples)" in out and "accuracy " in out and "classify(labels='without,with')" in out


@pytest.mark.parametrize("flag", ["--stride=4", "--protocol=wikitext"])
def test_flags_of_running_text_are_refused(flag, classifier, capsys):
    data = ["--data=jsonl:nowhere.jsonl"] if "protocol" in flag else []
    assert cli.main(["eval", f"--workdir={classifier}", flag, *data]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_a_loaded_run_classifies_texts_alone_as_together(classifier):
    run = gptjax.load(classifier)
    texts = ["bcdae", "bcdbe", "agfedc", "ghgh"]
    made = run.classify(texts)
    assert [one.label for one in made] == ["with", "without", "with", "without"]
    for text, one in zip(texts, made):
        [alone] = run.classify(text)
        assert alone.label == one.label and sum(one.probability.values()) == pytest.approx(1)
        assert alone.probability == {name: pytest.approx(p, rel=1e-5) for name, p in one.probability.items()}
    assert [one.label for one in run.classify([{"text": "bcdae"}])] == ["with"] and run.classify([]) == []
    with pytest.raises(UserError, match="field 'text' is missing"):
        run.classify([{"txt": "a"}])


def test_the_probability_of_a_class_is_a_reward(classifier):
    """Of any text, an empty one and one longer than the context among them."""
    texts = ["bcdae", "bcdbe", "", "b" * 40]
    answers = [reward.Answer((Message("user", "?"),), text, np.zeros(1, np.int32)) for text in texts]
    scores = reward.scored(answers, reward.chosen([f"classifier(run={str(classifier)!r}, label='with')"]))
    expected = [one.probability["with"] for one in gptjax.load(classifier).classify(texts)]
    np.testing.assert_allclose(scores.by_name["classifier"], expected, rtol=1e-6)
    assert scores.total_B[0] > 0.9 > 0.1 > scores.total_B[1]
    with pytest.raises(UserError, match="has no class 'wit'; did you mean 'with'"):
        reward.scored(answers, reward.chosen([f"classifier(run={str(classifier)!r}, label='wit')"]))


def test_a_run_without_a_head_does_not_classify(trained):
    with pytest.raises(UserError, match="this model has no task head"):
        gptjax.load(trained).classify("a")


@pytest.mark.slow
def test_killed_and_resumed_it_is_as_undisturbed_to_the_bit(labelled, tmp_path):
    values = runs.changed(
        labelled, train=dict(steps=40, log_every=1), checkpoint=dict(every_steps=10), eval=dict(every_steps=20)
    )
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    config = runs.write_config(values, tmp_path / "undisturbed.py")
    assert cli.main(["train", config, f"--workdir={undisturbed}"]) == 0
    process = runs.start(values, killed, tmp_path)
    runs.wait_for_step(killed, 21, process)
    process.kill()
    process.communicate()
    assert cli.main(["train", config, f"--workdir={killed}"]) == 0
    runs.assert_same_state(undisturbed, killed, 40)
    assert dict((row[0], row) for row in runs.losses(killed))[40] == runs.losses(undisturbed)[-1]


def test_from_a_pretrained_run_the_head_alone_is_new(labelled, values, tmp_path, text):
    """The language model's tokenizer has the control tokens, as gptjax tokenizer train --special=task gives it."""
    from gptjax.data import tokenizers
    from gptjax.data.tokenizers.simple import ByteTokenizer

    tokenizers.save_tokenizer(ByteTokenizer.read(None).with_special(tokenizers.SYMBOLS["task"]), tmp_path / "tokenizer")
    tokenizer = dict(tokenizer=None, tokenizer_path=str(tmp_path / "tokenizer"))
    base = runs.changed(values, train=dict(steps=2), data=tokenizer, eval=dict(every_steps=None))
    config = runs.write_config(base, tmp_path / "base.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'base'}"]) == 0
    ours = runs.changed(labelled, train=dict(steps=2, start_from=str(tmp_path / "base")), data=tokenizer)
    config = runs.write_config(runs.changed(ours, checkpoint=dict(every_steps=2)), tmp_path / "ours.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'ours'}"]) == 0
    started = json.loads((tmp_path / "ours" / "manifest.json").read_text())["started_from"]
    assert started["initialised"] == ["task_head/bias", "task_head/weight"]
    before, after = (
        runs.saved_arrays(folder, step, ["params"]) for folder, step in ((tmp_path / "base", 2), (tmp_path / "ours", 0))
    )
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)


def test_with_an_adapter_the_head_is_trained_too():
    config = config_of("classify").replace(model=dict(adapter="lora"))
    params = programs.of(config, jax.devices()[:1]).abstract_params
    trained_names, _ = (flatten_dict(tree, sep="/").keys() for tree in trainable.split(params, config))
    assert {name for name in trained_names if "/adapter/" not in name} == {"task_head/bias", "task_head/weight"}


def test_a_length_in_epochs_is_of_the_training_examples(labelled):
    config = from_dict(runs.changed(labelled, train=dict(steps=None, epochs=2.5)))
    count = len(open_examples(config).examples.train.examples)
    assert epochs.resolved(config).train.steps == math.ceil(2.5 * count / config.train.batch_size)


OTHER_TASKS = {  # task: (head, loss, a record of number i, metrics, what run.classify takes, a fitting label)
    "choice": (
        "choice",
        "choice",
        lambda i: {"context": "ab", "choices": ["b", "ccc", "dd"][: 2 + i % 2], "label": i % 2},
        {"accuracy"},
        {"context": "ab", "choices": ["b", "c"]},
        lambda made: made.label in "01" and sum(made.probability.values()) == pytest.approx(1),
    ),
    "similarity(first='a', second='b')": (
        "regression",
        "regress",
        lambda i: {"a": "x" * (1 + i % 4), "b": "y", "label": i / 7},
        {"pearson", "spearman"},
        {"a": "xx", "b": "y"},
        lambda made: isinstance(made.label, float),
    ),
    "tag(labels='O,B')": (
        "token_classes(n=2)",
        "tag",
        lambda i: {"tokens": ["ab", "c"][: 1 + i % 2], "tags": ["B", "O"][: 1 + i % 2]},
        {"accuracy", "f1", "matthews"},
        {"tokens": ["ab", "c", "d"]},
        lambda made: len(made.label) == 3 and set(made.label) <= {"O", "B"},
    ),
    "answer": (
        "span",
        "span",
        lambda i: {"question": "q", "context": "a bc d"[i % 2 :], "answer": "bc"},
        {"exact_match", "f1"},
        {"question": "q", "context": "a bc"},
        lambda made: made.label in "a bc" and 0 < made.probability <= 1,
    ),
}


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_every_task_is_trained_evaluated_and_asked(task, labelled, tmp_path):
    head, loss, record, names, question, fits = OTHER_TASKS[task]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(record(i)) + "\n" for i in range(40)))
    ours = runs.changed(
        labelled,
        model=dict(task_head=head, n_layers=1),
        data=dict(task=task, path=str(tmp_path / "set.jsonl")),
        train=dict(steps=4, loss=loss),
        checkpoint=dict(every_steps=None),
        eval=dict(every_steps=None),
    )
    config = runs.write_config(ours, tmp_path / "fields.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'run'}"]) == 0
    [logged] = metrics.read_metrics(tmp_path / "run" / "metrics.jsonl", "eval")
    assert logged["examples"] == 8 and all(np.isfinite(logged[name]) for name in ("loss", "standard_error"))
    assert names <= logged.keys() and {f"{name}_error" for name in names} <= logged.keys()
    [made] = gptjax.load(tmp_path / "run").classify([question])
    assert fits(made), made


@pytest.mark.parametrize(
    "command, message",
    [
        (["data", "--workdir=RUN"], "gives labelled examples, but running text is read here: it has to be None."),
        (["plan", "--config=RUN/config.json", "--topology=v5e:2x2"], "plan the model without model.task_head"),
        (["export", "--workdir=RUN", "--to=hf", "--out=RUN-hf"], "that class has no bias, and this head has one"),
        (["export", "--workdir=RUN", "--to=gguf", "--out=RUN.gguf"], "it has a head classes(n=2) beside"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_that_cannot_take_a_classifier_says_so_in_a_line(command, message, classifier, capsys):
    assert cli.main([word.replace("RUN", str(classifier)) for word in command]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gptjax: ")]
    assert message in line
