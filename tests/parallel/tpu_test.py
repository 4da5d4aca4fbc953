"""Kinds of TPU: each compiles the real train step, and the compiler and the roofline know the same rings."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tori import torus

from gptjax import hardware
from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError, paragraph, shorten
from gptjax.parallel import meshes, tpu
from gptjax.planning import plan, topology
from gptjax.training import executable, report
from gptjax.training import program as programs

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

SMALLEST = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
CONFIG = Config(
    model=ModelConfig(  # few parameters, since it is their number that a compiler takes time for
        vocab_size=128, context_length=128, n_layers=2, d_model=128, n_heads=1, position="rope", bias=False
    ),
    optim=OptimConfig(warmup_steps=1),
    train=TrainConfig(steps=10, batch_size=64, log_every=10),
    mesh=MeshConfig(fsdp=-1),
)


def test_every_kind_of_tpu_that_has_a_name_is_compiled_for_here():
    assert set(SMALLEST) == {name for name, chip in hardware.CHIPS.items() if chip.dims}
    assert {chip.device_kind for chip in hardware.CHIPS.values() if chip.dims} <= set(tpu.KINDS)


@pytest.mark.parametrize("family", SMALLEST)
def test_every_kind_of_tpu_takes_the_options_of_its_train_step(family):
    """Under the JAX that is installed: compilers refuse options that they take on other chips, or did before.

    Whatever the program is: here weights that are gathered layer by layer.
    """
    mesh = plan.make_mesh(CONFIG, topology.describe(SMALLEST[family]))
    asked = programs.train_compiler_options(mesh)
    assert asked[tpu.FUSED_GATHERS] is (family == "v5e")
    assert asked.get(f"{tpu.OFFLOAD}_all_gather", False) is (family in ("v5p", "v6e"))
    assert "all-gather" in collectives(layers_over_all(mesh.devices, width=512).compile(asked))


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALLEST)
def test_the_train_step_compiles_for_every_kind_of_tpu(family):
    """v5e's also in plan_test."""
    mesh = plan.make_mesh(CONFIG, topology.describe(SMALLEST[family]))
    compiled, _ = plan.compile_step(CONFIG, programs.build(CONFIG, mesh, "splash"))
    assert compiled.memory_analysis().temp_size_in_bytes > 0


# Rings

RINGS = {  # chips along each dimension: whether cables close it
    "v4:2x2x4": (False, False, False),
    "v4:4x4x4": (True, True, True),
    "v5p:2x4x4": (False, False, False),
    "v5p:4x4x4": (True, True, True),
    "v5p:8x8x12": (True, True, True),
    "v5e:8x8": (False, False),
    "v5e:8x16": (False, True),
    "v5e:16x16": (True, True),
    "v6e:4x8": (False, False),
    "v6e:8x16": (False, True),
    "v6e:16x16": (True, True),
    "tpu7x:2x2x1": (False, False, False),
    "tpu7x:4x4x8": (True, True, True),
}


@pytest.mark.parametrize("name", RINGS)
def test_the_roofline_and_the_compiler_know_the_same_rings(name):
    family, _, size = name.partition(":")
    shape, closed = tuple(int(n) for n in size.split("x")), RINGS[name]
    assert tuple(map(torus(family, shape).is_ring, range(len(shape)))) == closed
    assert topology.libtpu_options(family, shape, 1)["wrap"] == (*closed, False)[:3]
    assert tpu.rings_of(topology.describe(name).devices) == [*closed, False][:3]


def test_slices_that_a_network_joins_have_the_rings_of_each():
    assert topology.libtpu_options("v5p", (4, 4, 4), 2) == {"wrap": (True, True, True), "num_slices": 2}
    machine = topology.describe("v5e:16x16", 2)
    assert machine.num_devices == 512 and tpu.rings_of(machine.devices) == [True, True, False]


def layers_over_all(places: np.ndarray, width: int) -> jax.stages.Lowered:
    """A matmul that a scan repeats over layers, each weight split over all devices."""
    mesh = jax.sharding.Mesh(places.reshape(-1), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    put = functools.partial(NamedSharding, mesh)
    weights = jax.ShapeDtypeStruct((4, width, 4 * width), jnp.float32, sharding=put(PartitionSpec(None, "fsdp")))
    inputs = jax.ShapeDtypeStruct((64 * 64, width), jnp.bfloat16, sharding=put(PartitionSpec("fsdp")))

    def layers(w_NDF, x_BD):
        product = lambda x, w: (jnp.tanh(x @ w.astype(x.dtype))[:, :width], None)  # noqa: E731
        return jax.lax.scan(product, x_BD, w_NDF)[0]

    with jax.set_mesh(mesh):
        return jax.jit(layers, out_shardings=put(PartitionSpec("fsdp"))).lower(weights, inputs)


def collectives(compiled: jax.stages.Compiled) -> set[str]:
    """Opcodes of them."""
    return set(re.findall(r" (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\(", compiled.as_text()))


def test_a_weight_is_gathered_by_a_gather_where_cables_close_the_cube():
    """Told of no rings, or with devices in their listed order, libtpu makes it an all-reduce of twice the bytes."""
    machine = topology.describe("v5p:4x4x4")
    lowered = layers_over_all(meshes.make_mesh(CONFIG, machine.devices).devices, width=4096)
    assert collectives(lowered.compile()) == {"all-gather"}


def test_devices_lie_in_a_mesh_by_their_places_in_whatever_order_they_are_listed():
    """A plan and a run make the same mesh: libtpu lists devices host by host, and a run may list them otherwise."""
    for name in ("v5p:4x4x4", "v5e:8x8"):
        devices = topology.describe(name).devices
        mesh = meshes.make_mesh(CONFIG, devices)
        assert list(mesh.devices.flat) != devices
        assert meshes.make_mesh(CONFIG, devices[::-1]) == mesh


# Kinds that are not known, and what was compiled otherwise


@pytest.fixture(scope="module")
def v6e():
    return meshes.make_mesh(CONFIG, topology.describe("v6e:2x2").devices)


def test_a_kind_that_was_never_compiled_for_gets_no_options_and_the_run_says_so(v6e, monkeypatch):
    assert programs.train_compiler_options(v6e) == tpu.V6E.compiler_options and report.compiler_lines(v6e) == []
    monkeypatch.delitem(tpu.KINDS, "TPU v6 lite")
    assert programs.train_compiler_options(v6e) == {} and tpu.rings_of(list(v6e.devices.flat)) is None
    [line] = report.compiler_lines(v6e)
    assert line.startswith(
        "compiler   default options, because gptjax/parallel/tpu.py does not list TPU v6 lite; it lists TPU v4, "
    )
    assert report.compiler_lines(meshes.make_mesh(CONFIG, jax.devices())) == []


@pytest.mark.parametrize("field, other", [("compiler_options", tpu.FUSED), ("rings", [True] * 3), ("rings", None)])
def test_an_executable_compiled_with_other_options_or_for_other_cables_is_refused(v6e, field, other):
    wanted = executable.header(CONFIG, v6e, "splash")
    executable.check("step.exe", json.loads(json.dumps(wanted)), wanted)
    with pytest.raises(UserError, match=f"compiled for another run: {field} is "):
        executable.check("step.exe", wanted | {field: other}, wanted)


# Messages of others


def test_what_another_says_is_kept_up_to_its_first_empty_line_and_what_is_left_out_is_counted():
    assert paragraph(RuntimeError("\n  a\n  b  c\n\nd")) == "a b c" and paragraph(RuntimeError()) == "RuntimeError"
    assert shorten("word " * 500, most=12) == "word word ... (2,490 more characters)"
    assert shorten("x" * 20, most=12) == f"{'x' * 12} ... (8 more characters)"
