"""Writes tests/golden/adalora.npz: steps of PEFT's AdaLoRA on a tiny GPT-2, with the ranks that it gives up, and
adalora_pruned: the files of what is left.

    HF_HUB_OFFLINE=1 python tests/golden/make_adalora.py        (torch 2.13.0, transformers 5.24.0, peft 0.21.2)

The model and the adapter are those of tests/golden/peft/gpt2/adalora. Plain SGD, one batch for all steps;
`update_and_allocate` follows each update, with the number of updates made.
"""

import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import make_peft

STEPS, RATE = 8, 0.5


def main():
    model = make_peft.made("gpt2/adalora")
    tokens = torch.from_numpy(make_peft.TOKENS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    values = {}
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        values[f"loss/{step}"] = loss.detach().numpy()
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                values[f"{name.replace('.default', '')}/{step}"] = parameter.detach().numpy().copy()
    folder = pathlib.Path(__file__).parent / "adalora_pruned"
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    with torch.no_grad():
        values["pruned/logits"] = model(input_ids=tokens).logits.numpy()
    np.savez_compressed(pathlib.Path(__file__).parent / "adalora.npz", **values)


if __name__ == "__main__":
    main()
