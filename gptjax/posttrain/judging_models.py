"""Numbers of answers under a model: log-probabilities of the policy or of a frozen reference, on the mesh of the run.

Axes: B answers, L tokens, T = L + 1.
"""

import functools
import typing

import jax
import numpy as np

from gptjax.checkpoints import loading
from gptjax.errors import UserError
from gptjax.hosts import compiling
from gptjax.models import placed
from gptjax.parallel import placement, sharding
from gptjax.posttrain import sampled
from gptjax.rundir import run_directory


class Judge:
    """(parameters, token_BT) -> float32 [B, L] on the host: log-probabilities in nats of each next token, as a Sampling has
    them, in batches of the evaluation's size. program: a Placed; size: answers at a time."""

    def __init__(self, program: placed.Placed, config, sampling: sampled.Sampling, size: int):
        self._program, self._size = program, size
        function = functools.partial(_logprobs, graph=program.graph, config=config, sampling=sampling)
        self._logprobs = in_batches(program, function)

    def __call__(self, params, token_BT) -> np.ndarray:
        return by_parts(self._logprobs, params, {"token_BT": token_BT}, self._size, self._program.eval_batch_sharding)


def _logprobs(params, batch: dict, **options):
    return sampled.token_logprobs(params, batch, **options)[0]


def in_batches(program: placed.Placed, function) -> typing.Callable:
    """function(params, batch) compiled for the mesh of a program, its result whole on every device."""
    return compiling.jit(
        function,
        in_shardings=(program.param_sharding, program.eval_batch_sharding),
        out_shardings=sharding.replicated(program.mesh),
    )


def by_parts(function, params, batch: dict, size: int, layout) -> np.ndarray:
    """What function gives for a batch of NumPy arrays, so many rows at a time."""
    rows = len(next(iter(batch.values())))
    parts = []
    for first in range(0, rows, size):
        part = {name: array[first : first + size] for name, array in batch.items()}
        read = lambda start, stop, part=part: {name: array[start:stop] for name, array in part.items()}  # noqa: E731
        parts.append(function(params, placement.device_batch(read, min(size, rows - first), layout)))
    return np.concatenate([sharding.on_host(part) for part in parts])


class Reference:
    """The model that answers are not to leave (rl.reference): its log-probabilities, of the distribution that is sampled but
    for its cuts, which would give a token that it has not no probability at all."""

    def __init__(self, training, sampling: sampled.Sampling):
        session = training.session
        self._config, self._directory = session.config, training.directory
        self._program, self._params = self._model(session)
        size = session.config.train.batch_size // session.config.train.microbatches
        self._judge = Judge(self._program, self._config, sampling.uncut, size)

    def __call__(self, token_BT) -> np.ndarray:
        """float32 [B, L]."""
        return self._judge(self._params, token_BT)

    def _model(self, session):
        """(Placed, parameters). Raises UserError: it cannot be read, or has another tokenizer."""
        config = session.config
        if config.rl.reference != "start":
            return _of_run(config.rl.reference, session)
        if config.train.start_from is None:
            return session.program, session.program.init().params
        _, params = loading.read(self._directory, 0, "params", None, session.program)
        return session.program, params


def _of_run(path: str, session):
    """Of another run, at its newest checkpoint, on this mesh."""
    run = run_directory.open_run(path)
    config = run.config()
    if run.read_tokenizer().hash != session.store.tokenizer.hash:
        raise UserError(f"rl.reference={path!r} has another tokenizer than this run; give one that has the same.")
    program = placed.place(config.model, session.config.mesh, session.program.mesh, session.program.kernel)
    _, params = loading.read(run, None, "params", None, program)
    return program, params
