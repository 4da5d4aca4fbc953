"""Layers that are not all alike, and scaled rotary positions, where a mesh splits them: as on one device."""

import functools

import pytest
import runs
from conftest import VARIANTS

from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.diagnostics import miniature, parity

SHAPE = dict(vocab_size=65, context_length=64, d_model=64, n_heads=8, n_kv_heads=8)
MODELS = {  # of the variants whose parts no shipped config has; a pipeline of two has two periods
    "patterned": VARIANTS["patterned"] | SHAPE | {"n_layers": 8, "band_width": 20},
    "gemma": VARIANTS["gemma"] | SHAPE | {"n_layers": 2},
}
MESHES = [dict(fsdp=2, sequence=2, tensor=2), dict(stage=2, fsdp=2, tensor=2)]


@functools.cache
def runner(name: str) -> parity.Runner:
    config = Config(model=ModelConfig(**MODELS[name]), train=TrainConfig(steps=1, batch_size=8))
    return parity.Runner.of(miniature.shrink(config, steps=1))


@functools.cache
def reference(name: str):
    return runner(name).reference()


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", runs.default_or_slow(MODELS, ["patterned"]))
def test_a_step_on_a_mesh_is_that_of_one_device(name, mesh):
    outcome = runner(name).run(parity.Case(tuple(mesh.items()), 1, "none"), *reference(name))
    assert outcome.refused is None and not outcome.differs, parity.line(outcome)


def test_the_miniatures_have_the_parts_that_are_compared():
    patterned, gemma = (runner(name).mini.model for name in MODELS)
    assert patterned.layer_period == 4 and 1 < patterned.band_width < patterned.context_length
    assert patterned.rope_scaling and gemma.rope_scaling and gemma.scale_embedding and gemma.mlp == "geglu"
