"""The run directory, the contract between training and everything after it:

    config.json     the resolved config            manifest.json   run id, code, packages, data, parameter counts
    metrics.jsonl   one JSON object a line         checkpoints/    newest and kept steps
    tokenizer/      the tokenizer it was made with      writer.lock     who writes here now (runlock.py)

Nothing else is needed to evaluate, sample or resume a run. Paths are local or gs:// alike. That these files are of one
run is compared when they are read (consistency.py).
"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
import re
import subprocess
import sys
import time

from etils import epath

import gptjax
from gptjax import flops, schedule
from gptjax.checkpoints import consistency, validity
from gptjax.config import changes, removed
from gptjax.config import fields as config_module
from gptjax.config.values import from_dict
from gptjax.errors import UserError, did_you_mean, first_line
from gptjax.rundir import metrics
from gptjax.storage import folder_kinds
from gptjax.storage.writing import replace_whole

TOOLS = ("test", "notebooks", "docs")  # extras of gptjax that decide no number


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    path: epath.Path

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> epath.Path:
        return self.path / "tokenizer"

    @property
    def metrics(self) -> epath.Path:
        return self.path / "metrics.jsonl"

    def exists(self) -> bool:
        return (self.path / "config.json").exists()

    def has_traces(self) -> bool:
        """Whether something here is of a run, whatever else is missing."""
        return self.metrics.exists() or self.checkpoints.exists()

    def config(self) -> config_module.Config:
        """The resolved config of the run. Raises UserError: this is no run directory, or config.json is not the run's."""
        self._check_is_run()
        values = self._read_object("config.json", "its config")
        try:
            config = from_dict(values, removed.whatever)
        except UserError as error:
            raise UserError(f"{self.path / 'config.json'}: {error}") from error
        manifest = self.manifest() if (self.path / "manifest.json").exists() else {}
        if wrong := consistency.wrong_config(values, manifest, self._newest_saved_config, _leaves_the_model):
            raise UserError(
                f"{self.path / 'config.json'} is not the config that this run was trained with: {wrong}; put it back"
                " (a resume with --allow_change changes a config)."
            )
        return config

    def removed_fields(self) -> dict[str, tuple]:
        """`removed.deciding` of config.json: what config() leaves out, and a resume has to know."""
        return removed.deciding(self._read_object("config.json", "its config"))

    def read_tokenizer(self):
        """The tokenizer of the run. Raises UserError: it is missing, altered, or that of another run."""
        from gptjax.data import tokenizers

        tokenizer = tokenizers.load_tokenizer(self.tokenizer)
        if wrong := consistency.wrong_tokenizer(tokenizer.hash, consistency.read(self.path)):
            raise UserError(
                f"{self.tokenizer} is not the tokenizer that this run was trained with: {wrong}; put the run's own back."
            )
        return tokenizer

    def check_tokenizer(self, tokenizer) -> None:
        """Raises UserError: it is not the one of the run."""
        from gptjax.data import tokenizers

        tokenizers.check_same(tokenizer, self.read_tokenizer())

    def save_tokenizer(self, tokenizer) -> None:
        from gptjax.data import tokenizers

        tokenizers.save_tokenizer(tokenizer, self.tokenizer)

    def check_may_hold_a_run(self) -> None:
        """Raises UserError: what lies here is neither a run in order, nor the beginning of one that was killed, nor
        nothing."""
        kind = folder_kinds.kind_of(self.path)
        if self._is_run(kind):
            self.config()
            return
        if kind in (folder_kinds.MISSING, folder_kinds.EMPTY, folder_kinds.BEGUN):
            return
        if kind != folder_kinds.FILE and {path.name for path in self.path.iterdir()} <= folder_kinds.OF_A_START:
            return
        raise UserError(
            f"--workdir={self.path} has files in it but is not a run directory: it is {folder_kinds.said(self.path)}; use an empty or a new"
            " directory."
        )

    def _is_run(self, kind: str) -> bool:
        return self.exists() and kind != folder_kinds.MODEL

    def _check_is_run(self) -> None:
        if not self.path.exists():
            raise UserError(
                f"--workdir={self.path}: no such directory{did_you_mean(self.path.name, self._neighbours(), '.')}"
            )
        if not self._is_run(folder_kinds.kind_of(self.path)):
            lacks = "" if self.exists() else "has no config.json, and "
            raise UserError(
                f"--workdir={self.path} is not a run directory: it {lacks}is {folder_kinds.said(self.path)}; give the"
                " --workdir of a training run."
            )

    def _read_object(self, name: str, what: str) -> dict:
        """A JSON object of the run. Raises UserError: it is damaged, or holds something else."""
        file = self.path / name
        try:
            value = json.loads(file.read_text())
            if isinstance(value, dict):
                return value
            reason = f"it holds {_json_kind(value)} instead of a JSON object"
        except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8, of brackets without end
            reason = first_line(error)
        raise UserError(
            f"{file}, which holds {what}, is damaged: {reason}; restore it from a copy, or start a new run."
        )

    def _newest_saved_config(self) -> dict | None:
        """Of the newest checkpoint that counts; None: there is none, or it keeps no config (schema 1)."""
        steps = self.steps()
        return validity.description(self.checkpoints / str(steps[-1])).get("config") if steps else None

    def rewinds(self) -> schedule.Rewinds:
        """What text the run left out: as its newest checkpoint says, or metrics.jsonl of a rollback since."""
        steps = self.steps()
        saved = validity.description(self.checkpoints / str(steps[-1]))["data"] if steps else {}
        rows = metrics.read_metrics(self.metrics, "event") if self.metrics.exists() else []
        known = [saved, *(row for row in rows if row["event"] == "rolled_back")]
        return max(map(schedule.Rewinds.from_dict, known), key=lambda rewinds: rewinds.count)

    def manifest(self) -> dict:
        """Where the run came from. Raises UserError: it is missing, or damaged."""
        file = self.path / "manifest.json"
        if not file.exists():
            raise UserError(f"{file} is missing; it describes the origin of the run. Restore it.")
        return self._read_object("manifest.json", "what the run came from")

    def begin_manifest(self, config, store, command: list[str]) -> dict:
        """The manifest of a run that starts or goes on here: `manifest` of these, the run's id and its history of configs."""
        before = self.manifest() if self.exists() else {}
        saved = validity.saved_configs(self.checkpoints)
        old_config = self._read_object("config.json", "its config") if self.exists() else None
        steps = self.steps()
        words = consistency.begun(
            before, saved, old_config, config.to_dict(), store.fingerprint, steps[-1] if steps else 0
        )
        return words | manifest(config, store, command)

    def check_text(self, store) -> None:
        """Raises UserError: the text or tokenizer of a TokenStore is not the one of the run."""
        started = self.fingerprint()
        if started != store.fingerprint:
            raise UserError(
                f"the text or tokenizer is not the one that the run in {self.path} was started with (fingerprint"
                f" {started[:12]}, now {store.fingerprint[:12]}); restore the text."
            )

    def fingerprint(self) -> str:
        """Of the text of the run. Raises UserError: its manifest does not say it."""
        try:
            return self.manifest()["data"]["fingerprint"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path / 'manifest.json'} does not say what text the run has ({error!r}); restore it."
            ) from error

    def imported_files(self) -> dict[str, dict]:
        """{name: content} of what transformers' files said of the model that was imported here, or of the one that this run
        goes back to, whose manifest may be gone by now; {}: there is none, or it is not known."""
        manifest = self.manifest()
        if (source := manifest.get("imported")) is not None:
            return source.get("files", {})
        started = manifest.get("started_from") or manifest.get("branched")
        if started is None:
            return {}
        if "imported_files" in started:
            return started["imported_files"]
        origin = open_run(started["run"])
        return origin.imported_files() if origin.exists() else {}

    def check_trained(self, wanted: str) -> None:
        """Raises UserError: the model was imported, so that it has no text of its own and no optimizer state.

        wanted: what needs one."""
        if source := self.manifest().get("imported"):
            raise UserError(
                f"the model in {self.path} was imported from {source['folder']}: it has parameters only, no text of its"
                f" own and no optimizer state. So it cannot be {wanted}."
            )

    def _neighbours(self) -> list[str]:
        return [p.name for p in self.path.parent.iterdir()] if self.path.parent.exists() else []

    def write_config(self, config) -> None:
        self.write_json("config.json", config.to_dict())

    def write_json(self, name: str, value) -> None:
        """Written whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_whole(self.path / name, json.dumps(value, indent=2) + "\n")

    def steps(self) -> list[int]:
        """Steps with a checkpoint that counts (validity.py), oldest first, without loading Orbax."""
        return validity.steps(self.checkpoints)

    def best_metric(self, ema: bool = False) -> str:
        """What the best of its checkpoints is judged by: checkpoint.keep_best, or the loss; ema: of the averaged parameters."""
        return self.config().checkpoint.keep_best or ("ema_loss" if ema else "loss")

    def best_steps(self) -> tuple[int, ...]:
        """The step whose checkpoint stays by checkpoint.keep_best; () where the run keeps none, or none is evaluated yet."""
        if self.config().checkpoint.keep_best is None:
            return ()
        from gptjax.evaluation import judging

        values = self.held_out_losses(self.best_metric())
        return (judging.best_step(self.best_metric(), values),) if values else ()

    def held_out_losses(self, name: str = "loss") -> dict[int, float]:
        """{step: the finite loss that was logged on held-out text} of the steps with a checkpoint. name: "loss", or
        "ema_loss" of the averaged parameters, or another metric of `judging`."""
        rows = metrics.read_metrics(self.metrics, "eval") if self.metrics.exists() else []
        counting = set(self.steps())
        losses = {row["step"]: float(row[name]) for row in rows if name in row and row["step"] in counting}
        return {step: loss for step, loss in losses.items() if math.isfinite(loss)}  # "nan" is logged as text


def _json_kind(value) -> str:
    """What a JSON value is, for people."""
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _leaves_the_model(key: str) -> bool:
    return changes.word(key).resume


def open_run(workdir: str) -> RunDirectory:
    """The run directory at a path, local or gs://. Local paths are made absolute: Orbax takes no others."""
    path = epath.Path(workdir).expanduser()
    return RunDirectory(path if "://" in str(path) else path.resolve())


def manifest(config, store, command: list[str]) -> dict:
    """What a reader needs to make the run again: code, packages, data, machine, sizes, command line."""
    text = {"fingerprint": store.fingerprint, **store.description}
    return provenance(config, command) | {"data": text, "tokenizer_hash": store.tokenizer.hash}


def provenance(config, command: list[str]) -> dict:
    """Of the manifest, what is true of a model wherever it came from."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        **code_and_packages(),
        "parameters": flops.parameter_counts(config.model),
        "flops_per_token": flops.flops_per_token(config.model),
    }


def code_and_packages() -> dict:
    """What runs here."""
    from gptjax.storage import code

    return {
        "git": _git(),
        "code": code.digest(),
        "python": platform.python_version(),
        "packages": package_versions(),
    }


@functools.cache  # looked up twice by a run that starts, in a twentieth of a second
def package_versions() -> dict[str, str]:
    """{name: version} of gptjax, of what its distribution and jax's name as their dependencies (extras too, such as
    libtpu and tokenizers), as far as they are installed here."""
    names = {"gptjax", "jax"}.union(*(_requirements(package) for package in ("gptjax", "jax")))
    versions = {name: _version(name) for name in sorted(names)}
    return {name: version for name, version in versions.items() if version is not None}


def _requirements(package: str) -> set[str]:
    try:
        return required_names(importlib.metadata.requires(package) or [])
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        return set()


def required_names(requirements: list[str]) -> set[str]:
    """Normalised names of the packages that Requires-Dist lines name, without those of the extras in TOOLS.

    Build backends differ in the quotes around an extra: setuptools writes extra == "test", hatchling extra == 'test'.
    """
    of_tools = re.compile(rf"""extra == (["'])({"|".join(TOOLS)})\1""")
    names = {re.match(r"[\w.-]+", line).group() for line in requirements if not of_tools.search(line)}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict | None:
    """Revision of the code that runs, and whether files were changed since; None outside a git checkout."""
    here = epath.Path(gptjax.__file__).parent

    def git(*args):
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "changed_files": git("status", "--porcelain", "-uno").splitlines(),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> list[str]:
    return ["gptjax", *sys.argv[1:]]
