"""Logits of targets alone: the objective and gradients of all logits, for any share of targets, and no more work than that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config.fields import TrainConfig
from gptjax.models import loss
from gptjax.training import losses, target_logits

B, L, D, VOCAB = 3, 20, 8, 60
OPTIONS = {"vocab_size": VOCAB, "softcap": 5.0}
TRAINS = {"plain": {}, "z_loss": {"z_loss": 0.1}, "smoothed": {"label_smoothing": 0.1, "z_loss": 0.1}}


def inputs(share: float):
    """(x, output matrix, targets, weights) of rows with so many targets at most, and one without any."""
    rng = np.random.default_rng(int(10 * share))
    weight_BL = (rng.random((B, L)) < share * np.array([[0], [0.5], [1]])) * rng.uniform(0.5, 2, (B, L))
    arrays = rng.normal(size=(B, L, D)), rng.normal(size=(64, D)), rng.integers(VOCAB, size=(B, L)), weight_BL
    x_BLD, head_VD, target_BL, weight_BL = map(jnp.asarray, arrays)
    return x_BLD.astype(jnp.float32), head_VD.astype(jnp.float32), target_BL, weight_BL.astype(jnp.float32)


def functions(chunks: int, **train):
    """Objective and loss sum of all logits, and of those of targets, as functions of the four inputs."""
    sums = functools.partial(losses.token_sums, TrainConfig(steps=1, **train))
    per_token = loss.smoothed_cross_entropy if "label_smoothing" in train else loss.cross_entropy

    def of_all(x, head, target, weight):
        return sums(weight, *per_token(x, head, target, chunks=chunks, **OPTIONS))

    def of_targets(x, head, target, weight):
        return target_logits.head(weight, sums, per_token)(x, head, target, chunks=chunks, **OPTIONS)

    return of_all, of_targets


@pytest.mark.parametrize("train, chunks", [("plain", 1), ("z_loss", 4), ("smoothed", 1)])
def test_objective_loss_and_gradients_are_those_of_all_logits(train, chunks):
    of_all, of_targets = (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True)) for f in functions(chunks, **TRAINS[train])
    )
    for share in (0.0, 0.3, 1.0):
        (value, loss_sum), grads = of_targets(*inputs(share))
        (all_value, all_loss_sum), all_grads = of_all(*inputs(share))
        np.testing.assert_allclose((value, loss_sum), (all_value, all_loss_sum), rtol=1e-6)
        for ours, plain in zip(grads, all_grads):
            np.testing.assert_allclose(ours, plain, atol=2e-6)


def test_without_a_gradient_the_sums_are_the_same():
    of_all, of_targets = map(jax.jit, functions(1))
    np.testing.assert_allclose(of_targets(*inputs(0.5)), of_all(*inputs(0.5)), rtol=1e-6)


def test_a_frozen_output_matrix_takes_no_matmul_for_its_gradient():
    _, of_targets = functions(1)
    count = lambda argnums: str(jax.make_jaxpr(jax.grad(of_targets, argnums, has_aux=True))(*inputs(0.5))).count(  # noqa: E731
        "dot_general"
    )
    assert count((0, 1)) == 3 * target_logits.PARTS and count(0) == 2 * target_logits.PARTS


def test_the_program_plans_no_more_memory_than_for_all_logits():
    """One branch runs at a time, so that the branches share what they need."""
    arrays = jnp.zeros((2, 128, 16)), jnp.zeros((4096, 16)), jnp.zeros((2, 128), int), jnp.ones((2, 128))
    of_all, of_targets = (
        jax.jit(jax.grad(f, (0, 1), has_aux=True)).lower(*arrays).compile().memory_analysis() for f in functions(1)
    )
    assert of_targets.temp_size_in_bytes < 1.05 * of_all.temp_size_in_bytes


def test_rows_of_any_length_have_shares_that_end_with_the_whole_row():
    assert target_logits.shares(1024) == [128, 256, 384, 512, 640, 768, 896, 1024]
    assert target_logits.shares(3) == [1, 2, 3]
    for count in range(21):
        smallest = next(size for size in target_logits.shares(20) if size >= count)
        assert smallest - count < 3 or count == 0


def test_the_batch_with_more_targets_takes_the_larger_share():
    taken = []

    def at_places(places, x_BLD, *_):
        jax.debug.callback(lambda: taken.append(places))
        return jnp.zeros(()), jnp.zeros(())

    for share in (0.0, 0.3, 1.0):
        x_BLD, head_VD, target_BL, _ = inputs(share)
        weight_BL = jnp.broadcast_to(jnp.arange(L) >= L - share * L, (B, L)).astype(jnp.float32)
        target_logits._smallest(at_places, x_BLD, head_VD, target_BL, weight_BL)
        jax.effects_barrier()
    assert taken == [3, 8, 20]
