"""Makes rope_scaling.json beside this file: rates of rotary positions as transformers scales them, and their gain.

pip install torch==2.13.0 transformers==5.24.0 && python tests/golden/make_rope_scaling.py
"""

import json
import pathlib

import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HEAD_DIM = 32
LENGTH = {"original_max_position_embeddings": 512}
CASES = {  # model.rope_scaling -> rope_theta, settings of transformers
    "linear(factor=4.0)": (1e4, dict(rope_type="linear", factor=4.0)),
    "dynamic(factor=4.0)": (1e4, dict(rope_type="dynamic", factor=4.0)),
    "llama3(factor=8.0, original_context_length=512, low_freq_factor=1.0, high_freq_factor=4.0)": (
        5e5,
        dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0) | LENGTH,
    ),
    "yarn(factor=8.0, original_context_length=512)": (1e4, dict(rope_type="yarn", factor=8.0) | LENGTH),
    "yarn(factor=1.0, original_context_length=512)": (1e4, dict(rope_type="yarn", factor=1.0) | LENGTH),
    "yarn(factor=8.0, original_context_length=512, attention_factor=0.7, beta_fast=8.0, beta_slow=2.0, truncate=False)": (
        100.0,
        dict(rope_type="yarn", factor=8.0, attention_factor=0.7, beta_fast=8.0, beta_slow=2.0, truncate=False) | LENGTH,
    ),
    "yarn(factor=8.0, original_context_length=512, beta_fast=1e3, beta_slow=1e2)": (  # no dimension turns so often
        1e4,
        dict(rope_type="yarn", factor=8.0, beta_fast=1e3, beta_slow=1e2) | LENGTH,
    ),
}


def rates(theta: float, settings: dict) -> dict:
    config = transformers.LlamaConfig(
        hidden_size=HEAD_DIM,
        num_attention_heads=1,
        max_position_embeddings=4096,
        rope_parameters=settings | {"rope_theta": theta},
    )
    rate_K, gain = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, "cpu")
    return {"theta": theta, "rates": rate_K.tolist(), "gain": gain}


if __name__ == "__main__":
    made = {name: rates(theta, settings) for name, (theta, settings) in CASES.items()}
    file = pathlib.Path(__file__).with_name("rope_scaling.json")
    file.write_text(json.dumps(made, indent=1) + "\n")
    print(file, transformers.__version__)
