"""What makes two runs the same run: what is trained (config, text, lineage) and the code that trains it.

The key of a run names its directory. Two configs that differ only in what changes no number have one key, and so have
two versions of the code that differ in comments, docstrings or the wording of errors: that is why it is digested here by
syntax trees, of the modules that decide numbers alone, and not by every byte (storage/code.py), which would run a finished
study again for a corrected comment. Versions of packages do not count: the manifest.json of a run says which it had.
"""

import ast
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import typing

import gptjax
from gptjax.config import changes, config_file
from gptjax.config.fields import Config
from gptjax.data.tokens.store import prepare
from gptjax.errors import imported

PACKAGE = pathlib.Path(gptjax.__file__).parent
ADDRESS = re.compile(r"gptjax(\.\w+)+(:\w+)?")  # in a table of what is imported when it is chosen

# Rooms and modules in which a step and an evaluation are computed. What they import counts too, but for what follows.
ROOTS = (
    "models", "optim", "parallel", "data.rows", "schedule", "training.step", "training.feed", "evaluation.held_out",
    "study.lanes.program",
)  # fmt: skip
PLUMBING = (  # reads, writes, checks, counts, reports; decides no number of a run
    "checkpoints", "errors", "evaluation", "flops", "generation", "hosts", "run", "rundir", "storage", "study", "terminal",
    "config.bounds", "config.checks", "config.config_file", "models.gpt_counts", "models.lstm_counts", "hosts.compiling",
    # What the text is, its fingerprint says.
    "data.rows.reading", "data.sources", "data.tokenizers", "data.tokens.cache", "data.tokens.folder", "data.tokens.store",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Identity:
    """what: digest of config, text and lineage. code: of the code."""

    what: str
    code: str

    @property
    def key(self) -> str:
        return digest([self.what, self.code])[:12]


def digest(value) -> str:
    """sha256 of a value as canonical JSON, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---- config and text


@dataclasses.dataclass(frozen=True)
class Text:
    fingerprint: str
    vocab_size: int


class Texts:
    """The text of configs, prepared once for all the runs that share it."""

    def __init__(self):
        self._known: dict[str, Text] = {}

    def of(self, config: Config) -> Text:
        """Raises UserError: the text cannot be had."""
        sections = [config.data, config.rl] if reads_examples(config) else [config.data]
        name = digest([dataclasses.asdict(section) for section in sections])
        if name not in self._known:
            store = _examples(config) if reads_examples(config) else prepare(config.data)
            self._known[name] = Text(store.fingerprint, store.tokenizer.vocab_size)
        return self._known[name]

    def resolved(self, config: Config) -> Config:
        """config with the vocabulary of its text. Raises UserError if it is given and too small."""
        return config.with_vocabulary(self.of(config).vocab_size)


def reads_examples(config: Config) -> bool:
    """Whether a run learns from prompts, labelled examples or preferences, and not from running text."""
    return config.rl.prompts is not None or config.data.examples is not None


def _examples(config: Config):
    """The store of what such a run learns from."""
    from gptjax.training import session

    return imported(session.opener(config), "data")(config, lambda: None)


def vocab_size(base) -> int | None:
    """Of the text of a study's base config; None: the base says it. Raises UserError: the text cannot be had."""
    values = config_file.as_dict(base)
    if values.get("model", {}).get("vocab_size") is not None:
        return None
    data, train = values.get("data", {}), values.get("train", {})
    if values.get("rl", {}).get("prompts") is None and not {"task", "preferences"} & data.keys():
        config = config_file.from_dict({"data": data, "train": {"steps": 1}})
    else:
        length = {"steps": train.get("steps_per_call", 1), "tokens": None, "epochs": None}
        config = config_file.from_dict(values | {"train": train | length})
    return Texts().of(config).vocab_size


def what(config: Config, text: Text, lineage=None) -> str:
    """Digest of what a resolved config trains. lineage: (what of the trunk, step), for a branch."""
    return digest([counted(config), text.fingerprint, lineage])


def counted(config: Config) -> dict[str, typing.Any]:
    """{"section.field": value} of all that decides the numbers of a run and is not at its default.

    Defaults are left out, so that a field that is new in gptjax leaves the runs made before it what they were.
    """
    found = {}
    for section in (field.name for field in dataclasses.fields(config)):
        given, default = getattr(config, section), type(getattr(config, section))()
        for name, value in dataclasses.asdict(given).items():
            key = f"{section}.{name}"
            if value == getattr(default, name):
                continue
            if changes.word(key).study:
                found[key] = value
            elif names := changes.names_of(value):
                found[key] = names
    return found


# ---- code


def code() -> str:
    """Digest of the syntax trees of the modules that decide numbers, as their files are now."""
    files = code_files()
    return _code_of(tuple(files), tuple(file.stat().st_mtime_ns for file in files))


@functools.lru_cache(maxsize=8)
def _code_of(files: tuple[pathlib.Path, ...], changed: tuple[int, ...]) -> str:
    return digest(
        [[file.relative_to(PACKAGE).as_posix(), plain(_tree(file, when))] for file, when in zip(files, changed)]
    )


def code_files(package: pathlib.Path = PACKAGE, roots=ROOTS, plumbing=PLUMBING) -> list[pathlib.Path]:
    """Of the modules that decide numbers: those of `roots` and what they import, without `plumbing`; of two names that hold
    a module the longer one says what it is. A room's __init__.py counts where something in it is imported."""
    found, waiting = set(), [module for root in roots for module in _modules(package, root)]
    while waiting:
        module = waiting.pop()
        file = _file(package, module)
        if file is None or file in found or not _counts(module, roots, plumbing):
            continue
        found.add(file)
        for name in _imports(file, file.stat().st_mtime_ns):
            parts = name.split(".")
            waiting += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return sorted(found)


def _modules(package: pathlib.Path, name: str) -> list[str]:
    """All modules of a room; of a module, itself."""
    folder = package.joinpath(*name.split("."))
    if folder.with_suffix(".py").is_file():
        return [name]
    files = [file.relative_to(package).with_suffix("") for file in sorted(folder.rglob("*.py"))]
    assert files, f"gptjax has no {name}: mend ROOTS"
    return [".".join(file.parts).removesuffix(".__init__") for file in files]


def _counts(module: str, roots, plumbing) -> bool:
    holding = [name for name in (*roots, *plumbing) if f"{module}.".startswith(f"{name}.")]
    return not holding or max(holding, key=len) in roots


def _file(package: pathlib.Path, module: str) -> pathlib.Path | None:
    """None of a name within a module, which has no file of its own."""
    place = package.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@functools.lru_cache(maxsize=512)
def _imports(file: pathlib.Path, changed: int) -> tuple[str, ...]:
    """Names under gptjax that a file imports, wherever in it, or that a table of its names as "module:name", to be imported
    when it is chosen; some are functions."""
    names = []
    for node in ast.walk(_tree(file, changed)):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ADDRESS.fullmatch(node.value):
            names.append(node.value.partition(":")[0])
    return tuple(name.removeprefix("gptjax.") for name in names if name.startswith("gptjax."))


@functools.lru_cache(maxsize=512)
def _tree(file: pathlib.Path, changed: int) -> ast.Module:
    return ast.parse(file.read_text())


def plain(node) -> typing.Any:
    """A syntax tree as lists and strings, without docstrings, positions, what errors and config fields say; equal for equal code
    under every Python."""
    if isinstance(node, list):
        return [plain(inner) for inner in node if not _is_remark(inner)]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):
        return ["Raise"]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setting":
        return ["setting", plain(node.args[0])]  # of fields.py: its default, without its meaning and its word
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return [type(node).__name__, *([name, plain(value)] for name, value in fields)]


def _is_remark(node) -> bool:
    """A string that stands alone, as docstrings do."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
