"""`gptjax study run`: from flags to a Runner."""

import dataclasses
import json
import sys
import tempfile
import typing

from gptjax import terminal
from gptjax.errors import UserError, first_line
from gptjax.storage import folder_kinds
from gptjax.study.declare import plan
from gptjax.study.running import identity, launching
from gptjax.study.running.layout import StudyDirectory, open_directory


class FileSource:
    """The Source (see runner.py) of a study file."""

    def __init__(self, path: str, batched: bool):
        from gptjax.study.declare import declaration

        self._study, self._batched = declaration.load(path), batched
        self._vocab_size = identity.vocab_size(self._study.base)
        self.declared = {"file": path, **_as_json(self._study)}

    def runs(self, results: dict[str, float]) -> list:
        from gptjax.study.declare import declaration

        return declaration.runs(self._study, self._vocab_size, results)

    def predict(self, directory: StudyDirectory) -> None:
        from gptjax.study.results import prediction

        prediction.write(directory)

    def groups(self, configs: dict[str, typing.Any]) -> list[list[str]]:
        if not self._batched:
            return []
        from gptjax.study.lanes import grouping

        return grouping.groups(configs)


def _as_json(study) -> dict:
    """What a Study declares, its rules by name; without its base, which the runs' configs hold."""
    fields = {f.name: getattr(study, f.name) for f in dataclasses.fields(study) if f.name not in ("base", "keep")}
    return json.loads(
        json.dumps(fields, default=lambda value: getattr(value, "name", None) or dataclasses.asdict(value))
    )


def add_flags(parser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a study file, such as those in configs/studies/")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the study, local or gs://")
    parser.add_argument("--max_flops", type=float, metavar="C", help="refuse a study that needs more FLOPs")
    parser.add_argument("--launcher", default="local", metavar="NAME", help=" | ".join(launching.LAUNCHERS))
    parser.add_argument(
        "--launcher_flag",
        action="append",
        metavar="FLAG",
        help="a flag for the launcher's script in launch/, as in --launcher_flag=--time=1:00:00; may be repeated",
    )
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="runs at a time (default: 1; on a CPU, as many as it has cores for)"
    )
    parser.add_argument(
        "--batch_runs",
        default="auto",
        metavar="auto|off",
        help="train small runs of one shape together in one process, on this machine",
    )
    code = parser.add_mutually_exclusive_group()
    code.add_argument(
        "--accept_code", action="store_true", help="accept finished runs of other code as they are, from now on"
    )
    code.add_argument("--rerun_code", action="store_true", help="repeat runs that were finished by other code")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands that would be started now, and start nothing"
    )


def run(args) -> int:
    from gptjax.study.running import runner

    if args.batch_runs not in ("auto", "off"):
        raise UserError(f"--batch_runs={args.batch_runs!r} is not known; use auto or off.")
    if args.parallel is not None and args.parallel < 1:
        raise UserError(f"--parallel={args.parallel} is too small; use at least 1.")
    if args.max_flops is not None:
        plan.Limits(flops=args.max_flops).check(plan.plan(FileSource(args.study, batched=False).runs({}))["totals"])
    directory = open_directory(args.out)
    source = FileSource(args.study, batched=args.batch_runs == "auto")
    launcher = launching.launcher(args.launcher, args.launcher_flag or [], directory)
    old_code = "accept" if args.accept_code else "rerun" if args.rerun_code else None
    settings = runner.Settings(launcher, args.parallel, old_code)

    def made(where: StudyDirectory):
        return runner.Runner(where, source, settings, terminal.Progress(sys.stderr))

    if args.dry_run:
        print("\n".join(_dry_run(directory, made)))
        return 0
    if reason := unreadable(directory):
        raise UserError(f"--out={directory.path} cannot be read here: {reason}.")
    _check_out(directory)
    return made(directory).run()


def _check_out(directory: StudyDirectory) -> None:
    """Raises UserError: a folder of another kind, in whose midst a study would be written."""
    fitting = (folder_kinds.STUDY, folder_kinds.MISSING, folder_kinds.EMPTY)
    if (kind := folder_kinds.kind_of(directory.path)) in fitting:
        return
    names = {entry.name for entry in directory.path.iterdir()} if kind != folder_kinds.FILE else {""}
    if not names <= {"writer.lock", "configs", "runs", "logs", ".study.json.partial"}:  # of one that was killed early
        raise UserError(
            f"--out={directory.path} is {folder_kinds.said(directory.path)}; give the folder of this study, or a new folder."
        )


def _dry_run(directory: StudyDirectory, made: typing.Callable) -> list[str]:
    """Commands for a folder as it is; for one that cannot be read here, as if nothing had been run there yet."""
    if not (reason := unreadable(directory)):
        return made(directory).dry_run()
    with tempfile.TemporaryDirectory() as empty:
        stand_in = open_directory(empty)
        lines = made(stand_in).dry_run()
    said = f"# {directory.path} cannot be read here ({reason}): printed as if nothing had been run there"
    return [said, *(line.replace(str(stand_in.path), str(directory.path)) for line in lines)]


def unreadable(directory: StudyDirectory) -> str | None:
    """Why an object store cannot be read from here; None if it can, or is none."""
    if directory.local:
        return None
    try:
        directory.study.exists()
    except ImportError as error:
        return f"{first_line(error)}; pip install 'etils[epath-gcs]'"
    except Exception as error:  # clients of object stores raise errors of their own
        return first_line(error)
    return None
