"""`gptjax road`: text, tokenizer, pretraining, fine-tuning, rewards, policies, and a page that compares them, from one file."""

import os
import pathlib
import sys

from gptjax import errors, terminal
from gptjax.errors import UserError

PAGE = "index.html"


def add_flags(parser) -> None:
    parser.add_argument("road", metavar="ROAD", help="a road file, such as configs/roads/small.py")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the folder of the road, with a folder for each stage"
    )
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="a size of the road, as in --set=d_model=512, or a flag or config field of a stage, as in"
        " --set=base.train.steps=2000; may be repeated",
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="make stages anew whose inputs have changed, and those that need them; what is there is moved to DIR/former",
    )
    parser.add_argument("--serve", action="store_true", help="at the end, serve the road's last model")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print which stages are done and the commands of the others; start nothing",
    )


def run(args) -> int:
    from gptjax.config.extras import library
    from gptjax.road import page, runner
    from gptjax.road import road as roads

    road = roads.load(args.road, args.set or [])
    if "://" in args.out:
        raise UserError(f"--out={args.out}: a road runs in a local folder; name one.")
    if args.serve and road.served is None:
        raise UserError(f"--serve: {args.road} names no run to serve.")
    library("matplotlib", "the page of a road", verb="needs")  # now, and not in an hour
    folder = pathlib.Path(args.out).expanduser().resolve()
    shown = terminal.Progress(sys.stderr, seconds_between_lines=60.0)
    made = runner.Runner(road, folder, args.road, shown)
    made.check_folder()
    if args.dry_run:
        print("\n".join(_plan(road, folder, made)))
        return 0
    if not made.run(args.rerun):
        return errors.SAVED_AND_STOPPED
    page.write(road, folder, folder / PAGE)
    shown.message(f"the page: {folder / PAGE}")
    return _serve(road, folder, args.serve)


def _plan(road, folder: pathlib.Path, made) -> list[str]:
    changed = made.changed()
    waiting = {stage.name for stage in made.waiting()}
    lines = [f"cd {folder}"]
    for stage in road.stages:
        if stage.name not in waiting:
            lines.append(f"# {stage.name}: done")
            continue
        if stage.name in changed:
            lines.append(f"# {stage.name}: to be made anew, with --rerun: {changed[stage.name]}")
        lines.append(road.shown_command(stage))
    return lines


def _serve(road, folder: pathlib.Path, now: bool) -> int:
    if road.served is None:
        return 0
    words = ["serve", f"--workdir={folder / road.by_name[road.served].made}"]
    if not now:
        print(f"gptjax {' '.join(words)}")
        return 0
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "gptjax", *words])
