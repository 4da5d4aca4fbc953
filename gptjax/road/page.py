"""A road as one HTML page: what each stage is worth, beside the one before it; what did not improve; answers as they are.

It is made of the files of evaluating.py, the logs of the runs and road.json, and of nothing else.
"""

import json
import math
import pathlib

from gptjax import terminal
from gptjax.pages import numbers
from gptjax.pages import page as pages
from gptjax.pages.blocks import Block, Bullets, Code, Figure, Notice, Paragraph, Section, Table
from gptjax.road import comparing, ledger, pictures
from gptjax.road.road import Policy, Road
from gptjax.rundir import metrics
from gptjax.storage.writing import replace_whole

OPTIMISATION = "optimisation"
EVERY_STAGE = (
    "Means and their standard errors. Losses: over windows of text and rows of conversations that no stage was trained on."
    " Right: the answer to an exercise that no stage has seen is the right one, and has ended; the likeliest answer, or one"
    " drawn at temperature 1."
)


def write(road: Road, folder: pathlib.Path, file: pathlib.Path) -> None:
    """The page of a road that is done. Raises UserError: an evaluation is missing or damaged, or matplotlib is."""
    evaluations = {
        policy.name: comparing.read(folder / road.by_name[policy.evaluation].made) for policy in road.policies
    }
    drawn = {}
    rows = [] if road.optimised is None else pictures.rollouts(folder / road.by_name[road.optimised].made)
    if len(rows) > 1:
        drawn[OPTIMISATION] = pictures.optimisation(rows)
    sections = [
        *_of_policies(road, evaluations),
        *_of_reward(road, folder, rows),
        *_of_dialogues(road, evaluations),
        _times(road, folder),
        _origin(road, folder),
    ]
    replace_whole(file, pages.text(road.title, sections, drawn))


# ---- what stages are worth


def _of_policies(road: Road, evaluations: dict[str, dict]) -> list[Section]:
    if not road.policies:
        return []
    measures = comparing.measures(evaluations[road.policies[0].name])
    changes = {
        policy.name: [comparing.change(one, evaluations[policy.before], evaluations[policy.name]) for one in measures]
        for policy in road.policies
        if policy.before is not None
    }
    return [
        Section("In short", _short(road, changes)),
        Section("Every stage", [Paragraph(EVERY_STAGE), _values(road, evaluations, measures)]),
        Section("Beside the stage before", _comparisons(road, evaluations, changes)),
        Section("What did not improve", [_not_improved(road, changes)]),
    ]


def _short(road: Road, changes: dict[str, list]) -> list[Block]:
    """What is better and what is worse than before, for each policy."""
    shown = []
    for policy in road.policies:
        if policy.before is None:
            continue
        by_verdict = {"better": [], "worse": []}
        for one in changes[policy.name]:
            by_verdict.get(one.verdict, []).append(one.measure.name)
        parts = [f"{verdict} {_listed(names)}" for verdict, names in by_verdict.items() if names]
        words = f"{policy.title}, beside {_title(road, policy.before)}: {'; '.join(parts) or 'no difference is shown'}."
        shown.append(Notice(words, good=not by_verdict["worse"] and bool(by_verdict["better"])))
    return shown


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _values(road: Road, evaluations: dict[str, dict], measures: list) -> Table:
    rows = []
    for measure in measures:
        values = [comparing.value(measure, evaluations[policy.name]) for policy in road.policies]
        rows.append([f"{measure.name} ({measure.unit})", *map(_with_error, values), f"{values[0].pairs:,}"])
    header = ["", *(policy.title for policy in road.policies), "of"]
    return Table(header, rows)


def _with_error(value: comparing.Value) -> str:
    error = value.standard_error
    if not math.isfinite(error):
        return numbers.plain(value.mean)
    digits = max(0, min(4, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    return f"{value.mean:.{digits}f} ± {error:.{digits}f}"


def _comparisons(road: Road, evaluations: dict[str, dict], changes: dict[str, list]) -> list[Block]:
    blocks: list[Block] = []
    for policy in road.policies:
        if policy.before is None:
            continue
        rows = [_comparison(one) for one in changes[policy.name]]
        caption = f"{policy.title} less {_title(road, policy.before)}, pair by pair."
        header = ["", "verdict", "difference", "p", "only now", "only before"]
        blocks.append(Table(header, rows, caption, words=("verdict",)))
        blocks.append(Paragraph(_win_rate(road, policy, evaluations)))
    count = sum(len(each) for each in changes.values())
    test = (
        "Each difference is one of pairs: the same windows, the same exercises. p is that of Student's t, and of shares that of"
        f" McNemar's exact test, of the exercises with a yes only now or only before. A verdict is given below {comparing.LEVEL:g}. There are {count} rows: about"
        f" {comparing.LEVEL * count:.1f} of them would be below it by chance alone."
    )
    return [Paragraph(test), *blocks]


def _comparison(one: comparing.Change) -> list[str]:
    shown = _with_error(comparing.Value(one.difference, one.standard_error, 0))
    sign = "+" if one.difference > 0 else ""
    counts = [numbers.NONE if count is None else f"{count:,}" for count in (one.gained, one.lost)]
    return [f"{one.measure.name} ({one.measure.unit})", one.verdict, sign + shown, _p(one.p_value), *counts]


def _p(value: float) -> str:
    if not math.isfinite(value):
        return numbers.NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _win_rate(road: Road, policy: Policy, evaluations: dict[str, dict]) -> str:
    rate = comparing.win_rate(evaluations[policy.before], evaluations[policy.name])
    return (
        f"Win rate by the gold check, of drawn answers: {rate.share:.3f} ± {rate.standard_error:.3f} ({rate.wins:,} won,"
        f" {rate.ties:,} alike, {rate.losses:,} lost)."
    )


def _not_improved(road: Road, changes: dict[str, list]) -> Bullets:
    items = []
    for policy in road.policies:
        for one in changes.get(policy.name, ()):
            if one.measure.higher_is_better is None or one.verdict == "better":
                continue
            said = "is worse" if one.verdict == "worse" else "shows no difference"
            shown = _with_error(comparing.Value(one.difference, one.standard_error, 0))
            sign = "+" if one.difference > 0 else ""
            items.append(
                f"{policy.title}: {one.measure.name} {said} ({sign}{shown} {one.measure.unit}, p {_p(one.p_value)})."
            )
    return Bullets(items or ["Nothing: every number is better than before."])


def _title(road: Road, name: str) -> str:
    return next(policy.title for policy in road.policies if policy.name == name)


# ---- rewards


def _of_reward(road: Road, folder: pathlib.Path, rollouts: list[dict]) -> list[Section]:
    blocks: list[Block] = []
    if road.preferences is not None:
        report = json.loads((folder / road.by_name[road.preferences].made / "report.json").read_text("utf-8"))
        pairs = "; ".join(f"{count:,} {reason}" for reason, count in report["pairs"].items())
        blocks.append(
            Paragraph(
                f"Pairs are answers of the fine-tuned model to {report['prompts']:,} exercises that it was not trained on. Of"
                f" {report['answers']:,} answers {report['right']:,} were right and {report['cut']:,} were cut off. That gave"
                f" {pairs}; {report['prompts without a pair']:,} prompts gave no pair."
            )
        )
    if road.reward is not None:
        blocks += _held_out_pairs(folder / road.by_name[road.reward].made)
    sections = [Section("Preferences and the reward model", blocks)] if blocks else []
    if len(rollouts) > 1:
        sections.append(Section("What was optimised, and what was meant", _optimisation(rollouts)))
    return sections


def _held_out_pairs(run: pathlib.Path) -> list[Block]:
    rows = metrics.read_metrics(run / "metrics.jsonl", "eval")
    if not rows:
        return []
    header = ["step", "loss", "accuracy", "calibration error", "correlation with length"]
    names = ("loss", "accuracy", "ece", "length_correlation")
    table = [[f"{row['step']:,}", *(_logged(row, name) for name in names)] for row in rows]
    return [Table(header, table, "The reward model on held-out pairs: log of its run, with standard errors.")]


def _logged(row: dict, name: str) -> str:
    if not isinstance(row.get(name), int | float):
        return numbers.NONE
    error = row.get(f"{name}_error", row.get("standard_error") if name == "loss" else None)
    return _with_error(comparing.Value(row[name], error if isinstance(error, int | float) else math.nan, 0))


def _optimisation(rows: list[dict]) -> list[Block]:
    best = max(rows, key=lambda row: row[f"reward/{pictures.GOLD}"])
    last = rows[-1]
    words = (
        f"The policy is trained on the reward model's score alone. Whether its answers are right is measured beside it and not"
        f" learnt from: over-optimisation is a score that goes on rising while right answers become fewer. Score"
        f" {rows[0]['reward/score']:.3f} at the first logged iteration, {last['reward/score']:.3f} at the last; right answers"
        f" {rows[0]['reward/exact']:.3f}, at most {best['reward/exact']:.3f} (step {best['step']:,}), at last"
        f" {last['reward/exact']:.3f}. Each is a mean over one iteration's answers."
    )
    return [
        Paragraph(words),
        Figure(OPTIMISATION, "Score of the reward model, and share of right answers, in training: by step, and by KL."),
    ]


# ---- answers, times, origin


def _of_dialogues(road: Road, evaluations: dict[str, dict]) -> list[Section]:
    if not road.policies:
        return []
    rows = []
    for number, first in enumerate(evaluations[road.policies[0].name]["dialogues"]):
        for i, policy in enumerate(road.policies):
            one = evaluations[policy.name]["dialogues"][number]
            answer = one["answer"].replace("\n", "⏎") or "(nothing)"
            rows.append([first["question"] if i == 0 else "", policy.title, answer, "" if one["ended"] else "cut off"])
    table = Table(["question", "stage", "answer", "end"], rows, words=("stage", "answer", "end"))
    words = Paragraph("The likeliest answer of each stage to the same questions, none left out and none chosen.")
    return [Section("Dialogues, as they are", [words, table])]


def _times(road: Road, folder: pathlib.Path) -> Section:
    stages = ledger.read(folder).stages
    rows = []
    for stage in road.stages:
        entry = stages[stage.name]
        times = [terminal.duration(entry.seconds), terminal.duration(entry.cpu_seconds)]
        rows.append([stage.name, *times, f"{entry.attempts}"])
    total = [sum(getattr(stages[stage.name], name) for stage in road.stages) for name in ("seconds", "cpu_seconds")]
    rows.append(["all", *map(terminal.duration, total), ""])
    lost = sum(stages[stage.name].attempts - stages[stage.name].counted for stage in road.stages)
    caption = "Time of each stage by the clock, and of all its processors together."
    if lost:
        caption += f" {lost} processes were killed together with the road; their time is not in it."
    return Section("Time", [Table(["stage", "time", "CPU time", "starts"], rows, caption)])


def _origin(road: Road, folder: pathlib.Path) -> Section:
    made = ledger.read(folder)
    changes = "".join(f" --set={change}" for change in made.changes)
    codes = {made.stages[stage.name].code[:12] for stage in road.stages}
    commands = "\n".join(made.stages[stage.name].command for stage in road.stages)
    commands = commands.replace(
        f"{pathlib.Path.cwd()}/", ""
    )  # where the road was started, for whoever reads the page elsewhere
    same = f"All stages were made by the same code of gptjax ({', '.join(sorted(codes))})."
    if len(codes) > 1:
        same = f"The stages were made by {len(codes)} versions of the code of gptjax: {', '.join(sorted(codes))}."
    return Section(
        "How it was made",
        [
            Code(f"gptjax road {made.road}{changes} --out=DIR"),
            Paragraph(f"{same} In DIR, with files as they are named from where the road was started:"),
            Code(commands),
        ],
    )
