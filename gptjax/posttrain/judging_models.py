"""Numbers of answers under a model: log-probabilities of the policy or of a frozen reference, on the mesh of the run.

Axes: B answers, L tokens, T = L + 1.
"""

import dataclasses
import functools

import numpy as np

from gptjax.checkpoints import loading
from gptjax.errors import UserError
from gptjax.hosts import compiling
from gptjax.models import placed
from gptjax.parallel import placement, sharding
from gptjax.posttrain import reference, sampled
from gptjax.rundir import run_directory
from gptjax.training import branching, origins


class Judge:
    """(parameters, token_BT) -> float32 [B, L] on the host: a number of each next token, in batches of an evaluation's size.

    function(params, batch, graph=, config=, **options) gives it. program: a Placed.
    """

    def __init__(self, program: placed.Placed, config, function, **options):
        self._program, self._size = program, config.train.batch_size // config.train.microbatches
        self._function = compiling.jit(
            functools.partial(function, graph=program.graph, config=config, **options),
            in_shardings=(program.param_sharding, program.eval_batch_sharding),
            out_shardings=sharding.replicated(program.mesh),
        )

    def __call__(self, params, token_BT) -> np.ndarray:
        parts = []
        for first in range(0, len(token_BT), self._size):
            part = token_BT[first : first + self._size]
            read = lambda start, stop, part=part: {"token_BT": part[start:stop]}  # noqa: E731
            batch = placement.device_batch(read, len(part), self._program.eval_batch_sharding)
            parts.append(sharding.on_host(self._function(params, batch)))
        return np.concatenate(parts)


def logprobs(params, batch: dict, *, graph, config, sampling):
    """float32 [B, L]: in nats, of the distribution that is sampled."""
    return sampled.token_logprobs(params, batch, graph=graph, config=config, sampling=sampling)[0]


class ReferenceJudge:
    """The model that answers are not to leave (rl.reference): its log-probabilities, of the distribution that is sampled but
    for its cuts, which would give a token that it has not no probability at all.

    training: a loop.Training; step: where it stands. Raises UserError: the model cannot be read, or is another one now."""

    def __init__(self, training, step: int, sampling: sampled.Sampling):
        program, self._params = _reference_model(training, step)
        self._judge = Judge(program, training.session.config, logprobs, sampling=sampling.uncut)

    def __call__(self, token_BT) -> np.ndarray:
        """float32 [B, L]."""
        return self._judge(self._params, token_BT)


def _reference_model(training, step: int):
    """(Placed, parameters) on the mesh of the run."""
    session, peers = training.session, training.peers
    config = session.config
    if config.rl.reference == "start" and config.train.start_from is None:
        program, params = _policy_alone(config.model, session), reference.initial_params(config, session.program)
        return program, {name: params[name] for name in program.abstract_params}
    choose = _of_start if config.rl.reference == "start" else _of_run
    path, number = peers.tell("reference", choose(training, step) if peers.index == 0 else None)
    run = run_directory.open_run(path)
    program = _policy_alone(config.model if config.rl.reference == "start" else run.config().model, session)
    _, params = loading.read(run, number, "params", None, program)
    return program, params


def _of_start(training, step: int) -> tuple[str, int]:
    """The checkpoint that this run began with, or the trunk that it branched from."""
    run = training.directory
    while (branched := run.manifest().get("branched")) is not None:
        run = run_directory.open_run(branched["run"])
    return str(run.path), 0


def _of_run(training, step: int) -> tuple[str, int]:
    """The newest checkpoint that another run had when this one began. Raises UserError: there is none, it has another
    tokenizer, or is not what it was."""
    name, directory = training.session.config.rl.reference, training.directory
    about = reference.kept(directory)
    if about is None and step:
        raise UserError(f"{reference.file_of(directory)} is missing; it says what rl.reference is. Restore it.")
    if about is None:
        origin = origins.origin_of("rl.reference", name, None, directory)
        reference_run(name, training.session)
        about = {"run": str(origin.run.path), "step": origin.step, "checkpoint_sha256": branching.digest(origin)}
        reference.keep(about, directory)
    origin = branching.Origin(run_directory.open_run(about["run"]), about["step"])
    if branching.digest(origin) != about["checkpoint_sha256"]:
        raise UserError(f"rl.reference: {origin} is another checkpoint than when this run began, or gone; restore it.")
    return about["run"], about["step"]


def reference_run(path: str, session) -> run_directory.RunDirectory:
    """The run that rl.reference names. Raises UserError: there is none, or it cannot judge a session's answers."""
    run = origins.run_of("rl.reference", path)
    if run.read_tokenizer().hash != session.store.tokenizer.hash:
        raise UserError(f"rl.reference={path!r} has another tokenizer than this run; give one that has the same.")
    theirs, ours = run.config().model.context_length, session.config.model.context_length
    if theirs < ours:
        raise UserError(
            f"rl.reference={path!r} reads {theirs} tokens, and model.context_length={ours}; give one that reads as many, or set"
            f" model.context_length={theirs}."
        )
    return run


def _policy_alone(model, session) -> placed.Placed:
    """Of a ModelConfig on a session's mesh, without a critic, which would be another model in memory."""
    model = dataclasses.replace(model, critic=None)
    return placed.place(model, session.config.mesh, session.program.mesh, session.program.kernel)
