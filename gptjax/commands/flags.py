"""Flags that several commands have, and changes of a config, which every command with --config takes."""

from gptjax.errors import UserError, did_you_mean

CONFIG_HELP = "a config file; change a field with --config.SECTION.FIELD=VALUE, as in --config.optim.peak_lr=3e-4"
EXCHANGE_FORMATS = {  # imported and exported
    "hf": "Hugging Face's transformers",
    "peft": "adapters of PEFT",
    "gguf": "llama.cpp's GGUF",
}


def add_config_flag(parser, required: bool = True) -> None:
    parser.add_argument("--config", required=required, metavar="FILE", help=CONFIG_HELP)


def add_run_flag(parser, required: bool = True, help: str = "the run directory, local or gs://") -> None:
    """A run as a word of its own or as --workdir=RUN, as gptjax train takes it: args.workdir, once take_run has seen it."""
    parser.add_argument("run_word", nargs="?", metavar="RUN", help=help)
    parser.add_argument("--workdir", metavar="RUN", help="the same, as gptjax train takes it")
    parser.set_defaults(needs_run=required)


def take_run(args) -> None:
    """Raises UserError: a command of add_run_flag was given no run, or two."""
    if not hasattr(args, "needs_run"):
        return
    if args.run_word is not None and args.workdir is not None:
        raise UserError(f"{args.run_word} and --workdir={args.workdir} are both given; give the run directory once.")
    if args.run_word is not None:
        args.workdir, args.typed["--workdir="] = args.run_word, ""
    if args.workdir is None and args.needs_run:
        raise UserError(
            f"gptjax {args.command} needs a run directory; give it as in gptjax {args.command} runs/quickstart, or as"
            f" --workdir=RUN."
        )


def split_changes(words: list[str]) -> tuple[list[str], list[str]]:
    """(["optim.peak_lr=3e-4"] of every --config.optim.peak_lr=3e-4 or --config.optim.peak_lr 3e-4, the other words).

    argparse, which knows none of these flags, would take a value with a space in it, or one that follows, for a RUN."""
    changes, others, waiting = [], [], list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--config."):
            others.append(word)
        elif "=" not in word and waiting and not waiting[0].startswith("--"):
            changes.append(f"{word.removeprefix('--config.')}={waiting.pop(0)}")
        else:
            changes.append(word.removeprefix("--config."))
    return changes, others


def add_checkpoint_flags(parser) -> None:
    parser.add_argument("--step", type=int, default=None, help="the step of the checkpoint (default: the newest)")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")


def add_cost_flags(parser) -> None:
    """What a plan's time and cost are reckoned with."""
    parser.add_argument("--price", type=float, metavar="USD", help="US dollars for a chip and hour")
    parser.add_argument(
        "--matmul_fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="share of the published peak that matmuls reach (default: %(default)g)",
    )


def add_json_flag(parser, help: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def check_words(unknown: list[str], changes: list[str], args) -> None:
    """Raises UserError: words that argparse knows nothing of, or changes of a config for a command that takes none."""
    word = getattr(args, "run_word", None)
    unknown = unknown + [word] * (
        word is not None and word.startswith("-")
    )  # a wrong flag whose value has a space in it
    if changes and not hasattr(args, "config"):
        unknown = unknown + [f"--config.{changes[0]}"]
    if unknown:
        refuse_flag(unknown[0], f"gptjax {args.command}", getattr(args, "known_flags", []))


def refuse_flag(word: str, command: str, known) -> None:
    """Raises UserError: a word of the command line that is none of the known flags of a command."""
    otherwise = f"; see {command} --help."
    near = did_you_mean(word.partition("=")[0], known, otherwise, likeness=0.7)
    raise UserError(f"unknown argument {word!r} of {command}{near}")


def load_config(args):
    """The Config of --config, with the changes of the command line. Raises UserError."""
    from gptjax.config import config_file

    return config_file.load_config(args.config, args.overrides)


def check_format(flag: str, given: str) -> None:
    """Raises UserError: a format of models that is not known."""
    if given not in EXCHANGE_FORMATS:
        expected = " or ".join(f"{name}, {title}" for name, title in EXCHANGE_FORMATS.items())
        raise UserError(f"{flag}={given} is not known; expected {expected}.")


def named_texts(pairs, flag: str) -> dict[str, str]:
    """Of NAME=TEXT. Raises UserError: one is none, or a name is twice there."""
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"{flag}={pair} is no NAME=TEXT; write {flag}=language=French.")
        if name in values:
            raise UserError(f"{flag}={name} is given twice; give it once.")
        values[name] = value
    return values
