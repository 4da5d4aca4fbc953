"""Makes the folders beside this file: tiny random models as transformers saves them, and their logits.

pip install torch==2.13.0 transformers==5.24.0 && python tests/golden/hf/make.py [FAMILY ...]
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
GPT = dict(n_embd=12, n_layer=2, n_head=3, n_positions=10, vocab_size=29, initializer_range=0.4)
LLAMA = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=10, vocab_size=29)
LLAMA |= dict(intermediate_size=20, initializer_range=0.4)
SHAPES = {
    "gpt2": {
        "plain": {},
        "one_head": dict(n_head=1, n_layer=1),
        "untied": dict(tie_word_embeddings=False),
        "gelu": dict(activation_function="gelu"),
        "inner": dict(n_inner=20, n_positions=7),
        "eps": dict(layer_norm_epsilon=1e-2, n_head=6),
        "deep": dict(n_layer=5, vocab_size=128),
    },
    "gpt1": {
        "plain": {},
        "one_head": dict(n_head=1, n_layer=1),
        "untied": dict(tie_word_embeddings=False),
        "eps": dict(layer_norm_epsilon=1e-2, n_head=6),
        "long": dict(n_positions=33, vocab_size=130),
        "deep": dict(n_layer=5),
    },
    "llama": {
        "plain": {},
        "grouped": dict(
            hidden_size=24, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=1, rope_theta=50.0
        ),
        "one_key_tied": dict(num_key_value_heads=1, tie_word_embeddings=True),
        "wide_heads": dict(head_dim=6, num_key_value_heads=1, intermediate_size=9),
        "biases": dict(attention_bias=True, mlp_bias=True, num_attention_heads=6, num_key_value_heads=3),
        "long": dict(max_position_embeddings=33, rope_theta=500000.0, rms_norm_eps=1e-2),
    },
}
CLASSES = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, GPT),
    "gpt1": (transformers.OpenAIGPTConfig, transformers.OpenAIGPTLMHeadModel, GPT),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, LLAMA),
}


def make(family: str, name: str, changes: dict) -> None:
    torch.manual_seed(0)
    config_class, model_class, base = CLASSES[family]
    model = model_class(config_class(**base | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains and biases, which start at one and zero
                parameter.add_(0.3 * torch.randn_like(parameter))
    folder = HERE / f"{family}_{name}"
    model.save_pretrained(folder)
    shape = (2, model.config.max_position_embeddings)
    token_BL = np.random.default_rng(0).integers(model.config.vocab_size, size=shape)
    logit_BLV = model(torch.tensor(token_BL)).logits.detach().numpy()
    np.savez(folder / "expected.npz", token_BL=token_BL, logit_BLV=logit_BLV)
    print(folder.name, json.loads((folder / "config.json").read_text())["transformers_version"])


if __name__ == "__main__":
    for family in sys.argv[1:] or SHAPES:
        for name, changes in SHAPES[family].items():
            make(family, name, changes)
