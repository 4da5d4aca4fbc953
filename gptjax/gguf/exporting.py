"""A run as a GGUF file that llama.cpp loads: parameters of one type, metadata, tokenizer."""

import numpy as np
from etils import epath

from gptjax.data.chat import kinds
from gptjax.errors import UserError
from gptjax.gguf import architectures, blocks, container, rope, vocabulary
from gptjax.gguf.container import U32, Value
from gptjax.huggingface import exporting, families
from gptjax.storage import outputs

_QUANTISATION = 2  # of ggml's formats of blocks (general.quantization_version)


def export_run(run, out: str, type_name: str | None = None) -> dict:
    """Writes the model of a Run into the file out, and says what it is, with notes. type_name: of blocks.WRITTEN, for
    matrices; vectors are f32. None: f32, or bf16 for a checkpoint of bfloat16.

    Raises UserError: a model that llama.cpp has not, a type that is none, a file that is there already.
    """
    run = run if run.config.model.adapter is None else run.merged()
    shape = run.config.model
    family = families.family_for(shape)
    architecture = _architecture(family)
    kind = _type(type_name or {"bfloat16": "bf16"}.get(str(run.params["token_embedding"].dtype), "f32"))
    file = _new_file(out)
    values = family.config_out(shape, "float32", run.tokenizer.eot_id)
    metadata, factors = architectures.metadata_out(architecture, values)
    tokens, notes = vocabulary.metadata_out(run.tokenizer, shape.vocab_size)
    imported = run.directory.manifest().get("imported") or {}
    general = {f"general.{name}": text for name, text in imported.get("general", {}).items()}  # licence, origin
    general |= {
        "general.architecture": architecture.name,
        "general.name": run.directory.path.name,
        "general.file_type": Value(kind.file_type, U32),
        "general.quantization_version": Value(_QUANTISATION, U32),
    }
    described, short_rows = _described(architecture, values, family, shape, kind, factors)
    if short_rows:
        names = architectures.listed(sorted(short_rows))
        notes.append(
            f"{names} written as f16: their rows are no multiples of {kind.values} values, as {kind.name} needs"
        )
    arrays = _ours(architecture, values, family, shape, run.params, factors)
    _write(file, general | metadata | tokens | _template(run), described, arrays)
    return {
        "architecture": architecture.name,
        "type": kind.name,
        "tokenizer": bool(tokens.keys() - {_MODEL}),
        "notes": notes,
    }


_MODEL = f"{vocabulary.PREFIX}model"


def _write(file, metadata: dict, described: dict, arrays) -> None:
    """The whole file or none: it has another name until it is whole. arrays: (name, float32 array)s, as described."""
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as opened:
            writer = container.Writer(opened, metadata, described)
            for name, array in arrays:
                writer.write(name, _checked(name, array, described[name][1]))
            writer.finish()
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)


def _architecture(family) -> architectures.Architecture:
    for architecture in architectures.ARCHITECTURES.values():
        if architecture.model_type == family.model_type:
            return architecture
    raise UserError(
        f"this model is a {family.architecture}, which gptjax does not write as a GGUF file; expected one that is"
        f" {' or '.join(architectures.ARCHITECTURES)}: --to=hf writes it for transformers."
    )


def _type(name: str) -> blocks.BlockType:
    if name not in blocks.WRITTEN:
        raise UserError(f"--type={name} is not known; expected one of: {', '.join(blocks.WRITTEN)}.")
    return blocks.TYPES[name]


def _new_file(out: str):
    """Raises UserError: it is there, or cannot be written."""
    file = epath.Path(out).expanduser()
    if file.exists():
        raise UserError(f"--out={out} is there already; give the name of a new file, such as MODEL.gguf.")
    outputs.check_file("--out", out)
    return file


def _described(architecture, values: dict, family, shape, kind: blocks.BlockType, factors):
    """({name: (shape, type)} of the file's tensors in their order, the names of those that cannot be of that type)."""
    described, short_rows = {}, set()
    for name, array_shape in _shapes(architecture, values, family, shape):
        of_tensor = kind if len(array_shape) > 1 else blocks.TYPES["f32"]
        if array_shape[-1] % of_tensor.values:
            of_tensor = blocks.TYPES["f16"]
            short_rows.add(name)
        described[name] = array_shape, of_tensor
    if factors is not None:
        described[rope.FACTORS] = factors.shape, blocks.TYPES["f32"]
    return described, short_rows


def _shapes(architecture, values: dict, family, shape):
    """(name, shape) of each tensor that the family writes."""
    ours = _names_of_theirs(architecture, values)
    for theirs, array_shape in exporting.shapes(family, shape):
        yield ours[theirs.removeprefix(family.prefix)], array_shape


def _names_of_theirs(architecture, values: dict) -> dict[str, str]:
    return {theirs: name for name, theirs in architectures.Names(architecture, values).theirs.items()}


def _ours(architecture, values: dict, family, shape, params: dict, factors):
    """(name, float32 array) of every tensor, in the order of _described."""
    names, ours = architectures.Names(architecture, values), _names_of_theirs(architecture, values)
    for theirs, array in exporting.arrays(family, shape, params):
        name = ours[theirs.removeprefix(family.prefix)]
        array = array.astype(np.float32)
        yield name, array if name not in names.heads else architectures.from_their_rows(array, names.heads[name])
    if factors is not None:
        yield rope.FACTORS, factors


def _checked(name: str, array: np.ndarray, kind: blocks.BlockType) -> np.ndarray:
    """Raises UserError: blocks cannot hold a value that is not finite, nor float16 one beyond its range."""
    finite = np.isfinite(array)
    if kind.values > 1 and not finite.all():
        raise UserError(
            f"{name} has {(~finite).sum()} values that are not finite, which {kind.name} cannot hold; use f32."
        )
    if kind.name == "f16" and np.abs(array[finite]).max(initial=0) > np.finfo(np.float16).max:
        raise UserError(f"{name} has values beyond float16's 65504; use --type=bf16 or f32.")
    return array


def _template(run) -> dict[str, str]:
    """Of the format that the run was trained with, or of the model that it was imported from."""
    form = kinds.of_run(run.config.data.chat, run.directory.tokenizer)
    return {} if form is None else {vocabulary.CHAT_TEMPLATE: form.jinja(run.tokenizer)}
