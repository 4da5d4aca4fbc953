"""Supervised fine-tuning: the same labels, loss and gradients as TRL, and the same run however it is packed and split."""

import dataclasses
import functools
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
import runs
from places import ROOT
from safetensors.numpy import save_file

import gptjax
from gptjax import cli
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.chat.formats import GPTJAX
from gptjax.data.rows.pipeline import TrainRows, open_text
from gptjax.huggingface import importing
from gptjax.models import architectures
from gptjax.parallel import meshes
from gptjax.training import program as programs
from gptjax.training import step

GOLDEN = ROOT / "tests" / "golden" / "sft"
TOLERANCE = 1e-5


def golden_script():
    spec = importlib.util.spec_from_file_location("make_sft", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_conversations(file, records) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def data_of(source, cache, **fields) -> dict:
    chat = dict(chat="gptjax", packing="best_fit", val_split="document", tokenizer="bytes")
    return dict(source=source, cache_dir=str(cache)) | chat | fields


def rows_of(config: DataConfig, context_length: int) -> TrainRows:
    store, objective = open_text(config, context_length)
    return TrainRows(store, config, context_length, objective)


def epoch(rows: TrainRows) -> dict[str, np.ndarray]:
    [count] = rows.rows_per_epoch.values()
    return rows.rows(0, count)


def gradient(config: Config, params, batch, n_devices: int = 1):
    """(gradients, loss) of a batch on a mesh, padded with rows of weight 0 to a multiple of 8."""
    program = programs.build(config, meshes.make_mesh(config, jax.devices()[:n_devices]), "xla")
    more = -len(batch["token_BT"]) % 8
    batch = {name: np.pad(array, ((0, more), (0, 0))) for name, array in batch.items()}
    state = step.TrainState(np.zeros((), np.int32), params, None, None)
    spec = jax.tree.map(lambda place: place.spec, program.param_sharding)
    of = functools.partial(step.mean_gradient, graph=program.graph, config=config, param_spec=spec)
    with jax.set_mesh(program.mesh):
        grads, metrics = jax.jit(of)(jax.device_put(state, jax.NamedSharding(program.mesh, jax.P())), batch)
    return jax.device_get(grads), float(metrics["loss"])


def assert_close(ours, theirs, tolerance=TOLERANCE):
    """Each array to tolerance of the largest entry of all."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(leaf - other).max() <= tolerance * largest, path


# ---- TRL


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """(Config, parameters of the golden model, rows of the golden conversations, function of TRL's arrays -> our tree)."""
    folder, script = tmp_path_factory.mktemp("trl"), golden_script()

    def imported(name: str, arrays: dict):
        (folder / name).mkdir()
        save_file(arrays, folder / name / "model.safetensors", metadata={"format": "pt"})
        about = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], **script.SHAPE)
        dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        (folder / name / "config.json").write_text(json.dumps(about | dropout))
        importing.import_folder(str(folder / name), str(folder / f"{name}_run"), "ids")
        loaded = gptjax.load(folder / f"{name}_run")
        return loaded.model_config, jax.device_get(loaded.params)

    model, params = imported("weights", script.weights())
    file = folder / "conversations.jsonl"
    write_conversations(file, script.conversations())
    data = DataConfig(**data_of("jsonl", folder, path=str(file), val_fraction=0.0))
    config = Config(
        model=dataclasses.replace(model, dtype="float32"), data=data, train=TrainConfig(steps=1, batch_size=8)
    )
    return config, params, rows_of(data, model.context_length), lambda arrays: imported("grads", arrays)[1]


def assert_as_trl(ours, expected: dict) -> None:
    config, params, rows, as_tree = ours
    documents = rows.by_source["jsonl"].tokens
    span_D2, _ = documents.documents(0, documents.n_documents)
    ours_by_document = set()
    for start, stop in span_D2.tolist():
        weight_L = np.empty(stop - start, np.float32)
        documents.weights.fill([weight_L], np.array([start]), np.array([stop]))
        token_L = documents.read(np.array([start]), stop - start)[0]
        ours_by_document.add((tuple(token_L.tolist()), tuple(np.where(weight_L > 0, token_L, -100).tolist())))
    pad = golden_script().SHAPE["vocab_size"] - 1
    lengths = (expected["token_BT"] != pad).sum(axis=1)
    assert ours_by_document == {
        (tuple(token_T[:n].tolist()), tuple(label_T[:n].tolist()))
        for token_T, label_T, n in zip(expected["token_BT"], expected["label_BT"], lengths)
    }
    grads, loss = gradient(config, params, epoch(rows))
    assert loss == pytest.approx(float(expected["loss"]), rel=TOLERANCE)
    theirs = as_tree({name: array for name, array in expected.items() if name.startswith("transformer.")})
    assert_close(grads, theirs)


def test_labels_loss_and_gradients_are_those_of_trl(ours):
    assert (GOLDEN / "template.jinja").read_text() == GPTJAX.template
    assert_as_trl(ours, dict(np.load(GOLDEN / "trl.npz")))


def test_labels_loss_and_gradients_are_those_of_the_trl_installed(ours, monkeypatch, tmp_path):
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected, golden = golden_script().expected(), np.load(GOLDEN / "trl.npz")
    assert float(expected["loss"]) == pytest.approx(float(golden["loss"]), rel=TOLERANCE)
    for name in golden.files:
        np.testing.assert_allclose(expected[name], golden[name], atol=1e-6)


# ---- however it is packed and split


TINY = ModelConfig(vocab_size=262, context_length=64, n_layers=2, d_model=32, n_heads=8, init_std=0.3, dtype="float32")


def records(count: int, seed: int = 0) -> list[dict]:
    """Conversations of one to three answers of different lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        turns = []
        for _ in range(rng.integers(1, 4)):
            turns += [{"role": "user", "content": "ab" * rng.integers(1, 4)}]
            turns += [{"role": "assistant", "content": "cd"[rng.integers(2)] * rng.integers(1, 6)}]
        made.append({"messages": turns})
    return made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(Config, parameters, rows) of 30 conversations."""
    folder = tmp_path_factory.mktemp("tiny")
    file = folder / "c.jsonl"
    write_conversations(file, records(30))
    data = DataConfig(**data_of("jsonl", folder, path=str(file), val_fraction=0.0))
    params = architectures.split(architectures.make(TINY, jax.random.key(0)))[1]
    config = Config(model=TINY, data=data, train=TrainConfig(steps=1, batch_size=8))
    return config, jax.device_get(params), rows_of(data, TINY.context_length)


@pytest.fixture(scope="module")
def packed_gradient(tiny):
    config, params, rows = tiny
    return gradient(config, params, epoch(rows))


def alone(rows: TrainRows) -> dict[str, np.ndarray]:
    """Each conversation of an epoch in a row of its own, by hand: no positions and segments but the row's."""
    [packed] = rows.by_source.values()
    tokens, length = packed.tokens, packed.row_tokens
    span_D2, _ = tokens.documents(0, tokens.n_documents)
    token_BT, weight_BT = np.zeros((len(span_D2), length), np.int32), np.zeros((len(span_D2), length), np.float32)
    for row, (start, stop) in enumerate(span_D2.tolist()):
        token_BT[row, : stop - start] = tokens.read(np.array([start]), stop - start)[0]
        tokens.weights.fill([weight_BT[row, : stop - start]], np.array([start]), np.array([stop]))
    segment_BT = np.zeros(token_BT.shape, np.int32)
    position_BL = np.broadcast_to(np.arange(length - 1, dtype=np.int32), (len(span_D2), length - 1))
    return {"token_BT": token_BT, "weight_BL": weight_BT[:, 1:], "segment_BT": segment_BT, "position_BL": position_BL}


def test_packed_conversations_have_the_loss_and_gradients_of_each_alone(tiny, packed_gradient):
    config, params, rows = tiny
    assert len(epoch(rows)["token_BT"]) < 25  # rows hold several
    grads, loss = gradient(config, params, alone(rows))
    assert loss == pytest.approx(packed_gradient[1], rel=TOLERANCE)
    assert_close(packed_gradient[0], grads)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_of_unequal_target_counts_have_the_gradient_of_one_batch(tiny, packed_gradient, microbatches):
    config, params, rows = tiny
    counts = [int(epoch(rows)["weight_BL"][i::microbatches].sum()) for i in range(microbatches)]
    assert len(set(counts)) > 1
    grads, loss = gradient(config.replace(train=dict(microbatches=microbatches)), params, epoch(rows))
    assert loss == pytest.approx(packed_gradient[1], rel=TOLERANCE)
    assert_close(grads, packed_gradient[0])


@pytest.mark.parametrize("mesh", [dict(fsdp=8), dict(replica=2, fsdp=2, tensor=2)])
def test_eight_devices_have_the_gradient_of_one(tiny, packed_gradient, mesh):
    config, params, rows = tiny
    grads, loss = gradient(config.replace(mesh=mesh), params, epoch(rows), n_devices=8)
    assert loss == pytest.approx(packed_gradient[1], rel=TOLERANCE)
    assert_close(grads, packed_gradient[0])


def test_the_end_of_every_answer_and_nothing_of_a_question_is_a_target(tiny):
    _, _, rows = tiny
    batch = epoch(rows)
    [packed] = rows.by_source.values()
    end, user, assistant = (256 + 1 + GPTJAX.symbols.index(name) for name in ("<|end|>", "<|user|>", "<|assistant|>"))
    n_answers = sum(len(record["messages"]) // 2 for record in records(30))
    target_BL, weight_BL = batch["token_BT"][:, 1:], batch["weight_BL"]
    assert (weight_BL[target_BL == end] == 1).sum() == n_answers
    assert not weight_BL[(target_BL == user) | (target_BL == assistant)].any()
    answers = sum(len(message["content"]) for record in records(30) for message in record["messages"][1::2])
    assert weight_BL.sum() == n_answers + answers == packed.tokens.n_targets


# ---- runs


def run_values(folder, **data) -> dict:
    return {
        "model": dict(context_length=64, n_layers=2, d_model=32, n_heads=4, dtype="float32", residual_dropout=0.1),
        "data": data_of(f"jsonl:{folder / 'c.jsonl'}", folder / "cache", **data),
        "optim": dict(peak_lr=3e-3, warmup_steps=2),
        "train": dict(steps=6, batch_size=8, log_every=1, tensorboard=False),
        "checkpoint": dict(every_steps=2, keep=9),
        "eval": dict(every_steps=3),
    }


def train(values: dict, workdir, *flags: str) -> int:
    return cli.main(["train", runs.write_config(values, workdir.with_suffix(".py")), f"--workdir={workdir}", *flags])


def test_a_run_that_was_killed_goes_on_bit_equal(tmp_path, capsys):
    write_conversations(tmp_path / "c.jsonl", [*records(60), {"messages": [{"role": "user", "content": "?"}]}])
    values, whole, killed = run_values(tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert train(values, whole) == 0
    printed = capsys.readouterr()
    said = printed.err
    assert f"{tmp_path}/c.jsonl:61 has no target" in said and "conversations fit a row of 65 tokens" in said
    assert "--chat\n  gptjax eval" in printed.out + said  # what comes next asks for an answer
    assert train(values, killed) == 0
    for name in ("4", "6"):  # as if it had been killed after step 3
        shutil.rmtree(killed / "checkpoints" / name)
    assert train(values, killed) == 0
    assert runs.losses(killed) == runs.losses(whole)
    runs.assert_same_state(whole, killed, 6)
    evaluated = gptjax.load(whole).evaluate()
    assert evaluated == gptjax.load(killed).evaluate()
    [same] = gptjax.compare(gptjax.load(whole, 2), killed).loss.values()
    [before], [after] = (gptjax.load(whole, step).evaluate().values() for step in (2, 6))
    assert (same.a, same.b) == pytest.approx((before.loss, after.loss), rel=1e-5) and same.a != same.b
