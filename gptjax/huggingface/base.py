"""What a family of models states: the fields of its config.json, its tensors, and what the two sides lack of each other.

A family is a module with one subclass of `Family`, and one of those as FAMILY; `families.FAMILIES` names the module.
Fields, tensors and obstacles are tables; what no table says is in the four methods `conflicts`, `fields_of_ours`,
`fields_of_theirs` and `differences`.
"""

import dataclasses
import math
import typing

import numpy as np

from gptjax.config.fields import ModelConfig
from gptjax.errors import UserError
from gptjax.models import parametrization

# ---- tensors


@dataclasses.dataclass(frozen=True)
class Layout:
    """How some arrays of theirs, of one layer, make one of ours, and how ours is parted into them again."""

    join: typing.Callable  # (their arrays, ModelConfig) -> our array
    part: typing.Callable  # (our array, ModelConfig) -> their arrays


AS_IT_IS = Layout(lambda arrays, model: arrays[0], lambda array, model: (array,))


def _pad_vocabulary(arrays, m: ModelConfig):
    (array,) = arrays
    return np.concatenate([array, np.zeros((m.padded_vocab_size - m.vocab_size, m.d_model), array.dtype)])


VOCABULARY = Layout(_pad_vocabulary, lambda array, m: (array[: m.vocab_size],))  # [vocab_size, D]: ours is padded


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of our parameters. ours: its path in them; theirs: the names of what they keep it in, without the family's
    prefix, with {} for the layer."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = AS_IT_IS

    @property
    def stacked(self) -> bool:
        """Whether ours holds all layers along a first dimension."""
        return self.ours.startswith("blocks.")

    def leaf(self, params: dict):
        """Ours, of a nested dict of parameters or of their shapes."""
        for name in self.ours.split("."):
            params = params[name]
        return params

    def names(self, model: ModelConfig) -> list[tuple[str, ...]]:
        """Theirs, of each layer, or once."""
        if not self.stacked:
            return [self.theirs]
        return [tuple(name.format(layer) for name in self.theirs) for layer in range(model.n_layers)]

    def shapes(self, abstract: dict, model: ModelConfig) -> list[tuple[int, ...]]:
        """Of each of theirs. abstract: the shapes of our parameters."""
        whole = self.leaf(abstract).shape
        of_one = np.broadcast_to(np.zeros((), np.float32), whole[1:] if self.stacked else whole)  # without memory
        return [array.shape for array in self.layout.part(of_one, model)]


# ---- fields


@dataclasses.dataclass(frozen=True)
class Kind:
    """Of values that a field of a config.json may have."""

    expected: str
    fits: typing.Callable[[object], bool]


def _is_number(value) -> bool:
    return type(value) in (int, float)


COUNT = Kind("a whole number of at least 1", lambda value: type(value) is int and value >= 1)
RATE = Kind("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)
DEVIATION = Kind("a number from 0 to below inf", lambda value: _is_number(value) and 0 <= value < math.inf)
POSITIVE = Kind("a number from 0 to below inf, but not 0", lambda value: _is_number(value) and 0 < value < math.inf)
FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("a text", lambda value: type(value) is str)
TABLE = Kind("a table of names and values", lambda value: type(value) is dict)


@dataclasses.dataclass(frozen=True)
class Field:
    """One that is read. ours: its name in ModelConfig; None: `fields_of_ours` makes something of it. default: what
    transformers takes where a config.json, which may name only what differs, is silent; None: the field may be null."""

    theirs: str
    ours: str | None
    kind: Kind
    default: object
    other_name: str | None = None  # transformers' own, which goes before (attribute_map of its configs)
    may_be_null: bool = False  # also where the default is none


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """A field that is there to say what ours has no equal for."""

    field: str
    stands: typing.Callable[[object], bool]
    words: str


# Of every family of transformers.
_OBSTACLES = (
    Obstacle("quantization_config", bool, "its weights are quantised (quantization_config)"),
    Obstacle("pruned_heads", bool, "heads were taken out of it (pruned_heads)"),
    Obstacle("per_layer_config", bool, "its layers are not all alike (per_layer_config)"),
)
# What configs hold, now or in older releases, that no logit of a language model depends on: settings of `generate` stood
# here once.
_WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path architectures bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
    dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder is_encoder_decoder label2id
    length_penalty max_length min_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)
# Fields of ModelConfig that some families have, with what stands in the way of those that do not.
_VARIATIONS = {
    "band_width": "some of its layers see {} tokens only (model.band_width)",
    "qk_norm": "it normalises queries and keys (model.qk_norm)",
    "rope_scaling": "its rotary positions are scaled (model.rope_scaling={!r})",
    "rope_pattern": "some of its layers have no positions (model.rope_pattern={!r})",
    "linear_bias": "it has biases in part (model.linear_bias={!r})",
    "scale_embedding": "it scales its embedding (model.scale_embedding)",
}
_DROPOUT = ("embed_dropout", "attention_dropout", "residual_dropout")  # of ModelConfig


class Family:
    """One of transformers' kinds of language models. Subclasses fill in what has no value here."""

    model_type: str
    architecture: str
    prefix: str  # of the names of its tensors, which older folders may leave out
    embedding: str  # the name of the token embedding, without prefix
    head = "lm_head.weight"  # which has no prefix
    fields: tuple[Field, ...]
    activation: str  # the field that names it
    activations: dict[str, str]  # their name -> ours; the first of ours is the one that is written
    takes: frozenset[str] = frozenset()  # the fields of _VARIATIONS that it has a place for
    obstacles: tuple[Obstacle, ...] = ()
    without_effect: frozenset[str] = frozenset()  # fields of its own that no logit depends on
    buffers: tuple[str, ...] = ()  # how the names of tensors end that older releases kept and nobody reads
    buffers_are: str = ""  # what those are

    def tensors(self, model: ModelConfig) -> tuple[Tensor, ...]:
        """In the order in which they are written."""
        raise NotImplementedError

    def conflicts(self, filled: dict) -> list[tuple[bool, str]]:
        """(whether it stands, what ours has no equal for). filled: a config.json with transformers' defaults."""
        raise NotImplementedError

    def fields_of_ours(self, filled: dict) -> dict:
        """Of ModelConfig, beside those that `fields` names."""
        raise NotImplementedError

    def fields_of_theirs(self, model: ModelConfig) -> dict:
        """Of config.json, beside those that `fields` names."""
        raise NotImplementedError

    def differences(self, model: ModelConfig) -> list[tuple[bool, str]]:
        """(whether it stands, what theirs has no equal for), beside those that no family has."""
        raise NotImplementedError

    def full_name(self, name: str) -> str:
        return name if name == self.head else f"{self.prefix}{name}"

    def head_tensors(self, model: ModelConfig) -> tuple[Tensor, ...]:
        return () if model.tied_head else (Tensor("head", (self.head,), VOCABULARY),)

    def config_in(self, values: dict, where) -> ModelConfig:
        """The ModelConfig of a config.json. Raises UserError: values that cannot be, or what this model has and ours has
        not; all of them."""
        filled = self._filled(values, where)
        activation = filled[self.activation]
        conflicts = [
            (
                activation not in self.activations,
                f"its activation is {activation!r}, not one of {', '.join(self.activations)}",
            ),
            *self.conflicts(filled),
            *(
                (obstacle.stands(values[obstacle.field]), obstacle.words)
                for obstacle in (*self.obstacles, *_OBSTACLES)
                if obstacle.field in values
            ),
        ]
        if standing := [words for stands, words in conflicts if stands]:
            raise UserError(f"{where} cannot be imported: {'; '.join(standing)}.")
        stated = {field.ours: filled[field.theirs] for field in self.fields if field.ours is not None}
        return ModelConfig(**stated, mlp=self.activations[activation], **self.fields_of_ours(filled), dtype="float32")

    def _filled(self, values: dict, where) -> dict:
        filled, wrong = {}, []
        for field in self.fields:
            name = field.other_name if field.other_name in values else field.theirs
            value = filled[field.theirs] = values.get(name, field.default)
            if not (field.kind.fits(value) or (value is None and (field.default is None or field.may_be_null))):
                wrong.append(f"{name}={value!r}; expected {field.kind.expected}")
        if wrong:
            raise UserError(f"{where} has {'; it has '.join(wrong)}.")
        return filled

    def unread(self, values: dict) -> list[str]:
        """The fields of a config.json that transformers' model of this family does not have, so that nobody knows what
        they mean: they are not read."""
        read = {name for field in self.fields for name in (field.theirs, field.other_name)}
        read |= {obstacle.field for obstacle in (*self.obstacles, *_OBSTACLES)}
        return sorted(values.keys() - read - self.without_effect - _WITHOUT_EFFECT)

    def config_out(self, model: ModelConfig, dtype: str, eot_id: int | None) -> dict:
        """The config.json of a model of ours."""
        values = {"architectures": [self.architecture], "model_type": self.model_type}
        values |= {field.theirs: getattr(model, field.ours) for field in self.fields if field.ours is not None}
        values |= {"dtype": dtype, "torch_dtype": dtype, "bos_token_id": eot_id, "eos_token_id": eot_id}
        activation = next(theirs for theirs, ours in self.activations.items() if ours == model.mlp)
        return values | {self.activation: activation} | self.fields_of_theirs(model)

    def reasons(self, model: ModelConfig) -> list[str]:
        """All that stands in the way of writing a model of ours as one of this family."""
        activations = dict.fromkeys(self.activations.values())
        variations = {
            name: value for name in _VARIATIONS if (value := getattr(model, name)) != getattr(type(model), name)
        }
        differences = [
            *self.differences(model),
            *((name not in self.takes, _VARIATIONS[name].format(value)) for name, value in variations.items()),
            (
                model.task_head is not None,
                f"it has a head {model.task_head} beside that of the language model (model.task_head)",
            ),
            (model.logit_softcap is not None, "it caps its logits (model.logit_softcap)"),
            (
                parametrization.has_multipliers(model),
                f"it has multipliers (model.parametrization={model.parametrization!r}, model.attention_scale)",
            ),
            (model.mlp not in activations, f"its MLP is {model.mlp}, not one of {', '.join(activations)}"),
        ]
        return [words for stands, words in differences if stands]

    def unwritten(self, model: ModelConfig) -> list[str]:
        """The fields of ours that config.json has no place for, with their values: no logit depends on them."""
        written = {field.ours for field in self.fields}
        return [f"model.{name}={rate}" for name in _DROPOUT if (rate := getattr(model, name)) and name not in written]
