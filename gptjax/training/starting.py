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

from gptjax.checkpoints import base, consistency, loading, weights
from gptjax.models import int8
from gptjax.rundir import run_directory
from gptjax.training import new_symbols, trainable
from gptjax.training.branching import Origin, config_at, digest
from gptjax.training.origins import listed, origin_of, refused, shapes_of


def lineage(directory, config, store, abstract_params: dict) -> dict:
    """{"started_from": {...}} for the manifest of a run whose config names another; {} for one that has begun without.

    A run that has no checkpoint yet, since it was killed before, is checked anew. Raises UserError: it cannot start there.
    """
    known = directory.manifest().get("started_from") if directory.exists() else None
    if directory.steps():
        return {} if known is None else {"started_from": known}
    origin = origin_of("train.start_from", config.train.start_from, config.train.start_step, directory)
    started = described(origin, config, store, abstract_params)
    if config.train.critic_from is not None:
        from gptjax.training import critic_start

        started |= critic_start.lineage(config, directory, store.tokenizer, abstract_params)
        taken = started["critic"]["taken"]
        started["initialised"] = [name for name in started["initialised"] if name not in taken]
    return {"started_from": started}


def described(origin: Origin, config, store, abstract_params: dict) -> dict:
    """What `parameters` needs to know of a checkpoint whose parameters a Config takes, as JSON values. Raises UserError: they
    are of another tokenizer or model."""
    values = json.dumps(config_at(origin).to_dict(), sort_keys=True, separators=(",", ":"))
    theirs = origin.run.manifest()
    symbols = _added_symbols(origin, theirs, store.tokenizer)
    before, now = ({"model": dataclasses.asdict(each.model)} for each in (config_at(origin), config))
    model = consistency.differences(consistency.as_json(before), consistency.as_json(now))
    vocab_dims = new_symbols.axes(config.model) if symbols else {}
    started = {
        "run": str(origin.run.path),
        "step": origin.step,
        "run_id": theirs.get("run_id"),
        "config_sha256": hashlib.sha256(values.encode()).hexdigest(),
        "checkpoint_sha256": digest(origin),
        "initialised": _initialised(origin, abstract_params, model, vocab_dims),
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
            "shapes": {name: shape for name, shape in shapes_of(origin).items() if name in vocab_dims},
        }
    return started


def _added_symbols(origin: Origin, theirs: dict, tokenizer) -> tuple[str, ...]:
    """Special symbols that our tokenizer has behind the other run's. Raises UserError: it is another tokenizer."""
    if theirs.get("tokenizer_hash") == tokenizer.hash:
        return ()
    there = origin.run.read_tokenizer()
    symbols = new_symbols.added(there, tokenizer)
    if symbols is None:
        raise refused(
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
        raise refused(
            str(origin),
            f"the rows of {listed(list(symbols))} in {' and '.join(names)} start alike and are frozen",
            f"set train.trainable={', '.join([*trainable.patterns_of(config), *names])!r}, or a data.chat whose control tokens"
            " its tokenizer has",
        )


def _initialised(origin: Origin, abstract_params: dict, model: dict, vocab_dims: dict) -> list[str]:
    """Names of our parameters that the other run does not have. Raises UserError: it has others, or of other shapes, but for
    those of vocab_dims, which may have fewer rows."""
    theirs = shapes_of(origin)
    if not theirs:  # the same names, as reading it will see
        return []
    ours = {name: leaf.shape for name, leaf in flatten_dict(int8.in_floats(abstract_params), sep="/").items()}
    differing = f" ({consistency.shown(model)})" if model else ""
    others = [f"{name} has shape {theirs[name]} there and {ours[name]} here"
              for name in ours if name in theirs and theirs[name] != ours[name]
              and not new_symbols.may_grow(name, theirs[name], ours[name], vocab_dims)]  # fmt: skip
    if others:
        raise refused(str(origin), f"{listed(others)}{differing}", "use the same shapes for this model")
    homeless = sorted(name for name in theirs.keys() - ours.keys() if not weights.is_of_critic(name))
    if homeless:
        adapted = any("/adapter/" in f"/{name}" for name in homeless)
        headed = all(name.startswith("task_head/") for name in homeless)
        mend = "merge its adapter first (gptjax adapter merge)" if adapted else "add those parts to this model"
        mend = "give a run without a head, such as the one that it started from" if headed else mend
        raise refused(str(origin), f"this model has no {listed(homeless)}{differing}", mend)
    return sorted(ours.keys() - theirs.keys())


def _scales(abstract_params: dict) -> set[str]:
    """Names of what is made of the other's parameters where ours are in bytes."""
    return {"/".join(path) for path in int8.scales_in(abstract_params)}


# ---- the beginning of such a run


def begin(started: dict, config, program, keeper):
    """The state that a run starts with, saved as its first checkpoint. started: of its manifest. Returns a resume.Resumed."""
    from gptjax.training.resume import Resumed

    state = program.init()
    params = parameters(started, config, program, state.params)
    if critic := started.get("critic"):
        from gptjax.training import critic_start

        params = critic_start.with_critic(params, critic, config, program)
    ema = None if state.ema is None else jax.tree.map(lambda p, a: jnp.copy(p.astype(a.dtype)), params, state.ema)
    state = state._replace(params=params, ema=ema)
    symbols = started.get("symbols") or {"shapes": {}}
    keeper.frozen = _frozen(started, config, _taken(started, program) - symbols["shapes"].keys())
    data = {"batch_hash": f"{0:016x}", "rows_read": 0}
    keeper.save(state, 0, last=True, **data)
    return Resumed(0, state, data, said(started))


def parameters(started: dict, config, program, initialised: dict) -> dict:
    """Those of the other run, on the program's mesh, and of `initialised` those that it does not have. started: as `described`
    gives it. Raises UserError or Damaged, in all processes: they cannot be read."""
    symbols = started.get("symbols") or {"shapes": {}, "first": 0}
    names = _taken(started, program)
    taken, places = (
        unflatten_dict({name: leaf for name, leaf in flatten_dict(tree, sep="/").items() if name in names}, sep="/")
        for tree in (new_symbols.with_their_shapes(program.abstract_params, symbols["shapes"]), program.param_sharding)
    )
    scales = _scales(taken)
    origin = dataclasses.replace(
        program, abstract_params=int8.in_floats(taken), param_sharding=_without(places, scales)
    )
    run = run_directory.open_run(started["run"])
    _, params = loading.read(run, started["step"], "params", config.optim.param_dtype, origin)
    params = new_symbols.grown(params, symbols["shapes"], symbols["first"], program, config.model)
    params = int8.with_bytes(params, taken, places) if scales else params
    return unflatten_dict(flatten_dict(initialised, sep="/") | flatten_dict(params, sep="/"), sep="/")


def _taken(started: dict, program) -> set[str]:
    """Names of our parameters that are the other run's."""
    ours = flatten_dict(program.abstract_params, sep="/").keys()
    return ours - {*started["initialised"]} - started.get("critic", {}).get("taken", {}).keys()


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
    if critic := started.get("critic"):
        from gptjax.training import critic_start

        line += critic_start.said(critic)
    if started["initialised"]:
        line += f"; newly initialised: {listed(started['initialised'])}"
    if started["model"]:
        line += f"; differing in the model: {consistency.shown(started['model'])}"
    return line
