"""Prints how far logits of the folders beside this file are from transformers', as the table of docs/huggingface.md.

python tests/golden/hf/differences.py
"""

import pathlib
import tempfile

import numpy as np

import gptjax
from gptjax.huggingface import importing

HERE = pathlib.Path(__file__).parent


def difference(folder: pathlib.Path) -> tuple[float, object]:
    """(largest difference over the largest logit, the model's config)."""
    expected = np.load(folder / "expected.npz")
    with tempfile.TemporaryDirectory() as made:
        importing.import_folder(str(folder), f"{made}/run", "ids")
        run = gptjax.load(f"{made}/run")
    logit_BLV = np.asarray(run.model(expected["token_BL"]))
    return np.abs(logit_BLV - expected["logit_BLV"]).max() / np.abs(expected["logit_BLV"]).max(), run.config.model


if __name__ == "__main__":
    for folder in sorted(path for path in HERE.iterdir() if path.is_dir()):
        error, m = difference(folder)
        family, _, name = folder.name.partition("_")
        heads = f"{m.n_heads} of {m.head_size}, {m.kv_heads} key/value"
        sizes = (m.n_layers, m.d_model, heads, m.context_length, m.vocab_size, name.replace("_", " "))
        print(f"| {family} | {' | '.join(map(str, sizes))} | {error:.1e} |")
