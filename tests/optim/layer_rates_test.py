"""Rates by depth: against torch's AdamW with a group for each layer, and the same for every optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import ROOT

from gptjax.config.fields import ModelConfig, OptimConfig
from gptjax.models.roles import Role
from gptjax.optim import layer_rates, optimizers

LAYERS, DECAY, RATE, STEPS = 3, 0.5, 1e-2, 5
MODEL = ModelConfig(vocab_size=4, context_length=4, n_layers=LAYERS, d_model=4, n_heads=1)
ROLES = {
    ("embedding",): Role("embedding", stacked=False),
    ("blocks", "weight"): Role("matrix", True, (1,), (2,)),
    ("head",): Role("matrix", stacked=False),
}


@pytest.fixture(scope="module")
def golden():
    values = np.load(ROOT / "tests" / "golden" / "finetune_options.npz")
    return {name.removeprefix("depth_"): values[name] for name in values if name.startswith("depth_")}


def stacked(golden, kind: str, axis: int = 0) -> dict:
    """A tree of parameters or gradients, of layers stacked."""
    layers = np.stack([golden[f"layer{layer}_{kind}"] for layer in range(1, LAYERS + 1)], axis)
    return {"embedding": golden[f"embedding_{kind}"], "blocks": {"weight": layers}, "head": golden[f"head_{kind}"]}


def test_each_layer_moves_as_under_an_adamw_of_its_own_rate_in_torch(golden):
    optim = OptimConfig(layer_lr_decay=DECAY, weight_decay=0.1, beta2=0.95)
    optimizer = optimizers.make_optimizer(optim, MODEL, ROLES)
    params, grads_S = stacked(golden, "before"), stacked(golden, "grads", axis=1)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        direction, state = update(jax.tree.map(lambda g, step=step: g[step], grads_S), state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda d: -RATE * d, direction))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-6), params, stacked(golden, "after")
    )


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_s_updates_are_its_own_times_the_share_of_the_layer(make_variant, name):
    tiny = make_variant("gpt2")
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), tiny.params)
    layers = tiny.config.n_layers

    def direction(**fields):
        optimizer = optimizers.make_optimizer(OptimConfig(name=name, weight_decay=0.25, **fields), tiny.config)
        return optimizer.update(grads, optimizer.init(tiny.params), tiny.params)[0]

    plain, by_depth = direction(), direction(layer_lr_decay=DECAY)
    share_N = DECAY ** np.arange(layers - 1, -1, -1)
    for array, times in zip(jax.tree.leaves(plain["blocks"]), jax.tree.leaves(by_depth["blocks"]), strict=True):
        np.testing.assert_allclose(times, array * share_N.reshape(-1, *[1] * (array.ndim - 1)), rtol=1e-6)
    np.testing.assert_allclose(by_depth["token_embedding"], plain["token_embedding"] * DECAY**layers, rtol=1e-6)
    np.testing.assert_array_equal(by_depth["final_norm"]["gain"], plain["final_norm"]["gain"])


def test_the_last_layer_and_what_lies_above_have_the_whole_rate():
    optim = OptimConfig(layer_lr_decay=DECAY)
    shares = {path: layer_rates.factor(role, optim, MODEL, 3) for path, role in ROLES.items()}
    np.testing.assert_array_equal(shares["blocks", "weight"].ravel(), [0.25, 0.5, 1])
    assert (shares["embedding",], shares["head",]) == (0.125, 1)
