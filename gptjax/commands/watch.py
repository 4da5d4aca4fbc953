"""`gptjax watch`: the page of a run or a study, written to a file or served to a browser on this machine."""

import argparse
import itertools
import sys
import time

from etils import epath

from gptjax.commands import flags
from gptjax.errors import UserError, did_you_mean
from gptjax.storage import folder_kinds, outputs

FOLLOW_SECONDS = 10.0
NAME = "watch.html"


def add_flags(parser) -> None:
    flags.add_run_flag(parser, help="a run directory, or the --out of gptjax study run; local or gs://")
    parser.add_argument("--out", metavar="FILE", help=f"the page (default: {NAME} in that directory)")
    parser.add_argument(
        "--follow",
        action="store_true",
        help=f"write it again every {FOLLOW_SECONDS:.0f} seconds until the run is done or has diverged (a study: until all runs"
        " have ended), or Ctrl-C; wait where no process trains",
    )
    parser.add_argument(
        "--serve", nargs="?", type=_port, const=0, metavar="PORT",
        help="instead of writing: serve it on 127.0.0.1, kept up to date, until Ctrl-C; --serve=PORT chooses the port",
    )  # fmt: skip


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(
            f"{text} is no port; write --serve=PORT with 1 to 65535, or --serve at the end."
        )
    return int(text)


def run(args) -> int:
    """0. Raises UserError: the folder is neither a run nor a study, or the page cannot be written or served."""
    if args.serve is not None and (args.out or args.follow):
        raise UserError("--serve writes no file; leave out --out and --follow.")
    shown = _opened(args.workdir, links=args.serve is not None)
    if args.serve is not None:
        from gptjax.watch import serving

        serving.serve(shown, args.serve or None, lambda line: print(line, flush=True))
        return 0
    out = epath.Path(args.out).expanduser() if args.out else shown.directory.path / NAME
    outputs.check_file("--out", str(out))
    return _write(shown, out, args.follow)


def _opened(path: str, links: bool):
    """The RunPage or StudyPage of a path. Raises UserError: it is neither a run nor a study."""
    kind = folder_kinds.kind_of(path)
    if kind == folder_kinds.STUDY:
        from gptjax.study.running import layout
        from gptjax.watch.study_page import StudyPage

        return StudyPage(layout.open_directory(path), links)
    if kind != folder_kinds.RUN:
        folder = epath.Path(path).expanduser()
        near = [one.name for one in folder.parent.iterdir()] if not folder.exists() and folder.parent.exists() else []
        raise UserError(
            f"{path} is neither a run directory nor the folder of a study: it is"
            f" {folder_kinds.said(path)}{did_you_mean(folder.name, near)}; give the --workdir of gptjax train, or the --out"
            " of gptjax study run."
        )
    from gptjax.rundir import run_directory
    from gptjax.watch.run_page import RunPage

    return RunPage(run_directory.open_run(path))


def _write(shown, out: epath.Path, follow: bool) -> int:
    """Once, or until there is nothing more to come or Ctrl-C."""
    from gptjax.storage.writing import replace_whole
    from gptjax.watch import page

    told = None  # the last line printed
    for looks in itertools.count():
        view = shown.look()
        again = follow and not view.ended
        replace_whole(out, page.text(view, reload_seconds=FOLLOW_SECONDS if again else None))
        if looks == 0:
            print(out if "://" in str(out) else f"{out}  (open it in a browser)", flush=True)
        line = _follow_line(shown.directory.path, view) if follow else None
        if line != told and line:
            print(line, flush=True)
        told = line
        if not again:
            return 0
        try:
            time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            print(f"gptjax: {out} is no longer written", file=sys.stderr)
            return 0


def _follow_line(path, view) -> str | None:
    """What whoever follows is told; None while training goes on."""
    if view.ended:
        return f"{view.ended}; --follow ends"
    if not view.going_on:
        return f"no process trains {path} now; --follow waits until one does (Ctrl-C ends it)"
    return None
