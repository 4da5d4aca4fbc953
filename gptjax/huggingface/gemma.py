"""Gemma: transformers' GemmaForCausalLM, the first one. A Llama with other norms, a GELU beside its gate, and an embedding
that is scaled on its way in and tied on its way out."""

from gptjax.huggingface.base import Obstacle
from gptjax.huggingface.llama import Llama, with_defaults


class Gemma(Llama):
    model_type = "gemma"
    architecture = "GemmaForCausalLM"
    fields = with_defaults(
        Llama.fields,
        drop=("mlp_bias",),
        vocab_size=256000,
        max_position_embeddings=8192,
        num_hidden_layers=28,
        hidden_size=3072,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=256,
        intermediate_size=24576,
        tie_word_embeddings=True,
        hidden_act="gelu_pytorch_tanh",
    )
    # transformers takes "gelu" of older files for its tanh form
    activations = dict.fromkeys(["gelu_pytorch_tanh", "gelu", "gelu_new", "gelu_fast"], "geglu")
    takes = frozenset(["rope_scaling", "linear_bias", "scale_embedding"])
    without_effect = frozenset()
    obstacles = (
        Obstacle("use_bidirectional_attention", bool, "its tokens see later ones (use_bidirectional_attention)"),
    )
    biases = {"attention_bias": ("qkv", "out")}
    heads_divide_width = False
    norm = "rmsnorm_plus_one"
    norm_parameter = "offset"
    scale_embedding = True


FAMILY = Gemma()
