"""NEFTune's noise: how large it is and on which tokens; and runs with it, smoothing and rates by depth: the same on every
mesh, in any number of microbatches, and resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import step_test
from flax import nnx
from judging import trained_values

from gptjax import cli
from gptjax.training import losses, regularisation

SEGMENT_BT = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 2], [0] * 9], np.int32)
LENGTH_BL = np.array([[3, 3, 3, 5, 5, 5, 5, 5], [9] * 8])
BATCH = {"token_BT": np.zeros((2, 9), np.int32), "segment_BT": SEGMENT_BT}
ALPHA, WIDTH = 5.0, 4096


def test_noise_is_uniform_up_to_alpha_over_the_root_of_document_length_times_width():
    noise_BLD = np.asarray(regularisation.noise(jax.random.key(0), BATCH, WIDTH, ALPHA))
    bound_BL = ALPHA / np.sqrt(LENGTH_BL * WIDTH)
    largest_BL = np.abs(noise_BLD).max(-1)
    assert np.all(largest_BL <= bound_BL * (1 + 1e-6)) and np.all(largest_BL > 0.99 * bound_BL)
    # of a uniform distribution: mean 0 and variance bound^2 / 3, within 5 standard errors over 4,096 entries
    assert np.all(np.abs(noise_BLD.mean(-1)) < 5 * bound_BL / np.sqrt(3 * WIDTH))
    np.testing.assert_allclose(noise_BLD.var(-1), bound_BL**2 / 3, rtol=0.07)


def test_a_row_whose_documents_are_not_apart_is_one_sequence():
    whole = regularisation.noise(jax.random.key(0), {"token_BT": BATCH["token_BT"]}, 8, ALPHA)
    one_document = BATCH | {"segment_BT": np.zeros((2, 9), np.int32)}
    np.testing.assert_array_equal(whole, regularisation.noise(jax.random.key(0), one_document, 8, ALPHA))


def objective(config, batch, key=0):
    program = step_test.program_of(config)
    return losses.next_token(
        step_test.initial_state().params, batch, jax.random.key(key), graph=program.graph, config=config
    )[0]


@pytest.fixture(scope="module")
def config():
    return step_test.BASE.replace(train={"neftune_alpha": 20.0})


def test_the_loss_is_that_of_embeddings_with_the_noise_added_and_of_another_one_for_another_key(config):
    batch, state = step_test.one_batch(0), step_test.initial_state()
    noise_BLD = regularisation.noise(jax.random.key(0), batch, config.model.d_model, 20.0)
    model = nnx.merge(step_test.program_of(config).graph, jax.tree.map(jnp.asarray, state.params))
    loss_BL, log_normaliser_BL, _ = model.token_loss(batch["token_BT"], noise_BLD=noise_BLD)
    expected = jnp.sum((loss_BL + config.train.z_loss * log_normaliser_BL**2) * batch["weight_BL"])
    np.testing.assert_allclose(objective(config, batch), expected, rtol=1e-6)
    assert abs(objective(config, batch, key=1) / expected - 1) > 1e-4
    assert abs(expected / objective(step_test.BASE, batch) - 1) > 1e-4
    place_BP = jnp.broadcast_to(jnp.arange(step_test.LENGTH), batch["weight_BL"].shape)
    embedding_BLD = model.token_embedding[...][batch["token_BT"][:, :-1]] + noise_BLD
    replaced_BL = model.token_loss(batch["token_BT"], embedding_BPD=embedding_BLD, place_BP=place_BP)[0]
    np.testing.assert_allclose(loss_BL, replaced_BL, rtol=1e-6)


@pytest.mark.parametrize(
    "mesh", [pytest.param(dict(fsdp=8), marks=pytest.mark.slow), dict(fsdp=2, sequence=2, tensor=2)]
)
def test_every_mesh_has_the_noise_of_one_device(config, mesh):
    options = {"train": dict(neftune_alpha=20.0, label_smoothing=0.1)}
    (_, alone), (_, split) = (
        step_test.run(step_test.program_of(step_test.BASE, **options, **where)) for where in ({}, {"mesh": mesh})
    )
    np.testing.assert_allclose(alone["loss"], split["loss"], rtol=2e-5)
    np.testing.assert_allclose(alone["grad_norm"], split["grad_norm"], rtol=2e-4)


def from_the_start(**options) -> dict:
    """Metrics [20] of the run of step_test, with other options."""
    program = step_test.program_of(step_test.BASE, **options)
    with jax.set_mesh(program.mesh):
        batch = jax.device_put(step_test.batches(), program.train_batch_sharding)
        rates = np.full(step_test.STEPS, step_test.RATE, np.float32)
        return jax.device_get(program.train(program.init(), batch, rates)[1])


def test_smoothing_and_rates_by_depth_are_the_same_in_any_number_of_microbatches_and_parts_of_the_vocabulary():
    smoothing, by_depth = dict(label_smoothing=0.1), dict(layer_lr_decay=0.5)
    whole = from_the_start(train=smoothing, optim=by_depth)
    split = smoothing | dict(microbatches=4, vocab_chunks=4)
    parts = from_the_start(train=split, optim=by_depth, mesh=dict(fsdp=2, tensor=2))
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose(whole[name], parts[name], rtol=2e-4, err_msg=name)
    plain = from_the_start()
    assert whole["loss"][0] == pytest.approx(plain["loss"][0], rel=1e-6), "the loss that is logged is the plain one"
    assert abs(whole["loss"][-1] / plain["loss"][-1] - 1) > 1e-3


@pytest.mark.slow
def test_a_run_with_all_of_it_goes_on_bit_equal(values, tmp_path):
    ours = runs.changed(
        trained_values(values),
        data=dict(mask_documents=True),
        train=dict(steps=4, label_smoothing=0.1, neftune_alpha=5.0),
        optim=dict(layer_lr_decay=0.9, schedule="constant"),
        eval=dict(every_steps=None),
    )
    longer = runs.changed(ours, train=dict(steps=8))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main(["train", runs.write_config(longer, tmp_path / "long.py"), f"--workdir={whole}"]) == 0
    assert cli.main(["train", runs.write_config(ours, tmp_path / "short.py"), f"--workdir={parts}"]) == 0
    again = ["train", f"--config={tmp_path / 'long.py'}", f"--workdir={parts}", "--allow_change=train.steps"]
    assert cli.main(again) == 0
    assert runs.losses(whole) == runs.losses(parts)
    runs.assert_same_state(whole, parts, 8)
