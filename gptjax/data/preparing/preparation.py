"""What `gptjax prepare` does: a folder of shards from a source of text, by processes, begun again where it stopped.

    units of the source, in order  ->  one Task a shard  ->  (cleaned, duplicates found)  ->  tokenised  ->  manifest

The shards and their documents are in the order of the source, and the folder is the same to the bit whatever the number
of workers and however often the command was killed. Beside the shards it holds
    report.json        what was read, removed, held out, and could not be read
    samples.md         documents that cleaning changed and removed, and duplicates
    performance.json   seconds and memory: the one file that differs from run to run
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from etils import epath

from gptjax.config.fields import DataConfig
from gptjax.data import sources, tokenizers
from gptjax.data.preparing import preparation_report, shardmaker, unfinished, workers
from gptjax.data.preparing.shardmaker import Recipe, Task, in_flags
from gptjax.data.tokens import rendering
from gptjax.data.tokens.folder import FORMAT, SPLITS, digest, write_manifest
from gptjax.errors import UserError
from gptjax.storage import outputs

VERSION = 3  # of the way from text to shards; raise it when the same settings give other shards
SHARD_BYTES = 256 << 20  # of a source on disk that make a shard
_FEWEST_SHARDS, _SMALLEST_SHARD = 32, 4 << 20  # but so many shards, where they get so many bytes: work for processes
_UNIT_BYTES = 64 << 20
_LIBRARIES = {
    "sentencepiece": ("sentencepiece",),
    "gpt2": ("tiktoken",),
    "hf": ("tokenizers",),
    "clean": ("ftfy", "py3langid", "selectolax", "trafilatura"),
    "dedup": ("rensa",),
}
"""Whose versions may decide the result: of a tokenizer, of cleaning and of deduplication."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What the command line asks for, checked."""

    spec: str
    config: DataConfig
    tokenizer: tokenizers.Tokenizer
    out: str
    num_shards: int | None
    n_workers: int
    val_fraction: float
    clean: str | None
    dedup: str | None
    strict: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """The shards of an Order."""

    tasks: list[Task]
    recipe: Recipe
    settings: dict  # JSON values: all that decides the files


def plan(order: Order) -> Plan:
    """Raises UserError: a source that is not there, more shards than documents."""
    tasks = _tasks(order)
    recipe = Recipe(
        folder=order.out,
        config=order.config,
        tokenizer=order.tokenizer,
        num_shards=len(tasks),
        val_fraction=order.val_fraction,
        clean=order.clean,
        dedup=order.dedup,
        strict=order.strict,
    )
    settings = rendering.identity(order.config) | {
        "source": sources.identity(order.config),
        "tokenizer": {"kind": order.tokenizer.kind, "hash": order.tokenizer.hash},
        "num_shards": len(tasks),
        "val_fraction": order.val_fraction,
        "clean": order.clean,
        "decontaminate": _evaluation_texts(order.clean),
        "dedup": order.dedup,
        "versions": {"folder": FORMAT, "preparation": VERSION} | _library_versions(order),
    }
    return Plan(tasks, recipe, settings)


def _evaluation_texts(clean: str | None) -> list[str]:
    """SHA-256 of the texts of each decontaminate step: they may change under the same name."""
    if clean is None:
        return []
    from gptjax.data.preparing import cleaning, decontamination
    from gptjax.data.preparing.cleaning.overlap import Decontaminate

    paths = [step.path for step in cleaning.parse(clean) if isinstance(step, Decontaminate)]
    return [digest({"texts": decontamination.load_texts(path)}) for path in paths]


def _library_versions(order: Order) -> dict[str, str]:
    wanted = [order.tokenizer.kind, *(["clean"] if order.clean else []), *(["dedup"] if order.dedup else [])]
    versions = {}
    for library in itertools.chain.from_iterable(_LIBRARIES.get(name, ()) for name in wanted):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def _tasks(order: Order) -> list[Task]:
    """Units in order, about as many for each shard. How many shards there are depends on the source alone."""
    n = order.num_shards
    if n is not None:
        _check_documents(order, n)
        units = _at_least(order.config, n)
    else:
        units = sources.units(order.config, _UNIT_BYTES)
        n = -(-len(units) * _UNIT_BYTES // SHARD_BYTES)
        if n < _FEWEST_SHARDS:
            units = sources.units(order.config, _SMALLEST_SHARD)
            n = min(len(units), _FEWEST_SHARDS)
    edge = [i * len(units) // n for i in range(n + 1)] if n else [0]
    return [Task(i, tuple(units[a:b])) for i, (a, b) in enumerate(zip(edge, edge[1:]))]


def _check_documents(order: Order, num_shards: int) -> None:
    """Raises UserError: the source has fewer documents than shards. As many as there are shards are read for it."""
    units = sources.units(order.config, _UNIT_BYTES)
    documents = (d for unit in units for d in sources.read(order.config, unit, lambda error: None))
    found = sum(1 for _ in itertools.islice(documents, num_shards))
    if 0 < found < num_shards:
        raise UserError(f"--num_shards={num_shards} is more than the {found} documents of {order.spec}; use fewer.")


def _at_least(config: DataConfig, n: int) -> list:
    """Units, several for each of n shards if the source can be cut so far. Raises UserError: fewer than n."""
    size, units = _UNIT_BYTES, sources.units(config, _UNIT_BYTES)
    while len(units) < 4 * n and size > 1:
        size = max(1, size // 4)
        units = max(units, sources.units(config, size), key=len)
        if len(units) >= n and size <= 4096:
            break
    if 0 < len(units) < n:
        raise UserError(
            f"--num_shards={n} is more than the {len(units)} parts that the source is read in (packed files and single"
            f" documents are not cut); use {len(units)} or fewer."
        )
    return units


# ---- the work


def prepare(order: Order, progress) -> dict:
    """The report of the finished folder; made now, or before. progress: see prepare_command.

    Raises UserError: settings other than the folder's, nothing to train on, and whatever a worker raises.
    """
    unfinished.check_free(order.out)
    made = plan(order)
    if (report := _finished(order, made)) is not None:
        return report
    outputs.check_folder("--out", order.out)
    epath.Path(order.out).mkdir(parents=True, exist_ok=True)
    with unfinished.sole_writer(order.out):
        unfinished.begin(order.out, made.settings)
        if order.dedup is not None:
            cleaned = _make(order, made, "cleaned", shardmaker.cleaner, progress)
            _check_kept(order, [record["counts"] for record in cleaned], cleaned)
            duplicates = _find_duplicates(order, made, progress)
            records = _make(order, made, "shard", shardmaker.tokeniser, progress)
            return _finish(order, made, cleaned, records, duplicates, progress)
        records = _make(order, made, "shard", shardmaker.tokeniser, progress)
        return _finish(order, made, records, records, None, progress)


def _finished(order: Order, made: Plan) -> dict | None:
    """The report of a folder that is complete. Raises UserError: with other settings."""
    kept = unfinished.finished_settings(order.out)
    if kept is None:
        return None
    settings = {name: value for name, value in made.settings.items() if name != "versions"}  # it is made already
    unfinished.check_same(order.out, {name: value for name, value in kept.items() if name != "versions"}, settings)
    report = read_report(order.out)
    if order.strict and report["failures"]["count"]:
        raise UserError(report["failures"]["messages"][0])
    unfinished.end(order.out)
    return report | {"made_before": True}


def read_report(folder) -> dict:
    report = unfinished.read_json(epath.Path(folder) / "report.json")
    if report is None:
        raise UserError(f"{folder} has a manifest, but no report.json; remove {folder} and run the command again.")
    return report


def _make(order: Order, made: Plan, kind: str, make: Callable, progress) -> list[dict]:
    """The records of all tasks, in order: those that are done already, and the others, done now."""
    records: dict[int, dict] = {}
    for task in made.tasks:
        record = unfinished.read_record(order.out, shardmaker.record_name(kind, task.number))
        if record is not None and _is_intact(order.out, record):
            records[task.number] = record
    _check_strict(order, records)
    progress.begin(kind, made.tasks, records)
    left = [task for task in made.tasks if task.number not in records]
    job = _Job(make, made.recipe)
    try:
        for number, record in workers.run(job, left, order.n_workers, progress.report):
            records[number] = record
            progress.done(record)
    except workers.WorkerFailed as error:
        path = epath.Path(order.out) / unfinished.WORK / "traceback.txt"
        path.write_text(error.trace)
        raise UserError(f"{error} (a fault in gptjax; {path} says where). Finished shards are kept.") from error
    progress.end()
    return [records[task.number] for task in made.tasks]


@dataclasses.dataclass(frozen=True)
class _Job:
    """What workers.run makes in each process; it pickles."""

    make: Callable
    recipe: Recipe

    def __call__(self) -> Callable:
        return self.make(self.recipe)


def _is_intact(folder, record: dict) -> bool:
    """Whether the files that a record tells of are there. (Their content is held against SHA-256 when they are read.)"""
    for entries in record.get("entries", {}).values():
        for shard, entry in entries.items():
            for name, about in entry["files"].items():
                file = epath.Path(folder) / shard / name
                if not file.exists() or file.stat().length != about["size"]:
                    return False
    return True


def _check_strict(order: Order, records: dict[int, dict]) -> None:
    if order.strict:
        for _, record in sorted(records.items()):
            if record["failures"]["count"]:
                raise UserError(record["failures"]["messages"][0])


def _find_duplicates(order: Order, made: Plan, progress) -> dict:
    """The report on duplicates. Which documents stay is written for each task, once."""
    found = unfinished.read_record(order.out, "duplicates")
    if found is not None:
        return found
    from gptjax.data.preparing import dedup, duplicates

    progress.message("looking for duplicates")
    with _local_files(order.out, [task.number for task in made.tasks]) as (files, folder):
        keep, found = duplicates.find_duplicates(files, dedup.parse(order.dedup), folder)
        for task, kept in zip(made.tasks, keep):
            shardmaker.work_file(order.out, "keep", task.number, "bin").write_bytes(kept.tobytes())
    unfinished.write_record(order.out, "duplicates", found)
    return found


@contextlib.contextmanager
def _local_files(out, numbers: list[int]) -> Iterator[tuple[list, pathlib.Path]]:
    """(paths of the fingerprints on a local disk, a folder to work in), for the duration of a `with`."""
    remote = "://" in str(out)
    parent = None if remote else epath.Path(out) / unfinished.WORK
    folder = pathlib.Path(tempfile.mkdtemp(prefix="duplicates-", dir=parent))
    files = [shardmaker.work_file(out, "fingerprints", n, "bin") for n in numbers]
    try:
        yield ([file.copy(folder / file.name) for file in files] if remote else files), folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- the end


def _finish(order: Order, made: Plan, read: list[dict], records: list[dict], duplicates, progress) -> dict:
    """read: the records of the tasks that read the source; records: of those that wrote the shards."""
    _check_kept(order, [record["counts"] for record in records], read)
    shards = {split: _entries(records, split) for split in SPLITS}
    if not shards["train"]:
        unfinished.abandon(order.out)
        raise UserError(
            f"--val_fraction={order.val_fraction:g} holds out every document of {order.spec}; use a smaller one."
        )
    report, seconds = preparation_report.report(order, read, records, shards, duplicates)
    folder = epath.Path(order.out)
    unfinished.write_json(folder / "report.json", report)
    (folder / "samples.md").write_text(preparation_report.samples(report))
    performance = progress.performance() | preparation_report.performance(read, records, seconds)
    unfinished.write_json(folder / "performance.json", performance)
    about = rendering.identity(order.config) | {"source": made.settings["source"], "settings": made.settings}
    write_manifest(folder, about, order.tokenizer, shards)
    unfinished.end(folder)
    return report | {"performance": performance}


def _entries(records: list[dict], split: str) -> dict:
    return {name: entry for record in records for name, entry in record["entries"].get(split, {}).items()}


def _check_kept(order: Order, counts: list[dict], read: list[dict]) -> None:
    """Raises UserError: there is no text to make shards of."""
    if any(count["kept_documents"] for count in counts):
        return
    unfinished.abandon(order.out)
    failures = [message for record in read for message in record["failures"]["messages"]]
    because = f" ({failures[0].rstrip('.')})" if failures else ""
    n = sum(record["counts"]["documents"] for record in read)
    if not n:
        raise UserError(f"{order.spec} gave no document{because}; check --source and --text_field.")
    if order.config.chat is not None:
        raise UserError(f"none of the {n:,} conversations of {order.spec} can be written{because}.")
    if failures:
        raise UserError(f"nothing is left of the {n:,} documents of {order.spec}: {failures[0]}")
    raise UserError(
        f"nothing is left of the {n:,} documents of {order.spec}; they are empty, or --clean removes them all."
    )


# ---- a look beforehand


def trial(order: Order, made: Plan, max_bytes: int = 10_000_000) -> dict:
    """What the first documents of the source become, in this process: counts, cleaning report, CPU seconds."""
    tally = shardmaker.Tally(lambda value: None, order.strict)
    cleaner = shardmaker.make_cleaner(order.clean)
    documents = shardmaker.clean_documents(made.recipe, (u for t in made.tasks for u in t.units), cleaner, tally)
    for document in _while(documents, lambda: tally.counts["bytes"] < max_bytes):
        for _, (ids, n_bytes, *_) in shardmaker.values(made.recipe, [document], tally):
            tally.add(kept_documents=1, kept_bytes=n_bytes, tokens=len(ids))
    return tally.record() | {"cleaning": None if cleaner is None else cleaner.report}


def _while(documents: Iterator, wanted: Callable[[], bool]) -> Iterator:
    for document in documents:
        yield document
        if not wanted():
            return


__all__ = ["Order", "Plan", "in_flags", "plan", "prepare", "read_report", "trial"]
