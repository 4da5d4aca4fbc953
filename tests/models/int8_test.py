"""Weights as int8: what conversion loses, and that a model of bytes makes texts as the one it was made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from places import ROOT

import gptjax
from gptjax import cli
from gptjax.config.fields import Config, MeshConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.models import int8, layers, placed
from gptjax.parallel import numerics

GOLDEN = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
PROMPTS = [[3], [1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8, 9, 7]]


def of_bytes(tiny, **mesh):
    """(Placed, parameters) of a Tiny with its weights as int8, on a mesh."""
    config = Config(model=tiny.config, train=TrainConfig(steps=1, batch_size=8, log_every=1))
    count = int(np.prod([1, *mesh.values()]))
    program = placed.of_run(config, MeshConfig(**{"fsdp": 1, **mesh}), jax.devices()[:count], "int8")
    params = jax.device_put(tiny.params, program.stored.param_sharding)
    return program, int8.converted(params, program.abstract_params, program.param_sharding)


@pytest.fixture
def gpt2(make_variant):
    tiny = make_variant("gpt2")
    return tiny, *of_bytes(tiny)


def test_a_weight_is_off_by_half_the_scale_of_its_output_at_most(gpt2):
    tiny, _, params = gpt2
    for part, name in (("attention", "qkv"), ("attention", "out"), ("mlp", "up"), ("mlp", "down")):
        weight, held = (np.asarray(tree["blocks"][part][name]["weight"], np.float64) for tree in (tiny.params, params))
        scale = np.asarray(params["blocks"][part][name]["scale"], np.float64)
        inputs = tuple(range(1, 1 + weight.ndim - scale.ndim))
        scale = np.expand_dims(scale, inputs)
        assert np.abs(held * scale - weight).max() <= 0.5001 * scale.max() and np.abs(held).max() == 127
        assert (np.abs(held * scale - weight) <= 0.5001 * scale).all()
        assert np.abs(held).max(inputs).min() == 127, "the largest weight of every output fills the byte"


def test_only_the_weights_of_layers_become_bytes_and_their_models_are_emptied(make_variant):
    tiny = make_variant("modern")
    given = dict(tiny.params)
    program = of_bytes(tiny)[0]
    made = int8.converted(given, program.abstract_params, program.param_sharding)
    assert given == {} and set(tiny.params) == set(made)
    kinds = {jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in jax.tree_util.tree_leaves_with_path(made)}
    assert {path.split("'")[-4] for path, kind in kinds.items() if kind == "int8"} == {"qkv", "out", "up", "down"}
    assert {kind for path, kind in kinds.items() if "weight" not in path} == {"float32"}


LOGIT_ERRORS = {"gpt2": 0.02, "modern": 0.03, "gpt3": 0.02}  # of the logits' deviation; 0.011, 0.021, 0.011 as measured


@pytest.mark.parametrize("name", LOGIT_ERRORS)
def test_logits_of_bytes_are_near_those_of_float32(make_variant, name):
    tiny = make_variant(name)
    program, params = of_bytes(tiny)
    token_BL = np.random.default_rng(0).integers(tiny.config.vocab_size, size=(4, 16))
    exact, rough = (
        np.asarray(nnx.merge(*model)(token_BL)) for model in ((tiny.graph, tiny.params), (program.graph, params))
    )
    assert 1e-3 < (rough - exact).std() / exact.std() < LOGIT_ERRORS[name]


def run(engine, **settings):
    rows = [Row(np.array(prompt, np.int32), 5, Settings(logprobs=True, **settings)) for prompt in PROMPTS]
    engine.run(rows)
    return rows


def test_texts_of_bytes_are_those_of_the_model_of_bytes_without_a_cache(gpt2):
    tiny, program, params = gpt2
    params = jax.device_put(params, jax.devices()[0])
    exact = Engine(tiny.graph, jax.device_put(tiny.params, jax.devices()[0]))
    forward = jax.jit(lambda token_BL: nnx.merge(program.graph, params)(token_BL))
    for row, other in zip(run(Engine(program.graph, params), max_tokens=6, temperature=0), run(exact, max_tokens=6)):
        for i in range(len(row.prompt), len(row.tokens)):
            padded = np.zeros((1, 16), np.int32)
            padded[0, :i] = row.tokens[:i]
            logit_V = np.asarray(forward(padded), np.float64)[0, i - 1]
            assert row.tokens[i] == logit_V.argmax()
            expected = logit_V.max() - np.log(np.exp(logit_V).sum())
            assert row.logprobs[i - len(row.prompt)] == pytest.approx(expected, abs=1e-4)
        assert row.prompt_logprobs == pytest.approx(other.prompt_logprobs, abs=0.3)


def test_bytes_and_scales_are_split_over_a_mesh_and_say_the_same(make_variant, gpt2):
    tiny, program, params = gpt2
    alone = run(Engine(program.graph, jax.device_put(params, jax.devices()[0])), max_tokens=6, temperature=0)
    split, split_params = of_bytes(tiny, fsdp=2, tensor=2)
    scale = split_params["blocks"]["mlp"]["up"]["scale"]
    assert scale.sharding.shard_shape(scale.shape)[-1] == tiny.config.ff_size // 2
    with numerics.on_mesh(split.mesh):
        together = run(Engine(split.graph, split_params), max_tokens=6, temperature=0)
    for a, b in zip(alone, together):
        assert a.new == b.new and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_run_is_loaded_as_bytes_and_so_are_its_other_steps(capsys):
    bytes_, plain = (gptjax.load(GOLDEN, dtype=dtype) for dtype in ("int8", None))
    assert bytes_.params["blocks"]["mlp"]["up"]["weight"].dtype == np.int8
    exact, rough = (run.logits([3, 1, 4]) for run in (plain, bytes_))
    assert 0 < np.abs(exact - rough).max() < 0.1 * exact.std()
    again = bytes_.at(bytes_.step)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all() and a.dtype == b.dtype, bytes_.params, again.params))
    prompt = f"--prompt={plain.tokenizer.decode([3, 1])}"
    assert cli.main(["sample", str(GOLDEN), "--dtype=int8", prompt, "--max_tokens=3", "--temperature=0"]) in (0, None)
    assert capsys.readouterr().out


@pytest.mark.parametrize("rows, n_inputs, n_outputs", [((1,), 96, 160), ((2, 3), 96, 160), ((1, 1), 10_000, 64)])
def test_few_rows_are_multiplied_by_bytes_where_they_lie_also_in_a_loop(rows, n_inputs, n_outputs):
    """No weight is written in floats: not before the loop, and not in a step."""
    rng = np.random.default_rng(0)
    weight_OI = rng.integers(-127, 128, (n_outputs, n_inputs)).astype(np.int8)
    x = rng.standard_normal((*rows, n_inputs)).astype(np.float32)

    def three_times(x, weight_OI):
        def step(_, y):
            return layers.by_rows(x + 1e-9 * y.mean(), weight_OI)

        return jax.lax.fori_loop(0, 3, step, jnp.zeros((*rows, n_outputs)))

    compiled = jax.jit(three_times).lower(x, weight_OI).compile()
    expected = x @ weight_OI.T.astype(np.float32)
    np.testing.assert_allclose(compiled(x, weight_OI), expected, atol=1e-4 * np.abs(expected).max())
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * weight_OI.size


def test_an_architecture_that_reads_its_weights_otherwise_is_refused(make_variant):
    with pytest.raises(UserError, match="dtype='int8' is not for model.architecture='lstm'.*use 'bfloat16'"):
        lstm = make_variant("lstm")
        int8.parts(lstm.config, lstm.graph, lstm.params)
