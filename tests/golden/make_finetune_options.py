"""Makes finetune_options.npz with torch 2.13.0: what label smoothing and rates by depth are held to.

    python tests/golden/make_finetune_options.py

smoothing: loss of each token and gradients of their weighted mean, of torch.nn.functional.cross_entropy(label_smoothing=...).
depth: parameters after 5 steps of torch.optim.AdamW with a group of its own, lr * decay ** (N - layer), for each layer.
"""

import pathlib

import numpy as np
import torch

VOCAB, PADDED, WIDTH, TOKENS, SMOOTHING, SOFTCAP = 200, 256, 16, 12, 0.1, 2.0
LAYERS, DECAY, RATE, WEIGHT_DECAY, STEPS = 3, 0.5, 1e-2, 0.1, 5


def smoothing(rng) -> dict:
    x = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    head = (0.3 * rng.standard_normal((PADDED, WIDTH))).astype(np.float32)
    target, weight = rng.integers(0, VOCAB, TOKENS), rng.random(TOKENS).astype(np.float32)
    values = {"x": x, "head": head, "target": target.astype(np.int32), "weight": weight}
    for name, cap in (("plain", None), ("capped", SOFTCAP)):
        inputs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        matrix = torch.tensor(head[:VOCAB], dtype=torch.float64, requires_grad=True)
        logit = inputs @ matrix.T
        logit = logit if cap is None else cap * torch.tanh(logit / cap)
        kinds = {"label_smoothing": SMOOTHING, "reduction": "none"}
        loss = torch.nn.functional.cross_entropy(logit, torch.tensor(target), **kinds)
        (loss * torch.tensor(weight)).sum().backward()
        made = {"loss": loss.detach(), "dx": inputs.grad, "dhead": matrix.grad}
        values |= {f"{name}_{key}": value.numpy().astype(np.float32) for key, value in made.items()}
    return values


def depth(rng) -> dict:
    names = {"embedding": DECAY**LAYERS, "head": 1.0} | {
        f"layer{layer}": DECAY ** (LAYERS - layer) for layer in range(1, LAYERS + 1)
    }
    params = {name: torch.tensor(rng.standard_normal((4, 4)), requires_grad=True) for name in names}
    values = {f"{name}_before": param.detach().numpy().copy() for name, param in params.items()}
    groups = [
        {
            "params": [param],
            "lr": RATE * names[name],
            "weight_decay": 0.0 if name == "embedding" else WEIGHT_DECAY,
        }
        for name, param in params.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    grads = {name: rng.standard_normal((STEPS, 4, 4)) for name in names}
    for step in range(STEPS):
        for name, param in params.items():
            param.grad = torch.tensor(grads[name][step])
        optimizer.step()
    values |= {f"{name}_grads": grad for name, grad in grads.items()}
    return values | {f"{name}_after": param.detach().numpy() for name, param in params.items()}


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    values = {f"smoothing_{name}": value for name, value in smoothing(rng).items()}
    values |= {f"depth_{name}": value.astype(np.float32) for name, value in depth(rng).items()}
    np.savez_compressed(pathlib.Path(__file__).parent / "finetune_options.npz", **values)
