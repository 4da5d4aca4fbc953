"""Models with task heads: outputs, losses and gradients of transformers (golden/heads), and what padding and order must not
change."""

import dataclasses
import functools
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from places import ROOT

from gptjax import flops
from gptjax.config import task_heads
from gptjax.config.fields import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig
from gptjax.huggingface import gpt1, gpt2
from gptjax.models import architectures, labelled
from gptjax.training import losses

GOLDEN = ROOT / "tests" / "golden" / "heads"
sys.path.insert(0, str(GOLDEN))
import make_heads  # noqa: E402  isort: skip

HEADS = {
    "classify": "classes(n=3, dropout=0.0, bias={bias})",
    "choice": "choice(dropout=0.0)",
    "tag": "token_classes(n=4, dropout=0.0)",
    "span": "span(dropout=0.0)",
    "regress": "regression(n=2, dropout=0.0, bias={bias})",
}
TASKS = {"classify": "classify", "choice": "choice", "tag": "tag", "span": "answer", "regress": "classify"}
FAMILIES = {"gpt1": gpt1.FAMILY, "gpt2": gpt2.FAMILY}


def config_of(case: str) -> Config:
    _, _, head_names, kind = make_heads.CASES[case]
    sizes = make_heads.SIZES
    is_gpt1 = case.startswith("gpt1")
    model = ModelConfig(
        vocab_size=sizes["vocab_size"],
        context_length=sizes["n_positions"],
        n_layers=sizes["n_layer"],
        d_model=sizes["n_embd"],
        n_heads=sizes["n_head"],
        dtype="float32",
        norm_position="post" if is_gpt1 else "pre",
        final_norm=not is_gpt1,
        task_head=HEADS[kind].format(bias=len(head_names) == 2),
    )
    lm_coef = make_heads.LM_COEF.get(case, 0.0)
    return Config(model, DataConfig(task=TASKS[kind]), train=TrainConfig(steps=1, loss=kind, lm_coef=lm_coef))


def ours(case: str, theirs, config: Config) -> dict:
    """Our tree of what stands under their names: weights, or gradients."""
    family, model, tree = FAMILIES[case[:4]], config.model, {}
    for tensor in family.tensors(model):
        parts = [
            tensor.layout.join([theirs(f"{family.prefix}{name}") for name in names], model)
            for names in tensor.names(model)
        ]
        tree[tuple(tensor.ours.split("."))] = np.stack(parts) if tensor.stacked else parts[0]
    weight, *bias = make_heads.CASES[case][2]
    tree["task_head", "weight"] = theirs(weight).T
    if bias:
        tree["task_head", "bias"] = theirs(bias[0])
    return unflatten_dict(tree)


def shape_of(name: str, case: str) -> tuple:
    D, H = make_heads.SIZES["n_embd"], {"classify": 3, "choice": 1, "tag": 4, "span": 2, "regress": 2}
    last = name.split(".", 2)[-1].split(".", 1)[-1] if ".h." in name else name
    sizes = {
        "c_attn.weight": (D, 3 * D), "c_attn.bias": (3 * D,), "attn.c_proj.weight": (D, D), "c_fc.weight": (D, 4 * D),
        "c_fc.bias": (4 * D,), "mlp.c_proj.weight": (4 * D, D), "tokens_embed.weight": (29, D), "wte.weight": (29, D),
        "positions_embed.weight": (10, D), "wpe.weight": (10, D),
    }  # fmt: skip
    head = make_heads.CASES[case][2]
    if name in head:
        outputs = H[make_heads.CASES[case][3]]
        return (outputs, D) if name == head[0] else (outputs,)
    return next((shape for end, shape in sizes.items() if last.endswith(end)), (D,))


@functools.cache
def computed(case: str):
    """(output, loss, gradients) of ours."""
    config = config_of(case)
    graph, shapes, _ = architectures.abstract(config.model)
    params = ours(case, lambda name: make_heads.drawn(name, shape_of(name, case)), config)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    batch, head = make_heads.batch(config.train.loss), task_heads.of(config.model)
    minimised = losses.of(config)

    @jax.jit
    def compute(params, batch):
        objective = lambda params: minimised(params, batch, jax.random.key(0), graph=graph, config=config)  # noqa: E731
        (value, ((_, weight), _)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        output, _ = labelled.outputs(params, batch, graph=graph, mesh_config=MeshConfig(), head=head)
        return output, value / weight, jax.tree.map(lambda g: g / weight, grads)

    return jax.device_get(compute(params, batch))


def assert_close(array, expected, name):
    np.testing.assert_allclose(array, expected, atol=1e-5 * max(1.0, np.abs(expected).max()), rtol=0, err_msg=name)


@pytest.mark.parametrize("case", make_heads.CASES)
def test_outputs_loss_and_gradients_are_those_of_transformers(case):
    output, loss, grads = computed(case)
    golden = np.load(GOLDEN / f"{case}.npz")
    assert_close(output, golden["output"], "output")
    assert_close(loss, golden["loss"], "loss")
    theirs = lambda name: golden[name] if name in golden else np.zeros(shape_of(name, case), np.float32)  # noqa: E731
    expected = flatten_dict(ours(case, theirs, config_of(case)), sep="/")
    for name, grad in flatten_dict(grads, sep="/").items():
        assert_close(grad, expected[name], name)


@pytest.mark.parametrize("case", make_heads.CASES)
def test_the_golden_files_are_what_transformers_makes_now(case):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    golden, now = np.load(GOLDEN / f"{case}.npz"), make_heads.made(case)
    assert set(golden) == now.keys()
    for name, array in now.items():
        assert_close(array, golden[name], name)


# ---- what must not change anything

CASE = "gpt1_choice"


@functools.cache
def outputs_of(case: str):
    """A compiled function of a batch: the outputs, each example's loss of the task and of the language model."""
    config = config_of(case)
    graph, _, _ = architectures.abstract(config.model)
    head = task_heads.of(config.model)
    params = ours(case, lambda name: make_heads.drawn(name, shape_of(name, case)), config)

    @jax.jit
    def compute(params, batch):
        output, lm_B = labelled.outputs(params, batch, graph=graph, mesh_config=MeshConfig(), head=head, with_lm=True)
        return output, labelled.LOSSES[head.loss](output, batch)[0], lm_B

    return lambda batch: jax.device_get(compute(params, batch))


def varied(case: str) -> dict:
    """A batch with sequences of several lengths, and of a choice with several counts of them."""
    batch = dict(make_heads.batch(make_heads.CASES[case][3]))
    rng = np.random.default_rng(1)
    length_BC = rng.integers(5, 8, batch["length_BC"].shape).astype(np.int32)
    if length_BC.shape[1] == 3:
        length_BC[0, 2], batch["label_B"] = 0, np.array([1, 2, 0, 1], np.int32)
    if "label_B2" in batch:
        batch["label_B2"] = np.minimum(batch["label_B2"], 3)
    if "weight_BL" in batch:
        batch["weight_BL"] = batch["weight_BL"] * (np.arange(10) < length_BC)
    return batch | {"length_BC": length_BC}


@pytest.mark.parametrize("case", [case for case in make_heads.CASES if case != "gpt2_numbers"])
def test_what_stands_behind_the_end_of_a_sequence_changes_nothing(case):
    batch = varied(case)
    behind_BCL = np.arange(10) >= batch["length_BC"][..., None]
    others = np.where(behind_BCL, np.random.default_rng(2).integers(0, 28, behind_BCL.shape), batch["token_BCL"])
    compute = outputs_of(case)
    before, after = (compute(batch | {"token_BCL": tokens.astype(np.int32)}) for tokens in (batch["token_BCL"], others))
    assert np.any(others != batch["token_BCL"])
    for a, b in zip(before[1:], after[1:]):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", [case for case in make_heads.CASES if case != "gpt2_numbers"])
def test_an_example_of_a_padded_batch_is_as_it_is_alone_and_unpadded(case):
    batch, compute = varied(case), outputs_of(case)
    _, loss_B, lm_B = compute(batch)
    for b in range(4):
        longest = int(batch["length_BC"][b].max())
        alone = {
            name: array[b : b + 1, ..., :longest] if name.endswith("L") else array[b : b + 1]
            for name, array in batch.items()
        }
        alone["token_BCL"] = alone["token_BCL"][:, batch["length_BC"][b] > 0]
        alone["length_BC"] = alone["length_BC"][:, batch["length_BC"][b] > 0]
        _, loss, lm = compute(alone)
        np.testing.assert_allclose((loss[0], lm[0]), (loss_B[b], lm_B[b]), rtol=1e-5)


def test_scores_of_choices_go_with_their_order():
    batch, compute = make_heads.batch("choice"), outputs_of(CASE)
    order = np.array([2, 0, 1])
    moved = batch | {name: batch[name][:, order] for name in ("token_BCL", "length_BC")}
    moved["label_B"] = np.argsort(order)[batch["label_B"]].astype(np.int32)
    output_BC, loss_B, _ = compute(batch)
    moved_BC, moved_loss_B, _ = compute(moved)
    np.testing.assert_allclose(moved_BC, output_BC[:, order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved_loss_B, loss_B, rtol=1e-5)


def test_a_pair_read_in_both_orders_has_the_class_of_the_other_order():
    batch, compute = dict(make_heads.batch("classify")), outputs_of("gpt1_classes")
    other = np.random.default_rng(3).integers(0, 28, batch["token_BCL"].shape).astype(np.int32)
    both = np.concatenate([batch["token_BCL"], other], axis=1)
    length_BC = np.array([[10, 7], [3, 5], [7, 7], [8, 2]], np.int32)
    there, back = (
        compute(batch | {"token_BCL": both[:, order], "length_BC": length_BC[:, order]})[0]
        for order in ([0, 1], [1, 0])
    )
    np.testing.assert_allclose(there, back, rtol=1e-5, atol=1e-6)


def test_dropout_of_the_head_is_the_same_for_all_choices():
    """So that equal sequences have equal scores, whatever is dropped."""
    config = config_of(CASE).replace(model=dict(task_head="choice(dropout=0.5)"))
    graph, _, _ = architectures.abstract(config.model)
    params = ours(CASE, lambda name: make_heads.drawn(name, shape_of(name, CASE)), config)
    batch = dict(make_heads.batch("choice"))
    batch["token_BCL"] = np.repeat(batch["token_BCL"][:, :1], 3, axis=1)
    options = dict(graph=graph, mesh_config=MeshConfig(), head=task_heads.of(config.model), key=jax.random.key(1))
    score_BC, _ = labelled.outputs(params, batch, **options)
    np.testing.assert_allclose(score_BC, np.repeat(score_BC[:, :1], 3, axis=1), rtol=1e-5)
    off_BC, _ = labelled.outputs(params, batch, **options | {"key": None})
    assert not np.allclose(score_BC, off_BC, rtol=1e-2)


def test_a_head_is_counted_and_leaves_the_other_parameters_as_they_are():
    config = config_of("gpt2_tokens").model
    plain = dataclasses.replace(config, task_head=None)
    assert flops.parameters(config).total - flops.parameters(plain).total == 4 * (12 + 1)
    assert flops.parameters(config).non_embedding == flops.parameters(plain).non_embedding
    (_, with_head, _), (_, without, _) = (
        architectures.split(architectures.make(each, jax.random.key(5))) for each in (config, plain)
    )
    head = with_head.pop("task_head")
    assert head["weight"].shape == (12, 4) and 0.01 < np.std(head["weight"]) < 0.03 and not head["bias"].any()
    jax.tree.map(np.testing.assert_array_equal, with_head, without)
