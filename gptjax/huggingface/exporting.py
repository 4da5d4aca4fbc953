"""A run as a folder that transformers loads: model.safetensors (or shards of it), config.json, tokenizer files."""

import json
import math
import re

import numpy as np
from etils import epath

from gptjax.data.chat import kinds
from gptjax.errors import UserError
from gptjax.huggingface import chat_template, families, task_models, tensors, vocabulary
from gptjax.models import architectures
from gptjax.storage import folder_kinds, outputs

DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export_run(run, out: str, dtype: str | None = None, max_shard_bytes: int = 5 * 10**9) -> dict:
    """Writes the model of a Run into the folder out, and says what it is, with notes on what is left out. dtype: of DTYPES;
    None: as it is stored, or was before it was imported.

    Raises UserError: a model that transformers has not, a dtype that is none, a folder that holds something.
    """
    run = run if run.config.model.adapter is None else run.merged()
    shape = task_models.body_of(run.config.model)
    imported = run.directory.manifest().get("imported") or {}
    files_of_import = run.directory.imported_files()  # what transformers' own said, where the model came from them
    family = families.family_for(shape, files_of_import.get("config.json", {}).get("model_type"))
    task_model = task_models.of_run(run, family)
    folder = _empty_folder(out)
    dtype = dtype or imported.get("dtype") or str(run.params["token_embedding"].dtype)
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} is not known; expected one of: {', '.join(DTYPES)}.")
    # before anything is written: it may be refused
    tokenizer_files = vocabulary.files(run.tokenizer, shape.context_length, files_of_import) or {}
    chat = kinds.of_run(run.config.data.chat, run.directory.tokenizer)
    tokenizer_files = chat_template.written(chat, run.tokenizer, tokenizer_files)
    stop_ids = () if chat is None or run.config.data.chat is None else chat.stop_ids(run.tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    writer = tensors.Writer(folder, _sizes(family, run.config.model, dtype, task_model), max_shard_bytes)
    for name, array in arrays(family, run.config.model, run.params, task_model):
        writer.write(name, _cast(name, array, dtype))
    writer.finish()
    config = family.config_out(shape, dtype, run.tokenizer.eot_id)
    if task_model is not None:
        config |= task_model.fields | {"architectures": [task_model.architecture]}
    _write_configs(folder, run.tokenizer, config, files_of_import, stop_ids)
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    architecture = family.architecture if task_model is None else task_model.architecture
    about = {"architecture": architecture, "dtype": dtype, "tokenizer_files": sorted(tokenizer_files)}
    left_out = ", ".join(family.unwritten(shape))
    notes = (
        [f"{left_out} not written, for which {architecture} has no field: no logit depends on it"] if left_out else []
    )
    return about | {"notes": notes + ([] if task_model is None else [task_model.note])}


def _empty_folder(out: str):
    """Raises UserError: it holds something, or cannot be made."""
    folder = epath.Path(out).expanduser()
    if (kind := folder_kinds.kind_of(folder)) not in (folder_kinds.MISSING, folder_kinds.EMPTY):
        empty = "no folder" if kind == folder_kinds.FILE else "not empty"
        raise UserError(f"--out={out} is {empty}: it is {folder_kinds.said(folder)}; give a new directory.")
    outputs.check_folder("--out", out)
    return folder


def _write_configs(
    folder, tokenizer, config: dict, files_of_import: dict[str, dict], stop_ids: tuple[int, ...]
) -> None:
    """config.json and generation_config.json: what an import found there, and on it what the model is now. stop_ids: that
    end an answer of a model of conversations, for `generate`."""
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id}
    imported = files_of_import.get("config.json", {})
    config = imported | config | ({name: imported.get(name) for name in ends} if imported else ends)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = files_of_import.get("generation_config.json", ends)
    if stop_ids:
        first = [] if tokenizer.eot_id is None else [tokenizer.eot_id]  # an import has the first end texts
        generation = generation | {"eos_token_id": list(dict.fromkeys([*first, *stop_ids]))}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def arrays(family, shape, params: dict, task_model=None):
    """(name, array) of every tensor, layer by layer, one of ours at a time in the host's memory. task_model: a
    task_models.TaskModel, whose head takes the place of the language model's."""
    for tensor, layer, names in _order(family, shape, task_model):
        ours = tensor.leaf(params)
        arrays = tensor.layout.part(np.asarray(ours if layer is None else ours[layer]), shape)
        yield from zip(names, arrays, strict=True)


def _order(family, shape, task_model):
    """(tensor, layer or None, full names): embeddings, layer after layer, the rest, the head of a task."""
    tensors_of_family = [tensor for tensor in family.tensors(shape) if task_model is None or tensor.ours != "head"]
    stacked = [tensor for tensor in tensors_of_family if tensor.stacked]
    first = tensors_of_family.index(stacked[0])
    single = [(tensor, None, tensor.names(shape)[0]) for tensor in tensors_of_family if not tensor.stacked]
    layers = [(tensor, i, tensor.names(shape)[i]) for i in range(shape.n_layers) for tensor in stacked]
    ordered = [*single[:first], *layers, *single[first:]]
    named = [(tensor, layer, [family.full_name(name) for name in names]) for tensor, layer, names in ordered]
    return named + [(tensor, None, list(tensor.theirs)) for tensor in (task_model.tensors if task_model else ())]


def _sizes(family, shape, dtype: str, task_model) -> dict[str, int]:
    """Bytes of every tensor, in the order in which they are written."""
    width = 4 if dtype == "float32" else 2
    return {name: math.prod(of_one) * width for name, of_one in shapes(family, shape, task_model)}


def shapes(family, shape, task_model=None):
    """(name, shape) of every tensor, in the order of arrays."""
    abstract = architectures.abstract(shape)[1]
    for tensor, _, names in _order(family, shape, task_model):
        yield from zip(names, tensor.shapes(abstract, shape), strict=True)


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Raises UserError: float16 cannot hold a value."""
    cast = array.astype(np.dtype(dtype) if dtype != "bfloat16" else tensors.bfloat16)
    if dtype == "float16" and not np.isfinite(cast).all() and np.isfinite(array).all():
        raise UserError(f"{name} has values beyond float16's 65504; use --dtype=bfloat16 or float32.")
    return cast


def parse_bytes(text: str) -> int:
    """Of "5GB", "500MB" or a number. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?I?B)?", text.strip().upper())
    if match is None or (size := int(float(match[1]) * _UNITS[match[2] if match[2] not in (None, "B") else ""])) < 1:
        raise UserError(f"--max_shard_size={text} is no size; give one such as 5GB or 500MB.")
    return size
