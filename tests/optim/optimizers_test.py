"""Update rules against NumPy, and the rule that says which parameters decay."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax import contrib

from gptjax.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import architectures, parametrization
from gptjax.models.roles import Role, of_variable
from gptjax.optim import optimizers, probe, rounding


def leaves(tree) -> dict[str, np.ndarray]:
    """The leaves by the path of their names."""
    with_path = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in with_path}


def random_like(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)


def directions(config, tiny, gradients, roles=None):
    """What the optimizer makes of each of the gradients in turn; the step takes minus the learning rate times it.

    tiny: a model's config and parameters; roles: of these, if not as the model states them.
    """
    params = tiny.params
    optimizer = optimizers.make_optimizer(config, tiny.config, roles)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grads in gradients:
        direction, state = update(grads, state, params)
        yield leaves(direction)


def is_matrix(name: str) -> bool:
    return name.endswith("/weight") or name == "head"


def is_embedding(name: str) -> bool:
    return name in ("token_embedding", "position_embedding")


# Decay


def test_every_parameter_of_every_variant_is_a_matrix_an_embedding_or_a_vector(variant_config):
    _, params, _ = architectures.abstract(variant_config)
    roles = architectures.roles(variant_config)
    assert len(roles) == len(jax.tree.leaves(params))
    for path, role in roles.items():
        name = "/".join(path)
        assert (role.kind == "matrix", role.kind == "embedding") == (is_matrix(name), is_embedding(name)), name
        assert role.is_hidden == name.startswith("blocks/") * name.endswith("/weight"), name


def test_a_parameter_that_is_none_of_the_model_s_raises_and_is_named():
    roles = {("blocks", "bias"): Role("vector", True)}
    with pytest.raises(ValueError, match="parameter blocks/gate is none of the model's"):
        optimizers.decay_mask(OptimConfig(), roles, {"blocks": {"gate": jnp.zeros(3), "bias": jnp.zeros(3)}})


@pytest.mark.parametrize("decay_embeddings", [False, True])
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_without_gradients_matrices_shrink_by_rate_times_decay_and_nothing_else_moves(
    make_variant, name, decay_embeddings
):
    tiny = make_variant("gpt2", tied_head=False)  # with every kind of parameter
    params = tiny.params
    config = OptimConfig(name=name, weight_decay=0.25, decay_embeddings=decay_embeddings, muon_lr_ratio=0.5)
    (direction,) = directions(config, tiny, [jax.tree.map(jnp.zeros_like, params)])
    for path, before in leaves(params).items():
        decayed = is_matrix(path) or (decay_embeddings and is_embedding(path))
        ratio = 0.5 if name == "muon" and not path.endswith("/weight") else 1.0
        np.testing.assert_array_equal(direction[path], 0.25 * ratio * before * decayed, err_msg=path)


# Update rules


def test_three_adamw_updates_equal_those_of_the_paper(make_variant):
    tiny = make_variant("gpt1")
    params = tiny.params
    config = OptimConfig(beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.1)
    gradients = [random_like(params, seed) for seed in range(3)]
    mean = {name: 0.0 for name in leaves(params)}
    square = dict(mean)
    for t, direction in enumerate(directions(config, tiny, gradients), start=1):
        for name, p in leaves(params).items():
            g = np.float64(leaves(gradients[t - 1])[name])
            mean[name] = 0.8 * mean[name] + 0.2 * g
            square[name] = 0.9 * square[name] + 0.1 * g**2
            adam = mean[name] / (1 - 0.8**t) / (np.sqrt(square[name] / (1 - 0.9**t)) + 1e-3)
            np.testing.assert_allclose(direction[name], adam + 0.1 * p * is_matrix(name), rtol=2e-5, atol=2e-6)


def test_lion_moves_by_the_sign_of_its_interpolated_momentum(make_variant):
    tiny = make_variant("gpt2")
    config = OptimConfig(name="lion", beta1=0.9, beta2=0.5, weight_decay=0.0)
    gradients = [random_like(tiny.params, seed) for seed in range(2)]
    first, second = directions(config, tiny, gradients)
    g1, g2 = (leaves(g) for g in gradients)
    for name in first:
        np.testing.assert_array_equal(first[name], np.sign(g1[name]))
        interpolated = 0.9 * 0.5 * g1[name] + 0.1 * g2[name]
        clear = np.abs(interpolated) > 1e-6
        np.testing.assert_array_equal(second[name][clear], np.sign(interpolated)[clear])


def test_sgd_sums_gradients_with_momentum(make_variant):
    tiny = make_variant("gpt2")
    gradients = [random_like(tiny.params, seed) for seed in range(2)]
    _, second = directions(OptimConfig(name="sgd", momentum=0.75, weight_decay=0.0), tiny, gradients)
    for name, g1 in leaves(gradients[0]).items():
        np.testing.assert_allclose(second[name], 0.75 * g1 + leaves(gradients[1])[name], rtol=1e-6, atol=1e-6)


def test_adafactor_updates_have_rms_one_at_most(make_variant):
    tiny = make_variant("gpt2")
    (direction,) = directions(OptimConfig(name="adafactor", weight_decay=0.0), tiny, [random_like(tiny.params)])
    for name, update in direction.items():
        assert 0.5 < np.sqrt(np.square(update).mean()) < 1 + 1e-5, name


def muon_matrices(params) -> list[tuple[str, np.ndarray]]:
    """Every matrix that Muon is to make orthogonal, as [inputs, outputs]."""
    blocks = params["blocks"]
    if "recurrent" in blocks:
        names = [(name, n, g) for name in ("input", "recurrent") for n in range(2) for g in range(4)]
        return [(f"{name} {n} {g}", blocks[name]["weight"][n, :, g]) for name, n, g in names]
    qkv_NDGSK, out_NHKD = blocks["attention"]["qkv"]["weight"], blocks["attention"]["out"]["weight"]
    up, down_NFD = blocks["mlp"]["up"]["weight"], blocks["mlp"]["down"]["weight"]
    found = []
    for n, qkv_DGSK in enumerate(qkv_NDGSK):
        width = qkv_DGSK.shape[0]
        found += [(f"qkv {n} {s}", qkv_DGSK[:, :, s].reshape(width, -1)) for s in range(qkv_DGSK.shape[2])]
        found += [(f"out {n}", out_NHKD[n].reshape(-1, width)), (f"down {n}", down_NFD[n])]
        found += [(f"up {n} {g}", up_DF) for g, up_DF in enumerate([up[n]] if up.ndim == 3 else up[n].swapaxes(0, 1))]
    return found


@pytest.mark.parametrize("name", ["gpt2", "modern", "lstm"])
def test_muon_updates_are_orthogonal_matrices_of_rms_a_fifth(make_variant, name):
    params, grads = make_variant(name).params, random_like(make_variant(name).params)
    optimizer = optimizers.make_optimizer(OptimConfig(name="muon", weight_decay=0.0), make_variant(name).config)
    direction, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    direction = jax.tree.map(np.asarray, direction)
    for path, matrix in muon_matrices(direction):
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(max(matrix.shape)))
        assert np.quantile(singular, 0.1) > 0.5, path  # five Newton-Schulz steps lift no singular value from near zero
        assert singular.max() < 1.3, path
        assert np.sqrt(np.square(matrix).mean()) == pytest.approx(0.2, rel=0.2), path
    for (path, matrix), (_, gradient) in zip(muon_matrices(direction), muon_matrices(jax.tree.map(np.asarray, grads))):
        assert np.sum(matrix * gradient) > 0.5 * np.linalg.norm(matrix) * np.linalg.norm(gradient), path


def test_muon_takes_a_new_matrix_of_the_blocks_and_leaves_one_outside_to_adamw():
    """By whatever name."""
    params = {"blocks": {"gate": jnp.zeros((2, 8, 12))}, "value_head": {"weight": jnp.zeros((8, 1))}}
    new = types.SimpleNamespace(params=params, config=ModelConfig(vocab_size=65))
    gate = of_variable(("blocks", "gate"), nnx.Param(jnp.zeros((8, 12)), axes=("embed", "mlp"), kind="matrix"))
    head = of_variable(("value_head", "weight"), nnx.Param(jnp.zeros((8, 1)), axes=("embed", None), kind="matrix"))
    roles = {("blocks", "gate"): gate, ("value_head", "weight"): head}
    rule, plain = OptimConfig(name="muon", weight_decay=0.0, muon_lr_ratio=0.5), OptimConfig(weight_decay=0.0)
    ((muon,), (adamw,)) = (directions(config, new, [random_like(params)], roles) for config in (rule, plain))
    np.testing.assert_allclose(muon["value_head/weight"], 0.5 * adamw["value_head/weight"], rtol=1e-6)
    for matrix in muon["blocks/gate"]:
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(12))
        assert 0.5 < singular.min() and singular.max() < 1.3


def test_a_parameter_that_muon_cannot_take_for_a_matrix_is_named():
    new = types.SimpleNamespace(params={"blocks": {"filter": jnp.zeros((2, 8))}}, config=ModelConfig(vocab_size=65))
    path = ("blocks", "filter")
    roles = {path: of_variable(path, nnx.Param(jnp.zeros(8), axes=("embed",), kind="matrix"))}
    with pytest.raises(ValueError, match=r"blocks/filter of shape \(2, 8\) .* say in its nnx.Param, by inputs="):
        list(directions(OptimConfig(name="muon"), new, [new.params], roles))


def test_muon_updates_embeddings_head_and_vectors_by_adamw_at_its_ratio(make_variant):
    tiny = make_variant("modern")
    gradients = [random_like(tiny.params, seed) for seed in range(2)]
    config = OptimConfig(name="muon", muon_lr_ratio=0.25, weight_decay=0.1)
    adamw = list(directions(OptimConfig(name="adamw", weight_decay=0.1), tiny, gradients))
    for ours, expected in zip(directions(config, tiny, gradients), adamw):
        for name in ours:
            if not name.endswith("/weight"):
                np.testing.assert_allclose(ours[name], 0.25 * expected[name], rtol=1e-6, err_msg=name)


def test_an_unknown_optimizer_raises_with_the_names_there_are():
    with pytest.raises(UserError, match="optim.name='adam' is not known; did you mean 'adamw'"):
        optimizers.make_optimizer(OptimConfig(name="adam"), ModelConfig())


@pytest.mark.parametrize(
    "direction, said",
    [
        (lambda config, roles: (optax.adam(1e-3),), "makes updates that point against the gradient"),
        (lambda config, roles: (optax.scale_by_adam(), optax.scale_by_learning_rate(0.1)), "give its direction alone"),
        (lambda config, roles: optax.scale_by_adam(), "its function returns GradientTransformation; expected a tuple"),
        (lambda config, roles: None, "its function returns NoneType; expected a tuple"),
    ],
)
def test_an_optimizer_that_gives_no_direction_is_refused(tiny_config, monkeypatch, direction, said):
    """One with a learning rate of its own would train, and learn next to nothing."""
    for name in optimizers.OPTIMIZERS:
        optimizers.check(tiny_config.replace(optim={"name": name}))
    monkeypatch.setitem(optimizers.OPTIMIZERS, "mine", optimizers.Optimizer(direction, parametrization.ENTRYWISE))
    with pytest.raises(UserError, match=f"optim.name='mine'.* {said}"):
        optimizers.check(tiny_config.replace(optim={"name": "mine"}))


OWN_RATE = {  # of optax: they bring a learning rate, and its sign
    "adamw": optax.adamw(1e-3),
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam with a schedule": optax.adam(optax.cosine_decay_schedule(1e-3, 100)),
    "lion": optax.lion(1e-4),
    "lamb": optax.lamb(1e-3),
    "adafactor": optax.adafactor(1e-3),
    "muon": contrib.muon(1e-3),
    "schedule-free": contrib.schedule_free_adamw(1e-3),
    "prodigy": contrib.prodigy(),
    "adopt": contrib.adopt(1e-3),
}
DIRECTIONS = {
    "adam": optax.scale_by_adam(),
    "sign": optax.scale_by_sign(),
    "momentum": optax.trace(0.9),
    "adadelta": optax.scale_by_adadelta(),
    "radam": optax.scale_by_radam(),
    "yogi": optax.scale_by_yogi(),
    "novograd": optax.scale_by_novograd(),
    "lamb": optax.chain(optax.scale_by_adam(), optax.scale_by_trust_ratio()),
    "ademamix": contrib.scale_by_ademamix(),
    "adopt, whose first update is zero": contrib.scale_by_adopt(),
    "distance over gradients": optax.scale_by_distance_over_gradients(),
    "schedule-free": optax.chain(contrib.schedule_free(optax.sgd(1.0), 1.0), optax.scale(-1.0)),
    "adam's own rate taken out": optax.chain(optax.adam(1e-3), optax.scale(-1e3)),
    "every second gradient": optax.chain(optax.scale_by_adam(), optax.apply_every(2)),
    "gradients without their means": optax.chain(optax.centralize(), optax.scale_by_adam()),
    "no update yet": optax.chain(optax.scale_by_adam(), optax.apply_every(8)),
}


def entry(link):
    return optimizers.Optimizer(lambda config, roles: (link,), parametrization.ENTRYWISE)


@pytest.mark.parametrize("name", OWN_RATE)
def test_an_optimizer_of_optax_with_its_own_learning_rate_is_refused(name):
    with pytest.raises(
        UserError, match="point against the gradient, as optimizers do that have a learning rate of their own"
    ):
        probe.probe("mine", entry(OWN_RATE[name]))


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_direction_of_optax_is_taken(name):
    seen = probe.probe("mine", entry(DIRECTIONS[name]))
    assert seen.along > 0 or name == "no update yet"


def test_an_optimizer_that_asks_for_more_than_a_step_gives_is_a_line(tiny_config):
    with pytest.raises(UserError, match="fails on a first gradient .*'value'") as error:
        probe.probe("mine", entry(contrib.momo(1.0)))
    assert "\n" not in str(error.value)


def test_what_is_unusual_about_an_optimizer_is_said_when_a_run_starts():
    for name in optimizers.OPTIMIZERS:
        assert probe.said(name, optimizers.OPTIMIZERS[name]) == []
    [small] = probe.said("mine", entry(optax.chain(optax.scale_by_adam(), optax.scale(1e-3))))
    assert small.startswith("mine makes updates of 0.001 from gradients of 1, before the learning rate")
    [decays] = probe.said("mine", entry(optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1))))
    assert (
        "moves parameters whose gradient is zero; if that is a weight decay of its own, set optim.weight_decay=0"
        in decays
    )
    assert probe.said("mine", entry(DIRECTIONS["no update yet"])) == ["mine makes no update in its first 4 steps"]


# All of them


@functools.partial(jax.jit, static_argnames="graph")
def loss_and_gradient(graph, params, token_BT):
    return jax.value_and_grad(lambda p: nnx.merge(graph, p).token_loss(token_BT)[0].mean())(params)


@pytest.mark.parametrize(
    "name,rate", [("adamw", 0.01), ("adafactor", 0.01), ("lion", 1e-3), ("muon", 0.01), ("sgd", 0.02)]
)
def test_every_optimizer_lowers_the_loss_of_a_model(make_variant, name, rate):
    tiny, params = make_variant("gpt2"), make_variant("gpt2").params
    token_BT = np.random.default_rng(0).integers(0, 65, (2, 17)).astype(np.int32)
    optimizer = optimizers.make_optimizer(OptimConfig(name=name, momentum=0.9), tiny.config)

    @jax.jit
    def update(grads, state, params):
        direction, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda d: -rate * d, direction)), state

    state, losses = optimizer.init(params), []
    for _ in range(20):
        loss, grads = loss_and_gradient(tiny.graph, params, token_BT)
        params, state = update(grads, state, params)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 1.0


# Moments in bfloat16


@pytest.mark.parametrize("name", [name for name, one in optimizers.OPTIMIZERS.items() if not one.only_float32])
def test_every_moment_is_narrowed_and_nothing_else(make_variant, name):
    params = make_variant("modern").params
    state = optimizers.make_optimizer(OptimConfig(name=name), make_variant("modern").config).init(params)
    narrow = optimizers.narrow_moments(state, params, jax.random.key(0))
    kept = [b for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(narrow)) if a.dtype == b.dtype]
    assert sum(leaf.size for leaf in kept) < 20  # counts and Muon's coefficients
    moments = sum(leaf.size for leaf in jax.tree.leaves(narrow) if leaf.dtype == jnp.bfloat16)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert moments == count * (2 if name == "adamw" else 1) or name == "muon" and count < moments < 2 * count


def decayed(store, beta2=0.999, steps=500):
    """Mean of 1000 second moments that start at 1, after steps without gradient; store(state, step) keeps them."""
    params = {"weight": jnp.zeros(1000)}
    adam = optax.scale_by_adam(b2=beta2)

    def step(state, index):
        wide = rounding.widen(state)
        return store(adam.update({"weight": jnp.zeros(1000)}, wide)[1], index), None

    state = adam.init(params)._replace(nu={"weight": jnp.ones(1000)})
    state, _ = jax.jit(lambda s: jax.lax.scan(step, store(s, 0), jnp.arange(steps)))(state)
    return float(jnp.mean(rounding.widen(state).nu["weight"]))


def test_a_second_moment_in_bfloat16_decays_at_beta2_of_0_999_as_it_should():
    def stochastic(state, step):
        return optimizers.narrow_moments(state, {"weight": state.nu["weight"]}, jax.random.key(step))

    def nearest(state, step):
        return state._replace(nu=jax.tree.map(lambda a: jax.lax.reduce_precision(a, 8, 7), state.nu))

    assert decayed(stochastic) == pytest.approx(0.999**500, rel=0.01)
    assert decayed(nearest) == 1.0  # why moments are rounded stochastically


def test_factored_moments_are_not_to_be_narrowed():
    with pytest.raises(UserError, match="optim.moment_dtype='bfloat16' is not for optim.name='adafactor'"):
        optimizers.make_optimizer(OptimConfig(name="adafactor", moment_dtype="bfloat16"), ModelConfig())
    with pytest.raises(
        UserError, match="optim.moment_dtype='float16' is not known; expected one of: float32, bfloat16"
    ):
        Config(optim=OptimConfig(moment_dtype="float16"), train=TrainConfig(steps=1))
