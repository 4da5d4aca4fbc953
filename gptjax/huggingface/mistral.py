"""Mistral: transformers' MistralForCausalLM, a Llama without biases whose layers all see a window."""

from gptjax.huggingface import layer_types
from gptjax.huggingface.base import COUNT, Field
from gptjax.huggingface.llama import Llama, with_defaults


class Mistral(Llama):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    fields = (
        *with_defaults(
            Llama.fields,
            drop=("attention_bias", "mlp_bias"),
            max_position_embeddings=4096 * 32,
            num_key_value_heads=8,
            intermediate_size=14336,
        ),
        Field("sliding_window", None, COUNT, 4096, may_be_null=True),
        Field("layer_types", None, layer_types.NAME_LIST, None),
    )
    takes = frozenset(["rope_scaling", "band_width"])
    without_effect = frozenset()
    biases = {}
    heads_divide_width = False

    def conflicts(self, filled):
        kind = "full_attention" if filled["sliding_window"] is None else "sliding_attention"
        others = sorted({*(filled["layer_types"] or [])} - {kind})
        words = f"its layers are all {kind} by sliding_window, and {', '.join(others)} by layer_types"
        return [*super().conflicts(filled), (bool(others), words)]

    def fields_of_ours(self, filled):
        window = {"band_width": filled["sliding_window"], "window_pattern": "S"} if filled["sliding_window"] else {}
        return super().fields_of_ours(filled) | window

    def fields_of_theirs(self, model):
        return super().fields_of_theirs(model) | {"sliding_window": model.band_width}

    def differences(self, model):
        some = len({*layer_types.window_letters(model)}) > 1
        words = f"some of its layers see {model.band_width} tokens, and others all (model.window_pattern)"
        return [*super().differences(model), (some, words)]


FAMILY = Mistral()
