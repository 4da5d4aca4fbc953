"""Steps that train an adapter: the same on every mesh and with microbatches, with the moments of what is trained alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax.traverse_util import flatten_dict

from gptjax import flops
from gptjax.config import catalogue
from gptjax.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import architectures
from gptjax.parallel import numerics, sharding
from gptjax.planning import info
from gptjax.training import program as programs

STEPS, BATCH, LENGTH = 3, 8, 16
GPT2 = ModelConfig(
    vocab_size=65, context_length=LENGTH, n_layers=2, d_model=32, n_heads=4, init_std=0.1, dtype="float32"
)
MODERN = dataclasses.replace(GPT2, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_heads=2, bias=False)
KINDS = [
    "lora(on='all')",
    "rslora(on='qkv,up', rank=4)",
    "dora(on='all', rank=4)",
    "ia3",
    "bottleneck(size=8)",
    "adalora",
]
AHEAD = ["prefix(length=3)", "prompt(length=4)", "prompt(length=4, shifted=True)"]
BASE = Config(
    model=dataclasses.replace(MODERN, adapter="dora(on='q,v,down', rank=4)"),
    optim=OptimConfig(eps=1e-2, ema_decay=0.5),  # Adam of tiny gradients would enlarge their rounding
    train=TrainConfig(steps=STEPS, batch_size=BATCH, microbatches=2, log_every=1),
)


def trained(config, devices: int) -> tuple:
    """(parameters before and after 3 steps, losses) of a Config, on the host."""
    program = programs.of(config, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    token_SBT = rng.integers(0, 65, (STEPS, BATCH, LENGTH + 1)).astype(np.int32)
    batch = {"token_BT": token_SBT, "weight_BL": np.ones((STEPS, BATCH, LENGTH), np.float32)}
    with numerics.on_mesh(program.mesh):
        state = program.init()
        before = flatten_dict(sharding.on_host(state.params), sep="/")
        state, metrics = program.train(state, batch, np.full(STEPS, 0.05, np.float32))
        return before, flatten_dict(sharding.on_host(state.params), sep="/"), np.asarray(metrics["loss"])


alone = functools.cache(lambda: trained(BASE, 1))


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(dict(fsdp=4, tensor=2), marks=pytest.mark.slow),
        dict(fsdp=2, stage=2, tensor=2),
        pytest.param(dict(replica=2, sequence=2, fsdp=2), marks=pytest.mark.slow),
    ],
    ids=["fsdp-tensor", "pipeline", "sequence"],
)
def test_every_mesh_trains_an_adapter_as_one_device(mesh):
    _, expected, loss_S = alone()
    _, params, on_mesh_S = trained(BASE.replace(mesh=mesh), 8)
    assert np.allclose(on_mesh_S, loss_S, rtol=1e-5) and loss_S[-1] != loss_S[0]
    for name, array in expected.items():
        assert np.allclose(params[name], array, atol=2e-5), name


def test_two_microbatches_train_as_one():
    _, expected, loss_S = alone()
    _, params, whole_S = trained(BASE.replace(train=dict(microbatches=1)), 1)
    assert np.allclose(whole_S, loss_S, rtol=1e-5)
    assert all(np.allclose(params[name], array, atol=2e-5) for name, array in expected.items())


def test_the_adapter_alone_is_trained_and_has_moments():
    before, after, _ = alone()
    for name, array in before.items():
        assert np.array_equal(array, after[name]) == ("/adapter/" not in name), name
    state = programs.of(BASE, jax.devices()[:1]).abstract_state
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    adapter = sum(array.size for name, array in before.items() if "/adapter/" in name)
    assert sizes == 2 * adapter


@pytest.mark.parametrize("shape", [GPT2, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_changes_no_bit_of_the_logits_and_is_counted(shape, kind):
    token_BL = jnp.arange(32).reshape(2, 16)
    plain = architectures.make(shape, jax.random.key(0))
    model = architectures.make(dataclasses.replace(shape, adapter=kind), jax.random.key(0))
    expected, logits = (np.asarray(jax.jit(lambda m=m: m(token_BL))()) for m in (plain, model))
    assert np.array_equal(logits, expected)
    flops.check_counts(model.config, sum(leaf.size for leaf in jax.tree.leaves(architectures.split(model)[1])))


def test_dropout_of_an_adapter_is_drawn_anew_for_each_matrix_and_layer():
    config = BASE.replace(model=dict(adapter="lora(on='all', dropout=0.5)"))
    assert config.model.max_dropout == 0.5
    _, with_dropout, _ = trained(config, 1)
    _, without, _ = trained(config.replace(model=dict(adapter="lora(on='all')")), 1)
    changed = [not np.allclose(with_dropout[name][layer], without[name][layer], atol=1e-4)
               for name in without if "/adapter/" in name for layer in (0, 1)]  # fmt: skip
    assert all(changed)


@pytest.mark.parametrize(
    "adapter, said",
    [
        ("lra", "model.adapter='lra' is not known; did you mean 'lora'?"),
        ("lora(rnk=8)", "lora has no parameter 'rnk'; did you mean 'rank'?"),
        ("lora(rank=0)", "rank=0 is too small; use at least 1."),
        ("lora(alpha=-1)", "alpha=-1.0 must be positive."),
        ("lora(on='q,v,q')", "on='q,v,q' names a part of qkv twice; name it once."),
        ("lora(on='gate')", "on='gate' names gate, which model.mlp='gelu_tanh' has not; leave it out."),
        ("lora(on='query')", "on='query' has the name 'query'; expected names of attention, mlp, all, qkv, q, k"),
        ("dora(dropout=1.0)", "dropout=1.0 is not in [0, 1)."),
        ("bottleneck(behind='norm')", "behind='norm' is not known; expected attention, mlp or attention,mlp."),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_when_the_config_is_made(adapter, said):
    with pytest.raises(UserError) as error:
        Config(model=dataclasses.replace(GPT2, adapter=adapter), train=TrainConfig(steps=1))
    assert str(error.value).count("model.adapter=") == 1
    assert said in str(error.value) and str(error.value).startswith("model.adapter=")


@pytest.mark.parametrize("shape", [GPT2, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("kind", runs.default_or_slow(AHEAD, AHEAD[-1:]))
def test_what_stands_before_every_text_is_seen_by_each_packed_document_and_by_the_next_token(shape, kind):
    model = architectures.make(dataclasses.replace(shape, adapter=kind, init_std=0.3), jax.random.key(0))
    token_BL = jnp.asarray(np.random.default_rng(0).integers(0, 65, (2, 12)))
    packed = dict(segment_BL=jnp.array([[0] * 6 + [1] * 6] * 2), position_BL=jnp.array([[*range(6)] * 2] * 2))
    in_row, alone_BLD = model.activations(token_BL, **packed)[0][:, 6:], model.activations(token_BL[:, 6:])[0]
    assert np.allclose(in_row, alone_BLD, atol=1e-5)
    cache = model.empty_cache(2, 12)
    x_BLD, cache = model.extend(token_BL[:, :7], cache, 0)
    steps = [x_BLD]
    for place in range(7, 12):
        x_BLD, cache = model.extend(token_BL[:, place : place + 1], cache, place)
        steps.append(x_BLD)
    whole_BLD = model.activations(token_BL)[0]
    assert np.allclose(jnp.concatenate(steps, axis=1), whole_BLD, atol=1e-5)
    plain = architectures.make(dataclasses.replace(shape, init_std=0.3), jax.random.key(0))
    assert not np.allclose(whole_BLD, plain.activations(token_BL)[0], atol=1e-2)
    flops.check_counts(model.config, sum(leaf.size for leaf in jax.tree.leaves(architectures.split(model)[1])))


@pytest.mark.parametrize("rope_pattern", ["R", "RN"])
def test_a_prompt_is_what_its_vectors_before_the_tokens_would_be(rope_pattern):
    shape = dataclasses.replace(MODERN, init_std=0.3, rope_pattern=rope_pattern)
    adapted = architectures.make(
        dataclasses.replace(shape, adapter="prompt(length=4, shifted=True)"), jax.random.key(0)
    )
    plain = architectures.make(shape, jax.random.key(0))
    token_BL = jnp.asarray(np.random.default_rng(0).integers(0, 65, (2, 12)))
    vectors = dict(embedding_BPD=jnp.stack([adapted.adapter.prompt[...]] * 2), place_BP=jnp.array([[*range(4)]] * 2))
    expected = plain.activations(jnp.pad(token_BL, ((0, 0), (4, 0))), **vectors)[0][:, 4:]
    assert np.allclose(adapted.activations(token_BL)[0], expected, atol=1e-5)


def test_a_prefix_that_no_position_or_mesh_has_room_for_is_refused():
    model = architectures.make(dataclasses.replace(GPT2, adapter="prefix(length=3, shifted=True)"), jax.random.key(0))
    with pytest.raises(UserError, match="16 tokens behind 3 of model.adapter=.* more than model.context_length=16"):
        model.activations(jnp.zeros((1, 16), jnp.int32))
    with pytest.raises(UserError, match="needs whole sequences; set mesh.sequence=1"):
        programs.of(BASE.replace(model=dict(adapter="prefix"), mesh=dict(sequence=2)), jax.devices()[:2])
    with pytest.raises(UserError, match="can't be split into stages; set mesh.stage=1"):
        BASE.replace(model=dict(adapter="prefix"), mesh=dict(stage=2))
    with pytest.raises(UserError, match="can't be split into stages; set mesh.stage=1"):
        programs.of(BASE.replace(model=dict(adapter="prefix"), mesh=dict(stage=-1, fsdp=1)), jax.devices()[:2])


def test_a_rank_above_the_full_one_is_refused():
    BASE.replace(model=dict(adapter="lora(on='q,o', rank=32)"))
    with pytest.raises(
        UserError, match="rank=33 is more than the full rank of out, a matrix of 32 x 32; use at most 32"
    ):
        BASE.replace(model=dict(adapter="lora(on='o', rank=33)"))
    with pytest.raises(UserError, match="more than the full rank of k, a matrix of 32 x 16; use at most 16"):
        BASE.replace(model=dict(adapter="dora(on='k', rank=17)"))


@pytest.mark.parametrize("kind", AHEAD[:2])
def test_a_prefix_trains_on_a_mesh_as_on_one_device(kind):
    config = BASE.replace(model=dict(adapter=kind))
    (before, expected, loss_S), (_, params, on_mesh_S) = (
        trained(config, 1),
        trained(config.replace(mesh=dict(fsdp=4, tensor=2)), 8),
    )
    assert np.allclose(on_mesh_S, loss_S, rtol=1e-5)
    for name, array in expected.items():
        assert np.allclose(params[name], array, atol=2e-5), name
        assert np.array_equal(before[name], array) == (not name.startswith("adapter/")), name


def test_every_kind_is_tried_here():
    assert {kind.partition("(")[0] for kind in (*KINDS, *AHEAD)} == catalogue.ADAPTERS.keys()


def test_a_step_is_counted_without_gradients_of_frozen_matrices():
    """By hand: a matmul is 2 FLOPs an entry and token forward, 2 for its input's gradient, 2 for its own."""
    model = dataclasses.replace(GPT2, adapter="lora(on='o', rank=4)")
    frozen, adapter = flops.parameters(GPT2).matmul, 2 * 4 * (32 + 32)
    mixing = flops.counts_of(GPT2).mixing_flops(GPT2)
    assert flops.train_flops_per_sequence(model) == LENGTH * (4 * frozen + 6 * adapter) + 3 * mixing


def test_the_table_of_memory_has_moments_of_the_adapter_alone():
    config = BASE.replace(model=dict(adapter=None), optim=dict(ema_decay=None))
    full, lora, in_bytes, in_nf4 = info.finetuning(config, devices=1)
    assert full["gradients"] == full["params"] and lora["gradients"] == in_bytes["gradients"] == 4 * lora["trained"]
    assert abs(lora["moments"] - 8 * lora["trained"]) <= 64 and lora["params"] == full["params"] + lora["gradients"]
    assert in_bytes["params"] < 0.6 * lora["params"] and "LoRA, int8 base" in info.finetuning_table([in_bytes])
    assert in_nf4["params"] < in_bytes["params"] and in_nf4["moments"] == lora["moments"]
    again = info.finetuning(config.replace(model=dict(adapter=in_bytes["adapter"])), devices=1)
    assert again[1:] == [lora | {"adapter": again[1]["adapter"]}, in_bytes, in_nf4], "an adapter in bytes already"
