"""The run directory, the contract between training and everything after it:

    config.json     the resolved config            manifest.json   code, packages, data, parameter counts
    metrics.jsonl   one JSON object a line         checkpoints/    newest and kept steps
    tokenizer/      the tokenizer it was made with      writer.lock     who writes here now (runlock.py)

Nothing else is needed to evaluate, sample or resume a run. Paths are local or gs:// alike.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import time

from etils import epath

from gptjax import config as config_module
from gptjax import config_file, flops, metrics, recovery, validity
from gptjax.errors import UserError, did_you_mean

PACKAGES = ("gptjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "tiktoken")

# Changes that leave the training as it was, so that a resume accepts them without being asked.
HARMLESS = (
    "mesh", "eval", "checkpoint", "data.cache_dir", "data.prefetch", "data.prefetch_workers", "model.attention", "model.remat",
    "model.scan_unroll",
    "train.log_every", "train.profile_steps", "train.tensorboard", "train.wandb_project", "train.log_activations",
    "train.log_noise_scale",
    "train.max_skips", "train.max_rollbacks", "train.rollback_margin",
    "train.watchdog_factor", "train.watchdog_seconds", "train.watchdog_other_seconds",
)  # fmt: skip


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

    def config(self) -> config_module.Config:
        """The resolved config of the run. Raises UserError if this is no run directory."""
        file = self.path / "config.json"
        if not self.path.exists():
            raise UserError(
                f"--workdir={self.path}: no such directory{did_you_mean(self.path.name, self._neighbours())}."
            )
        if not file.exists():
            raise UserError(
                f"--workdir={self.path} is not a run directory: it has no config.json;"
                " give the --workdir of a training run."
            )
        try:
            return config_file.from_dict(json.loads(file.read_text()))
        except json.JSONDecodeError as error:
            raise UserError(f"{file} is damaged: {error}; restore it from a copy, or start a new run.") from error

    def rewinds(self) -> recovery.Rewinds:
        """What text the run left out: as its newest checkpoint says, or metrics.jsonl of a rollback since."""
        steps = self.steps()
        saved = validity.description(self.checkpoints / str(steps[-1]))["data"] if steps else {}
        rows = metrics.read_metrics(self.metrics, "event") if self.metrics.exists() else []
        known = [saved, *(row for row in rows if row["event"] == "rolled_back")]
        return max(map(recovery.Rewinds.from_dict, known), key=lambda rewinds: rewinds.count)

    def manifest(self) -> dict:
        """Where the run came from. Raises UserError: it cannot be read."""
        file = self.path / "manifest.json"
        try:
            return dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read ({error!r}), which says what the run came from; restore it."
            ) from error

    def check_text(self, store) -> None:
        """Raises UserError: the text or tokenizer of a TokenStore is not the one of the run."""
        try:
            started = self.manifest()["data"]["fingerprint"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path / 'manifest.json'} does not say what text the run has ({error!r}); restore it."
            ) from error
        if started != store.fingerprint:
            raise UserError(
                f"the text or tokenizer is not the one the run in {self.path} was started with (fingerprint"
                f" {started[:12]}, now {store.fingerprint[:12]}); restore the text."
            )

    def check_trained(self, wanted: str) -> None:
        """Raises UserError: the model was imported, so that it has no text of its own and no optimizer state.

        wanted: what needs one."""
        if source := self.manifest().get("imported"):
            raise UserError(
                f"the model in {self.path} was imported from {source['folder']}: it has parameters alone, no text of its"
                f" own and no optimizer state, so that it cannot be {wanted}."
            )

    def _neighbours(self) -> list[str]:
        return [p.name for p in self.path.parent.iterdir()] if self.path.parent.exists() else []

    def write_config(self, config) -> None:
        self.write_json("config.json", config.to_dict())

    def write_json(self, name: str, value) -> None:
        """Written whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{name}.partial"
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        temporary.replace(self.path / name)

    def steps(self) -> list[int]:
        """Steps with a checkpoint that counts (validity.py), oldest first, without loading Orbax."""
        return validity.steps(self.checkpoints)


def open_run(workdir: str) -> RunDirectory:
    """The run directory at a path, local or gs://. Local paths are made absolute: Orbax takes no others."""
    path = epath.Path(workdir).expanduser()
    return RunDirectory(path if "://" in str(path) else path.resolve())


def changed_keys(old, new) -> dict[str, tuple]:
    """{"section.field": (old, new)} of every field in which two configs differ."""
    changes = {}
    for section, fields in new.to_dict().items():
        before = old.to_dict()[section]
        changes |= {f"{section}.{k}": (before[k], v) for k, v in fields.items() if before[k] != v}
    return changes


def check_resume(old, new, allowed: tuple[str, ...] = ()) -> None:
    """Raises UserError if a run made with config `old` cannot go on with `new`, naming every key in the way.

    allowed: keys or sections the user lets change, beside the harmless ones.
    """
    permitted = (*HARMLESS, *allowed)
    refused = {
        key: values
        for key, values in changed_keys(old, new).items()
        if key not in permitted and key.partition(".")[0] not in permitted
    }
    if refused:
        shown = ", ".join(f"{key} ({before!r} -> {after!r})" for key, (before, after) in refused.items())
        raise UserError(
            f"this run was started with another config: {shown}; use a new --workdir,"
            f" or allow it with --allow_change={','.join(refused)}."
        )


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
    return {
        "git": _git(),
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_digest() -> str:
    """SHA-256 of gptjax's files as they lie there, which a revision does not tell of."""
    here, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for file in sorted(here.rglob("*.py")):
        digest.update(f"{file.relative_to(here)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _git() -> dict | None:
    """Revision of the code that runs, and whether files were changed since; None outside a git checkout."""
    here = epath.Path(__file__).parent

    def git(*args):
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
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
