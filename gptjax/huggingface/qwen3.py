"""Qwen3: transformers' Qwen3ForCausalLM, a Qwen2 that normalises queries and keys instead of adding biases to them."""

from gptjax.huggingface.base import FLAG, Field
from gptjax.huggingface.llama import with_defaults
from gptjax.huggingface.qwen2 import Qwen2


class Qwen3(Qwen2):
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    fields = (*with_defaults(Qwen2.fields, head_dim=128), Field("attention_bias", None, FLAG, False))
    takes = frozenset(["rope_scaling", "linear_bias", "band_width", "qk_norm"])
    biases = {"attention_bias": ("qkv", "out")}
    always_biased = ()
    qk_norm = True


FAMILY = Qwen3()
