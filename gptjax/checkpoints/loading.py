"""Which step of a run is read, and its parameters: the same step in every process of the mesh they lie on.

The first of these processes says which steps there are; each reads its own shards, and a step that one of them finds damaged
is left out by all.
"""

import sys

import jax

from gptjax.checkpoints import validity, weights
from gptjax.errors import Damaged, UserError, first_line
from gptjax.evaluation import judging
from gptjax.hosts import coordination
from gptjax.models.layers import DTYPES


def read(directory, step: int | None, item: str, dtype: str | None, program, others: bool = False) -> tuple[int, dict]:
    """(its number, the parameters or their average) of a step of a RunDirectory; None: of the newest that is whole. others:
    as of weights.read.

    Raises UserError or Damaged, in all processes: there is none, or not this one.
    """
    peers = coordination.among(program.mesh.devices.flat)
    arguments = (
        item,
        program.abstract_params,
        program.param_sharding,
        None if dtype is None else DTYPES[dtype],
        others,
    )
    standings = validity.standings(directory.checkpoints) if peers.leads else []
    if step is not None:
        _check_asked(directory, peers, standings, step)
        return step, _read(directory.checkpoints / str(step), peers, arguments)
    known = peers.tell("steps to load", [(each.step, "" if each.counts else each.reason) for each in standings])
    for number, reason in reversed(known):
        if not reason:
            try:
                return number, _read(directory.checkpoints / str(number), peers, arguments)
            except Damaged as error:
                reason = str(error)
        if peers.leads:
            print(f"gptjax: step {number} of {directory.path} is left out: {reason}", file=sys.stderr)
    if known:
        raise UserError(f"--workdir={directory.path} has no valid checkpoint; see gptjax verify.")
    raise UserError(f"--workdir={directory.path} has no checkpoint yet; train it further.")


def from_base(base, abstract, shardings, dtype=None) -> dict:
    """The parameters of a tree that lie in a Base. Raises UserError, in all processes: it is not what it was for one."""
    peers = coordination.among(jax.tree.leaves(shardings)[0].mesh.devices.flat)
    params, reason, failure = None, "", None
    try:
        params = weights.read_base(base, abstract, shardings, dtype)
    except UserError as error:
        reason, failure = str(error), error
    if reason := peers.agree("base loaded", reason):
        raise UserError(reason) from failure
    return params


def best_step(directory, ema: bool = False) -> tuple[int, str]:
    """(the step of a RunDirectory with the best evaluation of those that have a checkpoint, how that was found). ema: of the
    averaged parameters; a run that keeps its best checkpoint says by what itself. Raises UserError: none was evaluated."""
    name = directory.best_metric(ema)
    losses = directory.held_out_losses(name)
    if not losses:
        there = ", ".join(map(str, directory.steps())) or "there is none"
        raise UserError(
            f"--step=best: metrics.jsonl has no {name} for any step with a checkpoint ({there}); give a step, or compute the"
            " missing evaluations with gptjax eval --catch_up."
        )
    best = judging.best_step(name, losses)
    among = f"of {len(losses)} evaluated {'steps' if len(losses) > 1 else 'step'} with a checkpoint"
    return (
        best,
        f"the {'lowest' if judging.falls(name) else 'highest'} held-out {name} in metrics.jsonl, {losses[best]:.4f}, {among}",
    )


def _read(folder, peers, arguments):
    """The parameters in a folder. Raises Damaged, in all processes, if they are so for one; likewise anything else."""
    params, failure = None, None
    try:
        if not folder.exists():
            raise Damaged("it is not there")
        params = weights.read(folder, *arguments)
    except Exception as error:
        failure = error
    damaged = isinstance(failure, Damaged)
    if reason := peers.agree("loaded", "" if failure is None or damaged else first_line(failure)):
        raise failure if failure is not None and not damaged else UserError(reason)
    if reason := peers.agree("loaded whole", str(failure) if damaged else ""):
        raise Damaged(f"checkpoint {folder} is damaged: {reason}; see gptjax verify.") from failure
    return params


def _check_asked(directory, peers, standings, step: int) -> None:
    """Raises, in all processes, UserError: the step is not there; Damaged: it is not as it was written."""
    counting = [standing.step for standing in standings if standing.counts]
    there = ", ".join(map(str, counting)) or "none"
    bad = [standing for standing in standings if standing.step == step and step not in counting]
    why = f" that counts: it is {bad[0].state} ({bad[0].reason})" if bad else ""
    refused = f"{directory.checkpoints} has no checkpoint of step {step}{why}; there are: {there}."
    is_damaged, refused = peers.tell("step to load", [bool(bad), "" if step in counting else refused])
    if refused:
        raise (Damaged if is_damaged else UserError)(refused)
