"""Linear maps: the forms of the platforms are one function, and the mesh says whose is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from flax import nnx
from jax.sharding import AxisType, Mesh

from gptjax.config.fields import Config, MeshConfig, TrainConfig
from gptjax.models import attention, layers
from gptjax.parallel import meshes, sharding
from gptjax.planning import topology

FORMS = [
    (table, dict(table)) for table in (layers.LINEAR, attention.PROJECTIONS)
]  # as they are before a test changes them
TOKEN_BT = np.random.default_rng(0).integers(0, 65, (8, 17)).astype(np.int32)


def loss_and_gradient(tiny, platform, monkeypatch, mesh=None):
    """Of a model on the CPU with the linear maps of a platform, jitted anew."""
    for table, forms in FORMS:
        monkeypatch.setitem(table, "cpu", forms[platform])

    def loss(params):
        return nnx.merge(tiny.graph, params).token_loss(TOKEN_BT)[0].mean()

    if mesh is None:
        return jax.jit(jax.value_and_grad(loss))(tiny.params)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss))(tiny.params)


@pytest.mark.parametrize("name, fields", [("gpt2", {}), ("modern", {"remat": "attention"}), ("lstm", {})])
def test_the_forms_of_linear_maps_give_the_same_loss_and_gradients(name, fields, make_variant, monkeypatch):
    """Biases; one key head for two, gates of two matrices, no biases; an LSTM's four gates."""
    check_forms(make_variant(name, **fields), monkeypatch)


@pytest.mark.parametrize("axes", [dict(fsdp=2, tensor=4), dict(fsdp=2, sequence=2, tensor=2)], ids=str)
def test_the_forms_of_linear_maps_give_the_same_where_eight_devices_split_heads_and_tokens(
    axes, make_variant, monkeypatch
):
    tiny = make_variant("gpt2" if axes["tensor"] == 4 else "modern")
    config = Config(model=tiny.config, mesh=MeshConfig(**axes), train=TrainConfig(steps=1, batch_size=8))
    check_forms(tiny, monkeypatch, meshes.make_mesh(config))


def check_forms(tiny, monkeypatch, mesh=None):
    flat_loss, flat = loss_and_gradient(tiny, "cpu", monkeypatch, mesh)
    for platform in ("gpu", "tpu"):
        loss, gradient = loss_and_gradient(tiny, platform, monkeypatch, mesh)
        assert float(loss) == pytest.approx(float(flat_loss), rel=5e-7)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(flat)):
            np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


def test_the_form_is_that_of_the_devices_that_the_mesh_is_of_also_where_they_are_not_here():
    """A step for TPUs is traced and compiled on a CPU."""
    machine = topology.describe("v5e:2x2")
    mesh = Mesh(np.array(machine.devices).reshape(2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    linear = layers.Linear(jax.random.key(0), (8,), (2, 3, 4), ("embed", "heads", "qkv", "head_dim"), 1.0, bias=True)

    def contracted():
        """Shapes of the results of matrix products in a map of 2 x 16 tokens."""
        jaxpr = jax.make_jaxpr(lambda x: linear(x))(jax.ShapeDtypeStruct((2, 16, 8), jnp.float32))
        return [e.outvars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general"]

    assert sharding.platform() == "cpu" and contracted() == [(32, 24)]
    with jax.set_mesh(mesh):
        assert sharding.platform() == "tpu" and contracted() == [(2, 16, 2, 3, 4)]
    with jax.set_mesh(jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))):
        assert sharding.platform() == "cpu" and contracted() == [(32, 24)]


@pytest.mark.parametrize("length, products", [(1, 1), (8, 3)])
def test_on_tpus_queries_keys_and_values_are_products_of_their_own_unless_weights_are_more_than_tokens(
    length, products
):
    linear = layers.Linear(jax.random.key(0), (8,), (2, 3, 4), ("embed", "heads", "qkv", "head_dim"), 1.0, bias=True)
    jaxpr = jax.make_jaxpr(lambda x: attention.PROJECTIONS["tpu"](linear, x))(jnp.zeros((1, length, 8)))
    assert str(jaxpr).count("dot_general") == products


def test_a_gain_kept_as_its_offset_from_one_is_as_exact_in_bfloat16():
    x_D, offset_D = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.00389, -0.01, 0.25], jnp.bfloat16)
    norm = layers.RMSNormPlusOne(3, TINY)
    norm.offset = nnx.Param(offset_D)
    expected = np.float64(x_D) / np.sqrt(np.mean(np.square(np.float64(x_D)))) * (1 + np.float64(offset_D))
    np.testing.assert_allclose(norm(x_D), expected, rtol=2e-5)
