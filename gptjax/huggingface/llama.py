"""Llama: transformers' LlamaForCausalLM, whose form many models have that are called otherwise.

Linear maps are [out, in] there; ours are [in, out]. Queries, keys and values are three matrices, each by head, and the
heads of queries that share a key and a value stand together. Ours is one, [D, G, R + 2, K]: by key/value head, its R
queries, its key, its value. Gate and value of the MLP are two matrices there and one here, [D, 2, F]. Rotary positions
turn dimension i with i + K/2 on both sides.

Axes: D width, H query heads, G key/value heads (H = G R), K head size, F MLP width.
"""

import json

import numpy as np

from gptjax.config.fields import ModelConfig
from gptjax.huggingface.base import (
    AS_IT_IS,
    COUNT,
    DEVIATION,
    FLAG,
    POSITIVE,
    RATE,
    TABLE,
    TEXT,
    VOCABULARY,
    Family,
    Field,
    Layout,
    Tensor,
)


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

_ROPE_SETTINGS = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}  # those that are read
_ATTENTION, _MLP = "layers.{}.self_attn.", "layers.{}.mlp."


def _linear_maps(part: str) -> tuple[Tensor, ...]:
    """Of a layer. part: "weight" or "bias"."""
    qkv = tuple(f"{_ATTENTION}{name}_proj.{part}" for name in "qkv")
    up = tuple(f"{_MLP}{name}_proj.{part}" for name in ("gate", "up"))
    out, down = (OUT, TRANSPOSED) if part == "weight" else (AS_IT_IS, AS_IT_IS)
    return (
        Tensor(f"blocks.attention.qkv.{part}", qkv, QKV),
        Tensor(f"blocks.attention.out.{part}", (f"{_ATTENTION}o_proj.{part}",), out),
        Tensor(f"blocks.mlp.up.{part}", up, GATE_AND_VALUE),
        Tensor(f"blocks.mlp.down.{part}", (f"{_MLP}down_proj.{part}",), down),
    )


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
        Field("rope_theta", None, POSITIVE, 10000.0),  # these two of releases before 5, the third since
        Field("rope_scaling", None, TABLE, None),
        Field("rope_parameters", None, TABLE, None),
        Field("partial_rotary_factor", None, POSITIVE, 1.0),
    )
    activations = {"silu": "swiglu", "swish": "swiglu"}
    without_effect = frozenset(["pretraining_tp"])  # the order of sums only
    buffers = (".rotary_emb.inv_freq",)
    buffers_are = "the rates of rotary positions as older releases kept them, which transformers computes anew, too"

    def tensors(self, model):
        return (
            Tensor("token_embedding", ("embed_tokens.weight",), VOCABULARY),
            *_linear_maps("weight"),
            *(_linear_maps("bias") if model.bias else ()),
            Tensor("blocks.attention_norm.gain", ("layers.{}.input_layernorm.weight",)),
            Tensor("blocks.mlp_norm.gain", ("layers.{}.post_attention_layernorm.weight",)),
            Tensor("final_norm.gain", ("norm.weight",)),
            *self.head_tensors(model),
        )

    def conflicts(self, filled):
        width, heads = filled["hidden_size"], filled["num_attention_heads"]
        size = filled["head_dim"] or width // heads
        groups = filled["num_key_value_heads"] or heads
        biases = {name: filled[name] for name in ("attention_bias", "mlp_bias")}
        return [
            (width % heads != 0, "num_attention_heads does not divide hidden_size"),
            (heads % groups != 0, "num_key_value_heads does not divide num_attention_heads"),
            (size % 2 != 0, f"a head has {size} dimensions (head_dim), of which rotary positions turn pairs"),
            (
                len(set(biases.values())) > 1,
                f"it has biases in part ({json.dumps(biases)}), and here all linear maps have them or none: add those that"
                " it lacks to its files, as zeros",
            ),
            *_rope_conflicts(filled),
        ]

    def unread(self, values):
        name, settings = _rope_settings(values)
        return sorted([*super().unread(values), *(f"{name}.{each}" for each in settings.keys() - _ROPE_SETTINGS)])

    def fields_of_ours(self, filled):
        return {
            "position": "rope",
            "rope_theta": _rope_theta(filled),
            "norm": "rmsnorm",
            "bias": filled["attention_bias"],
            "scale_residual_init": False,
        }

    def fields_of_theirs(self, model):
        """rope_theta stands twice: releases before 5 read the one outside of rope_parameters."""
        return {
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_size,
            "intermediate_size": model.ff_size,
            "attention_bias": model.bias,
            "mlp_bias": model.bias,
            "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
            "rope_theta": model.rope_theta,
        }

    def differences(self, model):
        return [
            (model.position != "rope", f"its positions are {model.position} (model.position)"),
            (model.norm != "rmsnorm", f"its norms are {model.norm} (model.norm)"),
            (
                model.d_model % model.n_heads != 0,
                f"its {model.n_heads} heads do not divide its width, {model.d_model}",
            ),
            (
                (model.norm_position, model.final_norm) != ("pre", True),
                f"norm_position={model.norm_position!r} with final_norm={model.final_norm}",
            ),
        ]


def _rope_settings(values: dict) -> tuple[str, dict]:
    """(field, settings of rotary positions) that transformers 5 takes."""
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    return name, values.get(name) or {}


def _rope_theta(filled: dict):
    return _rope_settings(filled)[1].get("rope_theta", filled["rope_theta"])


def _rope_conflicts(filled: dict) -> list[tuple[bool, str]]:
    name, settings = _rope_settings(filled)
    scaling = settings.get("rope_type", settings.get("type", "default"))
    turned = settings.get("partial_rotary_factor", filled["partial_rotary_factor"])
    theta = _rope_theta(filled)
    return [
        (
            scaling != "default",
            f"its rotary positions are scaled ({name}: rope_type={scaling!r}), and gptjax has plain ones only: take a model"
            " of rope_type='default'",
        ),
        (turned != 1, f"its rotary positions turn a part of each head only (partial_rotary_factor={turned!r})"),
        (not POSITIVE.fits(theta), f"{name} has rope_theta={theta!r}; expected {POSITIVE.expected}"),
    ]


FAMILY = Llama()
