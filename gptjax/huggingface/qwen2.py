"""Qwen2 and Qwen2.5: transformers' Qwen2ForCausalLM, a Llama whose queries, keys and values have a bias, and whose upper
layers may see a window."""

from gptjax.huggingface import layer_types
from gptjax.huggingface.base import Field
from gptjax.huggingface.llama import Llama, with_defaults


class Qwen2(Llama):
    """Also what Qwen3 has alike."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    fields = (
        *with_defaults(
            Llama.fields,
            drop=("attention_bias", "mlp_bias"),
            vocab_size=151936,
            max_position_embeddings=32768,
            intermediate_size=22016,
            num_key_value_heads=32,
        ),
        *with_defaults(layer_types.SLIDING, sliding_window=4096),
        Field("max_window_layers", None, layer_types.LENGTH, 28),
    )
    takes = frozenset(["rope_scaling", "linear_bias", "band_width"])
    without_effect = frozenset()
    biases = {}
    always_biased = ("qkv",)
    heads_divide_width = False

    def conflicts(self, filled):
        return [*super().conflicts(filled), *layer_types.conflicts(filled)]

    def fields_of_ours(self, filled):
        layers = filled["num_hidden_layers"]
        slides = filled["use_sliding_window"] and filled["sliding_window"] is not None
        first = min(filled["max_window_layers"], layers) if slides else layers
        windows = layer_types.windows_in(filled, "L" * first + "S" * (layers - first))
        return super().fields_of_ours(filled) | windows

    def fields_of_theirs(self, model):
        return super().fields_of_theirs(model) | layer_types.fields_of_windows(model)


FAMILY = Qwen2()
