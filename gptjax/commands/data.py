"""`gptjax data`: the text of any step of a run, what the run reads in numbers, or every byte of its tokens checked.

Of a config, or with --workdir of a run: then its own config, and only the text that it was started with. No device is
used. Text that was not prepared yet is, as `gptjax train` would.
"""

import json
import sys
import time

from gptjax import schedule
from gptjax.commands import flags
from gptjax.errors import UserError

_SHOWN = 3  # rows of a step, if none is chosen
_NAMED = 20  # mistakes that --verify prints


def add_flags(parser) -> None:
    flags.add_config_flag(parser, required=False)
    flags.add_run_flag(parser, required=False, help="a run directory, instead of --config: show the text of this run")
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="show the rows of this step, counted from 1 as on the screen and in metrics.jsonl: step N was computed from them (default: 1)",
    )
    parser.add_argument(
        "--row",
        type=int,
        metavar="R",
        help=f"show this row of the step's batch, counted from 0 (default: the first {_SHOWN})",
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="print statistics: sources, shares, packing, document lengths, how often text is read",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="with --stats: draw the document lengths, as a .png, .svg or .pdf file"
    )
    parser.add_argument("--verify", action="store_true", help="check every block of the tokens against its checksum")
    parser.add_argument("--json", action="store_true", help="print JSON, with all rows of the step")


def run(args) -> int:
    """Returns the exit code: 2 where --verify finds a file altered."""
    _check_flags(args)
    config, directory = _config(args)
    if config.rl.prompts is not None:
        _prompts(config, args)
        return 0
    if args.verify:
        if config.data.examples is not None:
            raise UserError(
                f"--verify: the examples of {config.data.examples_field} are in no token files; leave it out."
            )
        return _verify(config, args)
    rows, store = _open(config, directory) if config.data.preferences is None else _open_pairs(config, directory)
    rewinds = schedule.NO_REWINDS if directory is None else directory.rewinds()
    if args.stats:
        if rewinds.count:
            n_rows = sum(n for _, n in rewinds.windows)
            print(f"the run skipped {n_rows:,} rows after rollbacks; these numbers include them", file=sys.stderr)
        _statistics(config, store, rows, args)
        return 0
    _rows(config, rows, store.tokenizer, args, rewinds)
    return 0


def _prompts(config, args) -> None:
    """Prints the first prompts of a Config with reinforcement learning, as its model sees them. Raises UserError: a flag that is
    of text."""
    from gptjax.posttrain.prompts import open_prompts

    for flag in ("stats", "verify", "json", "picture"):
        if getattr(args, flag):
            raise UserError(f"--{flag}: prompts (rl.prompts) are no rows of text; leave it out.")
    store = open_prompts(config)
    train, val = store.examples.train.prompts, store.examples.val.prompts
    print(f"{len(train):,} prompts to train on, {len(val):,} held out; {store.description['overflow']}")
    for prompt in train[:_SHOWN] if args.row is None else train[args.row : args.row + 1]:
        print(f"{prompt.where}: {store.tokenizer.decode(prompt.token_L, special=True)!r}")


def _check_flags(args) -> None:
    """Raises UserError for flags that are not for one another."""
    if (args.config is None) == (args.workdir is None):
        raise UserError("give either --config=FILE or a run directory, --workdir=RUN.")
    if args.workdir is not None and args.overrides:
        raise UserError(
            f"--config.{args.overrides[0]} changes a config, but --workdir={args.workdir} is a run that has its own;"
            " give --config=FILE instead."
        )
    if args.stats and args.verify:
        raise UserError("--stats and --verify cannot be combined; give one of them.")
    rows = [f"--{name}" for name in ("step", "row") if getattr(args, name) is not None]
    if rows and (args.stats or args.verify):
        raise UserError(
            f"{rows[0]} chooses the text to show, but --{'stats' if args.stats else 'verify'} shows no text; leave one of them out."
        )
    if args.picture is not None:
        _check_picture(args)


def _check_picture(args) -> None:
    if not args.stats:
        raise UserError(f"--picture={args.picture} needs --stats; add --stats.")
    from gptjax.commands import data_picture

    data_picture.check(args.picture)


def _config(args):
    """The config, and the run directory if it is a run's."""
    from gptjax.rundir import run_directory

    if args.workdir is None:
        return flags.load_config(args), None
    directory = run_directory.open_run(args.workdir)
    return directory.config(), directory


def _open(config, directory):
    """(rows, store) of config. Raises UserError: the text is not the one that the run was started with."""
    from gptjax.data.rows.pipeline import TrainRows, open_text

    store, objective = open_text(config.data, config.model.context_length)
    if directory is not None:
        directory.check_text(store)
    return TrainRows(store, config.data, config.model.context_length, objective), store


def _open_pairs(config, directory):
    """(rows, store) of a config of preferences. Raises UserError: they are not those that the run was started with."""
    from gptjax.data.pairs.rows import TrainPairs
    from gptjax.data.pairs.store import open_pairs

    store = open_pairs(config)
    if directory is not None:
        directory.check_text(store)
    return TrainPairs(store, config.data.seed, unit=1), store


def _rows(config, rows, tokenizer, args, rewinds) -> None:
    from gptjax.commands import data_pairs, data_table
    from gptjax.data.looking import inspection, preferences

    is_text = config.data.preferences is None
    facts_of, show = (None, None) if is_text else (preferences.row_facts, data_pairs.row)
    step = 1 if args.step is None else args.step
    with _Report("hashing earlier rows") as report:
        facts = inspection.step_facts(config, rows, tokenizer, step, args.row, report, rewinds, facts_of)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        print(data_table.step(facts, _SHOWN if args.row is None else 1, data_table.style(sys.stdout), show))


def _pair_statistics(config, store, args) -> None:
    from gptjax.commands import data_pairs
    from gptjax.data.looking import preferences

    if args.picture is not None:
        raise UserError(f"--picture={args.picture}: preferences have no picture of documents; leave it out.")
    facts = preferences.statistics(config, store)
    print(json.dumps(facts, indent=2) if args.json else data_pairs.statistics(facts))


def _statistics(config, store, rows, args) -> None:
    if config.data.preferences is not None:
        _pair_statistics(config, store, args)
        return
    from gptjax.commands import data_picture, data_table
    from gptjax.data.looking import statistics

    facts = statistics.statistics(config, store, rows)
    if args.picture is not None:
        data_picture.lengths(facts, args.picture)
        print(f"picture in {args.picture}", file=sys.stderr)
    print(json.dumps(facts, indent=2) if args.json else data_table.statistics(facts))


def _verify(config, args) -> int:
    from gptjax.data.looking import verification
    from gptjax.data.tokens import store

    results = {}
    for name, folder in store.folders(config.data).items():
        with _Report(f"verifying {name}", unit=1e6, of="MB") as report:
            results[name] = verification.verify(folder, report)
    bad = [one for result in results.values() for one in result["bad"]]
    if args.json:
        print(json.dumps({"sources": results, "passed": not bad}, indent=2))
    else:
        for name, result in results.items():
            n = len(result["bad"])
            found = f"{n:,} mistake{'s' * (n > 1)}" if n else "no mistakes"
            print(
                f"{name}: {result['files']} files, {result['blocks']:,} blocks, {result['bytes']:,} bytes: {found}"
                f" ({result['folder']})"
            )
    for one in bad[:_NAMED]:
        block = "" if one["block"] is None else f", block {one['block']},"
        print(f"gptjax: {one['file']}{block} {one['why']}; prepare its folder again.", file=sys.stderr)
    if len(bad) > _NAMED:
        print(f"gptjax: {len(bad) - _NAMED:,} more mistakes; --json prints all of them.", file=sys.stderr)
    return 2 if bad else 0


class _Report:
    """The progress line of something that takes longer than a moment."""

    def __init__(self, doing: str, unit: float = 1, of: str = "rows"):
        from gptjax.terminal import Progress

        self._doing, self._unit, self._of, self._progress = doing, unit, of, Progress()

    def __enter__(self):
        began = time.monotonic()

        def report(done: int, total: int) -> None:
            if time.monotonic() - began > 1:
                self._progress.update(
                    f"{self._doing}: {done / self._unit:,.0f} of {total / self._unit:,.0f} {self._of}"
                )

        return report

    def __exit__(self, *error) -> None:
        self._progress.close()
