"""The LSTM against a slow NumPy one, its hand-written gradient against finite differences, and whole runs of it.

Causality, packed documents, cached generation and counts: with the GPT's, as one more of conftest's variants.
"""

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from runs import changed, losses, saved_arrays

import gptjax
from gptjax import cli, flops
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.diagnostics import miniature
from gptjax.errors import UserError
from gptjax.huggingface import families
from gptjax.models import architectures, lstm
from gptjax.parallel import meshes
from gptjax.training import main
from gptjax.training import program as programs

BATCH, LENGTH = 2, 16
RNG = np.random.default_rng(0)
TOKEN_BT = RNG.integers(0, 65, (BATCH, LENGTH + 1)).astype(np.int32)
SEGMENT_BL = np.repeat([0, 1, 2], [5, 1, 10])[None].repeat(BATCH, 0).astype(np.int32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_logits(config: ModelConfig, params: dict, token_L, segment_L) -> np.ndarray:
    """Zaremba et al. 2014, equation 4 and the text above it: float64, one row, one token at a time."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x_LD = params["token_embedding"][token_L]
    for n in range(config.n_layers):
        layer = jax.tree.map(lambda a: a[n], params["blocks"])
        h_D = c_D = np.zeros(config.d_model)
        outputs = []
        for t, x_D in enumerate(x_LD):
            if t > 0 and segment_L[t] != segment_L[t - 1]:
                h_D = c_D = np.zeros(config.d_model)
            gate_GD = np.tensordot(x_D, layer["input"]["weight"], 1) + np.tensordot(
                h_D, layer["recurrent"]["weight"], 1
            )
            gate_GD = gate_GD + (layer["input"]["bias"] if config.bias else 0)
            c_D = sigmoid(gate_GD[1] + 1) * c_D + sigmoid(gate_GD[0]) * np.tanh(gate_GD[2])
            h_D = sigmoid(gate_GD[3]) * np.tanh(c_D)
            outputs.append(h_D)
        x_LD = np.stack(outputs)
    logit_LV = x_LD @ params["token_embedding" if config.tied_head else "head"].T
    if config.logit_softcap:
        logit_LV = config.logit_softcap * np.tanh(logit_LV / config.logit_softcap)
    return logit_LV[:, : config.vocab_size]


def reference_loss(config: ModelConfig, params: dict) -> float:
    """The sum over both rows of TOKEN_BT, packed documents apart."""
    total = 0.0
    for token_T, segment_L in zip(TOKEN_BT, SEGMENT_BL):
        logit_LV = reference_logits(config, params, token_T[:-1], segment_L)
        chosen_L = logit_LV[np.arange(LENGTH), token_T[1:]]
        total += (np.log(np.exp(logit_LV).sum(-1)) - chosen_L).sum()
    return total


KINDS = {"tied": {}, "untied": dict(tied_head=False, bias=False, logit_softcap=15.0)}


@functools.cache
def kind_gradient(make_variant, kind: str):
    """(variant, logits, gradient of the summed loss), packed documents apart."""
    tiny = make_variant("lstm", **KINDS[kind])

    @jax.jit
    def both(params):
        model = nnx.merge(tiny.graph, params)
        loss = lambda p: nnx.merge(tiny.graph, p).token_loss(TOKEN_BT, segment_BL=SEGMENT_BL)[0].sum()  # noqa: E731
        return model(TOKEN_BT[:, :-1], segment_BL=SEGMENT_BL), jax.grad(loss)(params)

    return tiny, *both(tiny.params)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_equals_a_slow_one_written_from_the_paper(make_variant, kind):
    tiny, logit_BLV, _ = kind_gradient(make_variant, kind)
    for token_L, segment_L, logit_LV in zip(TOKEN_BT[:, :-1], SEGMENT_BL, logit_BLV):
        expected = reference_logits(tiny.config, tiny.params, token_L, segment_L)
        np.testing.assert_allclose(logit_LV, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_every_array_is_the_slope_of_the_slow_loss(make_variant, kind):
    tiny, _, grads = kind_gradient(make_variant, kind)
    rng, leaves = np.random.default_rng(1), jax.tree_util.tree_leaves_with_path(tiny.params)
    assert len(leaves) == 4
    for path, leaf in leaves:
        for _ in range(2):
            along = rng.standard_normal(leaf.shape)

            def moved(step, path=path, along=along):
                shift = lambda p, a: np.float64(a) + step * along if p == path else a  # noqa: E731
                return reference_loss(tiny.config, jax.tree_util.tree_map_with_path(shift, tiny.params))

            slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
            found = np.sum(np.float64(functools.reduce(lambda tree, key: tree[key.key], path, grads)) * along)
            assert found == pytest.approx(slope, rel=2e-4, abs=2e-3), jax.tree_util.keystr(path)


def test_the_gradient_reaches_the_state_that_a_layer_starts_from():
    """Of both parts of it, as of the plain scan's own derivative."""
    arrays = [RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4, 3), (3, 4, 3), (2, 3), (2, 3))]
    keep_BL = np.array([[True, False, True], [True] * 3])

    def plain(gate_BLGD, weight_DGD, h_BD, c_BD):
        outputs = []
        for t in range(3):
            h_BD, c_BD, _ = lstm._step(weight_DGD, h_BD, c_BD, gate_BLGD[:, t], keep_BL[:, t])
            outputs.append(h_BD)
        return jnp.stack(outputs, axis=1), c_BD

    def weighted(function):
        def total(*arrays):
            h_BLD, c_BD = function(*arrays)
            return (h_BLD * np.arange(18).reshape(2, 3, 3)).sum() + (c_BD * np.arange(6).reshape(2, 3)).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*arrays)

    for ours, expected in zip(weighted(lambda *a: lstm.recur(*a, keep_BL)), weighted(plain), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_at_the_input_and_every_output_and_never_between_two_tokens(make_variant):
    """One layer: what is left of its outputs is what they are without dropout, whatever was dropped before."""
    tiny = make_variant("lstm", n_layers=1)

    @functools.partial(jax.jit, static_argnums=0)
    def activations(field, key):
        graph = architectures.abstract(dataclasses.replace(tiny.config, **{field: 0.5}))[0]
        return nnx.merge(graph, tiny.params).activations(TOKEN_BT[:, :-1], key=key)[0]

    plain = activations("residual_dropout", None)
    for field in ("embed_dropout", "residual_dropout"):
        first, again, other = (np.asarray(activations(field, jax.random.key(seed))) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - plain).max() > 0.1 and np.abs(first - other).max() > 0.1
    stays = first != 0
    assert 0.4 < stays.mean() < 0.6
    np.testing.assert_allclose(first[stays], 2 * np.asarray(plain)[stays], rtol=1e-5)


@pytest.mark.parametrize("tied_head", [True, False])
def test_initial_weights_have_the_customary_standard_deviations_and_the_loss_is_that_of_guessing(tied_head):
    config = ModelConfig(architecture="lstm", vocab_size=1000, n_layers=2, d_model=128, tied_head=tied_head)
    model = architectures.make(config, jax.random.key(0))
    params, uniform = architectures.split(model)[1], 1 / math.sqrt(3 * 128)
    blocks = params["blocks"]
    expected = [(params["token_embedding"], 1.0), *((blocks[part]["weight"], uniform) for part in blocks)]
    for weight, std in expected + ([] if tied_head else [(params["head"], uniform)]):
        assert np.std(weight) == pytest.approx(std, rel=0.015) and abs(np.mean(weight)) < 0.02 * std
    assert not np.any(blocks["input"]["bias"])
    nats = model.token_loss(np.arange(34).reshape(2, 17))[0].mean()
    assert nats == pytest.approx(math.log(1000), abs=0.5 if tied_head else 0.02)


def test_log_activations_are_the_rms_of_each_layers_outputs(make_variant):
    tiny = make_variant("lstm")
    x_BLD, numbers = nnx.merge(tiny.graph, tiny.params).activations(TOKEN_BT[:, :-1], log_activations=True)
    assert numbers.keys() == {"activation_rms"} and numbers["activation_rms"].shape == (2,)
    assert numbers["activation_rms"][1] == pytest.approx(np.sqrt(np.square(np.float64(x_BLD)).mean()), rel=1e-5)


# Layouts


BASE = Config(
    model=ModelConfig(
        architecture="lstm", vocab_size=65, context_length=LENGTH, n_layers=2, d_model=32, dtype="float32"
    ),
    train=TrainConfig(steps=4, batch_size=16),
    mesh=MeshConfig(fsdp=1),
)


def batches() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (4, 16, LENGTH)
    return {
        "token_BT": (np.cumsum(rng.integers(0, 3, (4, 16, LENGTH + 1)), -1) % 65).astype(np.int32),
        "weight_BL": (rng.random(shape) < 0.7).astype(np.float32),
        "segment_BT": np.cumsum(rng.random((4, 16, LENGTH + 1)) < 0.2, -1).astype(np.int32),
        "position_BL": np.zeros(shape, np.int32),
    }


def four_steps(**changes):
    config = BASE.replace(**changes)
    count = config.mesh.replica * config.mesh.fsdp * config.mesh.tensor
    program = programs.build(config, meshes.make_mesh(config, jax.devices()[:count]), "none")
    with jax.set_mesh(program.mesh):
        batch = jax.device_put(batches(), program.train_batch_sharding)
        state, metrics = program.train(program.init(), batch, np.full(4, 1e-2, np.float32))
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(program.state_sharding), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    return jax.device_get((state.params, metrics))


def test_steps_are_the_same_on_a_mesh_with_every_axis_and_in_microbatches():
    mesh, microbatches = dict(replica=2, fsdp=2, tensor=2), dict(microbatches=2)
    (params, metrics), (expected, alone) = four_steps(mesh=mesh, train=microbatches), four_steps()
    assert metrics["loss"][-1] < metrics["loss"][0] - 0.05
    for number in alone:
        np.testing.assert_allclose(metrics[number], alone[number], rtol=1e-5, err_msg=number)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_models_that_are_trained_side_by_side_have_the_gradients_they_have_alone(make_variant):
    tiny = make_variant("lstm")
    scale = jnp.array([0.5, 1.0, 1.5])
    together = jax.tree.map(lambda a: scale.reshape(-1, *[1] * a.ndim) * a, tiny.params)
    gradient = jax.grad(lambda p, token_BT: nnx.merge(tiny.graph, p).token_loss(token_BT)[0].sum())
    found = jax.jit(jax.vmap(gradient, in_axes=(0, None)))(together, TOKEN_BT)
    alone = jax.jit(gradient)
    for i in range(3):
        expected = alone(jax.tree.map(lambda a: a[i], together), TOKEN_BT)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


# Counts


def test_every_count_of_a_tiny_lstm_worked_by_hand():
    tiny = ModelConfig(architecture="lstm", vocab_size=10, context_length=4, n_layers=2, d_model=8, dtype="float32")
    counts = flops.parameters(tiny)
    matrices, vectors = 2 * 2 * (8 * 32), 2 * 32
    assert (counts.matrices, counts.vectors, counts.position_embedding) == (matrices, vectors, 0)
    assert counts.total == matrices + vectors + 10 * 8 and counts.non_embedding == matrices + vectors
    assert flops.parameters(dataclasses.replace(tiny, bias=False)).vectors == 0
    forward = 2 * 4 * (matrices + 10 * 8)
    assert flops.forward_flops_per_sequence(tiny) == forward
    six_n = 6 * counts.total
    assert flops.flops_per_token(tiny) == {
        "6n": six_n,
        "6n_attn_full": six_n,
        "6n_attn_causal": six_n,
        "exact": 3 * forward / 4,
    }
    full = Config(model=dataclasses.replace(tiny, remat="full"), train=TrainConfig(steps=1, vocab_chunks=2))
    assert flops.recomputed_flops_per_sequence(full) == forward
    with pytest.raises(UserError, match="relative_positions=True, but model.architecture='lstm' knows none"):
        flops.parameters(tiny, relative_positions=True)


def test_an_unknown_architecture_is_refused():
    unknown = ModelConfig(vocab_size=65, architecture="lstn")
    for function in (architectures.abstract, flops.parameters):
        with pytest.raises(UserError, match="model.architecture='lstn' is not known; did you mean 'lstm'"):
            function(unknown)


# What it does not have is refused


@pytest.mark.parametrize(
    "sections,message",
    [
        (
            dict(model=dict(n_heads=4)),
            "model.n_heads=4 has no effect with model.architecture='lstm'; leave it out, or at",
        ),
        (dict(model=dict(position="rope")), "model.position='rope' has no effect"),
        (dict(model=dict(band_width=8)), "model.band_width=8 has no effect .* default None"),
        (dict(model=dict(attention="xla")), "model.attention='xla' has no effect"),
        (dict(model=dict(remat="dots")), "model.remat='dots' keeps parts of a layer .* use 'none' or 'full'"),
        (dict(data=dict(objective="prefix_lm")), "data.objective='prefix_lm' lets tokens be seen by earlier ones"),
    ],
    ids=str,
)
def test_what_only_a_transformer_has_is_refused_in_one_line(sections, message):
    with pytest.raises(UserError, match=message):
        BASE.replace(**sections)


@pytest.mark.parametrize("axis", ["sequence", "stage"])
def test_a_mesh_that_would_split_time_or_layers_is_refused(axis):
    config = BASE.replace(mesh={axis: 2})
    with pytest.raises(UserError, match=f"mesh.{axis}=2 splits what model.architecture='lstm' goes through"):
        meshes.make_mesh(config, jax.devices()[:2])
    with pytest.raises(UserError, match="model.d_model=36 does not divide over mesh.tensor=8; use mesh.tensor=4"):
        uneven = BASE.replace(model=dict(d_model=36), mesh=dict(fsdp=1, tensor=8))
        meshes.make_mesh(uneven)


def test_a_gpts_config_becomes_an_lstms_with_what_both_have():
    gpt = ModelConfig(d_model=64, n_heads=4, position="rope", norm="rmsnorm", context_length=32, residual_dropout=0.1)
    made = gpt.with_architecture("lstm", d_model=80)
    assert made == ModelConfig(architecture="lstm", d_model=80, context_length=32, residual_dropout=0.1)
    assert Config(model=made, train=TrainConfig(steps=1)).model.shown_shape == "12 LSTM layers, width 80"
    with pytest.raises(UserError, match="transformers has no such model"):
        families.family_for(made)


def test_its_miniature_is_one_of_it():
    small = miniature.shrink(BASE.replace(model=dict(d_model=1536)), 3).model
    assert (small.architecture, small.d_model, small.n_heads) == ("lstm", 24, ModelConfig.n_heads)


# Whole runs


@pytest.fixture(scope="module")
def lstm_values(values):
    """conftest's tiny run as an LSTM of 12 steps, in rows of packed documents."""
    text = dict(tokenizer="chars", separator=" ", mask_documents=True)
    model = dict(architecture="lstm", context_length=16, n_layers=2, d_model=32, dtype="float32", residual_dropout=0.1)
    given = values | {"model": model}
    periods = dict(checkpoint=dict(every_steps=6), eval=dict(every_steps=12, batch_size=16))
    return changed(given, data=text, train=dict(steps=12), optim=dict(peak_lr=2e-2), **periods)


@pytest.fixture(scope="module")
def trained_lstm(lstm_values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lstm") / "run"
    assert main.train(from_dict(lstm_values), str(folder)) == 0
    return folder


def test_a_run_learns_and_one_that_is_resumed_is_bit_equal(lstm_values, trained_lstm, tmp_path, capsys):
    rows = losses(trained_lstm)
    assert rows[-1][1] < rows[0][1] - 0.3 and rows[0][1] == pytest.approx(math.log(10), abs=0.1)
    again = tmp_path / "again"
    shutil.copytree(trained_lstm, again)
    shutil.rmtree(again / "checkpoints" / "12")
    assert main.train(from_dict(lstm_values), str(again)) == 0
    said = capsys.readouterr().err
    assert "2 LSTM layers, width 32" in said and "has no attention" in said
    before, after = saved_arrays(trained_lstm, 12), saved_arrays(again, 12)
    assert before.keys() == after.keys() and len(before) > 10
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    assert losses(again)[-6:] == rows[-6:]


def test_a_run_is_loaded_evaluated_sampled_and_compared(trained_lstm, capsys):
    loaded = gptjax.load(trained_lstm, mesh="fsdp=2,tensor=2")
    assert "2 LSTM layers, width 32" in repr(loaded)
    text = "abc ab"
    nats = loaded.loss(text).loss_L
    logit_LV = np.float64(loaded.logits(text))
    expected = np.log(np.exp(logit_LV).sum(-1))[:-1] - logit_LV[np.arange(5), loaded.tokens(text)[1:]]
    np.testing.assert_allclose(nats[1:], expected, atol=1e-5)
    for refused in (loaded.attention, loaded.residuals, loaded.logit_lens):
        with pytest.raises(UserError, match="model.architecture='lstm' has no "):
            refused(text)
    for command in (["eval"], ["sample", "--prompt=ab", "--max_tokens=5"]):
        assert cli.main([*command, f"--workdir={trained_lstm}"]) == 0
    assert cli.main(["compare", str(trained_lstm), str(trained_lstm), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["a"]["step"] == 12
