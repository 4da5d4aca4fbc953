#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): the rates of Llama's rotary positions are not the nearest float32 numbers.
#
# Expected: the rate of dimension i, theta^(-2i/K), is the float32 number next to it, at most 6.0e-8 of it away.
# Seen: an exponent, its power and one over that are rounded one after the other, and some rates are 8.2e-8 away. The angle
# of a token is its position times the rate, so the error grows with the position: with the rates rounded once instead,
# the logits of a small model (2 layers, width 64, theta 5e5) move by 3.8e-5 of the largest at 2,048 tokens, and by less
# than 2e-6 in the first 64. Who compares another program's logits with transformers' must do so on short texts, or give
# both the same rates.
#
# Exits 0 while this holds, 1 when transformers behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy torch==2.13.0 transformers==5.24.0
cat >"$folder/rates.py" <<'PY'
import sys

import numpy as np
import torch
import transformers

THETA, LENGTH = 5e5, 2048
torch.manual_seed(0)
config = transformers.LlamaConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=200,
    max_position_embeddings=LENGTH,
    rope_theta=THETA,
    initializer_range=0.2,
)
model = transformers.LlamaForCausalLM(config).eval()
tokens = torch.tensor(np.random.default_rng(0).integers(200, size=(1, LENGTH)))
rates = model.model.rotary_emb.inv_freq
exact = THETA ** (-np.arange(len(rates)) / len(rates))  # in float64
nearest = exact.astype(np.float32)


def logits():
    with torch.no_grad():
        return model(tokens).logits[0].numpy()


theirs = logits()
off = [float(np.abs(each / exact - 1).max()) for each in (rates.numpy(), nearest)]
rates.copy_(torch.tensor(nearest))
moved = np.abs(logits() - theirs).max(axis=1) / np.abs(theirs).max()
print(f"largest error of a rate: {off[0]:.1e}; of the nearest float32 numbers: {off[1]:.1e}")
print(f"logits moved by the nearest, of the largest: {moved[:64].max():.1e} in 64 tokens, {moved.max():.1e} in {LENGTH}")
sys.exit(0 if off[0] > 7e-8 > 6e-8 > off[1] and moved.max() > 1e-5 > 2e-6 > moved[:64].max() else 1)
PY
"$folder/venv/bin/python" "$folder/rates.py"
