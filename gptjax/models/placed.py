"""A model on a mesh, for reading: its shapes, where its parameters lie, and the loss of a text under them.

Evaluation, notebooks and scoring take this much of a config and no training; a training program is a Placed model that
can also train (program.py). Axes: B sequences, L length, T = L + 1 tokens.
"""

import dataclasses
import functools
import typing

import jax
from flax import nnx

from gptjax.hosts import compiling
from gptjax.models import architectures, attention
from gptjax.parallel import meshes, numerics, sharding

BESIDE_THE_INPUTS = ("token_BT", "weight_BL")  # of a batch


@dataclasses.dataclass(frozen=True, repr=False)
class Placed:
    """Functions of parameters, ready to run inside `numerics.on_mesh(mesh)`."""

    mesh: typing.Any
    kernel: str  # of attention
    graph: typing.Any  # with parameters, what nnx.merge makes the model of
    axes: dict  # {path of a parameter: its logical axes}
    abstract_params: dict  # ShapeDtypeStructs, float32 where `stored` is None
    param_sharding: dict  # NamedShardings
    eval_batch_sharding: typing.Any  # of arrays [B, ...]
    evaluate: typing.Callable  # (params, batch) -> (loss_sum_B, weight_sum_B)
    weighted_loss: typing.Callable  # (params, batch) -> loss_BL
    # Of whose parameters these are made; None: they are as a checkpoint has them.
    stored: "Placed | None" = dataclasses.field(default=None, kw_only=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.axes)} parameter arrays on {self.mesh.size} devices, attention {self.kernel})"


@numerics.settings()
def place(model_config, mesh_config, mesh, kernel: str, vocab_chunks: int = 1) -> Placed:
    """The Placed model of a ModelConfig with vocab_size set. Nothing is compiled or allocated yet.

    mesh_config: how microbatches go through the stages of a pipeline, where the mesh has some. vocab_chunks: see
    `loss.cross_entropy`.
    """
    return _of_parts(*architectures.abstract(model_config, kernel), mesh_config, mesh, kernel, vocab_chunks)


def _of_parts(graph, params, axes: dict, mesh_config, mesh, kernel: str, vocab_chunks: int) -> Placed:
    """The Placed model of architectures.split()."""
    by_path = sharding.param_shardings(axes, mesh)
    param_sharding = jax.tree_util.tree_map_with_path(lambda path, _: by_path[tuple(k.key for k in path)], params)
    layout = {
        "in_shardings": (param_sharding, sharding.batch_sharding(mesh)),
        "out_shardings": sharding.replicated(mesh),
    }
    functions = {"graph": graph, "mesh_config": mesh_config, "vocab_chunks": vocab_chunks}
    return Placed(
        mesh=mesh,
        kernel=kernel,
        graph=graph,
        axes=axes,
        abstract_params=params,
        param_sharding=param_sharding,
        eval_batch_sharding=sharding.batch_sharding(mesh),
        evaluate=compiling.jit(functools.partial(eval_call, **functions), **layout),
        weighted_loss=compiling.jit(functools.partial(weighted_loss, **functions), **layout),
    )


def of_run(config, mesh_config, devices, dtype: str | None = None) -> Placed:
    """The model of a run's Config, for reading and for making text, on another mesh than it was trained on.

    dtype: one of layers.READING_DTYPES; None: matmuls as trained. A critic is left out. Raises UserError: the model does not fit there.
    """
    matmuls = config.model.dtype if dtype in (None, "int8") else dtype
    reading = {"attention": "auto", "attention_dropout": 0.0, "remat": "none", "critic": None}
    config = config.replace(model=reading | {"dtype": matmuls})
    mesh = meshes.for_reading(config, mesh_config, devices)
    kernel, _ = attention.choose_kernel(config, devices[0].platform, mesh.shape["sequence"])
    layout = (mesh_config, mesh, kernel, config.train.vocab_chunks)
    plain = place(config.model, *layout)
    if dtype != "int8":
        return plain
    from gptjax.models import int8

    return dataclasses.replace(
        _of_parts(*int8.parts(config.model, plain.graph, plain.abstract_params), *layout), stored=plain
    )


def token_loss(params, batch: dict, *, graph, mesh_config, **options):
    """`token_loss` of the model for a batch: what predicting its tokens costs, before any weight."""
    options |= {"schedule": sharding.pipeline_schedule(mesh_config), **model_inputs(batch)}
    return nnx.merge(graph, params).token_loss(batch["token_BT"], **options)


def model_inputs(batch: dict) -> dict:
    """What the model takes of a batch beside tokens, by name, whatever there is: what keeps packed documents apart, what
    earlier tokens see, what is predicted. Arrays of tokens, [B, T], lose the last one, which is no input."""
    inputs = {}
    for name, array in batch.items():
        if name not in BESIDE_THE_INPUTS:
            of_tokens = name.endswith("_BT")
            inputs[name.removesuffix("_BT") + "_BL" * of_tokens] = array[:, :-1] if of_tokens else array
    return inputs


def weighted_loss(params, batch: dict, *, graph, mesh_config, vocab_chunks: int):
    """float32 [B, L]: nats of each token of a batch times its weight. Dropout is off."""
    loss_BL, _, _ = token_loss(params, batch, graph=graph, mesh_config=mesh_config, chunks=vocab_chunks)
    return loss_BL * batch["weight_BL"]


def eval_call(params, batch: dict, **functions):
    """(loss sum, weight sum) of each row of a batch, both [B] float32. Dropout is off."""
    return weighted_loss(params, batch, **functions).sum(-1), batch["weight_BL"].sum(-1)
