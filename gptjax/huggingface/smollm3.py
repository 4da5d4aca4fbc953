"""SmolLM3: transformers' SmolLM3ForCausalLM, a Llama whose every fourth layer has no positions, and may see a window."""

from gptjax.huggingface import layer_types
from gptjax.huggingface.base import COUNT, Field
from gptjax.huggingface.llama import Llama, with_defaults


class SmolLM3(Llama):
    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    fields = (
        *with_defaults(
            Llama.fields,
            vocab_size=128256,
            max_position_embeddings=32768,
            num_hidden_layers=36,
            hidden_size=2048,
            num_attention_heads=16,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            rope_theta=2000000.0,
        ),
        *layer_types.SLIDING,
        Field("no_rope_layers", None, layer_types.NUMBER_LIST, None),
        Field("no_rope_layer_interval", None, COUNT, 4),
    )
    takes = frozenset(["rope_scaling", "rope_pattern", "linear_bias", "band_width"])
    without_effect = frozenset(["max_window_layers", "pretraining_tp"])
    heads_divide_width = False

    def conflicts(self, filled):
        rotating, layers = filled["no_rope_layers"], filled["num_hidden_layers"]
        few = rotating is not None and len(rotating) < layers
        words = f"no_rope_layers speaks of {len(rotating or ())} layers of {layers}"
        return [*super().conflicts(filled), *layer_types.conflicts(filled), (few, words)]

    def fields_of_ours(self, filled):
        letters = _rotating(filled)
        slides = filled["use_sliding_window"] and filled["sliding_window"] is not None
        windows = layer_types.windows_in(filled, letters.translate({ord("R"): "L", ord("N"): "S" if slides else "L"}))
        return super().fields_of_ours(filled) | windows | {"rope_pattern": layer_types.shortest_period(letters)}

    def fields_of_theirs(self, model):
        windows = layer_types.fields_of_windows(model)
        windows.pop("max_window_layers", None)  # Qwen's
        letters = layer_types.of_layers(model.rope_pattern, model.n_layers)
        return super().fields_of_theirs(model) | windows | {"no_rope_layers": [int(each == "R") for each in letters]}


def _rotating(filled: dict) -> str:
    """R or N of each layer."""
    layers, interval = filled["num_hidden_layers"], filled["no_rope_layer_interval"]
    if (rotating := filled["no_rope_layers"]) is None:
        rotating = [int((layer + 1) % interval != 0) for layer in range(layers)]
    return "".join("R" if each else "N" for each in rotating[:layers])


FAMILY = SmolLM3()
