"""A run that starts from the parameters of another: `train.start_from`, a run directory or one that was imported.

It takes parameters alone: its step is 0, its optimizer, text and schedule are its own, on any mesh. What it takes is settled
before the first step and refused by name where it cannot be meant:

    step        train.start_step: a number, "best" (the lowest held-out loss that has a checkpoint), None: the newest
    tokenizer   the same, or that with special symbols added behind it, whose rows new_symbols.py makes: other tokens under
                the same numbers would be another language
    parameters  of the same names and shapes; those that the other run does not have, such as a head, are initialised
                from train.seed and listed; those that this model has no place for are refused

The parameters become the run's own first checkpoint, of step 0, so that it does not need the other run any more; but for
those that a run with an adapter (model.adapter) keeps frozen, which stay where they are (checkpoints/base.py). Where they
came from stands in manifest.json under "started_from". To go on with a run's steps instead: branching.py.
"""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.checkpoints import base, consistency, loading
from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.evaluation import judging
from gptjax.models import int8
from gptjax.rundir import run_directory
from gptjax.storage import folder_kinds
from gptjax.training import new_symbols, trainable
from gptjax.training.branching import Origin, config_at, digest

SHOWN = 5  # names of parameters in a line


def lineage(directory, config, store, abstract_params: dict) -> dict:
    """{"started_from": {...}} for the manifest of a run whose config names another; {} for one that has begun without.

    A run that has no checkpoint yet, since it was killed before, is checked anew. Raises UserError: it cannot start there.
    """
    known = directory.manifest().get("started_from") if directory.exists() else None
    if directory.steps():
        return {} if known is None else {"started_from": known}
    origin = _origin(config.train, directory)
    values = json.dumps(config_at(origin).to_dict(), sort_keys=True, separators=(",", ":"))
    theirs = origin.run.manifest()
    symbols = _added_symbols(origin, theirs, store.tokenizer)
    before, now = ({"model": dataclasses.asdict(each.model)} for each in (config_at(origin), config))
    model = consistency.differences(consistency.as_json(before), consistency.as_json(now))
    vocab_dims = new_symbols.axes(config.model) if symbols else {}
    initialised = _initialised(origin, abstract_params, model, vocab_dims)
    started = {
        "run": str(origin.run.path),
        "step": origin.step,
        "run_id": theirs.get("run_id"),
        "config_sha256": hashlib.sha256(values.encode()).hexdigest(),
        "checkpoint_sha256": digest(origin),
        "initialised": initialised,
        "model": model,
        "trunk": theirs.get("started_from"),
    }
    if files := origin.run.imported_files():
        started["imported_files"] = files  # for exports of this run, wherever the other one will be
    if symbols:
        _check_learnt(origin, symbols, vocab_dims, config)
        started["symbols"] = {
            "names": list(symbols),
            "first": store.tokenizer.vocab_size - len(symbols),
            "shapes": {name: shape for name, shape in _their_shapes(origin).items() if name in vocab_dims},
        }
    return {"started_from": started}


def _refused(origin: str, why: str, mend: str) -> UserError:
    return UserError(f"this run cannot start from {origin}: {why}; {mend}.")


def _origin(train, directory) -> Origin:
    """The checkpoint that a TrainConfig names. Raises UserError: there is none."""
    run = run_directory.open_run(train.start_from)
    if run.path == directory.path:
        raise UserError(f"train.start_from={train.start_from!r} is --workdir itself; give another run, or None.")
    if folder_kinds.kind_of(run.path) != folder_kinds.RUN:
        raise UserError(
            f"train.start_from={train.start_from!r} is not a run directory: it is {folder_kinds.said(run.path)}; give that of"
            " a run, or of a model that gptjax import has made one of."
        )
    try:
        run.config()  # these files are of one run
        run.read_tokenizer()
    except UserError as error:
        raise _refused(train.start_from, str(error).rstrip("."), "repair that run") from error
    steps = run.steps()
    if not steps:
        raise _refused(train.start_from, "it has no checkpoint", "train it further, or give another run")
    if train.start_step is None:
        return Origin(run, steps[-1])
    if train.start_step == "best":
        return Origin(run, best_step(run, train.start_from))
    step = bounds.whole_number(train.start_step)
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise _refused(train.start_from, f"it has no checkpoint of train.start_step={step}", f"there are: {there}")
    return Origin(run, step)


def best_step(run: run_directory.RunDirectory, name: str) -> int:
    """The step of the lowest held-out loss that was logged, or of the best by checkpoint.keep_best of that run, of those
    with a checkpoint. Raises UserError: none of them has one."""
    metric = run.best_metric()
    losses = run.held_out_losses(metric)
    if not losses:
        raise _refused(
            name,
            "train.start_step='best' needs an evaluation on held-out text, and none of its checkpoints has one",
            "give a step, or None",
        )
    return judging.best_step(metric, losses)


def _added_symbols(origin: Origin, theirs: dict, tokenizer) -> tuple[str, ...]:
    """Special symbols that our tokenizer has behind the other run's. Raises UserError: it is another tokenizer."""
    if theirs.get("tokenizer_hash") == tokenizer.hash:
        return ()
    there = origin.run.read_tokenizer()
    symbols = new_symbols.added(there, tokenizer)
    if symbols is None:
        raise _refused(
            str(origin),
            f"its tokenizer differs ({there.kind}, {there.vocab_size:,} entries, {there.hash[:12]}; here {tokenizer.kind},"
            f" {tokenizer.vocab_size:,} entries, {tokenizer.hash[:12]})",
            f"set data.tokenizer={origin.run.tokenizer}",
        )
    return symbols


def _check_learnt(origin: Origin, symbols: tuple[str, ...], vocab_dims: dict, config) -> None:
    """Raises UserError: their rows, which start alike, would stay alike, so that the end of an answer had the probability of
    every other control token for ever."""
    names = sorted(flatten_dict(trainable.split(dict.fromkeys(vocab_dims), config)[1], sep="/"), reverse=True)
    if config.data.chat is not None and names:
        raise _refused(
            str(origin),
            f"the rows of {listed(list(symbols))} in {' and '.join(names)} start alike and are frozen",
            f"set train.trainable={', '.join([*trainable.patterns_of(config), *names])!r}, or a data.chat whose control tokens"
            " its tokenizer has",
        )


def _their_shapes(origin: Origin) -> dict[str, tuple[int, ...]]:
    """Of the other run's parameters; {}: its checkpoint is of schema 1, which does not say."""
    known = base.arrays(origin.run.checkpoints / str(origin.step)) or {}
    return {name.removeprefix("params/"): tuple(about["shape"]) for name, about in known.items() if _is_param(name)}


def _initialised(origin: Origin, abstract_params: dict, model: dict, vocab_dims: dict) -> list[str]:
    """Names of our parameters that the other run does not have. Raises UserError: it has others, or of other shapes, but for
    those of vocab_dims, which may have fewer rows."""
    theirs = _their_shapes(origin)
    if not theirs:  # the same names, as reading it will see
        return []
    ours = {name: leaf.shape for name, leaf in flatten_dict(int8.in_floats(abstract_params), sep="/").items()}
    differing = f" ({consistency.shown(model)})" if model else ""
    others = [f"{name} has shape {theirs[name]} there and {ours[name]} here"
              for name in ours if name in theirs and theirs[name] != ours[name]
              and not new_symbols.may_grow(name, theirs[name], ours[name], vocab_dims)]  # fmt: skip
    if others:
        raise _refused(str(origin), f"{listed(others)}{differing}", "use the same shapes for this model")
    homeless = sorted(theirs.keys() - ours.keys())
    if homeless:
        adapted = any("/adapter/" in f"/{name}" for name in homeless)
        mend = "merge its adapter first (gptjax adapter merge)" if adapted else "add those parts to this model"
        raise _refused(str(origin), f"this model has no {listed(homeless)}{differing}", mend)
    return sorted(ours.keys() - theirs.keys())


def _scales(abstract_params: dict) -> set[str]:
    """Names of what is made of the other's parameters where ours are in bytes."""
    return {"/".join(path) for path in int8.scales_in(abstract_params)}


def _is_param(name: str) -> bool:
    return name.startswith("params/")


def listed(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


# ---- the beginning of such a run


def begin(started: dict, config, program, keeper):
    """The state that a run starts with, saved as its first checkpoint. started: of its manifest. Returns a resume.Resumed."""
    from gptjax.training.resume import Resumed

    symbols = started.get("symbols") or {"shapes": {}, "first": 0}
    names = flatten_dict(program.abstract_params, sep="/").keys() - set(started["initialised"])
    taken, places = (
        unflatten_dict({name: leaf for name, leaf in flatten_dict(tree, sep="/").items() if name in names}, sep="/")
        for tree in (new_symbols.with_their_shapes(program.abstract_params, symbols["shapes"]), program.param_sharding)
    )
    scales = _scales(taken)
    origin = dataclasses.replace(
        program, abstract_params=int8.in_floats(taken), param_sharding=_without(places, scales)
    )
    state = program.init()
    run = run_directory.open_run(started["run"])
    _, params = loading.read(run, started["step"], "params", config.optim.param_dtype, origin)
    params = new_symbols.grown(params, symbols["shapes"], symbols["first"], program, config.model)
    params = int8.with_bytes(params, taken, places) if scales else params
    params = unflatten_dict(flatten_dict(state.params, sep="/") | flatten_dict(params, sep="/"), sep="/")
    ema = None if state.ema is None else jax.tree.map(lambda p, a: jnp.copy(p.astype(a.dtype)), params, state.ema)
    state = state._replace(params=params, ema=ema)
    keeper.frozen = _frozen(started, config, names - symbols["shapes"].keys())
    data = {"batch_hash": f"{0:016x}", "rows_read": 0}
    keeper.save(state, 0, last=True, **data)
    return Resumed(0, state, data, said(started))


def _without(tree: dict, names: set[str]) -> dict:
    leaves = flatten_dict(tree, sep="/")
    return unflatten_dict({name: leaf for name, leaf in leaves.items() if name not in names}, sep="/")


def _frozen(started: dict, config, taken):
    """The frozen.Frozen that a run with an adapter leaves in the other: of the parameters it has taken, all that it does not
    train; None for a run without."""
    from gptjax.training.frozen import Frozen

    if config.model.adapter is None or started["checkpoint_sha256"] is None:
        return None
    names = {name for name in taken if trainable.chosen(name, config) is False}
    of_base = base.Base(started["run"], started["step"], started["checkpoint_sha256"])
    return Frozen(of_base, frozenset(names)) if names else None


def said(started: dict) -> str:
    """Of a run that starts so, for people."""
    line = f"starts from the parameters of step {started['step']} of {started['run']}"
    if symbols := started.get("symbols"):
        line += f"; new symbols, as the mean of its {symbols['first']:,}: {listed(symbols['names'])}"
    if started["initialised"]:
        line += f"; newly initialised: {listed(started['initialised'])}"
    if started["model"]:
        line += f"; differing in the model: {consistency.shown(started['model'])}"
    return line
