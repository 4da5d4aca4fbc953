"""A loss that gptjax does not have, added from outside: one function, and one entry in a table."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import nnx
from judging import trained_values

from gptjax import cli
from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.parallel import numerics
from gptjax.training import losses
from gptjax.training import program as programs

SMOOTHING = 0.1


def smoothed(params, batch, key, *, graph, config):
    """Label smoothing (Szegedy et al. 2016, section 7), and how often the likeliest token is the right one."""
    weight_BL, target_BL = batch["weight_BL"], batch["token_BT"][:, 1:]
    logit_BLV = nnx.merge(graph, params)(batch["token_BT"][:, :-1])
    log_probability_BLV = jax.nn.log_softmax(logit_BLV)
    loss_BL = -jnp.take_along_axis(log_probability_BLV, target_BL[..., None], axis=-1)[..., 0]
    spread_BL = -log_probability_BLV.mean(-1)
    right_BL = logit_BLV.argmax(-1) == target_BL
    objective = jnp.sum(((1 - SMOOTHING) * loss_BL + SMOOTHING * spread_BL) * weight_BL)
    sums = jnp.sum(loss_BL * weight_BL), weight_BL.sum()
    return objective, (sums, {"accuracy": losses.Mean(jnp.sum(right_BL * weight_BL), weight_BL.sum())})


def test_gptjax_train_minimises_it_and_logs_its_numbers_the_same_in_any_number_of_microbatches(
    values, tmp_path, monkeypatch
):
    monkeypatch.setitem(losses.LOSSES, "smoothed", f"{__name__}:smoothed")
    rows = {}
    for count in (1, 4):
        train = dict(steps=2, batch_size=8, loss="smoothed", microbatches=count)
        ours = runs.changed(
            trained_values(values), train=train, eval=dict(every_steps=None, batch_size=8), mesh=dict(fsdp=2, tensor=4)
        )
        config = runs.write_config(ours, tmp_path / f"{count}.py")
        assert cli.main(["train", config, f"--workdir={tmp_path / str(count)}"]) == 0
        rows[count] = runs.train_rows(tmp_path / str(count))
    for name in ("loss", "accuracy", "grad_norm", "param_norm"):
        whole, parts = ([row[name] for row in rows[count]] for count in (1, 4))
        np.testing.assert_allclose(whole, parts, rtol=2e-5, err_msg=name)
        assert whole[0] != whole[1]
    assert all(0 < row["accuracy"] < 0.6 for row in rows[1])
    assert json.loads((tmp_path / "1" / "config.json").read_text())["train"]["loss"] == "smoothed"


def test_a_loss_that_nobody_named_is_refused_with_those_there_are(values, tmp_path, capsys):
    config = runs.write_config(
        runs.changed(trained_values(values), train=dict(loss="next_tokn")), tmp_path / "fields.py"
    )
    assert cli.main(["train", config, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "train.loss='next_tokn' is not known; did you mean 'next_token'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address, missing",
    [
        (
            "nowhere.losses:mine",
            "Python finds no module nowhere; put its folder into PYTHONPATH, or correct the entry.",
        ),
        (f"{__name__}:smoothd", "has no smoothd; did you mean 'smoothed'?"),
    ],
)
def test_an_entry_that_leads_nowhere_is_one_line(address, missing, values, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(losses.LOSSES, "mine", address)
    config = runs.write_config(runs.changed(trained_values(values), train=dict(loss="mine")), tmp_path / "fields.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'run'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("gptjax: train.loss='mine' is ") and missing in lines[-1]


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A loss with a parameter."""

    factor: float = 1.0

    def __call__(self, params, batch, key, *, graph, config):
        objective, rest = smoothed(params, batch, key, graph=graph, config=config)
        return self.factor * objective, rest


def test_a_loss_with_parameters_is_a_dataclass_whose_instances_are_losses(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "scaled", f"{__name__}:Scaled")
    config = PAIRS.replace(train=dict(loss="scaled(factor=3)"))
    assert losses.of(config) == Scaled(3.0) and losses.chosen("scaled") == Scaled()


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("scaled(facto=3)", "scaled has no parameter 'facto'; did you mean 'factor'?"),
        ("next_token(factor=3)", "next_token has no parameters; write train.loss='next_token'."),
    ],
)
def test_parameters_that_a_loss_does_not_take_are_refused(monkeypatch, text, wrong):
    monkeypatch.setitem(losses.LOSSES, "scaled", f"{__name__}:Scaled")
    with pytest.raises(UserError, match=re.escape(wrong)):
        losses.chosen(text)


# Batches of more than tokens: what a loss takes of a batch is between it and the data


def preferred(params, batch, key, *, graph, config):
    """Of pairs of texts [B, 2, T], that the first is the likelier one; `loss` is that of the first (Rafailov et al. 2023, with
    no reference)."""
    pair_BKT = batch["pair_BKT"]
    rows_BT = pair_BKT.reshape(-1, pair_BKT.shape[-1])
    loss_BL, _, _ = nnx.merge(graph, params).token_loss(rows_BT)
    loss_BK = loss_BL.mean(-1).reshape(pair_BKT.shape[:2])
    margin_B = (loss_BK[:, 1] - loss_BK[:, 0]) * batch["strength_B"]
    count = jnp.float32(len(margin_B))
    objective = -jax.nn.log_sigmoid(margin_B).sum()
    return objective, ((loss_BK[:, 0].sum(), count), {"margin": losses.Mean(margin_B.sum(), count)})


PAIRS = Config(
    model=ModelConfig(vocab_size=65, context_length=8, n_layers=1, d_model=16, n_heads=4, dtype="float32"),
    optim=OptimConfig(eps=1e-4),
    train=TrainConfig(steps=2, batch_size=8, loss="preferred"),
    mesh=MeshConfig(fsdp=1),
)


@functools.cache
def pairs() -> dict:
    rng = np.random.default_rng(0)
    strength_SB = rng.uniform(1, 5, (2, 8)).astype(np.float32)
    return {"pair_BKT": rng.integers(0, 65, (2, 8, 2, 9)).astype(np.int32), "strength_B": strength_SB}


@pytest.mark.parametrize("changes", [dict(mesh=dict(fsdp=4, tensor=2)), dict(train=dict(microbatches=4))])
def test_pairs_of_texts_train_the_same_on_eight_devices_and_in_microbatches(monkeypatch, changes):
    monkeypatch.setitem(losses.LOSSES, "preferred", f"{__name__}:preferred")
    found = []
    for config in (PAIRS, PAIRS.replace(**changes)):
        program = programs.of(config, jax.devices()[: config.mesh.fsdp * config.mesh.tensor])
        with numerics.on_mesh(program.mesh):
            batch = jax.device_put(pairs(), program.train_batch_sharding)
            state, numbers = program.train(program.init(), batch, np.full(2, 1e-2, np.float32))
            found.append(jax.device_get((state.params, numbers)))
    (params, numbers), (ours, our_numbers) = found
    assert numbers["margin"].shape == (2,) and numbers["margin"][1] != numbers["margin"][0]
    for name in numbers:
        np.testing.assert_allclose(our_numbers[name], numbers[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(params), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3)


@pytest.mark.parametrize("mesh", [dict(fsdp=1), dict(fsdp=2, sequence=2, tensor=2)])
def test_embeddings_given_at_places_of_a_batch_stand_for_those_of_its_tokens(mesh):
    """Those of the tokens that were there, given for others: the same loss, to the last place on one device."""
    config = PAIRS.replace(train=dict(loss="next_token"), mesh=mesh, model=dict(context_length=16))
    program = programs.of(config, jax.devices()[: int(np.prod([*mesh.values()]))])
    rng = np.random.default_rng(0)
    token_BT, weight_BL = rng.integers(0, 60, (8, 17)).astype(np.int32), np.ones((8, 16), np.float32)
    place_BP = np.stack([rng.permutation(16)[:3] for _ in range(8)]).astype(np.int32)
    with numerics.on_mesh(program.mesh):
        params = program.init().params
        expected_BL = jax.device_get(program.weighted_loss(params, {"token_BT": token_BT, "weight_BL": weight_BL}))
        table_VD = jax.device_get(params["token_embedding"])
        other_BT = token_BT.copy()
        np.put_along_axis(other_BT, place_BP, 64, axis=1)
        given = {"embedding_BPD": table_VD[np.take_along_axis(token_BT, place_BP, axis=1)], "place_BP": place_BP}
        other_BT[0, place_BP[0, 0]] = token_BT[0, place_BP[0, 0]]  # the first is given for no place
        place_BP[0, 0] = 16
        batch = {"token_BT": other_BT, "weight_BL": weight_BL, "target_BL": token_BT[:, 1:], **given}
        loss_BL = jax.device_get(program.weighted_loss(params, batch))
    np.testing.assert_allclose(loss_BL, expected_BL, rtol=0 if mesh == dict(fsdp=1) else 1e-6)
