"""A folder of transformers as a run directory: parameters, config and tokenizer, at step 0."""

import numpy as np
from etils import epath

from gptjax import architectures, consistency, data, folder_kinds, rundir
from gptjax.checkpoint import Checkpointer
from gptjax.config import CheckpointConfig, Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.data.tokenizers.simple import IdTokenizer
from gptjax.errors import UserError
from gptjax.huggingface import families, tensors, vocabulary
from gptjax.step import TrainState

STEP = 0
_STORED_AS = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}  # float16 has no place here: widened
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # older folders hold masks too


def import_folder(folder: str, workdir: str, tokenizer: str | None = None) -> dict:
    """Writes a run directory at workdir, and says what it is. tokenizer: a SPEC, or "ids"; None: the folder's own.

    Raises UserError: another kind of model, files that are missing or damaged, a workdir that holds something.
    """
    source = epath.Path(folder).expanduser()
    directory = rundir.open_run(workdir)
    if directory.path.exists() and folder_kinds.kind_of(directory.path) != folder_kinds.EMPTY:
        raise UserError(
            f"--workdir={workdir} is not empty: it is {folder_kinds.said(directory.path)}; give a new directory for the"
            " imported model."
        )
    values = _read_json(source / "config.json", source)
    shape = families.model_config(values, source / "config.json")
    chosen = _tokenizer(source, shape, tokenizer)
    with tensors.Reader(source) as reader:
        params, dtype = read_params(reader, families.family_of(values, source), shape)
    config = Config(
        model=shape,
        optim=OptimConfig(param_dtype=_STORED_AS[dtype]),
        train=TrainConfig(steps=1, batch_size=8, tensorboard=False),
        checkpoint=CheckpointConfig(every_steps=None),
    )
    origin = {"from": "hf", "folder": str(source), "architecture": values.get("architectures"), "dtype": dtype}
    about = {"imported": origin, "data": None, "tokenizer_hash": chosen.hash}
    manifest = consistency.begun({}, [], None, config.to_dict(), None, STEP)
    manifest |= rundir.provenance(config, rundir.command_line()) | about
    _save(directory, config, params, consistency.of_checkpoint(manifest))
    data.save_tokenizer(chosen, directory.tokenizer)
    directory.write_json("manifest.json", manifest)
    directory.metrics.write_text("")
    directory.write_config(config)  # last: with it the directory is a run
    return origin | {"model": shape, "tokenizer": chosen.kind}


def _read_json(file, folder) -> dict:
    import json

    if not file.exists():
        raise UserError(
            f"{folder} has no {file.name}; expected a folder that save_pretrained of transformers wrote, and it is"
            f" {folder_kinds.said(folder)}."
        )
    if file.name == "config.json" and folder_kinds.kind_of(folder) == folder_kinds.RUN:
        raise UserError(f"{folder} is {folder_kinds.said(folder)}; expected a folder of Hugging Face's transformers.")
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not JSON: {error}; copy the file anew.") from error


def _tokenizer(source, shape: ModelConfig, spec: str | None) -> data.Tokenizer:
    if spec == "ids":
        return IdTokenizer(shape.vocab_size)
    hint = (
        "give --tokenizer=SPEC (gpt2:FOLDER, hf:FILE, ...), or --tokenizer=ids to go without one: texts are token ids"
    )
    try:
        found = vocabulary.read(source) if spec is None else tokenizers.from_spec(spec)
    except UserError as error:
        raise UserError(f"the tokenizer cannot be used: {error} Else {hint}.") from error
    if found is None:
        raise UserError(f"{source} has neither vocab.json and merges.txt nor tokenizer.json; {hint}.")
    if found.vocab_size > shape.vocab_size:
        raise UserError(f"the tokenizer has {found.vocab_size} entries, the model {shape.vocab_size}; {hint}.")
    return found


def read_params(reader: tensors.Reader, family: families.Family, shape: ModelConfig) -> tuple[dict, str]:
    """(parameters as our nested dict, the dtype they had). Raises UserError: tensors that are missing, of other shapes
    or of no use here."""
    names = {name.removeprefix("transformer."): name for name in reader}
    expected = family.tensors(shape)
    wanted = {each for tensor in expected for each in _names(tensor, shape)}
    known = wanted | {families.HEAD}  # a tied head may be written all the same
    unknown = sorted(name for name in names if name not in known and not name.endswith(_BUFFERS))
    missing = sorted(wanted - names.keys())
    if missing or unknown:
        parts = [f"lacks {_few(missing)}"] * bool(missing) + [f"has {_few(unknown)}, which is no part of it"] * bool(
            unknown
        )
        raise UserError(f"the folder is no {family.architecture} of its config.json: it {' and '.join(parts)}.")
    abstract = architectures.abstract(shape)[1]
    dtypes, params = set(), {}
    for tensor in expected:
        array = _read(reader, tensor, names, shape, _leaf(abstract, tensor.ours), dtypes)
        *parents, last = tensor.ours
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    if len(dtypes) > 1 or not dtypes <= _STORED_AS.keys():
        raise UserError(f"its tensors are {', '.join(sorted(dtypes))}; expected all float32, or float16, or bfloat16.")
    return params, dtypes.pop()


def _read(reader, tensor: families.Tensor, names, shape, like, dtypes: set) -> np.ndarray:
    """One of our arrays, layer by layer."""
    array = None
    for layer, name in enumerate(_names(tensor, shape)):
        theirs = reader.read(names[name])
        dtypes.add(str(theirs.dtype))
        _check_shape(name, theirs, tensor, shape)
        ours = tensor.to_ours(theirs, shape)
        if array is None:
            dtype = np.float32 if ours.dtype == np.float16 else ours.dtype
            array = np.empty(like.shape, dtype)
        array[layer if tensor.stacked else ...] = ours
    return array


def _check_shape(name: str, theirs: np.ndarray, tensor: families.Tensor, shape: ModelConfig) -> None:
    example = _leaf(architectures.abstract(shape)[1], tensor.ours)
    ours = np.broadcast_to(np.zeros((), np.float32), example.shape[1:] if tensor.stacked else example.shape)
    expected = tensor.to_theirs(ours, shape).shape
    if theirs.shape != expected:
        raise UserError(
            f"{name} is {list(theirs.shape)}, but its config.json gives {list(expected)}; they are not of one model."
        )


def _names(tensor: families.Tensor, shape: ModelConfig) -> list[str]:
    """Without `transformer.`: of each layer, or the one."""
    return [tensor.theirs.format(i) for i in range(shape.n_layers)] if tensor.stacked else [tensor.theirs]


def _leaf(params: dict, path: tuple[str, ...]):
    for name in path:
        params = params[name]
    return params


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _save(directory: rundir.RunDirectory, config: Config, params: dict, run: dict) -> None:
    import jax

    directory.path.mkdir(parents=True, exist_ok=True)
    checkpointer = Checkpointer(directory.checkpoints, config, run=run)
    try:
        state = TrainState(jax.numpy.int32(STEP), jax.tree.map(jax.numpy.asarray, params), opt_state=(), ema=None)
        checkpointer.save(state, STEP)
        checkpointer.wait()
    finally:
        checkpointer.close()
