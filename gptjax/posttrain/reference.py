"""The reference of a loss of preferences: which parameters it is, and the log-probabilities of all answers under them.

They are computed once, before the first step, on the run's mesh, and kept in its folder `reference/`:

    parameters.json   which parameters: of which checkpoint, or of which initialisation
    KEY.npy           float32 [E, K], nats, of a set of E examples; KEY is a hash of parameters, model and tokens

and in data.cache_dir, where other runs with the same reference find them. A run whose adapter is new needs no file: its
reference is the model with the adapter off, which the loss computes as it goes (answers.py).
"""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import time
import typing

import jax
import numpy as np

from gptjax.data.tokens.cache import cache_folder
from gptjax.data.tokens.folder import digest
from gptjax.errors import UserError
from gptjax.hosts import compiling
from gptjax.optim import rounding
from gptjax.parallel import placement, sharding
from gptjax.posttrain import answers
from gptjax.rundir import run_directory
from gptjax.storage.writing import replace_whole
from gptjax.training import origins, starting
from gptjax.training.step import init_state

FOLDER, PARAMETERS = "reference", "parameters.json"
SECONDS = 10  # that a network disk may take to show a new file


# ---- which parameters


def chosen(config, session, directory, step: int) -> dict | None:
    """What parameters.json says: {"started_from": of starting.described} or {"initialised": seed}; None: the reference is the
    model with its adapter off. A run that has chosen before keeps its choice.

    Raises UserError: train.reference names a run that cannot be one; a run that is under way has lost its choice.
    """
    if (before := kept(directory)) is not None:
        return before
    if step and config.train.reference is not None:
        raise UserError(f"{file_of(directory)} is missing; it says what the reference is. Restore it.")
    manifest = directory.manifest()
    if config.train.reference is not None:
        origin = origins.origin_of("train.reference", config.train.reference, None, directory)
        started = starting.described(origin, config, session.store, session.program.abstract_params)
        return {"started_from": started}
    started = manifest.get("started_from")
    if config.model.adapter is not None and (started is None or any("adapter" in n for n in started["initialised"])):
        return None
    return {"initialised": config.train.seed} if started is None else {"started_from": started}


def kept(directory) -> dict | None:
    """What was chosen before, by this run or by the trunk that it branched from."""
    file = file_of(directory)
    if file.exists():
        return json.loads(file.read_text())
    branched = directory.manifest().get("branched")
    return None if branched is None else kept(run_directory.open_run(branched["run"]))


def file_of(directory):
    """The path of a run's parameters.json."""
    return directory.path / FOLDER / PARAMETERS


def keep(about: dict, directory) -> None:
    """Writes parameters.json into the folder of a run, unless it is there."""
    file = file_of(directory)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(file, json.dumps(about, indent=2) + "\n")


def parameters(about: dict, config, program) -> dict:
    """The reference's, on the program's mesh. about: as `chosen` gives it."""
    started = about.get("started_from")
    initial = initial_params(config, program) if started is None or started["initialised"] else {}
    return initial if started is None else starting.parameters(started, config, program, initial)


def initial_params(config, program) -> dict:
    """Those that a run starts with that starts from nothing."""
    initialise = compiling.jit(lambda: init_state(config, program.kernel).params, out_shardings=program.param_sharding)
    return initialise()


def _identity(about: dict, config) -> dict:
    """JSON values that say the same of the same parameters, wherever they lie."""
    started = about.get("started_from")
    if started is None:
        return about
    names = ("checkpoint_sha256", "symbols")
    if started["checkpoint_sha256"] is None:
        names += ("run", "run_id", "step")
    initialised = {"initialised": started["initialised"], "seed": config.train.seed} if started["initialised"] else {}
    return {name: started.get(name) for name in names} | initialised


# ---- log-probabilities under them


@dataclasses.dataclass(frozen=True)
class ReferenceLogprobs:
    """about: of `chosen`; folder: of the run; peers: the processes of the mesh."""

    about: dict
    config: typing.Any
    program: typing.Any  # a placed.Placed
    folder: typing.Any
    peers: typing.Any
    should_stop: typing.Callable = lambda: False
    keeps: bool = True  # whether what is computed is written into the run's folder too, by process 0

    def attach(self, rows) -> str | None:
        """Gives each example of a TrainPairs or EvalPairs its log-probabilities. Returns where they are from, for people; None:
        should_stop() said so."""
        file = f"{self.key(rows.examples)}.npy"
        where = self.peers.tell("reference found", self._found(file) if self.peers.leads else None)
        content = self._read(file) if where else self._computed(rows)
        if content is None:
            return None
        if not where and self.peers.leads:
            self._write(file, content)
        logprob_EK = np.load(io.BytesIO(content))
        rows.replace(
            [
                example._replace(reference_K=logprob_K[: len(example.sequences)])
                for example, logprob_K in zip(rows.examples, logprob_EK)
            ]
        )
        return where or "computed"

    def key(self, examples: list) -> str:
        """Of a set of examples under these parameters."""
        sha = hashlib.sha256()
        for example in examples:
            for token_T, is_target_T in zip(example.sequences, example.targets):
                sha.update(json.dumps([len(token_T), len(example.sequences)]).encode())
                sha.update(np.ascontiguousarray(token_T, np.int32).tobytes())
                sha.update(np.ascontiguousarray(is_target_T, bool).tobytes())
        values = {"examples": sha.hexdigest(), "model": dataclasses.asdict(self.config.model)}
        return digest(values | _identity(self.about, self.config))[:32]

    # ---- files

    @property
    def _cache(self) -> pathlib.Path:
        return cache_folder(self.config.data) / FOLDER

    def _found(self, file: str) -> str:
        """Where it is, "" if nowhere; from the cache it is taken into the run's folder."""
        if (self.folder / file).exists():
            return str(self.folder / file)
        if not (self._cache / file).exists():
            return ""
        if self.keeps or self.peers.count > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_whole(self.folder / file, (self._cache / file).read_bytes())
        return str(self._cache / file)

    def _read(self, file: str) -> bytes:
        """Raises UserError: this process does not see what process 0 sees."""
        deadline = time.monotonic() + SECONDS
        while not any((folder / file).exists() for folder in (self.folder, self._cache)):
            if time.monotonic() > deadline:
                raise UserError(f"{self.folder / file} is not seen here; put the run on a disk that all hosts share.")
            time.sleep(0.2)
        path = self.folder / file
        return (path if path.exists() else self._cache / file).read_bytes()

    def _write(self, file: str, content: bytes) -> None:
        for folder in (self.folder, self._cache) if self.keeps else (self._cache,):
            folder.mkdir(parents=True, exist_ok=True)
            replace_whole(folder / file, content)

    # ---- computing

    def _computed(self, rows) -> bytes | None:
        """An .npy file of float32 [E, K]. None: should_stop() said so."""
        program, size = self.program, self.config.eval_batch_size
        params = rounding.widen(parameters(self.about, self.config, program))
        compute = compiling.jit(
            functools.partial(answers.logprobs, graph=program.graph, config=self.config),
            in_shardings=(program.param_sharding, program.eval_batch_sharding),
            out_shardings=sharding.replicated(program.mesh),
        )
        parts = []
        for first in range(0, len(rows.examples), size):
            if self.should_stop():
                return None
            read = functools.partial(_batch, rows, first)
            batch = placement.device_batch(read, size, program.eval_batch_sharding)
            parts.append(jax.device_get(compute(params, batch)))
        file = io.BytesIO()
        np.save(file, np.concatenate(parts)[: len(rows.examples)])
        return file.getvalue()


def _batch(rows, first: int, start: int, stop: int) -> dict[str, np.ndarray]:
    last = len(rows.examples) - 1
    batch = rows.batch([rows.examples[min(first + i, last)] for i in range(start, stop)])
    return {name: batch[name] for name in ("token_BKT", "weight_BKL")}
