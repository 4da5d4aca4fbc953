"""Llama: transformers' LlamaForCausalLM, whose form many models have that are called otherwise, or nearly have.

Those (mistral, qwen2, qwen3, smollm3, gemma) are subclasses in modules of their own, and state what they have otherwise.

Linear maps are [out, in] there; ours are [in, out]. Queries, keys and values are three matrices, each by head, and the
heads of queries that share a key and a value stand together. Ours is one, [D, G, R + 2, K]: by key/value head, its R
queries, its key, its value. Gate and value of the MLP are two matrices there and one here, [D, 2, F]. Rotary positions
turn dimension i with i + K/2 on both sides.

Axes: D width, H query heads, G key/value heads (H = G R), K head size, F MLP width.
"""

import dataclasses

import numpy as np

from gptjax.config.fields import ModelConfig
from gptjax.config.layer_patterns import BIASED
from gptjax.huggingface import rope_settings
from gptjax.huggingface.base import (
    AS_IT_IS,
    COUNT,
    DEVIATION,
    FLAG,
    POSITIVE,
    RATE,
    TEXT,
    VOCABULARY,
    Family,
    Field,
    Layout,
    Tensor,
)
from gptjax.models import gpt_counts


def _join_qkv(arrays, m: ModelConfig):
    """[H K, D], [G K, D], [G K, D], or biases without D -> [D, G, R + 2, K]."""
    by_group = [array.T.reshape(*array.shape[1:], m.kv_heads, -1, m.head_size) for array in arrays]
    return np.concatenate(by_group, axis=-2)


def _part_qkv(array, m: ModelConfig):
    parts = array[..., :-2, :], array[..., -2:-1, :], array[..., -1:, :]
    return tuple(part.reshape(*array.shape[:-3], -1).T for part in parts)


QKV = Layout(_join_qkv, _part_qkv)
OUT = Layout(  # [D, H K]: ours is [H, K, D]
    lambda arrays, m: arrays[0].T.reshape(m.n_heads, m.head_size, m.d_model),
    lambda array, m: (array.reshape(-1, m.d_model).T,),
)
GATE_AND_VALUE = Layout(  # [F, D] each, or biases without D: ours is [D, 2, F]
    lambda arrays, m: np.stack([array.T for array in arrays], axis=-2),
    lambda array, m: (array[..., 0, :].T, array[..., 1, :].T),
)
TRANSPOSED = Layout(lambda arrays, m: arrays[0].T, lambda array, m: (array.T,))

_ATTENTION, _MLP = "layers.{}.self_attn.", "layers.{}.mlp."


def _linear_maps(part: str, of=BIASED) -> tuple[Tensor, ...]:
    """Of a layer. part: "weight" or "bias"; of: which maps, by the names of model.linear_bias."""
    qkv = tuple(f"{_ATTENTION}{name}_proj.{part}" for name in "qkv")
    up = tuple(f"{_MLP}{name}_proj.{part}" for name in ("gate", "up"))
    out, down = (OUT, TRANSPOSED) if part == "weight" else (AS_IT_IS, AS_IT_IS)
    tensors = {
        "qkv": (Tensor(f"blocks.attention.qkv.{part}", qkv, QKV),),
        "out": (Tensor(f"blocks.attention.out.{part}", (f"{_ATTENTION}o_proj.{part}",), out),),
        "mlp": (
            Tensor(f"blocks.mlp.up.{part}", up, GATE_AND_VALUE),
            Tensor(f"blocks.mlp.down.{part}", (f"{_MLP}down_proj.{part}",), down),
        ),
    }
    return tuple(tensor for name in of for tensor in tensors[name])


_QK_NORMS = tuple(Tensor(f"blocks.attention.{name}_norm.gain", (f"{_ATTENTION}{name}_norm.weight",)) for name in "qk")


class Llama(Family):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    prefix = "model."
    embedding = "embed_tokens.weight"
    activation = "hidden_act"
    fields = (
        Field("vocab_size", "vocab_size", COUNT, 32000),
        Field("max_position_embeddings", "context_length", COUNT, 2048),
        Field("num_hidden_layers", "n_layers", COUNT, 32),
        Field("hidden_size", "d_model", COUNT, 4096),
        Field("num_attention_heads", "n_heads", COUNT, 32),
        Field("num_key_value_heads", "n_kv_heads", COUNT, None),
        Field("head_dim", "head_dim", COUNT, None),
        Field("intermediate_size", "d_ff", COUNT, 11008),
        Field("rms_norm_eps", "norm_eps", POSITIVE, 1e-6),
        Field("attention_dropout", "attention_dropout", RATE, 0.0),
        Field("initializer_range", "init_std", DEVIATION, 0.02),
        Field("tie_word_embeddings", "tied_head", FLAG, False),
        Field("hidden_act", None, TEXT, "silu"),
        Field("attention_bias", None, FLAG, False),
        Field("mlp_bias", None, FLAG, False),
        *rope_settings.FIELDS,
    )
    takes = frozenset(["rope_scaling", "linear_bias"])
    activations = {"silu": "swiglu", "swish": "swiglu"}
    without_effect = frozenset(["pretraining_tp"])  # the order of sums only
    buffers = (".rotary_emb.inv_freq",)
    buffers_are = "the rates of rotary positions as older releases kept them, which transformers computes anew, too"
    biases = {"attention_bias": ("qkv", "out"), "mlp_bias": ("mlp",)}  # fields -> linear maps that have one by them
    always_biased: tuple[str, ...] = ()  # linear maps that have one in every such model
    heads_divide_width = True  # whether transformers asks that, even of heads that are wider
    norm = "rmsnorm"
    norm_parameter = "gain"
    qk_norm = False
    scale_embedding = False

    def tensors(self, model):
        return (
            Tensor("token_embedding", ("embed_tokens.weight",), VOCABULARY),
            *_linear_maps("weight"),
            *_linear_maps("bias", _biased(model)),
            *(_QK_NORMS if self.qk_norm else ()),
            Tensor(f"blocks.attention_norm.{self.norm_parameter}", ("layers.{}.input_layernorm.weight",)),
            Tensor(f"blocks.mlp_norm.{self.norm_parameter}", ("layers.{}.post_attention_layernorm.weight",)),
            Tensor(f"final_norm.{self.norm_parameter}", ("norm.weight",)),
            *self.head_tensors(model),
        )

    def conflicts(self, filled):
        width, heads = filled["hidden_size"], filled["num_attention_heads"]
        size = filled["head_dim"] or width // heads
        groups = filled["num_key_value_heads"] or heads
        return [
            (
                width % heads != 0 and (self.heads_divide_width or not filled["head_dim"]),
                "num_attention_heads does not divide hidden_size",
            ),
            (heads % groups != 0, "num_key_value_heads does not divide num_attention_heads"),
            (size % 2 != 0, f"a head has {size} dimensions (head_dim), of which rotary positions turn pairs"),
            *rope_settings.conflicts(filled),
        ]

    def unread(self, values):
        return sorted([*super().unread(values), *rope_settings.unread(values)])

    def fields_of_ours(self, filled):
        parts = [*self.always_biased, *(part for field, of in self.biases.items() if filled[field] for part in of)]
        in_part = 0 < len(parts) < len(BIASED)
        return {
            "position": "rope",
            "rope_theta": rope_settings.theta(filled),
            "rope_scaling": rope_settings.scaling_in(filled),
            "norm": self.norm,
            "qk_norm": self.qk_norm,
            "scale_embedding": self.scale_embedding,
            "bias": len(parts) == len(BIASED),
            "linear_bias": ",".join(parts) if in_part else None,
            "scale_residual_init": False,
        }

    def fields_of_theirs(self, model):
        biased = _biased(model)
        return {
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_size,
            "intermediate_size": model.ff_size,
            **{field: parts[0] in biased for field, parts in self.biases.items()},
            **rope_settings.fields_of_theirs(model),
        }

    def differences(self, model):
        return [
            (model.position != "rope", f"its positions are {model.position} (model.position)"),
            (model.norm != self.norm, f"its norms are {model.norm} (model.norm)"),
            (
                self.heads_divide_width and model.d_model % model.n_heads != 0,
                f"its {model.n_heads} heads do not divide its width, {model.d_model}",
            ),
            (
                (model.norm_position, model.final_norm) != ("pre", True),
                f"norm_position={model.norm_position!r} with final_norm={model.final_norm}",
            ),
            (not self._can_say_biases(model), f"it has biases in {', '.join(_biased(model)) or 'no linear map'}"),
            (self.qk_norm and not model.qk_norm, "it does not normalise queries and keys (model.qk_norm=False)"),
            (
                self.scale_embedding and not model.scale_embedding,
                "it does not scale its embedding (model.scale_embedding=False)",
            ),
        ]

    def _can_say_biases(self, model: ModelConfig) -> bool:
        """Whether a config.json can say which linear maps have a bias."""
        biased = {*_biased(model)}
        groups = [{*parts} for parts in self.biases.values()]
        alike = all(group <= biased or not group & biased for group in groups)
        return alike and biased.difference(*groups) == {*self.always_biased}


def _biased(model: ModelConfig) -> tuple[str, ...]:
    """The linear maps with a bias, by the names of model.linear_bias."""
    return tuple(part for part in BIASED if gpt_counts.has_bias(model, part))


def with_defaults(fields: tuple[Field, ...], drop=(), **defaults) -> tuple[Field, ...]:
    """The fields with what transformers takes for them in another family, without some. Those that may be null still
    may."""
    assert defaults.keys() <= {field.theirs for field in fields}
    changed = {
        field.theirs: dataclasses.replace(
            field, default=defaults[field.theirs], may_be_null=field.may_be_null or field.default is None
        )
        for field in fields
        if field.theirs in defaults
    }
    return tuple(changed.get(field.theirs, field) for field in fields if field.theirs not in drop)


FAMILY = Llama()
