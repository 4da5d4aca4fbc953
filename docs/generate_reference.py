"""The pages of the site that are made from the code: commands, config fields, kinds, exit codes, the launchers' README.

A hook of mkdocs (mkdocs.yml names it). `pages()` gives {path in the site: Markdown} and needs no mkdocs, so that a test can
look at it. Nothing is written to disk: these pages exist while the site is built, and cannot be older than the code.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import os
import pathlib
import types
import unittest.mock

from gptjax import cli, errors, supervisor
from gptjax.config import changes
from gptjax.config.fields import Config

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCHING = "../launch/README.md", "launch.md"  # as pages link to it in a checkout; where it is in the site


def pages() -> dict[str, str]:
    return {
        "reference/commands.md": commands(),
        "reference/fields.md": fields(),
        "reference/kinds.md": kinds(),
        "reference/exit_codes.md": exit_codes(),
        "reference/code.md": code(),
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


def on_page_markdown(markdown: str, **_) -> str:
    return markdown.replace(*LAUNCHING)


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
            (
                f"`{f.name}`",
                _plain(f.metadata["meaning"]),
                f"`{f.default!r}`",
                f"`{_spelled(f.type)}`",
                f.metadata["changes"],
            )
            for f in dataclasses.fields(section.type)
        ]
        text += _table(("field", "meaning and unit", "default", "type", "a change changes"), rows)
    return text


def _plain(text: str) -> str:
    """Text whose braces Markdown does not take for attributes of the cell."""
    return text.replace("{", r"\{").replace("}", r"\}")


def _spelled(kind) -> str:
    return kind.__name__ if type(kind) is type else str(kind).replace(" | ", " or ")


def _table(heads, rows) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---- kinds

MODELS = {
    "gpt": "A decoder-only transformer: GPT-1, GPT-2, GPT-3, and with other fields a Llama.",
    "lstm": "A stack of LSTM layers, to compare with.",
}
KERNELS = {
    "xla": "Plain XLA, on every device and for every config.",
    "cudnn": "cuDNN's flash attention, on GPUs.",
    "triton": "gptjax's own flash attention in Pallas, on GPUs: with dropout, packed documents and split sequences.",
    "splash": "Splash attention, a Pallas kernel, on TPUs.",
}
SOURCES = {
    "corpus": "Shakespeare's plays, which ship with gptjax. A document is a play.",
    "text": "Files of UTF-8 text. A document is a file, or what `data.separator` divides it into.",
    "jsonl": "JSON objects, one on each line. A document is the field `data.text_field` of an object.",
    "parquet": "Parquet files. A document is the column `data.text_field` of a row.",
    "arrayrecord": "ArrayRecord files. A document is a record: text, or the field `data.text_field` of a JSON object.",
    "warc": "Web archives, such as those of Common Crawl. A document is a page.",
    "prepared": "A folder of token shards that `gptjax prepare` made.",
    "tfds": "A data set of TensorFlow Datasets. A document is the field `data.text_field` of an example.",
    "hf": "A data set of the Hugging Face Hub. A document is the column `data.text_field` of a row.",
}
ACTIVATIONS = {"gelu": "Hendrycks and Gimpel 2016, the exact form."}
SCHEDULES = {
    "constant": "The peak, to the end.",
    "linear": "A straight line from the peak to `optim.final_lr_fraction` of it; `linear(whole=True)`: as if it had begun with the run, without the warmup.",
}
ADAPTERS = {
    "lora": "Low-rank updates of chosen matrices (Hu et al. 2021). Parameters: rank, alpha, on, dropout, frozen.",
    "rslora": "LoRA scaled by alpha / sqrt(rank) (Kalajdzievski 2023). Parameters as lora.",
    "dora": "LoRA with a trained length of each output (Liu et al. 2024). Parameters as lora.",
    "ia3": "Outputs of chosen matrices times a trained vector (Liu et al. 2022). Parameter: on.",
    "bottleneck": "Small MLPs behind attention and MLP (Houlsby et al. 2019). Parameters: size, behind, dropout.",
    "prefix": "Trained keys and values before every text (Li and Liang 2021). Parameters: length, shifted.",
    "prompt": "Trained vectors before every text (Lester et al. 2021). Parameters: length, shifted.",
}
PACKINGS = {
    "concat": "Documents end to end, cut into rows at a random offset each epoch (GPT-2, GPT-3).",
    "best_fit": "Whole documents, several in a row, which do not see each other. Only longer ones are cut.",
}
CHAT_FORMATS = {
    "gptjax": "gptjax's own: one control token before each message and one behind it, after what documents begin after.",
    "chatml": "ChatML: `<|im_start|>`, the role, a line end, the message, `<|im_end|>` and a line end.",
    "llama3": "That of Llama 3: the role between `<|start_header_id|>` and `<|end_header_id|>`, `<|eot_id|>` behind it.",
    "smollm2": "ChatML with the system message of SmolLM2-Instruct where a conversation has none.",
}
KINDS = [  # (heading, chosen by, the table, an attribute of an entry or a dict that tells what it is; else: its docstring)
    ("Models", "`model.architecture`", "gptjax.config.catalogue:ARCHITECTURES", MODELS),
    ("Adapters", "`model.adapter`", "gptjax.config.catalogue:ADAPTERS", ADAPTERS),
    ("Attention kernels", "`model.attention`", "gptjax.models.attention:KERNELS", KERNELS),
    ("Activations of the MLP", "`model.mlp`", "gptjax.models.layers:ACTIVATIONS", ACTIVATIONS),
    ("Task heads", "`model.task_head`", "gptjax.config.task_heads:HEADS", None),
    ("Norms", "`model.norm`", "gptjax.models.layers:NORMS", None),
    ("Optimizers", "`optim.name`", "gptjax.optim.optimizers:OPTIMIZERS", "direction"),
    ("Learning-rate schedules", "`optim.schedule`", "gptjax.schedule:SCHEDULES", SCHEDULES),
    ("Losses", "`train.loss`", "gptjax.training.losses:LOSSES", None),
    ("Sources of text", "`data.source`, or `KIND:` before a path", "gptjax.config.text_kinds:SOURCES", SOURCES),
    ("Tokenizers", "`data.tokenizer`, `--tokenizer`", "gptjax.config.text_kinds:TOKENIZERS", None),
    ("Chat formats", "`data.chat`, `gptjax sample --chat_format`", "gptjax.config.text_kinds:FORMATS", CHAT_FORMATS),
    ("Packings", "`data.packing`", "gptjax.data.rows.pipeline:PACKINGS", PACKINGS),
    ("Objectives", "`data.objective`", "gptjax.config.text_kinds:OBJECTIVES", "code"),
    ("Tasks of labelled examples", "`data.task`", "gptjax.data.examples.kinds:TASKS", None),
    ("Preferences", "`data.preferences`", "gptjax.config.text_kinds:PREFERENCES", None),
    ("Cleaning steps", "`gptjax prepare --clean`", "gptjax.data.preparing.cleaning.specs:STEPS", None),
    ("Sampler options", "`gptjax sample`, `run.generate`", "gptjax.generation.settings:OPTIONS", "help"),
    ("Rewards", "`rl.rewards`", "gptjax.posttrain.rewards.reward:REWARDS", None),
    ("Generators of problems", "`rl.prompts`", "gptjax.posttrain.problems.problem:GENERATORS", None),
    ("Tools", "a chat's tool calls in rollouts", "gptjax.posttrain.tools:TOOLS", None),
    ("Tasks in Python", "`gptjax eval --tasks`, `eval.tasks`", "gptjax.tasks.task:TASKS", None),
    ("Fit methods", "`gptjax study fit --method`", "gptjax.study.methods.catalogue:METHODS", "title"),
    ("Launchers of studies", "`gptjax study run --launcher`", "gptjax.study.running.launching:LAUNCHERS", None),
    ("Chips", "`gptjax plan --topology`", "gptjax.hardware:CHIPS", "device_kind"),
    ("Families of Hugging Face", "`gptjax export`; read from `config.json`", "gptjax.huggingface.families:FAMILIES", "title"),
]  # fmt: skip


def kinds() -> str:
    """Every table of names that a config or a flag chooses from."""
    text = "# Kinds\n\nNames that a config field or a flag chooses from. Each table stands in the file that is named.\n"
    for heading, chosen_by, address, told_by in KINDS:
        module_name, _, table_name = address.partition(":")
        table = getattr(importlib.import_module(module_name), table_name)
        rows = [(f"`{name}`", _meaning(name, table[name], told_by)) for name in table]
        file = module_name.replace(".", "/") + ".py"
        text += f"\n## {heading}\n\nChosen by {chosen_by}; `{table_name}` of `{file}`.\n\n"
        text += _table(("name", "what it is"), rows) + "\n"
    return text


def _meaning(name: str, entry, told_by: str | dict | None) -> str:
    """What an entry of a table is: a text, or the docstring of the class or function that it names."""
    if isinstance(told_by, dict) and name in told_by:
        return told_by[name]
    thing = _imported(entry)
    if isinstance(told_by, str):
        thing = _imported(getattr(thing, told_by))
    return thing if isinstance(thing, str) else _description(thing)


def _imported(thing):
    is_address = isinstance(thing, str) and thing.startswith("gptjax.")
    return errors.imported(thing, "a table of names") if is_address else thing


def _description(thing) -> str:
    """The first paragraph of the docstring of a class or function, its own and not one that it inherits."""
    own = thing.__doc__ if isinstance(thing, type | types.FunctionType) else None
    if own is None or own.startswith(f"{getattr(thing, '__name__', '')}("):  # the signature that dataclasses write
        return ""
    return " ".join(inspect.cleandoc(own).partition("\n\n")[0].split())


# ---- exit codes

EXIT_CODES = {  # code: (what happened, what to do)
    0: ("the command did what it was asked to do", "-"),
    1: (
        "a check did not pass: `verify`, `parity`, `coordcheck`, a plan that does not fit, or runs of a study that failed",
        "read what the command printed",
    ),
    errors.USER_ERROR: (
        "a mistake in the command, the config or a file; or a package or device that is missing",
        "change what the line names; the same command would fail again",
    ),
    errors.SAVE_FAILED: (
        "a disk or a network failed, or a checkpoint could not be written",
        "mend the disk, then run the same command again; the supervisor does it for you",
    ),
    errors.SAVED_AND_STOPPED: (
        "the run was told to stop (Ctrl-C or SIGTERM), and it saved",
        "run the same command again to resume",
    ),
    errors.DIVERGED: (
        "the loss is not finite (NaN or infinite); the bad state was not saved",
        "lower the learning rate, or turn on `optim.skip`; the same command would only repeat it",
    ),
    errors.STALLED: (
        "the run made no step for `train.stall_seconds`; the stacks of all threads are in its directory",
        "read `watchdog-N.txt` in the run directory, then run the same command again",
    ),
    errors.PEER_LOST: (
        "another process of the run died, or never came; or another process took over the run directory",
        "run the same command again on all hosts; the supervisor does it for you",
    ),
    supervisor.GAVE_UP: (
        "the supervisor gave up: several starts in a row gained no step",
        "read the log of the last start",
    ),
    errors.MOVED: (
        "the run directory was renamed or removed while the run was training",
        "give the new path as `--workdir`",
    ),
    errors.ENGINE_FAILED: (
        "the engine of `gptjax serve` failed and did not recover; its clients were told",
        "run the same command again; the log has the error",
    ),
    130: ("Ctrl-C ended a command that has nothing to save", "-"),
}

CODES = """# Errors and exit codes

A mistake of yours is one line on stderr: what was given, what was expected, what to do. It is never a traceback. A
traceback is a mistake in gptjax.

"""


def exit_codes() -> str:
    rows = [(f"`{code}`", *meaning) for code, meaning in EXIT_CODES.items()]
    text = CODES + _table(("code", "what happened", "what to do"), rows)
    text += "\n\n## In Python\n\nThe command line catches these and prints them; in a notebook you meet them as they are.\n\n"
    kinds_of_error = [
        (f"`gptjax.errors.{name}`", _description(kind), f"`{kind.exit_code}`")
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.UserError)
    ]
    return text + _table(("exception", "what it says", "exit code"), kinds_of_error)


# ---- the code

CODE = """# The code

`gptjax/` has one room (package) for each subject. A room imports only rooms before it in the order of `tests/house_test.py`.
Each room says in its docstring what stands in which file.
"""


def code() -> str:
    """The docstring of every room, and the first sentence of every module at the top."""
    package = ROOT / "gptjax"
    rows = [(f"`{file.name}`", _sentence(_docstring(file))) for file in sorted(package.glob("[a-z]*.py"))]
    text = CODE + "\n" + _table(("file", "what it is"), rows) + "\n"
    for file in sorted(package.rglob("*/__init__.py")):
        room = file.parent.relative_to(package).as_posix()
        text += f"\n{'#' * (2 + room.count('/'))} {room}/\n\n{_block(_docstring(file))}\n"
    return text


def _sentence(docstring: str) -> str:
    """The first one, without its full stop."""
    return " ".join(docstring.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def _docstring(file: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""
