"""Flags that several commands have, and changes of a config, which every command with --config takes."""

from gptjax.errors import UserError

CONFIG_HELP = "a config file; change a field with --config.SECTION.FIELD=VALUE, as in --config.optim.peak_lr=3e-4"
EXCHANGE_FORMATS = ("hf",)  # that models are imported from and exported to


def add_config_flag(parser, required: bool = True) -> None:
    parser.add_argument("--config", required=required, metavar="FILE", help=CONFIG_HELP)


def add_checkpoint_flags(parser) -> None:
    parser.add_argument("--step", type=int, default=None, help="the step of the checkpoint (default: the newest)")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")


def add_json_flag(parser, help: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def overrides(rest: list[str], accepts: bool, command: str) -> list[str]:
    """["optim.peak_lr=3e-4"] from ["--config.optim.peak_lr=3e-4"]; the value may also follow as a word of its own.

    Raises UserError for any other word.
    """
    changes, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not accepts or not word.startswith("--config."):
            raise UserError(f"unknown argument {word!r} of gptjax {command}; see gptjax {command} --help.")
        if "=" not in word and words and not words[0].startswith("--"):
            word = f"{word}={words.pop(0)}"
        changes.append(word.removeprefix("--config."))
    return changes


def load_config(args):
    """The Config of --config, with the changes of the command line. Raises UserError."""
    from gptjax.config import config_file

    return config_file.load_config(args.config, args.overrides)


def check_format(flag: str, given: str) -> None:
    """Raises UserError: a format of models that is not known."""
    if given not in EXCHANGE_FORMATS:
        raise UserError(
            f"{flag}={given} is not known; expected {', '.join(EXCHANGE_FORMATS)}, Hugging Face's transformers."
        )
