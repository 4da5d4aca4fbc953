"""GPT-2: transformers' GPT2LMHeadModel.

Linear maps are Conv1D there, [in, out] as ours. Queries, keys and values stand in one matrix [D, 3 D]: q | k | v, each by
head. Ours is [D, H, 3, K]: by head, then q, k, v.

Axes: D width, H heads, K head size.
"""

import numpy as np

from gptjax.config.fields import ModelConfig
from gptjax.huggingface.base import (
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
    Obstacle,
    Tensor,
)


def _join_qkv(arrays, m: ModelConfig):
    """[..., 3 D] -> [..., H, 3, K]."""
    (array,) = arrays
    return np.swapaxes(array.reshape(*array.shape[:-1], 3, m.n_heads, m.head_size), -3, -2)


def _part_qkv(array, m: ModelConfig):
    return (np.swapaxes(array, -3, -2).reshape(*array.shape[:-3], 3 * m.d_model),)


QKV = Layout(_join_qkv, _part_qkv)
OUT = Layout(  # [D, D]: ours is [H, K, D]
    lambda arrays, m: arrays[0].reshape(m.n_heads, m.head_size, m.d_model),
    lambda array, m: (array.reshape(m.d_model, m.d_model),),
)
BLOCK = (
    Tensor("blocks.attention_norm.gain", ("h.{}.ln_1.weight",)),
    Tensor("blocks.attention_norm.bias", ("h.{}.ln_1.bias",)),
    Tensor("blocks.attention.qkv.weight", ("h.{}.attn.c_attn.weight",), QKV),
    Tensor("blocks.attention.qkv.bias", ("h.{}.attn.c_attn.bias",), QKV),
    Tensor("blocks.attention.out.weight", ("h.{}.attn.c_proj.weight",), OUT),
    Tensor("blocks.attention.out.bias", ("h.{}.attn.c_proj.bias",)),
    Tensor("blocks.mlp_norm.gain", ("h.{}.ln_2.weight",)),
    Tensor("blocks.mlp_norm.bias", ("h.{}.ln_2.bias",)),
    Tensor("blocks.mlp.up.weight", ("h.{}.mlp.c_fc.weight",)),
    Tensor("blocks.mlp.up.bias", ("h.{}.mlp.c_fc.bias",)),
    Tensor("blocks.mlp.down.weight", ("h.{}.mlp.c_proj.weight",)),
    Tensor("blocks.mlp.down.bias", ("h.{}.mlp.c_proj.bias",)),
)


def shared_fields(vocab_size: int, n_positions: int) -> tuple[Field, ...]:
    """Those that GPT-1 has too, with its or GPT-2's default sizes."""
    return (
        Field("vocab_size", "vocab_size", COUNT, vocab_size),
        Field("n_positions", "context_length", COUNT, n_positions, "max_position_embeddings"),
        Field("n_layer", "n_layers", COUNT, 12, "num_hidden_layers"),
        Field("n_embd", "d_model", COUNT, 768, "hidden_size"),
        Field("n_head", "n_heads", COUNT, 12, "num_attention_heads"),
        Field("layer_norm_epsilon", "norm_eps", POSITIVE, 1e-5),
        Field("resid_pdrop", "residual_dropout", RATE, 0.1),
        Field("embd_pdrop", "embed_dropout", RATE, 0.1),
        Field("attn_pdrop", "attention_dropout", RATE, 0.1),
        Field("initializer_range", "init_std", DEVIATION, 0.02),
        Field("tie_word_embeddings", "tied_head", FLAG, True),
    )


class GPT2(Family):
    """Also what GPT-1 has alike."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    embedding = "wte.weight"
    activation = "activation_function"
    fields = (
        *shared_fields(50257, 1024),
        Field("activation_function", None, TEXT, "gelu_new"),
        Field("n_inner", None, COUNT, None),
    )
    activations = {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu": "gelu",
        "relu2": "relu2",
    }
    obstacles = (
        Obstacle("add_cross_attention", bool, "it has cross-attention (add_cross_attention)"),
        Obstacle(
            "scale_attn_by_inverse_layer_idx",
            bool,
            "it scales attention by the layer (scale_attn_by_inverse_layer_idx)",
        ),
        Obstacle(
            "scale_attn_weights", lambda value: not value, "its attention is not scaled (scale_attn_weights=false)"
        ),
    )
    # reorder_and_upcast_attn changes the order of roundings in half precision only
    without_effect = frozenset(
        """n_ctx n_special output_past predict_special_tokens reorder_and_upcast_attn summary_activation
        summary_first_dropout summary_proj_to_labels summary_type summary_use_proj""".split()
    )
    buffers = (".attn.bias", ".attn.masked_bias")
    buffers_are = "the causal mask as older releases kept it, which transformers skips too"
    is_pre_norm = True

    def tensors(self, model):
        return (
            Tensor("token_embedding", ("wte.weight",), VOCABULARY),
            Tensor("position_embedding", ("wpe.weight",)),
            *BLOCK,
            Tensor("final_norm.gain", ("ln_f.weight",)),
            Tensor("final_norm.bias", ("ln_f.bias",)),
            *self.head_tensors(model),
        )

    def conflicts(self, filled):
        return [(filled["n_embd"] % filled["n_head"] != 0, "n_head does not divide n_embd")]

    def fields_of_ours(self, filled):
        return {
            "d_ff": filled.get("n_inner"),
            "norm_position": "pre" if self.is_pre_norm else "post",
            "final_norm": self.is_pre_norm,
            "scale_residual_init": self.is_pre_norm,
            "position_init_std": filled["initializer_range"],
        }

    def fields_of_theirs(self, model):
        return {"n_inner": None if model.ff_size == 4 * model.d_model else model.ff_size}

    def differences(self, model):
        heads = f"{model.n_heads} heads of {model.head_size}"
        expected = "pre" if self.is_pre_norm else "post"
        return [
            (model.position != "learned", f"its positions are {model.position} (model.position)"),
            (model.norm != "layernorm", f"its norms are {model.norm} (model.norm)"),
            (not model.bias, "it has no biases (model.bias=False)"),
            (model.kv_heads != model.n_heads, f"{model.n_heads} query heads share {model.kv_heads} key/value heads"),
            (
                model.n_heads * model.head_size != model.d_model,
                f"{heads} are not as wide as the model, {model.d_model}",
            ),
            (
                (model.norm_position, model.final_norm) != (expected, self.is_pre_norm),
                f"norm_position={model.norm_position!r} with final_norm={model.final_norm}",
            ),
        ]


FAMILY = GPT2()
