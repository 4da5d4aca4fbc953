"""The command line: `gptjax COMMAND --flag=value`. A command is a module with add_flags(parser) and run(args), and a line
of COMMANDS; only the one that is named is imported.

A mistake of the user's (UserError) ends in one line and exit code 2, never in a traceback; a disk or network that fails
in one line and exit code 74.
"""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Collection

from gptjax.commands import flags
from gptjax.config import bounds
from gptjax.config.extras import of_the_install
from gptjax.errors import SAVE_FAILED, USER_ERROR, UserError, did_you_mean, of_the_machine

COMMANDS = {  # name: (module, what it is for)
    "train": ("gptjax.commands.train", "train a config, or continue the run in --workdir"),
    "info": ("gptjax.commands.info", "parameters, FLOPs and memory of a config, without running it"),
    "plan": (
        "gptjax.commands.plan",
        "compile a config for another machine: memory, collectives, time, cost",
    ),
    "eval": (
        "gptjax.commands.eval",
        "loss, perplexity and bits per byte of a run on its held-out text, or on other text",
    ),
    "compare": (
        "gptjax.commands.compare",
        "compare two runs on the same text: the difference, its error, and a p-value",
    ),
    "watch": (
        "gptjax.commands.watch",
        "show a run or a study as a page in a browser: losses, speed, events, samples, goodput",
    ),
    "sample": ("gptjax.commands.sample", "generate text with a run"),
    "serve": ("gptjax.commands.serve", "serve runs over HTTP, as OpenAI's clients expect it"),
    "chat": ("gptjax.commands.chat", "talk with a run, or with a server, in the terminal"),
    "ask": (
        "gptjax.commands.ask",
        "apply a recipe to a text: summary, translation, classification, your documents, ...",
    ),
    "index": ("gptjax.commands.index", "make an index of documents, which recipes answer from"),
    "verify": ("gptjax.commands.verify", "check that a run's checkpoints and files are as they were written"),
    "prepare": ("gptjax.commands.prepare", "turn text into a folder of token shards: clean, deduplicate, tokenise"),
    "data": (
        "gptjax.commands.data",
        "show the text of any step of a run, statistics of its text, or check its checksums",
    ),
    "tokenizer": ("gptjax.commands.tokenizer", "train a tokenizer, or show one and what it does"),
    "import": ("gptjax.commands.import_", "make a run directory from a model of transformers or llama.cpp"),
    "adapter": ("gptjax.commands.adapter", "merge the adapter of a run into its model"),
    "reward": ("gptjax.commands.reward", "put the scores of a reward model on a scale"),
    "export": ("gptjax.commands.export", "write a run's model for transformers or llama.cpp"),
    "road": ("gptjax.commands.road", "text, tokenizer, pretraining, fine-tuning, rewards and policies from one file"),
    "study": ("gptjax.commands.study", "scaling studies: many runs from one file, and the laws fitted to them"),
    "parity": (
        "gptjax.commands.parity",
        "show that a config, in miniature, trains the same on every mesh of 8 devices",
    ),
    "coordcheck": (
        "gptjax.commands.coordcheck",
        "check that training changes activations equally at every width or depth",
    ),
    "bench": (
        "gptjax.commands.bench",
        "measure compile time, tokens/s, MFU and memory of training and decoding a config",
    ),
}
WRONG_PATH = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    gc.set_threshold(20_000, 10, 10)  # imports and traces make a million objects and hardly a cycle: 0.2 s of a start
    changes, words = flags.split_changes(sys.argv[1:] if argv is None else argv)
    typed_flags = {}
    try:
        named = next((word for word in words if not word.startswith("-")), None)
        if named is not None and named not in COMMANDS:
            raise UserError(f"gptjax has no command {named!r}{did_you_mean(named, COMMANDS, '; see gptjax --help.')}")
        args, unknown = parser({named} & COMMANDS.keys()).parse_known_args(words)
        typed_flags = args.typed
        flags.check_words(unknown, changes, args)
        if vars(args).get("separator") == []:  # as argparse of Python 3.11 reads --separator=--
            args.separator = "--"
        flags.take_run(args)
        bounds.check_flags(vars(args))
        args.overrides = changes
        return args.run(args) or 0
    except UserError as error:
        said = str(error)
        for flag, typed in typed_flags.items():
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


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line; a flag that was mistyped is told before one that is missing by that."""

    def parse_known_args(self, args=None, namespace=None):
        self._words = [] if args is None else list(args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if not hasattr(namespace, "known_flags"):  # else of the command within this one
            namespace.known_flags = list(self._option_string_actions)
        return namespace, unknown

    def error(self, message):
        """Raises UserError."""
        known = self._option_string_actions
        unknown = [word for word in self._words if word.startswith("--") and word.partition("=")[0] not in known]
        if message.startswith("the following arguments are required") and unknown:
            flags.refuse_flag(unknown[0], self.prog, known)
        command = "" if self.prog == "gptjax" else f"{self.prog}: "
        raise UserError(f"{command}{message}; see {self.prog} --help.")


class ShowVersion(argparse.Action):
    def __call__(self, parser, *_):
        from importlib import metadata

        print(f"gptjax {metadata.version('gptjax')}")
        parser.exit()


def parser(with_flags: Collection[str] = COMMANDS.keys()) -> Parser:
    """Knows every command, and the flags of these alone, whose modules it imports."""
    top = Parser(prog="gptjax", description="Pretrain GPTs in JAX, and use what comes out.", allow_abbrev=False)
    top.add_argument("--version", action=ShowVersion, nargs=0, help="show the version and exit")
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
