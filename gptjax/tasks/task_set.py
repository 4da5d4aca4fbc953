"""Evaluation on tasks of lm-evaluation-harness, zero-, one- and few-shot: values with standard errors, as plain numbers.

Shots are drawn as lm-eval draws them, with the seeds it has by default. A mean's standard error is that of a mean, a
perplexity's follows from it by the delta method, that of a weighted mean (perplexity of words and bytes, bits per byte)
is a ratio's over documents, and of anything else the spread over 100 resamplings of the documents, also where lm-eval has
none. lm-eval would fork processes for those, after JAX has started threads; here it does not.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import random
import sys
import threading
import time
import traceback
import typing

import numpy as np

from gptjax.errors import UserError, shorten
from gptjax.tasks import task_files
from gptjax.tasks.task import Sampled, TaskFailed
from gptjax.terminal import columns

RANDOM_SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234  # lm-eval's own defaults
RESAMPLINGS = 100


class Row(typing.NamedTuple):
    task: str  # or group of tasks
    shots: int
    metric: str
    filter: str  # lm-eval's name of how the answer was taken from what the model said; mostly "none"
    value: float
    standard_error: float | None  # None: of one document, or what cannot be computed of a part of them
    samples: int  # documents
    higher_is_better: bool | None

    @property
    def name(self) -> str:
        """TASK/METRIC, with what else is needed to tell it from other rows of its kind."""
        return f"{self.task}/{self.metric}" + f",{self.filter}" * (self.filter != "none")


@dataclasses.dataclass(frozen=True)
class TaskResults:
    rows: list[Row]
    seconds: float
    notes: list[str]  # what a reader should know of how they came about
    lm_eval: list[dict]  # for each number of shots what lm-eval itself says, less documents and configs

    def as_dict(self) -> dict:
        """Plain values, ready for JSON."""
        seeds = {"random": RANDOM_SEED, "numpy": NUMPY_SEED, "fewshot": FEWSHOT_SEED}
        rows = [row._asdict() for row in self.rows]
        return {"tasks": rows, "seconds": self.seconds, "seeds": seeds, "notes": self.notes, "lm_eval": self.lm_eval}


class TaskSet:
    """Tasks with their data, loaded once and evaluated as often as asked for.

    specs: see `task_files.select`. Raises UserError as that and `task_files.load` do.
    """

    def __init__(self, specs: list[str], limit: int | None = None, sampled: Sampled | None = None):
        if limit is not None and limit < 1:
            raise UserError(f"a limit of {limit} documents is too small; use at least 1.")
        selection = task_files.select(specs)
        self.limit = limit
        with _quiet() as self.notes, _seeded():
            self._loaded = task_files.load(selection, sampled)
        self._own_shots = {name: task.get_config("num_fewshot") for name, task in self._loaded["tasks"].items()}

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Of the documents of each task, by which processes know that they ask the same."""
        found = {}
        for name, task in self._loaded["tasks"].items():
            digest = hashlib.sha256()
            for document in itertools.islice(task.eval_docs, self.limit):
                digest.update(json.dumps(document, sort_keys=True, default=str).encode())
            found[name] = digest.hexdigest()
        return found

    def evaluate(self, lm, shots: tuple[int | None, ...] = (None,)) -> TaskResults:
        """Of a `harness.GptjaxLM`, for each number of shots. None: as many as a task's file says, or none.

        A task whose file says 0 shots keeps them, as lm-eval has it. Raises UserError: too few examples for the shots;
        TaskFailed, which is one: lm-eval cannot evaluate them.
        """
        started, results, cut, parted = time.monotonic(), [], lm.truncated, lm.in_windows
        with _quiet() as notes:
            for number in shots:
                results.append(self._evaluate(lm, number))
        notes = list(dict.fromkeys([*self.notes, *notes]))
        if lm.truncated > cut:
            notes.append(f"{lm.truncated - cut:,} requests were longer than the context and cut from the left")
        if lm.in_windows > parted:
            notes.append(f"{lm.in_windows - parted:,} continuations were longer than the context and scored in windows")
        rows = list(dict.fromkeys(row for result in results for row in _rows(result)))
        return TaskResults(rows, time.monotonic() - started, notes, [_plain(_reduced(result)) for result in results])

    def _evaluate(self, lm, shots: int | None) -> dict:
        """lm-eval's results, with our standard errors."""
        from lm_eval.evaluator import evaluate

        self._set_shots(shots)
        with _seeded(), _environment(DISABLE_MULTIPROC="1", LOCAL_RANK="0"):
            with _lm_eval_errors(f"--tasks={','.join(self._own_shots)}, {_shown(shots)}"):
                results = evaluate(lm, self._loaded, limit=self.limit, bootstrap_iters=RESAMPLINGS, log_samples=True)
        with _quiet():
            for name, task in self._loaded["tasks"].items():
                _mend_standard_errors(task, results["results"][name], results["samples"][name])
            for name, group in self._loaded["groups"].items():  # from those of their tasks
                if name in results["results"]:
                    results["results"][name].update(group.aggregate(results["results"]))
        return results

    def _set_shots(self, shots: int | None) -> None:
        for name, task in self._loaded["tasks"].items():
            own = self._own_shots[name]
            number = own or 0 if shots is None or own == 0 else shots
            if number and hasattr(task, "sampler") and number > (there := len(task.sampler.fewshot_docs())):
                raise UserError(
                    f"the task {name!r} has {there} examples to draw {number} shots from; use at most {there}."
                )
            task.set_config("num_fewshot", number)
            task.set_fewshot_seed(FEWSHOT_SEED)

    def check(self, dry_lm, shots: int | None) -> None:
        """Asks a `harness.DryLM` all there is to ask. Raises UserError: what cannot be asked of such a model."""
        self._set_shots(shots)
        with _quiet(), _seeded():
            for name, task in self._loaded["tasks"].items():
                with _lm_eval_errors(f"--tasks={name}, {_shown(shots)}"):
                    task.build_all_requests(limit=self.limit, rank=0, world_size=1)
                    for kind in {instance.request_type for instance in task.instances}:
                        getattr(dry_lm, kind)([i for i in task.instances if i.request_type == kind])


@contextlib.contextmanager
def _lm_eval_errors(what: str):
    """What goes wrong in lm-eval, as TaskFailed, which names the metric it was in; what goes wrong in our own code below
    it stays what it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
        if [name for name in packages if name in ("gptjax", "lm_eval")][-1] == "gptjax":
            raise
        raise TaskFailed(f"{what}: {_metric_of(frames)}{type(error).__name__}: {shorten(str(error))}") from error


def _metric_of(frames) -> str:
    """Of which metric lm-eval was making one number when it failed, in words; nothing where it was not."""
    for names in (frame.f_locals for frame in frames if frame.f_code.co_name == "_compute_task_aggregations"):
        if "metric" in names:
            return f"lm-eval's metric {names['metric']!r} of the task {names['task'].task_name!r} failed: "
    return "lm-eval failed: "


def _shown(shots: int | None) -> str:
    return "shots as the tasks say" if shots is None else f"{shots} shots"


def _mend_standard_errors(task, metrics: dict, samples: list[dict]) -> None:
    """Puts in the standard errors that follow from the documents' values, where lm-eval resamples or has none."""
    for key in [key for key in metrics if "," in key and "_stderr," not in key]:
        metric, _, name = key.partition(",")
        aggregate, error_key = task.aggregation().get(metric), f"{metric}_stderr,{name}"
        kind = getattr(aggregate, "__name__", None)
        values = [sample[metric] for sample in samples if sample["filter"] == name and metric in sample]
        if len(values) < 2:
            continue
        if kind in STANDARD_ERRORS:
            metrics[error_key] = STANDARD_ERRORS[kind](np.array(values, np.float64))
        elif aggregate is not None and not isinstance(metrics.get(error_key), (int, float, np.number)):
            metrics[error_key] = _resampled_error(aggregate, values)


def _resampled_error(aggregate, values: list) -> float | str:
    """The spread of what an aggregation makes of resampled documents (Efron 1979); lm-eval's "N/A" where it makes no
    number of some of them."""
    draws = np.random.default_rng(NUMPY_SEED).integers(len(values), size=(RESAMPLINGS, len(values)))
    try:
        replicates = np.array([aggregate([values[i] for i in drawn]) for drawn in draws], np.float64)
    except Exception:  # such as a score that needs each label once
        return "N/A"
    return float(replicates.std(ddof=1)) if replicates.ndim == 1 and np.isfinite(replicates).all() else "N/A"


def _standard_error(value_N) -> float:
    return float(value_N.std(ddof=1) / math.sqrt(len(value_N)))


def _ratio_standard_error(pair_N2) -> float:
    """Of sum(a) / sum(b) over documents (Cochran 1977, section 2.11)."""
    a_N, b_N = pair_N2.T
    residual_N = a_N - a_N.sum() / b_N.sum() * b_N
    n = len(a_N)
    return float(math.sqrt(np.square(residual_N).sum() * n / (n - 1)) / b_N.sum())


STANDARD_ERRORS = {  # by lm-eval's aggregation, from the values of the documents
    "perplexity": lambda value_N: math.exp(-value_N.mean()) * _standard_error(value_N),
    "weighted_perplexity": lambda pair_N2: (
        math.exp(-pair_N2[:, 0].sum() / pair_N2[:, 1].sum()) * _ratio_standard_error(pair_N2)
    ),
    "bits_per_byte": lambda pair_N2: _ratio_standard_error(pair_N2) / math.log(2),
}


def _rows(results: dict) -> list[Row]:
    rows = []
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float, np.number)):
                continue
            error = metrics.get(f"{metric}_stderr,{name}")
            rows.append(
                Row(
                    task=task,
                    shots=int(results["n-shot"].get(task, 0)),
                    metric=metric,
                    filter=name,
                    value=float(value),
                    standard_error=float(error) if isinstance(error, (int, float, np.number)) else None,
                    samples=int(metrics["sample_len"]),
                    higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
                )
            )
    return rows


def _reduced(results: dict) -> dict:
    return {key: value for key, value in results.items() if key not in ("samples", "configs")}


def shown(value: float, error: float | None) -> str:
    """A value and its standard error, to four digits behind the point where they are not too many."""
    digits = ".4f" if abs(value) < 1e6 else ".4g"
    return f"{value:{digits}}" + ("" if error is None else f" +- {error:{digits}}")


def _plain(value):
    """value in what JSON has: other numbers as numbers, anything else as text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.number, np.bool_)):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def table(results: TaskResults) -> str:
    """For a person: a row for each task and metric, a column for each number of shots."""
    shots = sorted({row.shots for row in results.rows})
    cells = {}
    for row in results.rows:
        arrow = {True: "higher is better", False: "lower is better", None: ""}[row.higher_is_better]
        label = (row.task, row.metric + f",{row.filter}" * (row.filter != "none"), f"{row.samples:,}", arrow)
        cells.setdefault(label, {})[row.shots] = shown(row.value, row.standard_error)
    head = ("task", "metric", "documents", *(f"{n} shot" + "s" * (n != 1) for n in shots), "")
    lines = [head] + [(*label[:3], *(found.get(n, "") for n in shots), label[3]) for label, found in cells.items()]
    return "\n".join([*columns(lines), f"{results.seconds:.1f} s", *(f"note: {note}" for note in results.notes)])


class _SilentHere(io.TextIOBase):
    """A stream that takes nothing from the thread it was made in; what others have to say is said."""

    def __init__(self, stream):
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def _quiet():
    """Keeps lm-eval's bars, logs and prints from the terminal; gives the list that its warnings go to."""
    notes, logger = [], logging.getLogger("lm_eval")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(f"lm-eval: {' '.join(record.getMessage().split())}")
    handlers, logger.handlers, propagates, logger.propagate = logger.handlers, [handler], logger.propagate, False
    try:
        silent = [_SilentHere(stream) for stream in (sys.stdout, sys.stderr)]
        with contextlib.redirect_stdout(silent[0]), contextlib.redirect_stderr(silent[1]):
            yield notes
    finally:
        logger.handlers, logger.propagate = handlers, propagates


@contextlib.contextmanager
def _seeded():
    """Python's and NumPy's global generators as lm-eval seeds them, for tasks that draw from those; then as they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def _environment(**variables: str):
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
