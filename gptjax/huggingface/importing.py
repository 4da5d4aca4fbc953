"""A folder of transformers as a run directory: parameters, config and tokenizer, at step 0."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
from etils import epath

from gptjax.config.fields import CheckpointConfig, Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.data.tokenizers import Tokenizer
from gptjax.data.tokenizers.simple import IdTokenizer
from gptjax.errors import UserError
from gptjax.huggingface import chat_template, ends, families, tensors, vocabulary
from gptjax.huggingface.base import Family, Tensor
from gptjax.huggingface.ends import SOURCES
from gptjax.models import architectures
from gptjax.parallel import numerics
from gptjax.rundir import model_directory, run_directory
from gptjax.storage import folder_kinds, outputs

_STORED_AS = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}  # float16 has no place here: widened
# Settings of `generate`, which are sample's own here.
_DRAWN_WITH = """bad_words_ids diversity_penalty do_sample forced_bos_token_id forced_eos_token_id length_penalty max_length
    max_new_tokens min_length min_p no_repeat_ngram_size num_beams repetition_penalty suppress_tokens temperature top_k
    top_p typical_p""".split()
_TOKENIZER_FILES = "vocab.json and merges.txt nor tokenizer.json"
_CHANGING_TEXTS = ("add_prefix_space", "add_eos_token", "do_lower_case")


@numerics.settings()
def import_folder(folder: str, workdir: str, tokenizer: str | None = None, allow_nonfinite: bool = False) -> dict:
    """Writes a run directory at workdir, and says what it is, with notes on what is not as one might think. tokenizer: a
    SPEC, or "ids"; None: the folder's own. allow_nonfinite: take weights that are NaN or infinite.

    Raises UserError: another kind of model, files that are missing or damaged, a workdir that holds something.
    """
    source = epath.Path(folder).expanduser()
    directory = new_run(workdir)
    values = _read_json(source / "config.json", source)
    family = families.family_of(values, source / "config.json")
    shape = family.config_in(values, source / "config.json")
    files = SOURCES if tokenizer is None else SOURCES[:2]  # what is said of the folder's own tokenizer is of no other
    contents = {name: _read_json(source / name, source) for name, *_ in files if (source / name).exists()}
    chosen, notes = choose_tokenizer(
        lambda: vocabulary.read(source), f"{source} has neither {_TOKENIZER_FILES}", shape, tokenizer, contents
    )
    with tensors.Reader(source) as reader:
        params, dtype, shape, more = read_params(reader, family, shape, allow_nonfinite)
        notes += [*_unread_fields(values, contents, family), *reader.notes, *more]
    origin = {"from": "hf", "folder": str(source), "architecture": values.get("architectures"), "dtype": dtype}
    write_run(directory, shape, params, chosen, origin | {"files": _to_keep(contents)})
    notes += chat_template.keep(source, directory.tokenizer) if tokenizer is None else []
    return origin | described(shape, chosen, notes)


def new_run(workdir: str) -> run_directory.RunDirectory:
    """Raises UserError: it holds something, or cannot be written."""
    directory = run_directory.open_run(workdir)
    if directory.path.exists() and folder_kinds.kind_of(directory.path) != folder_kinds.EMPTY:
        raise UserError(
            f"--workdir={workdir} is not empty: it is {folder_kinds.said(directory.path)}; give a new directory for the"
            " imported model."
        )
    outputs.check_folder("--workdir", workdir)
    return directory


def described(shape: ModelConfig, tokenizer: Tokenizer, notes: list[str]) -> dict:
    """What an import says of the run that it made, beside where it came from."""
    parted_by = {"eot_id": tokenizer.eot_id, "bos_id": tokenizer.bos_id}
    return {"model": shape, "tokenizer": tokenizer.kind, **parted_by, "notes": notes}


def write_run(
    directory, shape: ModelConfig, params: dict, chosen: Tokenizer, imported: dict, beside: dict[str, str] | None = None
) -> None:
    """A run of one checkpoint, at step 0. params: of one dtype. imported: where they came from, for the manifest. beside:
    files that stand with the tokenizer, {name: text}."""
    config = Config(
        model=shape,
        optim=OptimConfig(param_dtype=_STORED_AS[imported["dtype"]]),
        train=TrainConfig(steps=1, batch_size=8, tensorboard=False),
        checkpoint=CheckpointConfig(every_steps=None),
    )
    model_directory.write(directory, config, params, chosen, {"imported": imported}, beside)


def _unread_fields(values: dict, contents: dict[str, dict], family: Family) -> list[str]:
    """Notes on fields that are not read and may matter."""
    notes = []
    if unread := family.unread(values):
        notes.append(f"config.json: {_few(unread)} not read, which no {family.architecture} of transformers has")
    drawn = [name for name in _DRAWN_WITH if contents.get("generation_config.json", {}).get(name) is not None]
    if drawn:
        notes.append(f"generation_config.json: {', '.join(drawn)} not read; give gptjax sample its own settings")
    changing = [name for name in _CHANGING_TEXTS if contents.get("tokenizer_config.json", {}).get(name)]
    if changing:
        notes.append(
            f"tokenizer_config.json: {', '.join(changing)} not read: a text has the tokens of its own, no more"
        )
    return notes


def _to_keep(contents: dict[str, dict]) -> dict[str, dict]:
    """What an export gives back: all but the tables of tokens, which stand in the tokenizer."""
    return {file: {k: v for k, v in values.items() if k != "added_tokens_decoder"} for file, values in contents.items()}


def _read_json(file, folder) -> dict:
    if not file.exists():
        raise UserError(
            f"{folder} has no {file.name}; expected a folder that save_pretrained of transformers wrote, and it is"
            f" {folder_kinds.said(folder)}."
        )
    if file.name == "config.json" and folder_kinds.kind_of(folder) == folder_kinds.RUN:
        raise UserError(f"{folder} is {folder_kinds.said(folder)}; expected a folder of Hugging Face's transformers.")
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}; copy the file again.") from error


def choose_tokenizer(
    read: Callable, looked_for: str, shape: ModelConfig, spec: str | None, contents: dict[str, dict], sources=SOURCES
) -> tuple[Tokenizer, list[str]]:
    """(tokenizer, notes): of a SPEC, or what read() gives, which is (None or a tokenizer, notes). looked_for: what it is
    read from. contents, sources: see ends.find.

    Raises UserError: there is none that can be used, or it is larger than the model."""
    hint = "give --tokenizer=SPEC (gpt2:FOLDER, hf:FILE, ...), or --tokenizer=ids to use none: then texts are token ids"
    try:
        if spec is None:
            tokenizer, notes = read()
        else:
            tokenizer, notes = IdTokenizer(shape.vocab_size) if spec == "ids" else tokenizers.from_spec(spec), []
    except UserError as error:
        raise UserError(f"the tokenizer cannot be used: {error} Else {hint}.") from error
    if tokenizer is None:
        raise UserError(f"there is no tokenizer: {looked_for}; {hint}.")
    entries = tokenizer.vocab_size - tokenizer.invented_eot
    if entries > shape.vocab_size:
        raise UserError(f"the tokenizer has {entries} entries, the model {shape.vocab_size}; {hint}.")
    if tokenizer.added or tokenizer.ends is not None:  # a saved one that has its ends already
        return tokenizer, notes
    parts = ends.find(contents, tokenizer, shape.vocab_size, sources)
    if (parts.eot_id, parts.bos_id) != (tokenizer.eot_id, tokenizer.bos_id):
        tokenizer = tokenizer.with_ends(parts.eot_id, parts.bos_id)
    return tokenizer, [*notes, *parts.notes]


def read_params(
    reader: tensors.Reader, family: Family, shape: ModelConfig, allow_nonfinite: bool = False
) -> tuple[dict, str, ModelConfig, list[str]]:
    """(parameters as our nested dict, the dtype they had, shape with the head that is there, notes). Raises UserError:
    tensors that are missing, of other shapes, of no use here, or not finite."""
    names = _bare_names(reader, family)
    shape, notes = _with_head(reader, names, family, shape)
    tensors_of_family = family.tensors(shape)
    notes += _check_names(names, family, tensors_of_family, shape)
    abstract = architectures.abstract(shape)[1]
    seen, params = _Seen(allow_nonfinite), {}
    for tensor in tensors_of_family:
        *parents, last = tensor.ours.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _read(reader, tensor, names, shape, abstract, seen)
    if seen.nonfinite:
        notes.append(f"{_few(seen.nonfinite)} hold NaN or infinities, imported as they are")
    return params, seen.dtypes.pop(), shape, notes


def _check_names(names: dict[str, str], family: Family, tensors_of_family, shape: ModelConfig) -> list[str]:
    """Notes on tensors that are not read. Raises UserError: some are missing, or no part of such a model."""
    needed = {name for tensor in tensors_of_family for of_layer in tensor.names(shape) for name in of_layer}
    others = names.keys() - needed - {family.head}  # a tied head may be written all the same
    buffers = sorted(name for name in others if name.endswith(family.buffers))
    unknown = sorted(others - set(buffers))
    missing = sorted(needed - names.keys())
    if missing or unknown:
        lacks = [f"lacks {_few(missing)}"] if missing else []
        has = [f"has {_few(unknown)}, which is no part of it"] if unknown else []
        raise UserError(
            f"the folder is no {family.architecture} of its config.json: it {' and '.join([*lacks, *has])}."
        )
    return [f"{_few(buffers)} not read: {family.buffers_are}"] if buffers else []


def _bare_names(reader: tensors.Reader, family: Family) -> dict[str, str]:
    """{name without the family's prefix: name}. Raises UserError: two tensors are one by that."""
    names = {}
    for name in reader:
        bare = name.removeprefix(family.prefix)
        if bare in names:
            raise UserError(f"the folder has both {bare} and {family.prefix}{bare}; expected one of them.")
        names[bare] = name
    return names


def _with_head(reader, names: dict[str, str], family: Family, shape: ModelConfig) -> tuple[ModelConfig, list]:
    """(shape, notes): a head that is there and is not the embedding is no tied one, whatever config.json says, as
    transformers sees it."""
    if not shape.tied_head or family.head not in names or family.embedding not in names:
        return shape, []
    head, tied_to = reader.read(names[family.head]), reader.read(names[family.embedding])
    if (head.shape, head.dtype, head.tobytes()) == (tied_to.shape, tied_to.dtype, tied_to.tobytes()):
        return shape, []
    note = f"config.json says tie_word_embeddings, but {family.head} is not {family.embedding}: the head is read for itself"
    return dataclasses.replace(shape, tied_head=False), [note]


@dataclasses.dataclass
class _Seen:
    """What the tensors that were read so far are."""

    allow_nonfinite: bool
    dtypes: set[str] = dataclasses.field(default_factory=set)
    nonfinite: list[str] = dataclasses.field(default_factory=list)

    def check(self, name: str, array: np.ndarray) -> None:
        """Raises UserError: a dtype that is none of ours or not that of the others, or a value that is not finite and was
        not asked for."""
        self.dtypes.add(str(array.dtype))
        if len(self.dtypes) > 1 or not self.dtypes <= _STORED_AS.keys():
            dtypes = ", ".join(sorted(self.dtypes))
            raise UserError(f"its tensors are {dtypes}; expected all float32, or float16, or bfloat16.")
        if (finite := np.isfinite(array)).all():
            return
        if not self.allow_nonfinite:
            at = np.unravel_index(finite.argmin(), array.shape)
            raise UserError(
                f"{name} has {(~finite).sum()} values of {finite.size} that are not finite, the first {array[at]} at"
                f" {[int(i) for i in at]}; copy the file again, or give --allow_nonfinite to import it as it is."
            )
        self.nonfinite.append(name)


def _read(reader, tensor: Tensor, names, shape: ModelConfig, abstract: dict, seen: _Seen) -> np.ndarray:
    """One of our arrays, layer by layer."""
    array, expected = None, tensor.shapes(abstract, shape)
    for layer, names_of_layer in enumerate(tensor.names(shape)):
        theirs = [reader.read(names[name]) for name in names_of_layer]
        for name, each, expected_shape in zip(names_of_layer, theirs, expected, strict=True):
            seen.check(names[name], each)
            _check_shape(name, each.shape, expected_shape)
        ours = tensor.layout.join(theirs, shape)
        if array is None:
            dtype = np.float32 if ours.dtype == np.float16 else ours.dtype
            array = np.empty(tensor.leaf(abstract).shape, dtype)
        array[layer if tensor.stacked else ...] = ours
    return array


def _check_shape(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given != expected:
        raise UserError(
            f"{name} is {list(given)}, but its config.json gives {list(expected)}; they are not of one model."
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
