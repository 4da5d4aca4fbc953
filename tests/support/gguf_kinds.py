"""Tokenizers that a GGUF file can hold, a model of llama.cpp's form, and texts, as llama.cpp and ours are to agree on them."""

import dataclasses

import numpy as np
import vocabularies

from gptjax.config.fields import ModelConfig
from gptjax.data import tokenizers
from gptjax.data.tokenizers import sentencepiece
from gptjax.data.tokenizers.huggingface import HuggingFaceTokenizer
from gptjax.huggingface import families
from gptjax.models import architectures

NAMES = ("gpt-2", "smollm", "llama-bpe", "qwen2", "bytes", "sentencepiece")
SHAPE = ModelConfig(
    vocab_size=257,
    context_length=256,
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=64,
    norm="rmsnorm",
    mlp="swiglu",
    position="rope",
    rope_theta=300.0,
    bias=False,
    tied_head=False,
    scale_residual_init=False,
    dtype="float32",
)
# llama.cpp takes U+2581 for a space where it has SentencePiece's pieces; no other is known to differ.
TEXTS = [line for line in vocabularies.MULTILINGUAL.replace("\0", "").replace("\u2581", "").split("\n") if line]
TEXTS += [
    "a  b   c\n\n\nd \t e",
    "don't DON'T we'll 1234567 3.14",
    "</s><0x41><|endoftext|>",
    "  leading",
    "trailing  ",
]


def tokenizer(name: str) -> tokenizers.Tokenizer:
    """One of NAMES, which are llama.cpp's names of how texts are split, and two kinds of ours."""
    if name == "bytes":
        return tokenizers.from_spec("bytes")
    if name == "sentencepiece":
        lines = sentencepiece.training_lines(vocabularies.MULTILINGUAL.splitlines() * 20, 10**5)
        return sentencepiece.SentencePieceTokenizer(sentencepiece.train_model(list(lines), 600))
    if name == "gpt-2":
        return tokenizers.from_spec(f"gpt2:{vocabularies.GPT2_FOLDER}")
    split = {"smollm": "digits", "llama-bpe": "llama", "qwen2": "qwen"}[name]
    made = vocabularies.library_tokenizer(split)
    made.model.ignore_merges = name == "llama-bpe"
    return HuggingFaceTokenizer.checked(made.to_str().encode(), name)


def write_folder(folder, vocab_size: int) -> None:
    """A folder as transformers writes it, of random parameters of SHAPE."""
    import json

    from safetensors.numpy import save_file

    shape = dataclasses.replace(SHAPE, vocab_size=vocab_size)
    family, rng = families.family_for(shape), np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(family.config_out(shape, "float32", None)))
    abstract = architectures.abstract(shape)[1]
    arrays = {
        family.full_name(name): rng.normal(0, 0.4, each).astype(np.float32)
        for tensor in family.tensors(shape)
        for of_layer in tensor.names(shape)
        for name, each in zip(of_layer, tensor.shapes(abstract, shape))
    }
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
