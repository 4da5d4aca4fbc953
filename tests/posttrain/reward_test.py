"""The reward model: TRL's loss and gradients (golden/reward), all pairs of a prompt at once, the same on every mesh, and whole
runs: trained, resumed, evaluated, asked for scores, put on a scale."""

import functools
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
import runs
from flax.traverse_util import flatten_dict, unflatten_dict
from places import ROOT

import gptjax
from gptjax import cli
from gptjax.config.fields import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.huggingface import gpt2
from gptjax.models import architectures
from gptjax.parallel import numerics
from gptjax.rundir import metrics
from gptjax.training import losses, session
from gptjax.training import program as programs

GOLDEN = ROOT / "tests" / "golden" / "reward"


@functools.cache
def golden_script():
    spec = importlib.util.spec_from_file_location("make_reward", GOLDEN / "make_reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIZES = golden_script().SIZES
DATA = DataConfig(path="pairs.jsonl", chat="gptjax", preferences="compared", tokenizer="bytes")
CONFIG = Config(
    ModelConfig(
        vocab_size=SIZES["vocab_size"],
        context_length=SIZES["n_positions"],
        n_layers=SIZES["n_layer"],
        d_model=SIZES["n_embd"],
        n_heads=SIZES["n_head"],
        dtype="float32",
        task_head="score(bias=False)",
    ),
    DATA,
    OptimConfig(eps=1e-3),
    train=TrainConfig(steps=2, batch_size=4, loss="reward"),
)


def spelled(loss: str, **options) -> str:
    return f"{loss}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def batch_of(answers: list[list[np.ndarray]], scores, margins=None, context_length: int = SIZES["n_positions"]) -> dict:
    """Of answers in tokens; those of a prompt may be fewer than of another."""
    B, K = len(answers), max(map(len, answers))
    batch = {
        "token_BKT": np.zeros((B, K, context_length + 1), np.int32),
        "length_BK": np.zeros((B, K), np.int32),
        "score_BK": np.zeros((B, K), np.float32),
        "margin_B": np.zeros(B, np.float32) if margins is None else np.array(margins, np.float32),
        "weight_B": np.ones(B, np.float32),
    }
    for b, of_prompt in enumerate(answers):
        batch["score_BK"][b, : len(of_prompt)] = scores[b]
        for k, ids in enumerate(of_prompt):
            batch["token_BKT"][b, k, : len(ids)], batch["length_BK"][b, k] = ids, len(ids)
    return batch


def trl_batch() -> dict:
    return batch_of([list(pair) for pair in golden_script().pairs()], [(1, 0)] * 4, golden_script().MARGINS)


def ours(theirs) -> dict:
    """Our tree of what stands under their names: weights, or gradients."""
    family, model, tree = gpt2.FAMILY, CONFIG.model, {}
    for tensor in family.tensors(model):
        parts = [
            tensor.layout.join([theirs(f"{family.prefix}{name}") for name in names], model)
            for names in tensor.names(model)
        ]
        tree[tuple(tensor.ours.split("."))] = np.stack(parts) if tensor.stacked else parts[0]
    tree["task_head", "weight"] = theirs("score.weight").T
    return unflatten_dict(tree)


@functools.cache
def params() -> dict:
    golden = np.load(GOLDEN / "reward.npz")
    return ours(lambda name: golden_script().drawn(name, golden[f"plain/{name}"].shape))


@functools.cache
def compiled(loss: str):
    """A function (params, batch) -> ((objective, ((loss sum, weight sum), numbers)), gradients)."""
    config = CONFIG.replace(train=dict(loss=loss))
    graph, _, _ = architectures.abstract(config.model)
    minimised = losses.of(config)

    def objective(params, batch):
        return minimised(params, batch, jax.random.key(0), graph=graph, config=config)

    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def computed(loss: str, batch: dict):
    return jax.device_get(compiled(loss)(params(), batch))


def assert_close(array, expected, name, tolerance=1e-5):
    np.testing.assert_allclose(array, expected, atol=tolerance * max(1.0, np.abs(expected).max()), rtol=0, err_msg=name)


# ---- TRL


@pytest.mark.parametrize("case", golden_script().CASES)
def test_loss_and_every_gradient_are_those_of_trl(case):
    options = {"margin": False} | golden_script().CASES[case]
    (objective, ((_, weight), _)), grads = computed(spelled("reward", **options), trl_batch())
    golden = {
        name.removeprefix(f"{case}/"): array
        for name, array in np.load(GOLDEN / "reward.npz").items()
        if name.startswith(f"{case}/")
    }
    assert weight == 4
    assert_close(objective / weight, golden["loss"], "loss")
    expected = flatten_dict(ours(lambda name: golden[name]), sep="/")
    for name, grad in flatten_dict(grads, sep="/").items():
        assert_close(grad / weight, expected[name], name)


def test_the_golden_values_are_what_trl_makes_now(monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    golden = np.load(GOLDEN / "reward.npz")
    for name, array in golden_script().made("both").items():
        assert_close(array, golden[f"both/{name}"], name)


# ---- all pairs of a prompt


def ranked() -> tuple[list, list]:
    """(answers, scores) of three prompts with 4, 3 and 2 answers, two of the first as good as each other."""
    rng = np.random.default_rng(1)
    scores = [(3.0, 1.0, 1.0, 0.0), (2.0, 1.0, 0.0), (1.0, 0.0)]
    return [[rng.integers(0, 28, rng.integers(2, 11)) for _ in each] for each in scores], scores


@pytest.mark.parametrize("options", runs.default_or_slow([{}, {"centering": 0.2}], [{"centering": 0.2}]))
def test_all_pairs_of_a_prompt_at_once_are_the_mean_of_its_pairs_one_by_one_and_ties_are_none(options):
    answers, scores = ranked()
    (objective, ((loss, weight), numbers)), grads = computed(spelled("reward", **options), batch_of(answers, scores))
    assert weight == 3
    parts = [
        (1 / count, [of_prompt[i], of_prompt[j]])
        for of_prompt, score_K in zip(answers, scores)
        for pairs in [[(i, j) for i in range(len(score_K)) for j in range(len(score_K)) if score_K[i] > score_K[j]]]
        for count, (i, j) in ((len(pairs), pair) for pair in pairs)
    ]
    assert len(parts) == 5 + 3 + 1
    one_by_one = batch_of([pair for _, pair in parts], [(1, 0)] * len(parts))
    one_by_one["weight_B"] = np.array([weight for weight, _ in parts], np.float32)
    (objective_1, ((loss_1, weight_1), numbers_1)), grads_1 = computed(spelled("reward", **options), one_by_one)
    np.testing.assert_allclose((objective, loss, weight), (objective_1, loss_1, weight_1), rtol=1e-5)
    for name in ("accuracy", "margin"):
        np.testing.assert_allclose(numbers[name].value, numbers_1[name].value, rtol=1e-5, err_msg=name)
    for name, grad in flatten_dict(grads, sep="/").items():
        assert_close(grad, flatten_dict(grads_1, sep="/")[name], name)


def test_the_score_is_read_at_the_last_token_whatever_stands_behind_it():
    batch = trl_batch()
    _, before = computed("reward", batch)
    behind = np.arange(11) >= batch["length_BK"][..., None]
    _, after = computed("reward", batch | {"token_BKT": np.where(behind, 7, batch["token_BKT"])})
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_rows_of_no_weight_and_prompts_of_ties_alone_change_nothing():
    answers, scores = ranked()
    (_, ((loss, weight), _)), grads = computed("reward", batch_of(answers, scores))
    batch = batch_of([*answers, answers[0], answers[1]], [*scores, (1, 1, 1, 1), scores[1]])
    batch["weight_B"][4] = 0
    (_, ((more, same), _)), with_more = computed("reward", batch)
    assert same == weight == 3
    np.testing.assert_allclose(more, loss, rtol=1e-6)
    for name, grad in flatten_dict(with_more, sep="/").items():
        assert np.isfinite(grad).all()
        assert_close(grad, flatten_dict(grads, sep="/")[name], name, 3e-6)


@functools.cache
def trained(config: Config):
    """(parameters, numbers) after two steps, from the same eight prompts of up to three answers."""
    rng = np.random.default_rng(2)
    count_B = rng.integers(2, 4, 8)
    answers = [[rng.integers(0, 28, rng.integers(2, 11)) for _ in range(count)] for count in count_B]
    batch = batch_of(answers, [np.arange(count)[::-1] for count in count_B], rng.random(8))
    program = programs.of(config, jax.devices()[: config.mesh.fsdp * config.mesh.tensor])
    with numerics.on_mesh(program.mesh):
        placed = jax.device_put({name: np.stack([a, a]) for name, a in batch.items()}, program.train_batch_sharding)
        state, numbers = program.train(program.init(), placed, np.full(2, 1e-2, np.float32))
        return jax.device_get((state.params, numbers))


EIGHT = CONFIG.replace(
    model=dict(n_heads=2, residual_dropout=0.0),
    train=dict(batch_size=8, loss="reward(centering=0.1)"),
    mesh=dict(fsdp=1),
)


@pytest.mark.parametrize(
    "changes",
    [dict(mesh=dict(fsdp=2, tensor=2)), pytest.param(dict(train=dict(microbatches=4)), marks=pytest.mark.slow)],
    ids=["4 devices", "4 microbatches"],
)
def test_answers_train_the_same_on_several_devices_and_in_microbatches(changes):
    parameters, numbers = trained(EIGHT)
    theirs, their_numbers = trained(EIGHT.replace(**changes))
    assert numbers["loss"][1] != numbers["loss"][0]
    for name in numbers:
        np.testing.assert_allclose(their_numbers[name], numbers[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(parameters), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3)


def test_a_loss_and_data_that_do_not_go_together_are_refused():
    session.check_rows(CONFIG)
    with pytest.raises(UserError, match="train.loss='next_token' does not learn from data.preferences='compared'; use"):
        session.check_rows(CONFIG.replace(model=dict(task_head=None), train=dict(loss="next_token")))
    text = DataConfig()
    with pytest.raises(UserError, match="does not learn from data.preferences=None; set data.preferences='compared'."):
        session.check_rows(Config(ModelConfig(), text, train=TrainConfig(steps=1, loss="reward")))
    with pytest.raises(UserError, match="centering=-1.0 is negative"):
        losses.chosen("reward(centering=-1)")


# ---- whole runs


def sums(count: int) -> list[dict]:
    """Of even and odd digits: even is better, and every third has three answers."""
    rng = np.random.default_rng(3)
    records = []
    for i in range(count):
        even, odd = 2 * int(rng.integers(0, 5)), 1 + 2 * int(rng.integers(0, 5))
        pair = {"prompt": f"q{i % 7}", "chosen": f"{even}", "rejected": f"{odd}"}
        three = {"prompt": f"q{i % 7}", "answers": [f"{odd}", f"{even}", f"{even}{odd}"], "ranking": [3, 1, 2]}
        records.append(pair if i % 3 else three)
    return records


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    (folder / "set.jsonl").write_text("".join(json.dumps(record) + "\n" for record in sums(150)))
    return {
        "model": dict(context_length=16, n_layers=1, d_model=32, n_heads=4, dtype="float32", task_head="score"),
        "data": dict(path=str(folder / "set.jsonl"), tokenizer="bytes", chat="gptjax", preferences="compared")
        | {"val_fraction": 0.2, "cache_dir": str(folder)},
        "optim": dict(peak_lr=1e-2, warmup_steps=5),
        "train": dict(steps=60, batch_size=16, log_every=1, tensorboard=False, loss="reward(centering=0.01)"),
        "checkpoint": dict(every_steps=20, keep=3),
        "eval": dict(every_steps=30),
    }


@pytest.fixture(scope="module")
def run(values, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reward") / "run"
    config = runs.write_config(values, workdir.parent / "fields.py")
    assert cli.main(["train", config, f"--workdir={workdir}"]) == 0
    return workdir


def test_a_reward_model_learns_and_its_log_says_how_well_it_orders(run):
    [first, last] = metrics.read_metrics(run / "metrics.jsonl", "eval")
    assert first["step"] == 30 and last["accuracy"] > 0.95 and (last["examples"], last["pairs"]) == (30, 30 + 2 * 10)
    names = ("accuracy", "margin", "ece", "length_correlation", "chosen_longer", "accuracy_longer", "accuracy_shorter")
    assert all(name in last and f"{name}_error" in last for name in names)
    assert {"confidence", "accuracy", "share"} == last["calibration"][0].keys()
    rows = runs.train_rows(run)
    assert {"loss", "accuracy", "margin", "score"} <= rows[-1].keys() and rows[-1]["loss"] < rows[0]["loss"] / 2


def test_gptjax_eval_gives_the_numbers_of_training(run, values, capsys):
    assert cli.main(["eval", f"--workdir={run}", "--json"]) == 0
    told, [*_, logged] = json.loads(capsys.readouterr().out), metrics.read_metrics(run / "metrics.jsonl", "eval")
    for name in ("loss", "accuracy", "margin", "ece"):
        assert told[name] == pytest.approx(logged[name], rel=1e-5), name
    assert cli.main(["eval", f"--workdir={run}", f"--data=jsonl:{values['data']['path']}"]) == 0
    assert "(150 prompts, 250 pairs)" in capsys.readouterr().out
    assert cli.main(["eval", f"--workdir={run}", "--stride=3"]) == 2
    assert "a run of data.preferences='compared' is judged by examples; leave it out." in capsys.readouterr().err


def test_a_run_that_was_stopped_ends_as_an_undisturbed_one_to_the_bit(run, values, tmp_path):
    """Its checkpoint of step 20 is all that is left of it."""
    shutil.copytree(run, tmp_path / "stopped")
    for step in (40, 60):
        shutil.rmtree(tmp_path / "stopped" / "checkpoints" / str(step))
    config = runs.write_config(values, tmp_path / "fields.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'stopped'}"]) == 0
    runs.assert_same_state(run, tmp_path / "stopped", 60)


def conversation(prompt: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_run_score_orders_answers_and_a_score_alone_is_that_in_a_batch(run):
    loaded = gptjax.load(run)
    conversations = [conversation("q1", digit) for digit in "0123456789"]
    scores = loaded.score(conversations)
    assert scores.shape == (10,) and scores[::2].min() > scores[1::2].max()
    alone = [loaded.score([one])[0] for one in conversations[:3]]
    np.testing.assert_allclose(alone, scores[:3], rtol=1e-5, atol=1e-5)
    assert loaded.score([]).shape == (0,)
    for wrong, message in (
        ([[{"role": "user", "content": "q"}]], "conversation 0 ends with a message of the user"),
        ([conversation("q", "1" * 40)], "tokens, more than the context of 16"),
    ):
        with pytest.raises(UserError, match=message):
            loaded.score(wrong)


def test_a_reward_model_is_put_on_a_scale_and_keeps_it_in_its_parameters(run, values, tmp_path, capsys):
    conversations = [conversation("q1", digit) for digit in "0123456789"]
    before = gptjax.load(run).score(conversations)
    demonstrations = tmp_path / "demonstrations.jsonl"
    demonstrations.write_text("".join(json.dumps({"messages": one}) + "\n" for one in conversations[:4]))
    scales = {"zero": [], "standard": [], "demonstrations": [f"--data=jsonl:{demonstrations}"]}
    scores = {}
    for name, flags in scales.items():
        to = "zero" if name == "demonstrations" else name
        command = ["reward", "scale", f"--workdir={run}", f"--out={tmp_path / name}", f"--to={to}", "--json", *flags]
        assert cli.main(command) == 0
        scale = json.loads(capsys.readouterr().out)
        scores[name] = gptjax.load(tmp_path / name).score(conversations)
        np.testing.assert_allclose(scores[name], (before - scale["mean"]) / scale["deviation"], atol=1e-5)
        assert scale["answers"] == {"zero": 120, "standard": 280, "demonstrations": 4}[name]
    assert abs(scores["demonstrations"][:4].mean()) < 1e-5
    assert (scores["zero"] - before).std() < 1e-5
    [counted] = [json.loads((tmp_path / "standard" / "manifest.json").read_text())["scale"]]
    assert counted["to"] == "standard" and counted["deviation"] > 1
    assert cli.main(["reward", "scale", f"--workdir={run}", f"--out={tmp_path / 'zero'}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_commands_that_cannot_take_a_reward_model_say_so_in_a_line(run, capsys):
    for command, message in (
        (["compare", str(run), str(run)], "a run of data.preferences='compared' is judged by examples"),
        (
            ["plan", f"--config={run}/config.json", "--topology=v5e:2x2"],
            "plan the model without model.task_head, data.preferences",
        ),
    ):
        assert cli.main(command) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gptjax: ")]
        assert message in line
