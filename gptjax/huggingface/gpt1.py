"""GPT-1: transformers' OpenAIGPTLMHeadModel, which is GPT-2's but for where norms stand, names, and one activation.

Where a checkpoint says `afn: "gelu"`, its code computes the tanh form (transformers' modeling_openai.py maps the name to
gelu_new), so the tanh form it is.
"""

from gptjax.huggingface import gpt2
from gptjax.huggingface.base import TEXT, VOCABULARY, Field, Tensor


class GPT1(gpt2.GPT2):
    model_type = "openai-gpt"
    architecture = "OpenAIGPTLMHeadModel"
    embedding = "tokens_embed.weight"
    activation = "afn"
    fields = (*gpt2.shared_fields(40478, 512), Field("afn", None, TEXT, "gelu"))
    activations = {"gelu": "gelu_tanh"}
    is_pre_norm = False

    def tensors(self, model):
        return (
            Tensor("token_embedding", ("tokens_embed.weight",), VOCABULARY),
            Tensor("position_embedding", ("positions_embed.weight",)),
            *gpt2.BLOCK,
            *self.head_tensors(model),
        )

    def fields_of_theirs(self, model):
        return {}

    def differences(self, model):
        is_narrow = model.ff_size != 4 * model.d_model
        return [*super().differences(model), (is_narrow, f"GPT-1's MLP is 4 n_embd wide, this one {model.ff_size}")]


FAMILY = GPT1()
