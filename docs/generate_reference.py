"""The pages of the site that are made from the code: commands, config fields, kinds, exit codes, the launchers' README.

A hook of mkdocs (mkdocs.yml names it). `pages()` gives {path in the site: Markdown} and needs no mkdocs, so that a test can
look at it. Nothing is written to disk: these pages exist while the site is built, and cannot be older than the code.
"""

import argparse
import dataclasses
import importlib
import inspect
import os
import pathlib
import types
import unittest.mock

from gptjax import cli, errors
from gptjax.config import changes
from gptjax.config.fields import Config

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCHING = ("../launch/README.md", "launch.md")  # as docs/*.md link to it, and where it is in the site


def pages() -> dict[str, str]:
    return {
        "reference/commands.md": commands(),
        "reference/fields.md": fields(),
        "reference/kinds.md": kinds(),
        "reference/exit_codes.md": exit_codes(),
        LAUNCHING[1]: (ROOT / "launch" / "README.md").read_text(),
    }


# ---- hooks of mkdocs


def on_config(config):
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": formula}
    ]
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    return markdown.replace(f"({LAUNCHING[0]})", f"({LAUNCHING[1]})")


def formula(source: str, *_, **__) -> str:
    """MathML, which browsers draw by themselves, of a ```math block of LaTeX."""
    import latex2mathml.converter

    return f'<div class="math">{latex2mathml.converter.convert(source, display="block")}</div>'


# ---- commands


def commands() -> str:
    """What `--help` prints of every command, and of the commands below it."""
    with unittest.mock.patch.dict(os.environ, COLUMNS="80", NO_COLOR="1"):
        top = cli.parser()
        parts = ["# Commands", "`gptjax COMMAND --help` prints the same.", _block(top.format_help())]
        for name, parser in _below(top).items():
            parts += [f"## gptjax {name}", _block(parser.format_help())]
            for action, inner in _below(parser).items():
                parts += [f"### gptjax {name} {action}", _block(inner.format_help())]
    return "\n\n".join(parts)


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices if actions else {}


def _block(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


# ---- config fields

FIELDS = """# Config fields

Every field of a config, from `gptjax/config/fields.py`. [Configs](../configs.md) says how to set them. The last column is
what a change of the field changes, and so who accepts it:

"""


def fields() -> str:
    """A table for each section of a config: field, type and default, meaning, and what a change changes."""
    yes_no = {True: "yes", False: "no"}
    words = [
        (f"`{name}`", word.meaning, yes_no[word.resume], yes_no[word.branch]) for name, word in changes.WORDS.items()
    ]
    text = FIELDS + _table(("word", "what changes", "accepted when a run resumes", "accepted in a branch"), words)
    for section in dataclasses.fields(Config):
        text += f"\n\n## {section.name}\n\n{_description(section.type)}\n\n"
        rows = [
            (f"`{f.name}`", f"`{_spelled(f.type)}`", f"`{f.default!r}`", f.metadata["meaning"], f.metadata["changes"])
            for f in dataclasses.fields(section.type)
        ]
        text += _table(("field", "type", "default", "meaning and unit", "a change changes"), rows)
    return text


def _spelled(kind) -> str:
    return kind.__name__ if type(kind) is type else str(kind)


def _table(heads, rows) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---- kinds

KINDS = [  # (heading, chosen by, the table, the attribute of an entry that is or names what it is)
    ("Models", "`model.architecture`", "gptjax.config.catalogue:ARCHITECTURES", "model"),
    ("Attention kernels", "`model.attention`", "gptjax.models.attention:KERNELS", "function"),
    ("Activations of the MLP", "`model.mlp`", "gptjax.models.layers:ACTIVATIONS", None),
    ("Norms", "`model.norm`", "gptjax.models.layers:NORMS", None),
    ("Optimizers", "`optim.name`", "gptjax.optim.optimizers:OPTIMIZERS", "direction"),
    ("Learning-rate schedules", "`optim.schedule`", "gptjax.schedule:SCHEDULES", None),
    ("Losses", "`train.loss`", "gptjax.training.losses:LOSSES", None),
    ("Sources of text", "`data.source`, or `KIND:` before a path", "gptjax.config.text_kinds:SOURCES", "meaning"),
    ("Tokenizers", "`data.tokenizer`, `--tokenizer`", "gptjax.config.text_kinds:TOKENIZERS", None),
    ("Packings", "`data.packing`", "gptjax.data.rows.pipeline:PACKINGS", None),
    ("Objectives", "`data.objective`", "gptjax.config.text_kinds:OBJECTIVES", "code"),
    ("Cleaning steps", "`gptjax prepare --clean`", "gptjax.data.preparing.cleaning.specs:STEPS", None),
    ("Sampler options", "`gptjax sample`, `run.generate`", "gptjax.generation.settings:OPTIONS", "help"),
    ("Tasks in Python", "`gptjax eval --tasks`, `eval.tasks`", "gptjax.tasks.task:TASKS", None),
    ("Fit methods", "`gptjax study fit --method`", "gptjax.study.methods.catalogue:METHODS", "title"),
    ("Launchers of studies", "`gptjax study run --launcher`", "gptjax.study.running.launching:LAUNCHERS", None),
    ("Chips", "`gptjax plan --topology`", "gptjax.hardware:CHIPS", "device_kind"),
    ("Families of Hugging Face", "`gptjax export`; read from `config.json`", "gptjax.huggingface.families:FAMILIES", "title"),
]  # fmt: skip


def kinds() -> str:
    """Every table of names that a config or a flag chooses from."""
    text = "# Kinds\n\nNames that a config field or a flag chooses from. Each table stands in the file that is named.\n"
    for heading, chosen_by, address, attribute in KINDS:
        module_name, _, table_name = address.partition(":")
        table = getattr(importlib.import_module(module_name), table_name)
        rows = [(f"`{name}`", _meaning(table[name], attribute)) for name in table]
        file = module_name.replace(".", "/") + ".py"
        text += f"\n## {heading}\n\nChosen by {chosen_by}; `{table_name}` of `{file}`.\n\n"
        text += _table(("name", "what it is"), rows) + "\n"
    return text


def _meaning(entry, attribute: str | None) -> str:
    """What an entry of a table is: a docstring of the class or function it names, or a text beside it."""
    thing = _imported(entry)
    if attribute is not None:
        thing = _imported(getattr(thing, attribute))
    return thing if isinstance(thing, str) else _description(thing)


def _imported(thing):
    is_address = isinstance(thing, str) and thing.startswith("gptjax.")
    return errors.imported(thing, "a table of names") if is_address else thing


def _description(thing) -> str:
    """The first paragraph of a docstring, of its own and not of a class it inherits from."""
    own = thing.__doc__ if isinstance(thing, type | types.FunctionType) else type(thing).__doc__
    if own is None or own.startswith(f"{getattr(thing, '__name__', '')}("):  # the signature that dataclasses write
        return ""
    return " ".join(inspect.cleandoc(own).partition("\n\n")[0].split())


# ---- exit codes

EXIT_CODES = """# Errors and exit codes

A mistake of yours is one line on stderr: what was given, what was expected, what to do. It is never a traceback. A
traceback is a mistake in gptjax.

"""


def exit_codes() -> str:
    rows = [(f"`{code}`", *meaning) for code, meaning in errors.EXIT_CODES.items()]
    text = EXIT_CODES + _table(("code", "what happened", "what to do"), rows)
    text += "\n\n## In Python\n\nThe command line catches these and prints them; in a notebook you meet them as they are.\n\n"
    kinds_of_error = [
        (f"`gptjax.errors.{name}`", _description(kind), f"`{kind.exit_code}`")
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.UserError)
    ]
    return text + _table(("exception", "what it says", "exit code"), kinds_of_error)
