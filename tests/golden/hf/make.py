"""Makes the folders beside this file: tiny random models as transformers saves them, and their logits.

pip install torch==2.13.0 transformers==5.24.0 && python tests/golden/hf/make.py [FAMILY or FOLDER ...]
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
RELATIVE = LLAMA | dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=24)


def scaled(rope_type: str, **settings) -> dict:
    """Of 48 positions, eight times as many as the model had first."""
    return dict(
        max_position_embeddings=48,
        rope_parameters=dict(rope_type=rope_type, rope_theta=100.0, factor=8.0) | settings,
        head_dim=16,
        num_key_value_heads=1,
    )


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
        "attention_biases": dict(attention_bias=True),
        "llama3": scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=6),
        "linear": scaled("linear"),
        "dynamic": scaled("dynamic"),
        "yarn": scaled("yarn", original_max_position_embeddings=6, beta_fast=2.0, beta_slow=0.5),
    },
    "mistral": {
        "window": dict(sliding_window=5),
        "no_window": dict(sliding_window=None, tie_word_embeddings=True, vocab_size=128),
    },
    "qwen2": {
        "plain": dict(tie_word_embeddings=True),
        "upper_windows": dict(num_hidden_layers=4, use_sliding_window=True, sliding_window=3, max_window_layers=3)
        | scaled("yarn", original_max_position_embeddings=6, attention_factor=0.8, truncate=False),
    },
    "qwen3": {
        "plain": dict(rms_norm_eps=1e-2),
        "biases_windows": dict(
            num_hidden_layers=4,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=0,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
    },
    "smollm3": {
        "plain": dict(num_hidden_layers=8),
        "windows": dict(
            num_hidden_layers=5,
            no_rope_layers=[1, 0, 1, 1, 0],
            use_sliding_window=True,
            sliding_window=4,
            attention_bias=True,
            mlp_bias=True,
        ),
    },
    "gemma": {
        "plain": dict(num_key_value_heads=1),
        "untied": dict(tie_word_embeddings=False, attention_bias=True, rms_norm_eps=1e-2)
        | scaled("llama3", low_freq_factor=0.5, high_freq_factor=2.0, original_max_position_embeddings=6),
    },
}
CLASSES = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, GPT),
    "gpt1": (transformers.OpenAIGPTConfig, transformers.OpenAIGPTLMHeadModel, GPT),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, LLAMA),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, RELATIVE),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, RELATIVE),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, RELATIVE),
    "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM, RELATIVE | dict(pad_token_id=None)),
    "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM, RELATIVE),
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
    for family, shapes in SHAPES.items():
        for name, changes in shapes.items():
            if not sys.argv[1:] or {family, f"{family}_{name}"} & {*sys.argv[1:]}:
                make(family, name, changes)
