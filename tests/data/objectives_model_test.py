"""What a model makes of the objectives' rows: documents packed into a row are trained on as each would be alone."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from objectives_test import keys, rows_of, tokenizer_of

from gptjax.config.fields import Config, DataConfig, EvalConfig, MeshConfig, ModelConfig, TrainConfig
from gptjax.data.rows import objectives
from gptjax.errors import UserError
from gptjax.models import architectures, attention, placed
from gptjax.parallel import meshes
from gptjax.run import run
from gptjax.training import losses, step

LENGTH, ROWS, ALONE = 32, 2, 24
MESHES = {"one device": {}, "sequence": {"sequence": 2}, "stages": {"stage": 2}}
KERNELS = [name for name, kernel in attention.KERNELS.items() if "cpu" in kernel.platforms]
CASES = [(name, kernel, "one device") for name in objectives.OBJECTIVES for kernel in KERNELS]
CASES += [("masked_lm", kernel, mesh) for kernel in KERNELS for mesh in ("sequence", "stages")]  # it has every array
CASES += [("prefix_lm", kernel, "sequence") for kernel in KERNELS]  # of which some are a prefix and some not


def config_of(name: str, mesh: str = "one device", **sections) -> Config:
    return Config(
        model=ModelConfig(
            vocab_size=384, context_length=LENGTH, n_layers=2, d_model=16, n_heads=2, init_std=0.3, dtype="float32"
        ),
        data=DataConfig(objective=name, mask_documents=True),
        mesh=MeshConfig(fsdp=1, **MESHES[mesh]),
        train=TrainConfig(steps=1, batch_size=ROWS, z_loss=0.1),
        **sections,
    )


@functools.cache
def parameters() -> dict:
    return jax.device_get(step.init_state(config_of("next_token"), "xla").params)


@functools.cache
def loss_and_gradient(name: str, kernel: str, mesh: str):
    """A function of a batch: what is minimised, and its gradient."""
    config = config_of(name, mesh)
    on = meshes.make_mesh(config, jax.devices()[: 2 if MESHES[mesh] else 1])
    graph = architectures.abstract(config.model, kernel)[0]
    function = jax.jit(
        jax.value_and_grad(functools.partial(losses.next_token, graph=graph, config=config), has_aux=True)
    )

    def call(batch):
        with jax.set_mesh(on):
            (loss, _), grads = function(parameters(), batch, jax.random.key(0))
        return float(loss), jax.device_get(grads)

    return call


def like(name: str) -> str:
    """An objective whose batches have the same arrays, so that both share a compiled function."""
    return {"fim": "next_token", "span_corruption": "prefix_lm"}.get(name, name)


def documents(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(1 / rng.choice([3, 8, 20]), size=80)
    return [np.append(rng.integers(32, 127, n), 256).astype(np.int32) for n in lengths]


def packed_rows(name: str, seed: int) -> dict:
    objective = objectives.make_objective(config_of(name).data, tokenizer_of("bytes"), LENGTH)
    given = rows_of(documents(seed), objective.source_tokens(LENGTH + 1), apart=True)
    return objective({key: a[:ROWS] for key, a in given.items()}, keys(ROWS))


def each_alone(rows: dict) -> dict:
    """A batch in which every segment has a row of its own, and no other in sight."""
    names = [name for name in rows if name not in ("segment_BT", "position_BL")]
    alone = {name: np.zeros((ALONE, rows[name].shape[1]), rows[name].dtype) for name in names}
    edges_BT = np.diff(rows["segment_BT"], axis=1, prepend=-1, append=-1) != 0
    row = 0
    for b in range(ROWS):
        edges = np.flatnonzero(edges_BT[b])
        for first, stop in zip(edges, edges[1:]):
            for name in names:
                part = rows[name][b, first:stop]
                alone[name][row, : len(part)] = part
            row += 1
    return alone


@pytest.mark.parametrize("name,kernel,mesh", CASES)
def test_loss_and_gradient_of_packed_documents_are_those_of_each_alone(name, kernel, mesh):
    for seed in range(4):
        rows = packed_rows(name, seed)
        loss, grads = loss_and_gradient(like(name), kernel, mesh)(rows)
        expected, expected_grads = loss_and_gradient(like(name), "xla", "one device")(each_alone(rows))
        assert loss == pytest.approx(expected, rel=1e-5) and loss > 1
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1e-3, np.abs(theirs).max()))


def test_the_loss_of_a_masked_lm_is_that_of_its_targets_given_all_tokens_of_their_document():
    config, rows = config_of("masked_lm"), packed_rows("masked_lm", 3)
    graph = architectures.abstract(config.model)[0]
    masks = {"segment_BL": rows["segment_BT"][:, :-1], "position_BL": rows["position_BL"]}
    masks["prefix_BL"] = np.ones((ROWS, LENGTH), bool)
    logits = jax.jit(lambda params, token_BL: nnx.merge(graph, params)(token_BL, **masks))
    logit_BLV = np.float64(logits(parameters(), rows["token_BT"][:, :-1]))
    chosen_BL = np.take_along_axis(logit_BLV, rows["target_BL"][..., None], -1)[..., 0]
    loss_BL = np.log(np.exp(logit_BLV).sum(-1)) - chosen_BL
    evaluate = jax.jit(functools.partial(placed.eval_call, graph=graph, mesh_config=config.mesh, vocab_chunks=1))
    loss_B, weight_B = evaluate(parameters(), rows)
    np.testing.assert_allclose(loss_B, (loss_BL * rows["weight_BL"]).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(weight_B, rows["weight_BL"].sum(-1))


@pytest.mark.parametrize("name", ["masked_lm", "span_corruption"])
def test_a_model_that_does_not_write_on_is_not_sampled(name):
    loaded = run.Run(None, config_of(name), None, None, {}, 0)
    with pytest.raises(UserError, match=f"data.objective='{name}' fills in what is missing"):
        loaded.generate("text")
    with pytest.raises(UserError, match="eval.sample_tokens=5, but .* use 0"):
        config_of(name, eval=EvalConfig(sample_tokens=5))
