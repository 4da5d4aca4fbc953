"""What the metadata and tensors of a file say as a config.json and tensors of transformers, and back.

Sources: llama.cpp's convert_hf_to_gguf.py and gguf-py's constants. llama.cpp turns dimension 2i of a head with 2i + 1,
transformers i with i + K/2, so that the rows of queries and keys stand in another order in a file.

Axes: V vocabulary, D width, F MLP width, Q = H K and P = G K rows of queries and of keys, for H heads of queries and G of
keys of K dimensions each.
"""

import dataclasses
import typing

import numpy as np

from gptjax.errors import UserError, shorten
from gptjax.gguf import container, rope
from gptjax.gguf.container import F32, U32, Value

_HEAD = "output"
_LAYER = "blk.{}."
# Ours -> (theirs, axes of a weight; those of a bias are the first one).
_OUTSIDE = {
    "token_embd": ("embed_tokens", "VD"),
    "output_norm": ("norm", "D"),
    _HEAD: ("lm_head", "VD"),
}
_OF_LAYER = {
    "attn_norm": ("input_layernorm", "D"),
    "attn_q": ("self_attn.q_proj", "QD"),
    "attn_k": ("self_attn.k_proj", "PD"),
    "attn_v": ("self_attn.v_proj", "PD"),
    "attn_output": ("self_attn.o_proj", "DQ"),
    "ffn_norm": ("post_attention_layernorm", "D"),
    "ffn_gate": ("mlp.gate_proj", "FD"),
    "ffn_up": ("mlp.up_proj", "FD"),
    "ffn_down": ("mlp.down_proj", "DF"),
}
_TURNED = {"attn_q": "H", "attn_k": "G"}  # by heads


@dataclasses.dataclass(frozen=True)
class Architecture:
    """name: general.architecture of a file, before the names of its metadata. model_type: transformers'. turned: whether
    llama.cpp turns neighbours, so that rows of queries and keys are in another order."""

    name: str
    model_type: str
    turned: bool


ARCHITECTURES = {each.name: each for each in (Architecture("llama", "llama", turned=True),)}


def architecture_of(metadata: dict, where) -> Architecture:
    """Raises UserError: another kind of model."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(
            f"{where} is of architecture {shorten(repr(name), 80)}; gptjax imports {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


# ---- metadata


class Metadata:
    """Entries of one architecture, each read once. unread() are those that were not asked for."""

    def __init__(self, architecture: Architecture, metadata: dict, where):
        self._prefix, self._metadata, self._where = f"{architecture.name}.", metadata, where
        self._asked = set()

    def get(self, name: str, kinds: tuple[type, ...], expected: str, default=None):
        """Raises UserError: an entry of another kind, or none where there is no default."""
        self._asked.add(name)
        value = self._metadata.get(self._prefix + name, default)
        if not (type(value) in kinds or value is default and default is not None):
            state = "lacks" if value is None else f"has {shorten(repr(value), 80)} as"
            raise UserError(f"{self._where} {state} {self._prefix}{name}; expected {expected}: convert the model anew.")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        count = self.get(name, (int,), "a whole number of at least 1", default)
        if count < 1:
            raise UserError(f"{self._where} has {self._prefix}{name}={count}; expected a whole number of at least 1.")
        return count

    def number(self, name: str, default: float | None = None) -> float:
        """The shortest that has the same float32, which files keep numbers as."""
        number = self.get(name, (int, float), "a number", default)
        return float(str(np.float32(number))) if type(number) is float else float(number)

    def text(self, name: str, default: str) -> str:
        return self.get(name, (str,), "a text", default)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._metadata

    def unread(self) -> list[str]:
        of_architecture = {name for name in self._metadata if name.startswith(self._prefix)}
        return sorted(of_architecture - {self._prefix + name for name in self._asked})


def values_of(architecture: Architecture, reader: container.Reader) -> tuple[dict, list[str]]:
    """(what a config.json of transformers would say, the names of metadata that are not read).

    Raises UserError: metadata that are missing or that tensors contradict, or parts that no such model has."""
    metadata = Metadata(architecture, reader.metadata, reader.where)
    width, heads = metadata.count("embedding_length"), metadata.count("attention.head_count")
    turned = metadata.count("rope.dimension_count", max(width // heads, 1))
    head_size = metadata.count("attention.key_length", turned)
    values = {
        "model_type": architecture.model_type,
        "vocab_size": _vocabulary(reader),
        "max_position_embeddings": metadata.count("context_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count("attention.head_count_kv", heads),
        "head_dim": head_size,
        "intermediate_size": metadata.count("feed_forward_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": f"{_HEAD}.weight" not in reader.tensors,
        "attention_bias": "blk.0.attn_q.bias" in reader.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in reader.tensors,
    }
    _refuse_parts(metadata, head_size, turned, reader)
    if (scaling := rope.read(metadata, reader, values)) is not None:
        values["rope_scaling"] = scaling
    metadata.count("vocab_size", 1)  # which the embedding says
    _check_tensors(values, reader)
    return values, metadata.unread()


def _vocabulary(reader: container.Reader) -> int:
    embedding = reader.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{reader.where} has no token_embd.weight of two dimensions; expected a model of llama.cpp.")
    return embedding.shape[0]


def _refuse_parts(metadata: Metadata, head_size: int, turned: int, reader: container.Reader) -> None:
    """Raises UserError: what gptjax's Llama has no equal for."""
    experts, value_size = metadata.get("expert_count", (int,), "a number", 0), "attention.value_length"
    obstacles = [
        (experts > 0, f"its MLPs are {experts} experts"),
        (metadata.count(value_size, head_size) != head_size, f"values are not as long as keys ({value_size})"),
        (turned != head_size, f"rotary positions turn {turned} of a head's {head_size} dimensions"),
    ]
    if standing := [words for stands, words in obstacles if stands]:
        raise UserError(f"{reader.where} cannot be imported: {'; '.join(standing)}.")


# ---- tensors


def _sizes(values: dict) -> dict[str, int]:
    head_size = values["head_dim"]
    return {
        "V": values["vocab_size"],
        "D": values["hidden_size"],
        "F": values["intermediate_size"],
        "Q": values["num_attention_heads"] * head_size,
        "P": values["num_key_value_heads"] * head_size,
        "H": values["num_attention_heads"],
        "G": values["num_key_value_heads"],
    }


def _shapes(values: dict, has_bias: typing.Callable[[str], bool]) -> dict[str, tuple[int, ...]]:
    """Of each tensor of a file."""
    sizes, shapes = _sizes(values), {}
    outside = {name: axes for name, (_, axes) in _OUTSIDE.items() if name != _HEAD or not values["tie_word_embeddings"]}
    of_layers = {
        f"{_LAYER.format(layer)}{name}": axes
        for layer in range(values["num_hidden_layers"])
        for name, (_, axes) in _OF_LAYER.items()
    }
    for name, axes in (outside | of_layers).items():
        shape = tuple(sizes[axis] for axis in axes)
        shapes[f"{name}.weight"] = shape
        if has_bias(name):
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _check_tensors(values: dict, reader: container.Reader) -> None:
    """Raises UserError: tensors that are missing, of other shapes, or no part of such a model."""
    layers = {name.split(".")[1] for name in reader.tensors if name.startswith("blk.")}
    if len(layers) != values["num_hidden_layers"]:  # asked first, as a hostile number would cost memory
        raise UserError(
            f"{reader.where} says that it has {values['num_hidden_layers']:,} layers and has tensors of {len(layers)}; copy"
            " the file again."
        )
    shapes = _shapes(values, lambda name: f"{name}.bias" in reader.tensors)
    missing = sorted(shapes.keys() - reader.tensors.keys())
    others = sorted(reader.tensors.keys() - shapes.keys() - {rope.FACTORS})
    for names, what in ((missing, "lacks"), (others, "has, beside those of such a model,")):
        if names:
            raise UserError(f"{reader.where} {what} {listed(names)}; gptjax reads whole models of llama.cpp's llama.")
    for name, shape in shapes.items():
        if (stored := reader.tensors[name].shape) != shape:
            raise UserError(
                f"{reader.where}: {name} is {list(stored)}, but the metadata give {list(shape)}; they are not of one model."
            )


def listed(names: list[str]) -> str:
    return ", ".join(shorten(name, 80) for name in names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def to_their_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows that turn with a neighbour, as rows i and i + K/2 of each head."""
    by_pair = array.reshape(heads, -1, 2, *array.shape[1:])
    return np.swapaxes(by_pair, 1, 2).reshape(array.shape)


def from_their_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """The way back."""
    by_half = array.reshape(heads, 2, -1, *array.shape[1:])
    return np.swapaxes(by_half, 1, 2).reshape(array.shape)


class Names:
    """Of a model's tensors: a file's -> transformers', without prefix, and how the rows of a head's tensor are ordered."""

    def __init__(self, architecture: Architecture, values: dict):
        sizes = _sizes(values)
        self.theirs, self.heads = {}, {}
        pairs = {name: (theirs, None) for name, (theirs, _) in _OUTSIDE.items()} | {
            f"{_LAYER.format(layer)}{name}": (f"layers.{layer}.{theirs}", _TURNED.get(name))
            for layer in range(values["num_hidden_layers"])
            for name, (theirs, _) in _OF_LAYER.items()
        }
        for name, (theirs, heads) in pairs.items():
            for part in ("weight", "bias"):
                self.theirs[f"{name}.{part}"] = f"{theirs}.{part}"
                if heads and architecture.turned:
                    self.heads[f"{name}.{part}"] = sizes[heads]


class AsTransformers:
    """A file's tensors under transformers' names, in their order of rows: a reader as huggingface.tensors.Reader is one."""

    def __init__(self, reader: container.Reader, names: Names):
        self._reader, self._names = reader, names
        self._ours = {names.theirs[name]: name for name in reader.tensors if name in names.theirs}

    def __contains__(self, name: str) -> bool:
        return name in self._ours

    def __iter__(self):
        return iter(self._ours)

    def read(self, name: str) -> np.ndarray:
        ours = self._ours[name]
        array = self._reader.read(ours)
        return array if ours not in self._names.heads else to_their_rows(array, self._names.heads[ours])


# ---- writing


def metadata_out(architecture: Architecture, values: dict) -> tuple[dict, np.ndarray | None]:
    """(metadata of a config.json, the tensor of factors of rotary positions or None). Raises UserError: scaling that
    llama.cpp does not have."""
    settings, factors = rope.written(values)
    named = {
        "context_length": Value(values["max_position_embeddings"], U32),
        "embedding_length": Value(values["hidden_size"], U32),
        "block_count": Value(values["num_hidden_layers"], U32),
        "feed_forward_length": Value(values["intermediate_size"], U32),
        "attention.head_count": Value(values["num_attention_heads"], U32),
        "attention.head_count_kv": Value(values["num_key_value_heads"], U32),
        "attention.key_length": Value(values["head_dim"], U32),
        "attention.value_length": Value(values["head_dim"], U32),
        "attention.layer_norm_rms_epsilon": Value(values["rms_norm_eps"], F32),
        "rope.dimension_count": Value(values["head_dim"], U32),
        "vocab_size": Value(values["vocab_size"], U32),
        **settings,
    }
    return {f"{architecture.name}.{name}": value for name, value in named.items()}, factors
