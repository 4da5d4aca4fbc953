"""A pipeline runs all layers on all rows, in order, whatever its schedule."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import gpt as model
from gptjax.models import loss
from gptjax.parallel import meshes, pipeline, sharding
from gptjax.planning import hlo


def config_of(batch_size=16, layers=8, train=(), **mesh):
    return Config(
        model=ModelConfig(vocab_size=65, context_length=16, n_layers=layers, d_model=32, n_heads=4, dtype="float32"),
        train=TrainConfig(**{"steps": 1, "batch_size": batch_size, **dict(train)}),
        mesh=MeshConfig(**{"fsdp": 1, **mesh}),
    )


def mesh_of(**mesh):
    config = config_of(layers=48, **mesh)
    return meshes.make_mesh(config, jax.devices()[: config.mesh.stage * config.mesh.fsdp])


@pytest.mark.parametrize("stages,repeats", [(2, 1), (2, 2), (2, 3), (4, 2), (4, 3), (4, 6), (8, 2)])
def test_a_circular_layout_has_the_pieces_of_the_model_in_rounds(stages, repeats):
    layers = np.arange(48 * 3).reshape(48, 3)
    with jax.set_mesh(mesh_of(stage=stages)):
        placed = jax.jit(lambda a: pipeline.to_circular(a, repeats), in_shardings=jax.P("stage"))(layers)
        assert placed.sharding.spec == jax.P(None, "stage")
    np.testing.assert_array_equal(placed, layers.reshape(repeats, stages, -1, 3))


def affine_layers(x_bL, rows, stacked, microbatch):
    """Layers that don't commute: x -> x * scale + shift * row."""

    def layer(x_bL, scale_and_shift):
        scale, shift = scale_and_shift
        return x_bL * scale + shift * rows[:, None], None

    return jax.lax.scan(layer, x_bL, stacked)[0]


@pytest.mark.parametrize(
    "fsdp,stages,repeats,microbatches", [(1, 2, 1, 2), (2, 4, 1, 8), (1, 4, 1, 2), (2, 2, 2, 4), (1, 4, 3, 4)]
)
def test_rows_pass_all_layers_in_order_and_so_do_gradients(fsdp, stages, repeats, microbatches):
    rng = np.random.default_rng(0)
    x_BL, row_B = rng.standard_normal((16, 4)).astype(np.float32), rng.standard_normal(16).astype(np.float32)
    stacked = tuple(rng.uniform(0.5, 1.5, (2, 48)).astype(np.float32))
    schedule = sharding.Schedule(microbatches, repeats)

    def loss(run, x_BL, row_B, stacked):
        out_BL = run(x_BL, row_B, stacked)
        return (out_BL * np.arange(64).reshape(16, 4)).sum(), out_BL

    def gradients(run):
        return jax.jit(jax.grad(functools.partial(loss, run), (0, 1, 2), has_aux=True))(x_BL, row_B, stacked)

    one_by_one = gradients(lambda x, rows, stacked: affine_layers(x, rows, stacked, None))
    with jax.set_mesh(mesh_of(stage=stages, fsdp=fsdp)):
        piped = gradients(lambda *args: pipeline.run(affine_layers, *args, schedule))
    for a, b in zip(jax.tree.leaves(piped), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_a_circular_schedule_shortens_the_wait_at_both_ends():
    """S - 1 iterations of one piece each: with more repeats a piece is shorter."""

    def iterations(repeats):
        with jax.set_mesh(mesh_of(stage=4)):
            run = functools.partial(pipeline.run, affine_layers, schedule=sharding.Schedule(4, repeats))
            traced = jax.make_jaxpr(run)(jnp.ones((16, 4)), jnp.ones(16), (jnp.ones(48), jnp.ones(48)))
        lengths = re.findall(r"length=(\d+)", str(traced))
        return int(lengths[-1])

    assert (iterations(1), iterations(3)) == (4 + 3, 4 * 3 + 3)


@pytest.mark.parametrize("chunks", [1, 2])
def test_stages_share_the_logits_and_none_has_those_of_a_whole_text(chunks):
    """Rows merged with the tokens that are split over the stages would be gathered, with all their logits."""

    def mean_loss(x_BLD, head_VD, target_BL):
        return loss.cross_entropy(x_BLD, head_VD, target_BL, vocab_size=320, chunks=chunks)[0].mean()

    x_BLD, head_VD, target_BL = jnp.ones((8, 16, 32)), jnp.ones((320, 32)), jnp.ones((8, 16), jnp.int32)
    with jax.set_mesh(mesh_of(stage=2, fsdp=2)):
        places = (jax.P("fsdp"), jax.P(None, "fsdp"), jax.P("fsdp"))
        gradient = jax.jit(jax.grad(mean_loss, (0, 1)), in_shardings=places)
        compiled = hlo.parse(gradient.lower(x_BLD, head_VD, target_BL).compile().as_text())
    arrays = [array.shape for array in hlo.buffer_shapes(compiled)]
    tokens = {math.prod(shape) * chunks // 320 for shape in arrays if 320 // chunks in shape and 32 not in shape}
    assert max(tokens) == 8 * 16 // 4


def test_a_stage_that_goes_round_once_keeps_one_copy_of_its_layers_for_the_backward_pass():
    def total(stacked, repeats):
        schedule = sharding.Schedule(4, repeats)
        return pipeline.run(squaring_layers, jnp.ones((16, 7)), jnp.ones(16), stacked, schedule).sum()

    def squaring_layers(x_bL, rows, stacked, microbatch):
        return jax.lax.scan(lambda x_bL, w_LL: (x_bL @ w_LL, None), x_bL, stacked)[0]

    with jax.set_mesh(mesh_of(stage=2)):
        traced = jax.make_jaxpr(jax.grad(functools.partial(total, repeats=1)))(jnp.ones((48, 7, 7)))
    arrays = [[int(size) for size in shape.split(",")] for shape in re.findall(r"f32\[([\d,]+)\]", str(traced))]
    assert max(math.prod(shape) for shape in arrays if shape[-2:] == [7, 7]) == 48 * 7 * 7, "and not of 5 iterations"


def test_microbatches_split_by_residue_and_join_again():
    rows = np.arange(12)
    split = pipeline.split_batch(rows, 4)
    np.testing.assert_array_equal(split, [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]])
    np.testing.assert_array_equal(pipeline.join_batch(split), rows)


def test_dropout_differs_between_microbatches_and_repeats_with_the_key():
    config = config_of(layers=4, stage=2)
    gpt = model.GPT(ModelConfig(**{**vars(config.model), "n_layers": 4, "residual_dropout": 0.5}), jax.random.key(0))
    token_BL = np.tile(np.arange(16) % 7, (4, 1))  # rows 0 and 2 are in one microbatch, 1 and 3 in the other
    with jax.set_mesh(mesh_of(stage=2)):
        run = jax.jit(lambda key: gpt.activations(token_BL, key=key, schedule=sharding.Schedule(2, 1))[0])
        first, again = run(jax.random.key(1)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - first[1]).max() > 0.1 and np.abs(first[0] - first[2]).max() > 0.1


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(stage=8, layers=12), "model.n_layers=12 does not divide over mesh.stage=8 x mesh.pipeline_repeats=1; use mesh.stage=4"),
        (dict(stage=2, pipeline_repeats=3), "mesh.pipeline_repeats=3; use mesh.pipeline_repeats=1"),
        (dict(stage=4, pipeline_repeats=2, pipeline_microbatches=2), "leaves some of 4 stages idle"),
        (dict(pipeline_repeats=2), "needs a pipeline; set mesh.stage"),
        (dict(stage=4, pipeline_microbatches=5), "does not divide over 1 data shards (mesh replica x fsdp) of 5 pipeline microbatches"),
        (dict(stage=2, train={"log_activations": True}), "train.log_activations reads layer by layer"),
    ],
)  # fmt: skip
def test_a_pipeline_that_cannot_work_is_refused(fields, message):
    config = config_of(**fields)
    with pytest.raises(UserError, match=re.escape(message)):
        meshes.make_mesh(config, jax.devices()[: config.mesh.stage])
