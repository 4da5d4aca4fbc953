"""What makes two runs the same run: what is trained (config, text, lineage) and the code that trains it.

The key of a run names its directory. Two configs that differ only in what changes no number have one key, and so have
two versions of the code that differ in comments, docstrings or the wording of errors. Versions of packages do not count:
the manifest.json of a run says which it had.
"""

import ast
import dataclasses
import functools
import hashlib
import json
import pathlib
import typing

import gptjax
from gptjax.config.fields import Config
from gptjax.data.tokens.store import prepare
from gptjax.errors import UserError
from gptjax.rundir import run_directory

# A resume accepts changes of these too; but they decide what a finished run says, so that they make another run.
DECISIVE = ("eval", "train.max_skips", "train.max_rollbacks", "train.rollback_margin", "train.log_noise_scale")
UNCOUNTED = (
    *(name for name in run_directory.HARMLESS if name not in DECISIVE),
    "eval.every_steps", "eval.batch_size", "eval.tasks_every_steps", "eval.sample_prompt", "eval.sample_tokens",
    "data.path", "data.tfds_dir", "data.tokenizer_path",  # where the text lies; what it is, its fingerprint says
)  # fmt: skip
KEPT = "checkpoint.keep_steps"  # which others branch from: a run without them is not the trunk that is asked for

# Where a step and an evaluation are computed. What they import counts too, but for what follows.
ROOTS = ("step", "feed", "evaluate", "schedule", "data.pipeline", "study.lanes")
PLUMBING = (  # reads, writes, checks, reports; decides no number of a run
    "checkpoint", "checksums", "compiling", "config_file", "consistency", "coordination", "errors", "evaluation",
    "evaluation_text", "flops", "folder_kinds", "generation", "inside", "interrupt", "metrics", "peers", "protocols",
    "run", "rundir", "runlock", "scoring", "stored", "validate", "validity", "weights", "study",
    "data.folder", "data.reading", "data.sources", "data.store", "data.tokenizers", "data.unfinished",  # the fingerprint
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
        name = digest(dataclasses.asdict(config.data))
        if name not in self._known:
            store = prepare(config.data)
            self._known[name] = Text(store.fingerprint, store.tokenizer.vocab_size)
        return self._known[name]

    def resolved(self, config: Config) -> Config:
        """config with the vocabulary of its text. Raises UserError if it is given and too small."""
        needed, given = self.of(config).vocab_size, config.model.vocab_size
        if given is not None and given < needed:
            raise UserError(f"model.vocab_size={given} is smaller than the tokenizer's {needed} entries; use None.")
        return config if given else config.replace(model={"vocab_size": needed})


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
            if value != getattr(default, name) and not _is_uncounted(section, f"{section}.{name}"):
                found[f"{section}.{name}"] = value
    if found.get("data.mixture"):  # {name: where it lies}
        found["data.mixture"] = list(found["data.mixture"])
    return found


def _is_uncounted(section: str, name: str) -> bool:
    return (section in UNCOUNTED or name in UNCOUNTED) and name != KEPT


# ---- code


def code() -> str:
    """Digest of the syntax trees of the modules that decide numbers, as their files are now."""
    files = code_files()
    return _code_of(tuple(files), tuple(file.stat().st_mtime_ns for file in files))


@functools.lru_cache(maxsize=8)
def _code_of(files: tuple[pathlib.Path, ...], changed: tuple[int, ...]) -> str:
    return digest([[file.name, plain(_tree(file, when))] for file, when in zip(files, changed)])


def code_files() -> list[pathlib.Path]:
    """Of the modules that decide numbers: ROOTS and what they import, without PLUMBING."""
    found, waiting = set(), [f"gptjax.{name}" for name in ROOTS]
    while waiting:
        file = _file(waiting.pop())
        if file is not None and file not in found:
            found.add(file)
            waiting += _imports(file, file.stat().st_mtime_ns)
    return sorted(found)


def _file(module: str) -> pathlib.Path | None:
    """Of a module that counts; None for one that does not, and for what is no module."""
    name = module.removeprefix("gptjax.")
    if name not in ROOTS and any(name == other or name.startswith(f"{other}.") for other in PLUMBING):
        return None
    file = pathlib.Path(gptjax.__file__).parent.joinpath(*name.split(".")).with_suffix(".py")
    return file if file.is_file() else None


@functools.lru_cache(maxsize=512)
def _imports(file: pathlib.Path, changed: int) -> tuple[str, ...]:
    """Names of gptjax's that a file imports, wherever in it; some are functions, of which there is no file."""
    names = []
    for node in ast.walk(_tree(file, changed)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptjax"):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("gptjax.")]
    return tuple(names)


@functools.lru_cache(maxsize=512)
def _tree(file: pathlib.Path, changed: int) -> ast.Module:
    return ast.parse(file.read_text())


def plain(node) -> typing.Any:
    """A syntax tree as lists and strings, without docstrings, positions, and what errors say; equal for equal code
    under every Python."""
    if isinstance(node, list):
        return [plain(inner) for inner in node if not _is_remark(inner)]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):
        return ["Raise"]
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return [type(node).__name__, *([name, plain(value)] for name, value in fields)]


def _is_remark(node) -> bool:
    """A string that stands alone, as docstrings do."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
