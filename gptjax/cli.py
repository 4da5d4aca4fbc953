"""The command line: `gptjax COMMAND --flag=value`. A command is a module with add_flags(parser) and run(args), and a line
of COMMANDS; only the one that is named is imported.

A mistake of the user's (UserError) ends in one line and exit code 2, never in a traceback; a disk or network that fails
in one line and exit code 74.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Collection

from gptjax.commands import flags
from gptjax.config import bounds
from gptjax.config.extras import of_the_install
from gptjax.errors import SAVE_FAILED, USER_ERROR, UserError, of_the_machine

COMMANDS = {  # name: (module, what it is for)
    "train": ("gptjax.commands.train", "train a config, or go on with the run in --workdir"),
    "info": ("gptjax.commands.info", "parameters, FLOPs and memory of a config, without running it"),
    "plan": (
        "gptjax.commands.plan",
        "compile a config for a machine that is not here: memory, collectives, time, cost",
    ),
    "eval": ("gptjax.commands.eval", "loss, perplexity and bits per byte of a run on its held-out text, or on others"),
    "compare": ("gptjax.commands.compare", "two runs on the same text: the difference, its error, and a p-value"),
    "watch": (
        "gptjax.commands.watch",
        "a page of a run or a study in a browser: losses, speed, events, samples, goodput",
    ),
    "sample": ("gptjax.commands.sample", "text from a run"),
    "verify": ("gptjax.commands.verify", "whether a run's checkpoints and files are as they were written"),
    "prepare": ("gptjax.commands.prepare", "make a folder of token shards from text: clean, deduplicate, tokenise"),
    "data": ("gptjax.commands.data", "the text of any step of a run, what it reads in numbers, or its checksums"),
    "tokenizer": ("gptjax.commands.tokenizer", "train a tokenizer, or show what one is and does"),
    "import": ("gptjax.commands.import_", "make a run directory of a model of Hugging Face's transformers"),
    "export": ("gptjax.commands.export", "write a run's model as Hugging Face's transformers reads it"),
    "study": ("gptjax.commands.study", "scaling studies: many runs from one file, and the laws through them"),
    "parity": (
        "gptjax.commands.parity",
        "show that a config, in miniature, trains the same on every mesh of 8 devices",
    ),
    "coordcheck": ("gptjax.commands.coordcheck", "whether training changes activations alike at every width or depth"),
    "bench": ("gptjax.commands.bench", "compile time, tokens/s, MFU and memory of training and decoding a config"),
}
WRONG_PATH = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    argv = flags.joined(sys.argv[1:] if argv is None else argv)
    named = next((word for word in argv if not word.startswith("-")), None)
    args, rest = parser({named} & COMMANDS.keys()).parse_known_args(argv)
    try:
        changes = flags.overrides(rest, accepts=hasattr(args, "config"), command=args.command)
        if vars(args).get("separator") == []:  # as argparse of Python 3.11 reads --separator=--
            args.separator = "--"
        flags.take_run(args)
        bounds.check_flags(vars(args))
        args.overrides = changes
        return args.run(args) or 0
    except UserError as error:
        said = str(error)
        for flag, typed in args.typed.items():
            said = said.replace(flag, typed)
        print(f"gptjax: {said}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gptjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path of the user's that is wrong; or a disk or network that fails, for a while maybe
        print(f"gptjax: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return USER_ERROR if isinstance(error, WRONG_PATH) else SAVE_FAILED
    except Exception as error:
        if (line := of_the_machine(error) or of_the_install(error)) is None:
            raise
        print(f"gptjax: {line}", file=sys.stderr)
        return USER_ERROR


def parser(with_flags: Collection[str] = COMMANDS.keys()) -> argparse.ArgumentParser:
    """Knows every command, and the flags of these alone, whose modules it imports."""
    top = argparse.ArgumentParser(
        prog="gptjax", description="Pretrain GPTs in JAX, and use what comes out.", allow_abbrev=False
    )
    top.set_defaults(typed={})  # {a flag as errors name it: as it was typed}
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (address, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        if name in with_flags:
            module = importlib.import_module(address)
            command.set_defaults(run=module.run)
            module.add_flags(command)
    return top


if __name__ == "__main__":
    sys.exit(main())
