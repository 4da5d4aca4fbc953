"""The runs themselves: what each was and came to, which were left out and why; learning rates, batches, texts; how it was made."""

import os
import pathlib

from gptjax.pages import numbers
from gptjax.pages.blocks import LONG, Block, Bullets, Code, Figure, Link, Paragraph, Section, Table, folded
from gptjax.study.results import reasons

_COLUMNS = {
    "params_given": ("N", numbers.whole),
    "params_total": ("N total", numbers.whole),
    "params_non_embedding": ("N non-embedding", numbers.whole),
    "params_matmul": ("N matmul", numbers.whole),
    "tokens": ("D", numbers.whole),
    "steps": ("steps", numbers.whole),
    "batch_size": ("batch (tokens)", numbers.whole),
    "learning_rate": ("learning rate", numbers.setting),
    "flops": ("C (FLOPs)", numbers.flops),
    "flops_exact": ("C exact", numbers.flops),
    "flops_6n": ("C 6ND", numbers.flops),
    "loss": ("loss", numbers.loss),
    "standard_error": ("standard error", lambda value: numbers.plain(value, 2)),
    "seed": ("seed", numbers.plain),
    "architecture": ("architecture", str),
    "stage": ("stage", str),
    "status": ("status", str),
}
_MAY_BE_ALIKE = {
    "batch_size": "a batch of {} tokens",
    "learning_rate": "learning rate {}",
    "seed": "seed {}",
    "architecture": "architecture {}",
    "stage": "stage {}",
    "status": "status {}",
}
_SAME_KIND = {"params_given": ("params_total",), "flops_exact": ("flops",), "flops_6n": ("flops",)}


def sections(results: dict, drawn: dict[str, str], directory) -> list[Section]:
    parts = [
        _learning_rates(results, drawn),
        _critical_batch(results),
        _loss_to_loss(results, drawn),
        Section("Architectures", [Figure("architectures", drawn["architectures"])] if "architectures" in drawn else []),
        _loss_curves(results, drawn),
        _runs(results, directory),
        _left_out(results),
        _made(results),
    ]
    return [part for part in parts if part.blocks]


def _learning_rates(results: dict, drawn: dict[str, str]) -> Section:
    sizes = (results.get("learning_rate") or {}).get("sizes") or []
    if not sizes:
        return Section("Learning rates", [])
    header = [
        "N",
        "size",
        "best learning rate",
        "its loss",
        "sensitivity",
        "rates tried",
        "diverged",
        "at the edge of those tried",
    ]
    table = Table(header, [_size(one) for one in sizes], "Tuned learning rate of each size", ("size",)).without_empty(
        numbers.NONE
    )
    figure = [Figure("learning_rate", drawn["learning_rate"])] if "learning_rate" in drawn else []
    return Section("Learning rates", [table, *figure])


def _size(one: dict) -> list[str]:
    points = one.get("points") or []
    ended = [point["loss"] for point in points if point.get("loss") is not None and not point.get("diverged")]
    return [
        numbers.count(one["params"]),
        str(one.get("size") or numbers.NONE),
        numbers.setting(one.get("best")),
        numbers.loss(min(ended, default=None)),
        numbers.NONE if one.get("sensitivity") is None else f"{one['sensitivity']:.3f}",
        str(len(points)),
        str(len(points) - len(ended)),
        numbers.setting(one.get("at_edge")),
    ]


def _critical_batch(results: dict) -> Section:
    given = results.get("critical_batch") or []
    rows = [
        [
            one["run"],
            numbers.count(one.get("params")),
            numbers.loss(one.get("loss")),
            numbers.count(one.get("batch_size")),
            numbers.count_beside(one.get("noise_scale"), one.get("interval95")),
        ]
        for one in (given.get("points") or [] if isinstance(given, dict) else given)
    ]
    header = ["run", "N", "loss", "batch (tokens)", "gradient noise scale (tokens)"]
    words = "The gradient noise scale is tr S / |G|^2 (McCandlish et al. 2018). A batch well below it wastes no tokens."
    blocks = [Paragraph(words), Table(header, rows).without_empty(numbers.NONE)] if rows else []
    return Section("Critical batch", blocks)


def _loss_to_loss(results: dict, drawn: dict[str, str]) -> Section:
    pair, blocks = results.get("loss_to_loss") or {}, []
    if pair.get("exponent") is not None:
        law = (
            f"{numbers.plain(pair['scale'])} (L_x − {numbers.plain(pair['floor_x'])})^{numbers.plain(pair['exponent'])}"
        )
        words = f"x is {pair['x']}, y is {pair['y']}. The law is L_y = {numbers.plain(pair['floor_y'])} + {law}."
        blocks.append(
            Paragraph(f"{words} The points lie {numbers.percent(pair['rms'])} off it (root mean square of ln L_y).")
        )
    blocks += [Figure("loss_to_loss", drawn["loss_to_loss"])] if "loss_to_loss" in drawn else []
    return Section("Loss to loss", blocks)


def _loss_curves(results: dict, drawn: dict[str, str]) -> Section:
    """Where the envelope, whose picture it is, was not fitted."""
    alone = "curves" in drawn and not results.get("envelope")
    return Section("Loss curves", [Figure("curves", drawn["curves"])] if alone else [])


def _runs(results: dict, directory) -> Section:
    """What all runs have in common is a sentence, and a column that repeats another is left out: the rest fits a page."""
    points = results.get("points") or []
    given = {key: [point.get(key) for point in points] for key in _COLUMNS}
    given = {key: values for key, values in given.items() if any(value is not None for value in values)}
    columns = {key: _COLUMNS[key] for key in given if not _repeats(key, given)}
    if not any(key.startswith("params_") for key in columns):
        columns = {"params": ("N", numbers.whole), **columns}
    alike = [key for key in columns if key in _MAY_BE_ALIKE and len(points) > 1 and len({*given[key]}) == 1]
    shared = [_MAY_BE_ALIKE[key].format(_cell(given[key][0], columns.pop(key)[1])) for key in alike]
    rows = [
        [_link(point, results, directory), *(_cell(point.get(key), shown) for key, (_, shown) in columns.items())]
        for point in points
    ]
    table = Table(["run", *(name for name, _ in columns.values())], rows, words=("architecture", "stage", "status"))
    common = [Paragraph(f"All runs: {', '.join(shared)}.")] if shared else []
    return Section(f"Runs ({len(points)})", [*common, folded(table, "All runs")] if points else [])


def _repeats(key: str, given: dict[str, list]) -> bool:
    """Whether a column has the numbers of one before it that counts the same otherwise."""
    others = [other for other in given if other != key and other in _SAME_KIND.get(key, ()) and other in given]
    return any(given[other] == given[key] for other in others)


def _cell(value, shown) -> str:
    return numbers.NONE if value is None else shown(value)


def _link(point: dict, results: dict, directory):
    """The run's name, leading to its directory where the report lies in the folder of the study, and can travel with it."""
    name, key, out = point["run"], point.get("key"), results.get("directory")
    if not key or not out or "://" in f"{out}{directory}":
        return name
    out, here = pathlib.Path(out).resolve(), pathlib.Path(directory).resolve()
    if not here.is_relative_to(out):
        return f"{name} ({key})"
    return Link(name, pathlib.PurePath(os.path.relpath(out / "runs" / key, here)).as_posix())


def _left_out(results: dict) -> Section:
    excluded = results.get("points_excluded") or []
    rows = [
        [
            one["run"],
            one["reason"],
            numbers.count(one.get("params")),
            numbers.count(one.get("tokens")),
            numbers.loss(one.get("loss")),
        ]
        for one in excluded
    ]
    table = Table(["run", "reason", "N", "D", "loss"], rows, words=("reason",)).without_empty(numbers.NONE)
    blocks: list[Block] = [folded(table, "All runs that were left out")] if rows else []
    if len(rows) > LONG:
        blocks.insert(
            0, Bullets([group.shown() for group in reasons.grouped([(one["run"], one["reason"]) for one in excluded])])
        )
    return Section(f"Left out ({len(excluded)})", blocks)


def _made(results: dict) -> Section:
    blocks: list[Block] = []
    if results.get("command"):
        blocks.append(Code(results["command"]))
    rows = [[name, str(results[key])] for key, name in _MADE.items() if results.get(key)]
    blocks += [Table(["what", "value"], rows, words=("value",))] if rows else []
    versions = [[name, str(version)] for name, version in (results.get("versions") or {}).items()]
    blocks += [folded(Table(["package", "version"], versions, words=("version",)), "Packages")] if versions else []
    return Section("How this was made", blocks)


_MADE = {"study": "study", "directory": "folder", "date": "date", "code": "code", "data": "data"}
