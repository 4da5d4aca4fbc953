"""muP and CompleteP: the factors by hand, the base's size bit for bit, the coordinate check, every path of the logits."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import cli
from gptjax.commands import coordcheck as coordcheck_command
from gptjax.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.diagnostics import coordcheck, miniature, parity
from gptjax.errors import UserError
from gptjax.models import architectures, parametrization
from gptjax.models.roles import Role
from gptjax.optim import optimizers
from gptjax.parallel import meshes
from gptjax.training import program as programs
from gptjax.training import step

BASE = ModelConfig(vocab_size=65, context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32")
WIDE = dataclasses.replace(BASE, d_model=128, n_heads=16, head_dim=8, parametrization="mup", base_width=32)
DEEP = dataclasses.replace(WIDE, n_layers=8, parametrization="completep", base_depth=2)


def batch(number: int, rows: int = 4):
    token = np.random.default_rng(number).integers(0, 65, (1, rows, 17)).astype(np.int32)
    return {"token_BT": jnp.asarray(token), "weight_BL": jnp.ones((1, rows, 16), jnp.float32)}


def trained(model, name: str, steps: int, devices: int = 1):
    config = Config(model=model, optim=OptimConfig(name=name), train=TrainConfig(steps=steps, batch_size=4))
    mesh = meshes.make_mesh(config, jax.devices()[:devices])
    program = programs.build(config, mesh, "xla")
    with jax.set_mesh(mesh):
        state, losses = program.init(), []
        for number in range(steps):
            placed = jax.device_put(batch(number), program.train_batch_sharding)
            state, metrics = program.train(state, placed, np.full(1, 1e-2, np.float32))
            losses.append(float(metrics["loss"][0]))
    return losses, jax.device_get(state.params)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_at_the_base_s_size_nothing_differs_from_the_standard_form(name):
    """With the same attention scale, bit for bit over 10 steps."""
    losses, params = trained(dataclasses.replace(BASE, attention_scale="linear"), name, 10)
    for fields in ({"parametrization": "mup"}, {"parametrization": "completep", "base_depth": 2}):
        same_losses, same = trained(dataclasses.replace(BASE, base_width=32, **fields), name, 10)
        assert same_losses == losses
        jax.tree.map(np.testing.assert_array_equal, same, params)
    other_losses, _ = trained(dataclasses.replace(BASE, parametrization="mup", base_width=16), name, 3)
    assert other_losses[1:] != losses[1:3]


def test_factors_are_those_of_the_table():
    assert parametrization.width_multiplier(WIDE) == 4 and parametrization.depth_multiplier(DEEP) == 4
    assert parametrization.hidden_std(WIDE) == pytest.approx(0.02 / 2)
    assert parametrization.logit_multiplier(WIDE) == 1 / 4 and parametrization.branch_multiplier(DEEP) == 1 / 4
    assert parametrization.branch_multiplier(WIDE) == 1
    assert parametrization.query_multiplier(WIDE) == pytest.approx(8**-0.5)
    assert parametrization.query_multiplier(BASE) == 1
    assert parametrization.residual_init_scale(DEEP) == pytest.approx(4**-0.5), "of the base's two layers"
    assert parametrization.residual_init_scale(WIDE) == pytest.approx(4**-0.5)


@pytest.mark.parametrize(
    "name, hidden, others",
    [("adamw", 1 / 4, 1), ("lion", 1 / 4, 1), ("adafactor", 1 / 4, 1), ("muon", 1 / 2, 1), ("sgd", 1, 4)],
)
def test_learning_rates_of_each_kind_of_parameter(name, hidden, others):
    params = {"blocks": {"mlp": {"up": {"weight": 0.0, "bias": 0.0}}}, "token_embedding": 0.0, "head": 0.0}
    outside = {("value_head", "weight"): Role("matrix", False), ("weight",): Role("matrix", False)}
    params |= {"value_head": {"weight": 0.0}, "weight": 0.0}  # no matrices of the blocks
    roles = architectures.roles(dataclasses.replace(WIDE, tied_head=False)) | outside
    factors = parametrization.learning_rate_factors(WIDE, optimizers.OPTIMIZERS[name].rates, roles, params)
    assert factors["blocks"]["mlp"]["up"] == {"weight": hidden, "bias": others}
    assert factors["token_embedding"] == others and factors["head"] == others
    assert factors["value_head"]["weight"] == factors["weight"] == others
    gradients = parametrization.gradient_factors(DEEP, roles, params)
    assert gradients["blocks"]["mlp"]["up"] == {"weight": 16, "bias": 16} and gradients["head"] == 4


NARROW_MLP = dataclasses.replace(WIDE, d_ff=128, base_d_ff=128)  # four times as wide, its MLP as it was: 128 units


@pytest.mark.parametrize(
    "name, attention, up, down",
    [
        ("adamw", 1 / 4, 1 / 4, 1),  # by the number of inputs
        ("muon", 1 / 2, 1 / 2, 2),  # spectral norm sqrt(outputs / inputs): 1/2 and 2; ours is sqrt(128), as at width 32
        ("sgd", 1, 1 / 4, 4),  # outputs over inputs
    ],
)
def test_an_mlp_that_does_not_grow_with_the_width_keeps_what_its_inputs_ask_for(name, attention, up, down):
    blocks = {"attention": {"out": {"weight": 0.0}}, "mlp": {"up": {"weight": 0.0}, "down": {"weight": 0.0}}}
    rates, roles = optimizers.OPTIMIZERS[name].rates, architectures.roles(NARROW_MLP)
    factors = parametrization.learning_rate_factors(NARROW_MLP, rates, roles, {"blocks": blocks})["blocks"]
    assert factors["attention"]["out"]["weight"] == pytest.approx(attention)
    assert factors["mlp"]["up"]["weight"] == pytest.approx(up)
    assert factors["mlp"]["down"]["weight"] == pytest.approx(down)
    assert parametrization.hidden_std(NARROW_MLP) == pytest.approx(0.02 / 2)
    assert parametrization.hidden_std(NARROW_MLP, of_mlp=True) == 0.02
    same = dataclasses.replace(WIDE, d_ff=512, base_d_ff=128)
    assert parametrization.learning_rate_factors(same, rates, roles, {"blocks": blocks}) == (
        parametrization.learning_rate_factors(WIDE, rates, roles, {"blocks": blocks})
    )


def test_initial_matrices_have_the_spread_of_their_inputs():
    gpt = architectures.make(NARROW_MLP, jax.random.key(0), "xla")
    blocks = gpt.blocks
    scale = 4**-0.5  # into the residual stream of two layers
    assert float(jnp.std(blocks.attention.qkv.weight[...])) == pytest.approx(0.01, rel=0.02)
    assert float(jnp.std(blocks.attention.out.weight[...])) == pytest.approx(0.01 * scale, rel=0.02)
    assert float(jnp.std(blocks.mlp.up.weight[...])) == pytest.approx(0.01, rel=0.02)
    assert float(jnp.std(blocks.mlp.down.weight[...])) == pytest.approx(0.02 * scale, rel=0.02)
    assert float(jnp.std(gpt.token_embedding[...])) == pytest.approx(0.02, rel=0.02)


def test_a_miniature_keeps_the_multipliers_and_parity_starts_from_its_optimizer_s_state():
    model = dataclasses.replace(DEEP, d_ff=256, base_d_ff=128)
    mini = miniature.shrink(Config(model=model, train=TrainConfig(steps=2, batch_size=8)), steps=2)
    assert mini.model.d_model < model.d_model
    for multiplier in ("width_multiplier", "mlp_multiplier"):
        of = getattr(parametrization, multiplier)
        assert of(mini.model) == pytest.approx(of(model)), multiplier
    expected = jax.eval_shape(functools.partial(step.init_state, mini, "xla")).opt_state
    assert jax.tree.structure(parity.initial_state(mini).opt_state) == jax.tree.structure(expected)


def test_an_update_is_adam_s_times_the_factor_and_decay_is_not():
    """One step of AdamW from zero state: sign(g) times the rate's factor, plus decay; eps counts at the base's size."""
    shapes = {"blocks": {"mlp": {"up": {"weight": (1, 4, 4)}}}, "token_embedding": (3, 4)}
    params = jax.tree.map(lambda shape: jnp.full(shape, 2.0), shapes, is_leaf=lambda x: isinstance(x, tuple))
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 1e-6), params)
    config = OptimConfig(eps=1e-6, weight_decay=0.1)
    made = optimizers.make_optimizer(config, WIDE)
    direction, _ = made.update(grads, made.init(params), params)
    shrunk = 4e-6 / (4e-6 + 1e-6)  # gradients kept at the size they have at width 32
    assert direction["blocks"]["mlp"]["up"]["weight"][0, 0, 0] == pytest.approx(shrunk / 4 + 0.1 * 2.0, rel=1e-5)
    assert direction["token_embedding"][0, 0] == pytest.approx(shrunk, rel=1e-5)


def test_sharded_is_unsharded():
    losses, params = trained(WIDE, "adamw", 3)
    sharded_losses, sharded = trained(WIDE, "adamw", 3, devices=4)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), sharded, params)


def test_every_way_to_logits_has_the_multiplier():
    from flax import nnx

    from gptjax.models import architectures
    from gptjax.models import gpt as model
    from gptjax.run import inside

    graph, params, _ = architectures.split(model.GPT(dataclasses.replace(WIDE, n_layers=2), jax.random.key(0)))
    gpt, token_BL = nnx.merge(graph, params), jnp.asarray(batch(0)["token_BT"][0, :, :16])
    logits = gpt(token_BL)
    lens = inside.logit_lens(graph, params, token_BL)[-1]
    cached = gpt.logits(gpt.extend(token_BL, gpt.empty_cache(4, 16), 0)[0])
    np.testing.assert_allclose(lens, logits, atol=1e-6)
    np.testing.assert_allclose(cached, logits, atol=1e-6)
    loss_BL, *_ = gpt.token_loss(batch(0)["token_BT"][0])
    target_BL = batch(0)["token_BT"][0, :, 1:]
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), target_BL[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss_BL, expected, atol=1e-5)
    plain = dataclasses.replace(gpt.config, parametrization="standard", base_width=None, attention_scale="linear")
    standard = nnx.merge(architectures.abstract(plain)[0], params)
    np.testing.assert_allclose(4 * logits, standard(token_BL), atol=1e-5)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"parametrization": "mu"}, "model.parametrization='mu' is not known"),
        ({"parametrization": "mup"}, "set model.base_width"),
        ({"base_width": 16}, "set model.base_width to None"),
        ({"parametrization": "completep", "base_width": 16}, "set model.base_depth"),
        ({"parametrization": "mup", "base_width": 16, "base_depth": 2}, "set model.base_depth to None"),
        ({"base_d_ff": 64}, "set model.base_d_ff to None"),
        ({"attention_scale": "cubic"}, "model.attention_scale='cubic' is not known"),
        (
            {"parametrization": "completep", "base_width": 16, "base_depth": 2, "norm_position": "post"},
            "use 'pre', or 'mup'",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(fields, said):
    with pytest.raises(UserError, match=said):
        Config(model=dataclasses.replace(BASE, **fields), train=TrainConfig(steps=1))


def test_the_depth_rule_has_none_for_sgd():
    with pytest.raises(UserError, match="'completep' has no rule for optim.name='sgd'.* use 'adamw' or 'adafactor' or"):
        optimizers.make_optimizer(OptimConfig(name="sgd"), DEEP)
    optimizers.make_optimizer(OptimConfig(name="sgd"), WIDE)


def test_a_model_with_multipliers_is_not_exported():
    from gptjax.huggingface import families

    with pytest.raises(UserError, match=r"it has multipliers \(model.parametrization='mup'"):
        families.family_for(WIDE)
    with pytest.raises(UserError, match="it has multipliers"):
        families.family_for(dataclasses.replace(BASE, attention_scale="linear"))
    families.family_for(BASE)


# ---- the coordinate check


@pytest.fixture(scope="module")
def config(values):
    from gptjax.config import config_file

    model = dict(context_length=16, n_layers=1, d_model=32, n_heads=4, dtype="float32")
    return config_file.from_dict(values | {"model": model, "optim": dict(peak_lr=3e-3)})


@pytest.fixture(scope="module")
def values(text):
    return {
        "data": dict(path=str(text), tokenizer="chars", cache_dir=str(text.parent / "cache")),
        "train": dict(steps=1),
    }


def test_training_changes_activations_alike_at_every_width_in_mup_and_not_in_the_standard_form(config):
    found = coordcheck.check(config, "mup", [32, 128], steps=6, rows=2)
    slopes = {(slope.form, slope.part): slope for slope in coordcheck.slopes(found)}
    assert {part for _, part in slopes} == {"embedding", "scores 1", "attention 1", "block 1", "logits"}
    assert all(slope.flat for (form, _), slope in slopes.items() if form == "mup"), slopes
    assert slopes["standard", "block 1"].slope > 0.5 and not slopes["standard", "logits"].flat
    at_base = {one.part: one.change for one in found if one.size == 32 and one.step == 6 and one.form == "mup"}
    assert all(value > 0 for value in at_base.values())


@pytest.mark.slow
def test_all_layers_together_change_the_stream_alike_at_every_depth_in_completep_and_not_in_the_standard_form(config):
    found = coordcheck.check(config, "completep", [2, 8], steps=6, rows=2, of_depth=True)
    slopes = {(slope.form, slope.part): slope for slope in coordcheck.slopes(found)}
    assert all(slope.flat for (form, _), slope in slopes.items() if form == "completep"), slopes
    assert slopes["standard", "stream, half"].slope > 0.5 and slopes["standard", "stream, end"].slope > 0.5


def test_depths_are_compared_by_where_layers_stand():
    gpt = architectures.make(dataclasses.replace(BASE, n_layers=4), jax.random.key(0), "xla")
    graph, params, _ = architectures.split(gpt)
    token_BL = jnp.asarray(batch(0, rows=1)["token_BT"][0, :, :16])
    of_layers = coordcheck.parts(graph, params, token_BL)
    shown = coordcheck._of_depth(of_layers)
    total = of_layers["embedding"] + sum(of_layers[f"block {n}"] for n in (1, 2, 3, 4))
    np.testing.assert_allclose(shown["stream, end"], total, atol=1e-5)
    np.testing.assert_array_equal(shown["stream, half"], of_layers["stream 2"])
    np.testing.assert_array_equal(shown["attention, last"], of_layers["attention 4"])
    np.testing.assert_allclose(shown["logits"], gpt(token_BL), atol=1e-5)
    assert {name.split()[0] for name in coordcheck._of_width(of_layers)} == {
        *("embedding", "scores", "attention", "block", "logits"),
    }


def test_widths_scale_heads_and_mlp_along_and_depths_keep_the_width(config):
    wide = coordcheck.variant(config, "mup", 128, 32, rows=2, of_depth=False).model
    assert (wide.n_heads, wide.head_size, wide.ff_size, wide.base_width) == (16, 8, 512, 32)
    deep = coordcheck.variant(config, "completep", 8, 2, rows=2, of_depth=True).model
    assert (deep.n_layers, deep.d_model, deep.base_depth, deep.base_width) == (8, 32, 2, 32)
    given = config.replace(model={"parametrization": "mup", "base_width": 16, "d_ff": 64, "base_d_ff": 64})
    control = coordcheck.variant(given, "standard", 128, 32, rows=2, of_depth=False).model
    assert (control.ff_size, control.base_width, control.base_d_ff) == (256, None, None)
    with pytest.raises(UserError, match="100 is not a multiple of a head of 8"):
        coordcheck.variant(config, "mup", 100, 32, rows=2, of_depth=False)


def test_a_slope_is_that_of_the_logarithms_and_nan_where_training_did_nothing():
    found = [coordcheck.Measured("mup", size, "logits", 3, 1.0, 2.0 * size**0.5) for size in (64, 128, 256)]
    (slope,) = coordcheck.slopes(found)
    assert slope.slope == pytest.approx(0.5) and not slope.flat
    (nothing,) = coordcheck.slopes([dataclasses.replace(one, change=0.0) for one in found])
    assert math.isnan(nothing.slope) and not nothing.flat


def test_the_table_and_the_verdict_say_which_part_grows(tmp_path):
    found = [
        coordcheck.Measured(form, size, "logits", 3, 1.0, 2.0 * size**power)
        for form, power in (("mup", 0.02), ("standard", 0.9))
        for size in (64, 128, 256)
    ]
    slopes = coordcheck.slopes(found)
    text = coordcheck_command.table(found, slopes, "mup", of_depth=False)
    assert "mup: flat" in text and "standard: NOT flat: logits goes as size^0.90" in text and "GROWS" in text
    coordcheck_command.draw(found, slopes, "mup", False, str(tmp_path / "check.png"))
    assert (tmp_path / "check.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--widths=64"], "expected at least two sizes"),
        (["--depths=2,x"], "--depths=2,x: expected at least two sizes"),
        (["--form=standard"], "--form='standard' is not known"),
        (["--steps=0"], "both must be at least 1"),
        (["--out=a.txt"], "does not name a picture"),
    ],
)
def test_a_wrong_flag_of_coordcheck_is_one_line(tmp_path, values, capsys, flags, said):
    file = tmp_path / "fields.py"
    file.write_text(f"def get_config(): return {json.dumps(values)}")
    assert cli.main(["coordcheck", f"--config={file}", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
