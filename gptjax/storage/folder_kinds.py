"""What kind of folder a folder is, told from what lies in it: for messages where one of another kind was expected.

Messages name the kind and where it belongs. None of them advises to remove what may not be of gptjax's making.
"""

import json
import re

from etils import epath

from gptjax.storage.writing import partial_name

RUN, SHARDS, UNFINISHED, STUDY = "run", "shards", "unfinished shards", "study"
CHECKPOINT, CHECKPOINTS, TOKENIZER, MODEL = "checkpoint", "checkpoints", "tokenizer", "Hugging Face model"
BEGUN, EMPTY, FILE, MISSING, OTHER = "begun run", "empty", "file", "missing", "other"

SAID = {  # what each is called, and where it belongs
    RUN: "a run directory (give it as --workdir)",
    BEGUN: "a run directory that was never finished (its start was interrupted before config.json)",
    SHARDS: "a folder of token shards, as gptjax prepare makes them (give it as data.source)",
    UNFINISHED: "a folder that gptjax prepare has not finished (run the same gptjax prepare again)",
    STUDY: "the folder of a study (give it to gptjax study)",
    CHECKPOINT: "one checkpoint of a run (give its run directory, two folders up, and --step)",
    CHECKPOINTS: "the checkpoints/ of a run (give its run directory, one folder up)",
    TOKENIZER: "the folder of a tokenizer (give it as --tokenizer or data.tokenizer)",
    MODEL: "a Hugging Face model (gptjax import --from=hf makes a run directory of it)",
    EMPTY: "an empty folder",
    FILE: "a file",
    MISSING: "not there",
}
SHARD = re.compile(r"(train|val)-\d{5}-of-\d{5}")  # the folder of a shard
OF_A_START = {"manifest.json", "tokenizer", "writer.lock", *map(partial_name, ("manifest.json", "config.json"))}


def kind_of(path) -> str:
    """One of the kinds above. What cannot be read is OTHER."""
    path = epath.Path(path).expanduser()
    try:
        if not path.exists():
            return MISSING
        if not path.is_dir():
            return FILE
        names = {entry.name for entry in path.iterdir()}
        return _kind(path, names - {".DS_Store"})
    except OSError:
        return OTHER


def said(path) -> str:
    """The kind of a folder, as the end of a sentence "PATH is ...", with where such a folder belongs."""
    kind = kind_of(path)
    if kind != OTHER:
        return SAID[kind]
    path = epath.Path(path).expanduser()
    first = min((entry.name for entry in path.iterdir()), default="") if path.is_dir() else ""
    return f"a folder with other files ({first})" if first else "a folder that cannot be read"


def _kind(path, names: set[str]) -> str:
    if not names:
        return EMPTY
    if "study.json" in names:
        return STUDY
    if "config.json" in names:
        config = _object(path / "config.json")
        if "train" in config or names & {"checkpoints", "metrics.jsonl"}:
            return RUN
        if "model_type" in config or "architectures" in config:
            return MODEL
    if "work" in names and "manifest.json" not in names:
        others = [name for name in names if name != "work" and not SHARD.fullmatch(name)]
        if not others or (path / "work" / "settings.json").exists():
            return UNFINISHED
    if "manifest.json" in names:
        manifest = _object(path / "manifest.json")
        if "shards" in manifest:
            return SHARDS
        if "arrays" in manifest:
            return CHECKPOINT
        if "command" in manifest and names <= OF_A_START:
            return BEGUN
    if "_CHECKPOINT_METADATA" in names:
        return CHECKPOINT
    if {"tokenizer.json", "tokenizer.model"} <= names or names <= {"tokenizer.json", "tokenizer.model"}:
        return TOKENIZER
    if any(name.endswith(".safetensors") or name == "pytorch_model.bin" for name in names):
        return MODEL
    if path.name == "checkpoints" and any(name.partition(".")[0].isdigit() for name in names):
        return CHECKPOINTS
    return OTHER


def _object(file) -> dict:
    """{} for a file that is missing, or no JSON object."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
