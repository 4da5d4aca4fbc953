"""What the launchers share: the words after `--`, the supervised command, showing and running commands.

A launcher says where a run goes and nothing about what it computes: what follows `--` is passed to `gptjax train` as it
stands. The checkout that a launcher lies in is the code that it runs, here and on other machines.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gptjax import errors, supervisor  # noqa: E402
from gptjax.errors import UserError  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Run:
    """What to train: the arguments of `gptjax train`, and what the launcher reads of them."""

    arguments: list[str]
    config: str
    workdir: str

    @property
    def name(self) -> str:
        """Of the config file, as cloud resources may be called: lower case, digits, hyphens."""
        return pathlib.Path(self.config).stem.replace("_", "-").lower()

    def train_command(self, python: str) -> list[str]:
        return [python, "-m", "gptjax", "train", *self.arguments]

    def supervised_command(self, python: str, limits: supervisor.Limits) -> list[str]:
        """What a host runs: the training under the one supervisor."""
        flags = [f"--workdir={self.workdir}", *limits.flags()]
        return [python, "-m", "gptjax.supervisor", *flags, "--", *self.train_command(python)]


def main(description: str, add_flags: typing.Callable, launch: typing.Callable, argv: list[str] | None = None) -> int:
    """Parses the words before `--` and launches. Returns the exit code; a mistake of the user's is one line and 2."""
    parser = argparse.ArgumentParser(
        description=description,
        usage="%(prog)s [flags] -- --config=FILE [--workdir=DIR] [--config.SECTION.FIELD=VALUE ...]",
        allow_abbrev=False,
    )
    add_flags(parser)
    supervisor.add_flags(parser)
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and run nothing")
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:split])
    args.train = argv[split + 1 :]
    try:
        return launch(args) or 0
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return errors.USER_ERROR
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130


def read_run(words: list[str], default_parent: str | None) -> Run:
    """The run that the words after `--` name. Without a --workdir it goes to default_parent/CONFIGNAME, which is said.

    Raises UserError for anything that `gptjax train` would refuse before it has seen a device.
    """
    args, _ = parse_train(words)
    if args.config is None:
        raise UserError("no config given; the arguments of gptjax train follow --, as in: -- --config=configs/FILE.py")
    if args.workdir is None:
        if default_parent is None:
            raise UserError("no run directory given; use --bucket=gs://BUCKET, or --workdir=gs://BUCKET/DIR after --.")
        args.workdir = f"{default_parent.rstrip('/')}/{pathlib.Path(args.config).stem}"
        words = [*words, f"--workdir={args.workdir}"]
        note(f"no --workdir given: the run directory is {args.workdir}")
    load_config(words)
    return Run(list(words), args.config, args.workdir)


def load_config(words: list[str]):
    """The Config of the words after `--`. Raises UserError for what is not a config, or not a field of one."""
    from gptjax.commands import flags
    from gptjax.config import config_file

    changes, words = flags.split_changes(words)
    args, unknown = parse_train(words)
    flags.check_words(unknown, changes, args)
    return config_file.load_config(args.config, changes)


class TrainParser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and end."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}, in what follows --; gptjax train --help lists what it takes.")


def parse_train(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What `gptjax train` would read of the words after `--`, and the words that are left: changes of the config."""
    from gptjax.commands import train

    parser = TrainParser(add_help=False, allow_abbrev=False)
    parser.set_defaults(command="train")  # for messages
    train.add_flags(parser, required=False)
    return parser.parse_known_args(words)


def require_shipped(run: Run) -> None:
    """Raises UserError unless other machines, which get this checkout, find the files and can write the run there."""
    args, _ = parse_train(run.arguments)
    for flag, file in (("--config", args.config), ("--executable", args.executable)):
        if (
            file is not None
            and not file.startswith("gs://")
            and (pathlib.Path(file).is_absolute() or not (ROOT / file).exists())
        ):
            raise UserError(
                f"{flag}={file}: the machines get this checkout only; give a path from {ROOT}, as in configs/FILE.py,"
                " or one on gs://."
            )
    if not run.workdir.startswith("gs://"):
        raise UserError(
            f"--workdir={run.workdir} is on no disk that the machines share; use --workdir=gs://BUCKET/DIR after --,"
            " or --bucket=gs://BUCKET."
        )


def require_name(flag: str, name: str, length: int) -> None:
    """Raises UserError for a name that a cloud would refuse (RFC 1035: it becomes part of a host's)."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > length:
        raise UserError(
            f"--{flag}={name!r}; expected at most {length} lower-case letters, digits and hyphens, a letter first"
            " and no hyphen last."
        )


def read_variables(words: list[str]) -> dict[str, str]:
    """The values of --env by name. Raises UserError for what is not NAME=VALUE."""
    for word in words:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", word, re.DOTALL):
            raise UserError(f"--env={word!r}; expected NAME=VALUE.")
    return dict(word.split("=", 1) for word in words)


def require_program(name: str, how: str) -> None:
    """Raises UserError if a program that the launcher calls is not installed."""
    if shutil.which(name) is None:
        raise UserError(f"{name} is not installed here; {how} (--dry_run needs nothing).")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with the checkout's gptjax in front, and output that is not held back."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def show(*commands: list[str] | str) -> None:
    """Prints commands as they can be pasted into a shell; a string is shown as it is."""
    for command in commands:
        print(command if isinstance(command, str) else shlex.join(command))


def run(command: list[str]) -> int:
    """Shows a command, runs it with its output shown, and returns its exit code. Ctrl-C does not reach it."""
    note(shlex.join(command))
    return supervisor.exit_code(subprocess.run(command, start_new_session=True).returncode)


def check(command: list[str], doing: str) -> None:
    """Like run. Raises UserError if it fails."""
    code = run(command)
    if code:
        raise UserError(f"{doing} failed with code {code}; the message is above.")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command printed, and how it ended."""

    code: int
    text: str
    error: str

    @property
    def reason(self) -> str:
        """Why it failed, in one line: gcloud puts advice below it."""
        lines = self.error.splitlines()
        return next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "it gave no reason")


def ask(command: list[str]) -> Answer:
    """Runs a command unseen. Ctrl-C does not reach it."""
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    return Answer(done.returncode, done.stdout.strip(), done.stderr.strip())


def note(line: str) -> None:
    print(f"launch: {line}", file=sys.stderr, flush=True)
