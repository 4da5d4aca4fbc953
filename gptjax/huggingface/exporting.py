"""A run as a folder that transformers loads: model.safetensors (or shards of it), config.json, tokenizer files."""

import json
import re

import numpy as np
from etils import epath

from gptjax.errors import UserError
from gptjax.huggingface import families, tensors, vocabulary
from gptjax.models import architectures
from gptjax.storage import folder_kinds, outputs

DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export_run(run, out: str, dtype: str | None = None, max_shard_bytes: int = 5 * 10**9) -> dict:
    """Writes the model of a Run into the folder out, and says what it is. dtype: of DTYPES; None: as it is stored, or was
    before it was imported.

    Raises UserError: a model that transformers has not, a dtype that is none, a folder that holds something.
    """
    shape = run.config.model
    family = families.family_for(shape)
    folder = epath.Path(out).expanduser()
    if (kind := folder_kinds.kind_of(folder)) not in (folder_kinds.MISSING, folder_kinds.EMPTY):
        empty = "no folder" if kind == folder_kinds.FILE else "not empty"
        raise UserError(f"--out={out} is {empty}: it is {folder_kinds.said(folder)}; give a new directory.")
    outputs.check_folder("--out", out)
    imported = run.directory.manifest().get("imported") or {}
    dtype = dtype or imported.get("dtype") or str(run.params["token_embedding"].dtype)
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} is not known; expected one of: {', '.join(DTYPES)}.")
    came = imported.get("files", {})  # what transformers' own files said, where the model came from them
    # before anything is written: it may be refused
    written = vocabulary.files(run.tokenizer, shape.context_length, came)
    folder.mkdir(parents=True, exist_ok=True)
    writer = tensors.Writer(folder, _sizes(family, shape, dtype), max_shard_bytes)
    for name, array in _theirs(family, shape, run.params):
        writer.write(name, _cast(name, array, dtype))
    writer.finish()
    parted_by = {"bos_token_id": run.tokenizer.bos_id, "eos_token_id": run.tokenizer.eot_id}
    theirs = came.get("config.json", {})
    config = theirs | families.config_json(shape, family, dtype, run.tokenizer.eot_id) | parted_by
    config |= {name: theirs.get(name) for name in parted_by if theirs}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = came.get("generation_config.json", parted_by)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name, content in (written or {}).items():
        (folder / name).write_bytes(content)
    return {"architecture": family.architecture, "dtype": dtype, "tokenizer_files": sorted(written or {})}


def _theirs(family: families.Family, shape, params: dict):
    """(name, array) of every tensor, layer by layer, one at a time in the host's memory."""
    for tensor, layer, name in _order(family, shape):
        ours = params
        for key in tensor.ours:
            ours = ours[key]
        yield name, tensor.to_theirs(np.asarray(ours if layer is None else ours[layer]), shape)


def _order(family: families.Family, shape):
    """(tensor, layer or None, full name): embeddings, layer after layer, the rest."""
    all_of_them = family.tensors(shape)
    stacked = [tensor for tensor in all_of_them if tensor.stacked]
    first = all_of_them.index(stacked[0])
    single = [(tensor, None, _full(tensor.theirs)) for tensor in all_of_them if not tensor.stacked]
    layers = [(t, i, _full(t.theirs.format(i))) for i in range(shape.n_layers) for t in stacked]
    return [*single[:first], *layers, *single[first:]]


def _full(name: str) -> str:
    return name if name == families.HEAD else f"transformer.{name}"


def _sizes(family: families.Family, shape, dtype: str) -> dict[str, int]:
    abstract, width = architectures.abstract(shape)[1], 4 if dtype == "float32" else 2
    sizes = {}
    for tensor, layer, name in _order(family, shape):
        leaf = abstract
        for key in tensor.ours:
            leaf = leaf[key]
        of_one = np.broadcast_to(np.zeros((), np.float32), leaf.shape if layer is None else leaf.shape[1:])
        sizes[name] = tensor.to_theirs(of_one, shape).size * width
    return sizes


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Raises UserError: float16 cannot hold a value."""
    cast = array.astype(np.dtype(dtype) if dtype != "bfloat16" else tensors.bfloat16)
    if dtype == "float16" and not np.isfinite(cast).all() and np.isfinite(array).all():
        raise UserError(f"{name} has values beyond float16's 65504; use --dtype=bfloat16 or float32.")
    return cast


def parse_bytes(text: str) -> int:
    """Of "5GB", "500MB" or a number. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?I?B)?", text.strip().upper())
    if found is None or (size := int(float(found[1]) * _UNITS[found[2] if found[2] not in (None, "B") else ""])) < 1:
        raise UserError(f"--max_shard_size={text} is no size; give one such as 5GB or 500MB.")
    return size
