"""Makes the folders beside this file: tiny random GPT-1s and GPT-2s as transformers saves them, and their logits.

pip install torch==2.13.0 transformers && python tests/golden/hf/make.py
"""

import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
BASE = dict(n_embd=12, n_layer=2, n_head=3, n_positions=10, vocab_size=29, initializer_range=0.4)
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
}
CLASSES = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    "gpt1": (transformers.OpenAIGPTConfig, transformers.OpenAIGPTLMHeadModel),
}


def make(family: str, name: str, changes: dict) -> None:
    torch.manual_seed(0)
    config_class, model_class = CLASSES[family]
    model = model_class(config_class(**BASE | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains and biases, which start at one and zero
                parameter.add_(0.3 * torch.randn_like(parameter))
    folder = HERE / f"{family}_{name}"
    model.save_pretrained(folder)
    shape = (2, model.config.n_positions)
    token_BL = np.random.default_rng(0).integers(model.config.vocab_size, size=shape)
    logit_BLV = model(torch.tensor(token_BL)).logits.detach().numpy()
    np.savez(folder / "expected.npz", token_BL=token_BL, logit_BLV=logit_BLV)
    print(folder.name, json.loads((folder / "config.json").read_text())["transformers_version"])


if __name__ == "__main__":
    for family, shapes in SHAPES.items():
        for name, changes in shapes.items():
            make(family, name, changes)
