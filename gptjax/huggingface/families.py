"""The two families: what a config.json says as a ModelConfig and back, and the names and layouts of their tensors.

Both keep linear maps as Conv1D, [in, out] as ours, and queries, keys and values in one matrix [D, 3 D]: q | k | v, each
by head. Ours is [D, H, 3, K]: by head, then q, k, v. Where a checkpoint of GPT-1 says `afn: "gelu"`, its code computes
the tanh form (transformers' modeling_openai.py maps the name to gelu_new), so the tanh form it is.

Axes: D width, H heads, K head size, F MLP width.
"""

import dataclasses
import math
import typing

import numpy as np

from gptjax.config.fields import ModelConfig
from gptjax.errors import UserError
from gptjax.models import parametrization


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of theirs. ours: path in our parameters; theirs: its name, with {} for the layer, without `transformer.`."""

    ours: tuple[str, ...]
    theirs: str
    to_ours: typing.Callable = lambda array, model: array  # of one layer
    to_theirs: typing.Callable = lambda array, model: array

    @property
    def stacked(self) -> bool:
        """Whether ours holds all layers along a first dimension."""
        return self.ours[0] == "blocks"


def _qkv_in(array, m: ModelConfig):
    """[..., 3 D] -> [..., H, 3, K]."""
    return np.swapaxes(array.reshape(*array.shape[:-1], 3, m.n_heads, m.head_size), -3, -2)


def _qkv_out(array, m: ModelConfig):
    return np.swapaxes(array, -3, -2).reshape(*array.shape[:-3], 3 * m.d_model)


def _out_in(array, m: ModelConfig):
    """[D, D] -> [H, K, D]."""
    return array.reshape(m.n_heads, m.head_size, m.d_model)


def _out_out(array, m: ModelConfig):
    return array.reshape(m.d_model, m.d_model)


def _pad_vocabulary(array, m: ModelConfig):
    return np.concatenate([array, np.zeros((m.padded_vocab_size - m.vocab_size, m.d_model), array.dtype)])


def _strip_vocabulary(array, m: ModelConfig):
    return array[: m.vocab_size]


def _vocabulary(ours: str, theirs: str) -> Tensor:
    return Tensor((ours,), theirs, _pad_vocabulary, _strip_vocabulary)


_BLOCK = (
    Tensor(("blocks", "attention_norm", "gain"), "h.{}.ln_1.weight"),
    Tensor(("blocks", "attention_norm", "bias"), "h.{}.ln_1.bias"),
    Tensor(("blocks", "attention", "qkv", "weight"), "h.{}.attn.c_attn.weight", _qkv_in, _qkv_out),
    Tensor(("blocks", "attention", "qkv", "bias"), "h.{}.attn.c_attn.bias", _qkv_in, _qkv_out),
    Tensor(("blocks", "attention", "out", "weight"), "h.{}.attn.c_proj.weight", _out_in, _out_out),
    Tensor(("blocks", "attention", "out", "bias"), "h.{}.attn.c_proj.bias"),
    Tensor(("blocks", "mlp_norm", "gain"), "h.{}.ln_2.weight"),
    Tensor(("blocks", "mlp_norm", "bias"), "h.{}.ln_2.bias"),
    Tensor(("blocks", "mlp", "up", "weight"), "h.{}.mlp.c_fc.weight"),
    Tensor(("blocks", "mlp", "up", "bias"), "h.{}.mlp.c_fc.bias"),
    Tensor(("blocks", "mlp", "down", "weight"), "h.{}.mlp.c_proj.weight"),
    Tensor(("blocks", "mlp", "down", "bias"), "h.{}.mlp.c_proj.bias"),
)
HEAD = "lm_head.weight"  # stands outside of `transformer.`


@dataclasses.dataclass(frozen=True)
class Family:
    model_type: str
    architecture: str
    activations: dict[str, str]  # their name -> ours; the first of ours is the one that is written
    embeddings: tuple[Tensor, ...]
    after_blocks: tuple[Tensor, ...]
    fields: dict[str, str]  # ours -> theirs, of what both name
    is_pre_norm: bool

    def tensors(self, model: ModelConfig) -> tuple[Tensor, ...]:
        head = () if model.tied_head else (_vocabulary("head", HEAD),)
        return (*self.embeddings, *_BLOCK, *self.after_blocks, *head)


_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layers": "n_layer",
    "d_model": "n_embd",
    "n_heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
    "residual_dropout": "resid_pdrop",
    "embed_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "init_std": "initializer_range",
}
GPT1 = Family(
    "openai-gpt",
    "OpenAIGPTLMHeadModel",
    {"gelu": "gelu_tanh"},
    (_vocabulary("token_embedding", "tokens_embed.weight"), Tensor(("position_embedding",), "positions_embed.weight")),
    (),
    _FIELDS,
    is_pre_norm=False,
)
GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu": "gelu",
        "relu2": "relu2",
    },
    (_vocabulary("token_embedding", "wte.weight"), Tensor(("position_embedding",), "wpe.weight")),
    (Tensor(("final_norm", "gain"), "ln_f.weight"), Tensor(("final_norm", "bias"), "ln_f.bias")),
    _FIELDS,
    is_pre_norm=True,
)
FAMILIES = {family.model_type: family for family in (GPT1, GPT2)}
# What transformers takes where a config.json, which may name only what differs, is silent.
_DEFAULTS = {
    "vocab_size": {"openai-gpt": 40478, "gpt2": 50257},
    "n_positions": {"openai-gpt": 512, "gpt2": 1024},
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "initializer_range": 0.02,
}


_COUNTS = ("vocab_size", "n_positions", "n_layer", "n_embd", "n_head")
# transformers' own other names, which go before those (attribute_map of its configs)
_OTHER_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_OBSTACLES = {
    "add_cross_attention",
    "pruned_heads",
    "quantization_config",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
}
# What configs of the two families hold, now or in older releases, that no logit of a language model depends on:
# reorder_and_upcast_attn changes the order of roundings in half precision only; settings of `generate` stood here once.
_WITHOUT_EFFECT = set(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path architectures bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
    dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder is_encoder_decoder label2id
    length_penalty max_length min_length model_type n_ctx n_special name_or_path no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores
    pad_token_id predict_special_tokens prefix problem_type remove_invalid_values reorder_and_upcast_attn
    repetition_penalty return_dict return_dict_in_generate sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache
    """.split()
)


def family_of(values: dict, where) -> Family:
    """Of a config.json. Raises UserError: another kind of model."""
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(f"{where} is of model_type {model_type!r}; gptjax imports {' and '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def model_config(values: dict, where) -> ModelConfig:
    """The ModelConfig of a config.json. Raises UserError: what this model has and ours has not, all of it."""
    family = family_of(values, where)
    known = _known(values, family, where)
    activation = values.get("afn", "gelu") if family is GPT1 else values.get("activation_function", "gelu_new")
    obstacles = [
        f"its activation is {activation!r}, not one of {', '.join(family.activations)}"
        if activation not in family.activations
        else "",
        "n_head does not divide n_embd" if known["n_embd"] % known["n_head"] else "",
        "it has cross-attention (add_cross_attention)" if values.get("add_cross_attention") else "",
        "it scales attention by the layer (scale_attn_by_inverse_layer_idx)"
        if values.get("scale_attn_by_inverse_layer_idx")
        else "",
        "its attention is not scaled (scale_attn_weights=false)" if not values.get("scale_attn_weights", True) else "",
        "its weights are quantised (quantization_config)" if values.get("quantization_config") else "",
        "heads were taken out of it (pruned_heads)" if values.get("pruned_heads") else "",
    ]
    if obstacles := [obstacle for obstacle in obstacles if obstacle]:
        raise UserError(f"{where} cannot be imported: {'; '.join(obstacles)}.")
    return ModelConfig(
        **{ours: known[theirs] for ours, theirs in family.fields.items()},
        d_ff=known["n_inner"],
        mlp=family.activations[activation],
        norm_position="pre" if family.is_pre_norm else "post",
        final_norm=family.is_pre_norm,
        scale_residual_init=family.is_pre_norm,
        position_init_std=known["initializer_range"],
        tied_head=known["tie_word_embeddings"],
        dtype="float32",
    )


def _known(values: dict, family: Family, where) -> dict:
    """What a config.json says of the fields that are read, with transformers' defaults. Raises UserError: values of
    another type."""
    known = {name: values.get(name, _default(name, family)) for name in family.fields.values()}
    known |= {name: values[other] for other, name in _OTHER_NAMES.items() if other in values}
    known["n_inner"] = values.get("n_inner") if family is GPT2 else None
    known["tie_word_embeddings"] = values.get("tie_word_embeddings", True)
    for name, value in known.items():
        if name == "tie_word_embeddings":
            fits, expected = type(value) is bool, "true or false"
        elif name in _COUNTS or (name == "n_inner" and value is not None):
            fits, expected = type(value) is int and value >= 1, "a whole number of at least 1"
        elif name == "n_inner":
            continue
        else:
            top = 1.0 if name.endswith("_pdrop") else math.inf
            fits, expected = type(value) in (int, float) and 0 <= value < top, f"a number from 0 to below {top:g}"
        if not fits:
            raise UserError(f"{where} has {name}={value!r}; expected {expected}.")
    return known


def unread(values: dict, family: Family) -> list[str]:
    """The fields of a config.json that transformers' model of this family does not have, so that nobody knows what they
    mean: they are not read."""
    own = {"afn"} if family is GPT1 else {"activation_function", "n_inner"}
    read = {*family.fields.values(), *_OTHER_NAMES, "tie_word_embeddings", *own}
    return sorted(values.keys() - read - _OBSTACLES - _WITHOUT_EFFECT)


def _default(name: str, family: Family):
    default = _DEFAULTS[name]
    return default[family.model_type] if isinstance(default, dict) else default


def family_for(model: ModelConfig) -> Family:
    """The family that a model of ours can be written as. Raises UserError: all that stands in the way."""
    if model.architecture != "gpt":  # a copy of it that computes something else has no other sign
        raise UserError(f"model.architecture={model.architecture!r} cannot be written: transformers has no such model.")
    family = GPT2 if model.norm_position == "pre" else GPT1
    activations = family.activations.values()
    obstacles = [
        (model.band_width is not None, f"every second layer sees {model.band_width} tokens only (model.band_width)"),
        (model.position != "learned", f"its positions are {model.position} (model.position)"),
        (model.norm != "layernorm", f"its norms are {model.norm} (model.norm)"),
        (not model.bias, "it has no biases (model.bias=False)"),
        (model.kv_heads != model.n_heads, f"{model.n_heads} query heads share {model.kv_heads} key/value heads"),
        (
            model.n_heads * model.head_size != model.d_model,
            f"{model.n_heads} heads of {model.head_size} are not as wide as the model, {model.d_model}",
        ),
        (model.qk_norm, "it normalises queries and keys (model.qk_norm)"),
        (model.logit_softcap is not None, "it caps its logits (model.logit_softcap)"),
        (
            parametrization.has_multipliers(model),
            f"it has multipliers (model.parametrization={model.parametrization!r}, model.attention_scale)",
        ),
        (model.mlp not in activations, f"its MLP is {model.mlp}, not one of {', '.join(dict.fromkeys(activations))}"),
        (
            model.final_norm != family.is_pre_norm,
            f"norm_position={model.norm_position!r} with final_norm={model.final_norm}",
        ),
        (
            family is GPT1 and model.ff_size != 4 * model.d_model,
            f"GPT-1's MLP is 4 n_embd wide, this one {model.ff_size}",
        ),
    ]
    if reasons := [reason for stands, reason in obstacles if stands]:
        raise UserError(
            f"this model cannot be written as Hugging Face's {family.architecture}: {'; '.join(reasons)};"
            " transformers has no such model."
        )
    return family


def config_json(model: ModelConfig, family: Family, dtype: str, eot_id: int | None) -> dict:
    """The config.json of a model of ours."""
    activation = next(theirs for theirs, ours in family.activations.items() if ours == model.mlp)
    values = {"architectures": [family.architecture], "model_type": family.model_type}
    values |= {theirs: getattr(model, ours) for ours, theirs in family.fields.items()}
    values |= {"tie_word_embeddings": model.tied_head, "dtype": dtype, "torch_dtype": dtype}
    values |= {"bos_token_id": eot_id, "eos_token_id": eot_id}
    if family is GPT1:
        return values | {"afn": activation}
    inner = None if model.ff_size == 4 * model.d_model else model.ff_size
    return values | {"activation_function": activation, "n_inner": inner}
