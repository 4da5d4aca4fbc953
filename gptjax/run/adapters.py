"""What can be done with the adapter of a Run: merged into its model, or another one put onto the same base.

Both give another Run; the parameters that stay are shared, not copied.
"""

import dataclasses

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.checkpoints import base as bases
from gptjax.checkpoints import loading, validity, weights
from gptjax.config import catalogue
from gptjax.config.fields import CheckpointConfig, OptimConfig, TrainConfig
from gptjax.data.chat import kinds
from gptjax.errors import UserError
from gptjax.models import int8
from gptjax.models.adapters import merging
from gptjax.parallel import numerics
from gptjax.rundir import model_directory, run_directory
from gptjax.storage import folder_kinds, outputs


def merged(run, place):
    """The Run of the same model without its adapter, whose part its matrices have taken up, in float32. place(config): the
    placed.Placed of a Config on the run's mesh. Raises UserError: it has no adapter, or one that can't be merged."""
    if run.dtype is not None:
        raise UserError(f"an adapter is merged in float32: load the run without dtype={run.dtype!r}.")
    with numerics.on_mesh(run.mesh):
        params, _ = merging.merge(run.config.model, run.params)
    config = run.config.replace(
        model={"adapter": None},
        optim={"param_dtype": "float32"},
        train={"start_from": None, "start_step": None, "trainable": None},
    )
    program = place(config)
    params = jax.tree.map(lambda leaf, at: jax.device_put(leaf, at), params, program.param_sharding)
    return dataclasses.replace(run, config=config, program=program, params=params, item="params")


def with_adapter(run, path, step: int | None, place):
    """The Run with the adapter that another run has trained on this one's parameters. Raises UserError: it has trained on
    others, or it has none."""
    if run.dtype == "int8":
        raise UserError("an adapter goes onto parameters in floats: load the run without dtype='int8'.")
    directory = run_directory.open_run(path)
    config = directory.config()
    if config.model.adapter is None:
        raise UserError(f"the run in {path} has no adapter (model.adapter=None); give one that was trained with one.")
    steps = directory.steps()
    if not steps or step not in (None, *steps):
        raise UserError(f"{path} has no checkpoint of step {step}; there are: {', '.join(map(str, steps)) or 'none'}.")
    step = steps[-1] if step is None else step
    description = validity.description(directory.checkpoints / str(step))
    trained_on, ours = bases.of(description), bases.named(run.directory.path, run.step)
    if trained_on is None or ours is None or trained_on.sha256 != ours.sha256:
        raise UserError(
            f"the adapter in {path} was trained on {trained_on or 'parameters of its own'}, and not on {ours or 'these'};"
            " load the run that it was trained on, at that step."
        )
    program = place(config)
    names = {name.removeprefix("params/") for name in description["arrays"] if name.startswith("params/")}
    chosen = lambda tree: _chosen(tree, names)  # noqa: E731
    own = dataclasses.replace(
        program, abstract_params=chosen(program.abstract_params), param_sharding=chosen(program.param_sharding)
    )
    _, params = loading.read(directory, step, "params", run.dtype, own)
    params = weights.joined(run.params, params)
    if catalogue.adapter(config.model.adapter).in_bytes:
        params = int8.with_bytes(params, program.abstract_params, program.param_sharding)
    tokenizer = directory.read_tokenizer()  # perhaps the base's with control tokens behind it
    ours = dict(directory=directory, config=config, tokenizer=tokenizer, program=program, params=params, step=step)
    return dataclasses.replace(run, **ours)


def _chosen(tree: dict, names) -> dict:
    leaves = flatten_dict(tree, sep="/")
    return unflatten_dict({name: leaf for name, leaf in leaves.items() if name in names}, sep="/")


def check_nothing_beside(run) -> None:
    """Raises UserError: the run has other parameters of its own than the adapter's, without which that computes something
    else, such as a norm that was trained too, or rows of new symbols."""
    description = validity.description(run.directory.checkpoints / str(run.step))
    started, names = run.directory.manifest().get("started_from"), description.get("arrays") or {}
    beside = [name for name in names if name.startswith("params/") and "/adapter/" not in name]
    if run.config.model.adapter is not None and started is not None and beside:
        shown = ", ".join(name.removeprefix("params/") for name in beside[:3]) + ", ..." * (len(beside) > 3)
        raise UserError(
            f"this run has parameters of its own beside its adapter ({shown}), which PEFT's files of an adapter have no place"
            " for; --to=hf writes the merged model."
        )


def write_merged(run, out: str) -> None:
    """A run directory of `Run.merged`, as gptjax import makes one. Raises UserError: the folder holds something."""
    if (kind := folder_kinds.kind_of(out)) not in (folder_kinds.MISSING, folder_kinds.EMPTY):
        not_empty = "no folder" if kind == folder_kinds.FILE else "not empty"
        raise UserError(f"--out={out} is {not_empty}: it is {folder_kinds.said(out)}; give a new directory.")
    outputs.check_folder("--out", out)
    model = run.merged()
    config = dataclasses.replace(
        model.config,
        optim=OptimConfig(),
        train=TrainConfig(steps=1, batch_size=8, tensorboard=False, loss=model.config.train.loss),
        checkpoint=CheckpointConfig(every_steps=None),
    )
    started = run.directory.manifest().get("started_from")
    files = run.directory.imported_files()
    origin = {
        "from": "adapter",
        "folder": str(run.directory.path),
        "step": run.step,
        "base": started,
        "dtype": "float32",
    }
    directory = run_directory.open_run(out)
    model_directory.write(directory, config, model.params, run.tokenizer, {"imported": origin | {"files": files}})
    if (template := kinds.of_folder(run.directory.tokenizer)) is not None:
        kinds.keep(template, directory.tokenizer)
