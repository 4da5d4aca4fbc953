"""Makes the files beside this one with llama.cpp's own Python package: blocks of every type with what they decode to, arrays
with the blocks that they become, and the Llamas of ../hf as GGUF files.

pip install gguf==0.19.0 safetensors && python tests/golden/gguf/make.py
"""

import json
import pathlib

import gguf
import numpy as np
from gguf import quants
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
TYPES = gguf.GGMLQuantizationType
DECODED = "BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
ENCODED = "BF16 Q4_0 Q4_1 Q8_0".split()
LLAMAS = ("llama_grouped", "llama_one_key_tied", "llama_wide_heads")


def blocks() -> dict[str, np.ndarray]:
    """Random bytes, whose scales are finite."""
    rng, arrays = np.random.default_rng(17), {}
    for name in DECODED:
        _, size = gguf.GGML_QUANT_SIZES[TYPES[name]]
        data = rng.integers(0, 256, (64, size), np.uint8)
        with np.errstate(all="ignore"):
            decoded = quants.dequantize(data, TYPES[name])
        rows = np.isfinite(decoded).all(axis=1)
        arrays |= {f"{name.lower()}_data": data[rows][:6], f"{name.lower()}_decoded": decoded[rows][:6]}
    values = (rng.normal(size=(6, 64)) * rng.lognormal(0, 3, (6, 1))).astype(np.float32)
    values[0] = 0
    values[1, :32] = -1.5
    values[2] = np.arange(-32, 32) / 2  # halves, which are rounded away from zero
    arrays["values"] = values
    return arrays | {f"{name.lower()}_encoded": quants.quantize(values, TYPES[name]) for name in ENCODED}


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """As LlamaModel.permute of convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_llama(name: str) -> None:
    config = json.loads((HERE.parent / "hf" / name / "config.json").read_text())
    tensors = load_file(HERE.parent / "hf" / name / "model.safetensors")
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for theirs, array in tensors.items():
        part = theirs.split(".")[-2]
        array = permuted(array, heads[part]) if part in heads else array
        writer.add_tensor(names.get_name(theirs, try_suffixes=(".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    np.savez_compressed(HERE / "blocks.npz", **blocks())
    for name in LLAMAS:
        write_llama(name)
