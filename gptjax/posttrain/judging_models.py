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
from gptjax.posttrain import sampled
from gptjax.rundir import run_directory
from gptjax.training import origins


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


class Reference:
    """The model that answers are not to leave (rl.reference): its log-probabilities, of the distribution that is sampled but
    for its cuts, which would give a token that it has not no probability at all."""

    def __init__(self, training, sampling: sampled.Sampling):
        self._directory = training.directory
        program, self._params = self._model(training.session)
        self._judge = Judge(program, training.session.config, logprobs, sampling=sampling.uncut)

    def __call__(self, token_BT) -> np.ndarray:
        """float32 [B, L]."""
        return self._judge(self._params, token_BT)

    def _model(self, session):
        """(Placed, parameters). Raises UserError: it cannot be read, or has another tokenizer."""
        config = session.config
        if config.rl.reference != "start":
            return _of_run(config.rl.reference, session)
        program = _policy_alone(config.model, session)
        if config.train.start_from is None:
            params = session.program.init().params
            return program, {name: params[name] for name in program.abstract_params}
        _, params = loading.read(self._directory, 0, "params", None, program)
        return program, params


def _of_run(path: str, session):
    """Of another run, at its newest checkpoint, on this mesh."""
    run = reference_run(path, session)
    program = _policy_alone(run.config().model, session)
    _, params = loading.read(run, None, "params", None, program)
    return program, params


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
