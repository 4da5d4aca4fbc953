#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.24.0, torch 2.13.0): AdaLoRA adds to the loss a Frobenius norm where the paper has its square.
#
# The paper (Zhang et al. 2023, arXiv 2303.10512, equation 4) penalizes P and Q by the squared norms of P'P - I and QQ' - I,
# and adds gamma times their sum over all matrices. peft has orth_reg_weight in gamma's place.
#
# Expected: with orth_reg_weight=1, a matrix that is half as far from orthogonal costs a quarter, and is pulled half as hard.
# Seen: it costs half, and is pulled as hard as before, at any distance (here by 2 / 4 matrices: the sum is divided
# by their number too, which the paper does not do). So a gamma of the paper is no orth_reg_weight, and the pull does not
# fade near orthogonality. The code that the paper's authors published (QingruZhang/AdaLoRA) does the same as peft.
#
# Exits 0 while this holds, 1 when peft behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy torch==2.13.0 transformers==5.24.0 peft==0.21.2
cat >"$folder/penalty.py" <<'PY'
import sys

import peft
import torch
import transformers

DISTANCES = [0.04, 0.02, 0.01]
torch.manual_seed(0)
transformers.logging.set_verbosity_error()
config = transformers.GPT2Config(
    n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0
)
places = dict(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
adapter = peft.AdaLoraConfig(**places, init_r=4, target_r=2, total_step=10, orth_reg_weight=1.0)
model = peft.get_peft_model(transformers.GPT2LMHeadModel(config).double(), adapter).eval()
tokens = torch.randint(50, (1, 8))
matrices = [parameter for name, parameter in model.named_parameters() if "lora_A" in name or "lora_B" in name]
for matrix in matrices:  # exactly orthogonal; the singular values are 0, so the adapter does not touch the model
    torch.nn.init.orthogonal_(matrix)
P, orthogonal = matrices[0], matrices[0].detach().clone()


def at(distance):
    """The penalty of a P whose rows are longer than 1 by this fraction, and the length of its gradient there."""
    adapter_config = model.peft_config["default"]
    losses = []
    for weight in (0.0, 1.0):
        adapter_config.orth_reg_weight = weight
        P.data.copy_(orthogonal * (1 + distance))
        P.grad = None
        losses.append(model(input_ids=tokens, labels=tokens).loss)
    losses[1].backward()
    return float(losses[1] - losses[0]), float(P.grad.norm())


def squared_at(distance):
    """The same of the paper's term of this P."""
    P.data.copy_(orthogonal * (1 + distance))
    P.grad = None
    term = (P @ P.T - torch.eye(len(P))).square().sum()
    term.backward()
    return float(term), float(P.grad.norm())


print(f"{len(matrices)} matrices; with all of them orthogonal the penalty is {at(0.0)[0]:.1e}")
seen, paper = [at(distance) for distance in DISTANCES], [squared_at(distance) for distance in DISTANCES]
for distance, (cost, pull), (square, pull_of_square) in zip(DISTANCES, seen, paper):
    print(f"rows of one P longer by {distance}: penalty {cost:.5f}, gradient {pull:.4f}; ", end="")
    print(f"equation 4 penalty {square:.5f}, gradient {pull_of_square:.4f}")
falls = [first[0] / second[0] for first, second in zip(seen, seen[1:])]
pulls = [first[1] / second[1] for first, second in zip(seen, seen[1:])]
by_half = [[f"{fall:.2f}" for fall in each] for each in (falls, pulls)]
print("half the distance divides the penalty by", *by_half[0], "and its gradient by", *by_half[1])
of_the_norm = all(abs(cost - square**0.5 / len(matrices)) < 1e-6 for (cost, _), (square, _) in zip(seen, paper))
sys.exit(0 if of_the_norm and max(falls) < 2.2 and max(pulls) < 1.1 else 1)
PY
"$folder/venv/bin/python" -W ignore "$folder/penalty.py"
