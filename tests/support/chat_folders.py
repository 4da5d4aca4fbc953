"""Folders of transformers that hold a tiny model of conversations: GPT-2's shape, with a tokenizer of tests/golden/chat."""

import json
import pathlib

import numpy as np
from places import ROOT
from safetensors.numpy import save_file

TOKENIZER = ROOT / "tests" / "golden" / "chat" / "gpt.json"
WIDTH, CONTEXT, VOCABULARY = 16, 96, 708
SHAPES = {
    "wte.weight": (VOCABULARY, WIDTH),
    "wpe.weight": (CONTEXT, WIDTH),
    "h.0.ln_1.weight": (WIDTH,),
    "h.0.ln_1.bias": (WIDTH,),
    "h.0.attn.c_attn.weight": (WIDTH, 3 * WIDTH),
    "h.0.attn.c_attn.bias": (3 * WIDTH,),
    "h.0.attn.c_proj.weight": (WIDTH, WIDTH),
    "h.0.attn.c_proj.bias": (WIDTH,),
    "h.0.ln_2.weight": (WIDTH,),
    "h.0.ln_2.bias": (WIDTH,),
    "h.0.mlp.c_fc.weight": (WIDTH, 4 * WIDTH),
    "h.0.mlp.c_fc.bias": (4 * WIDTH,),
    "h.0.mlp.c_proj.weight": (4 * WIDTH, WIDTH),
    "h.0.mlp.c_proj.bias": (WIDTH,),
    "ln_f.weight": (WIDTH,),
    "ln_f.bias": (WIDTH,),
}


def write(folder: pathlib.Path, always: int | None = None, template: str | None = None, **tokenizer_config):
    """always: the one token that the model says. template: as chat_template.jinja, the newer of the two places."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {f"transformer.{name}": rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in SHAPES.items()}
    if always is not None:
        tensors["transformer.wte.weight"][always] *= 9
        tensors["transformer.ln_f.weight"][:] = 0
        tensors["transformer.ln_f.bias"] = 50 * tensors["transformer.wte.weight"][always]
    save_file(tensors, folder / "model.safetensors")
    values = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": VOCABULARY}
    values |= {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": CONTEXT, "eos_token_id": 700}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(TOKENIZER.read_text())
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"} | tokenizer_config
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
