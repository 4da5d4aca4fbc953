#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.24.0, torch 2.13.0): the loss of prompt tuning and p-tuning counts one token more than that of LoRA
# and prefix tuning of the same model on the same labels.
#
# Expected: with labels=input_ids of T tokens the loss is the mean over the T - 1 tokens that
# another token stands before, whatever the adapter; virtual tokens are no text, and their labels are -100.
# Seen: LoRA and prefix tuning have the mean over T - 1. With prompt tuning and p-tuning the last virtual token predicts the
# first token of the text, which is a target too: the mean is over T. So eval_loss and perplexity of the four are of different
# tokens (here, of 4 tokens, 3.909 where the last 3 have 3.929), and a first token that is always the same one, such as a BOS, is learnt
# at once and lowers the mean. Who compares them gives the first token the label -100.
#
# Exits 0 while this holds, 1 when peft behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy torch==2.13.0 transformers==5.24.0 peft==0.21.2
cat >"$folder/loss.py" <<'PY'
import sys

import peft
import torch
import transformers

LENGTH, VIRTUAL = 4, 5
torch.manual_seed(0)
config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
tokens = torch.randint(50, (1, LENGTH))
text = dict(task_type="CAUSAL_LM")
kinds = {
    "LoRA": (peft.LoraConfig(**text, target_modules=["c_attn"], fan_in_fan_out=True), LENGTH - 1),
    "prefix tuning": (peft.PrefixTuningConfig(**text, num_virtual_tokens=VIRTUAL), LENGTH - 1),
    "prompt tuning": (peft.PromptTuningConfig(**text, num_virtual_tokens=VIRTUAL), LENGTH),
    "p-tuning": (peft.PromptEncoderConfig(**text, num_virtual_tokens=VIRTUAL, encoder_hidden_size=8), LENGTH),
}


def loss_and_nats(kind):
    """The model's loss, and -log p of each token that its logits predict, in order."""
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), kind).eval()
    with torch.no_grad():
        out = model(input_ids=tokens, labels=tokens)
        without_first = model(input_ids=tokens, labels=torch.where(torch.arange(LENGTH) == 0, -100, tokens))
    nats = -torch.log_softmax(out.logits[0].double(), -1)[:-1]
    target = tokens[0, -min(len(nats), LENGTH) :]
    nats = nats[-len(target) :].gather(1, target[:, None])[:, 0]
    return float(out.loss), nats, float(without_first.loss)


holds = True
for name, (kind, counted) in kinds.items():
    loss, nats, without_first = loss_and_nats(kind)
    later = float(nats[1 - LENGTH :].mean())
    print(f"{name}: loss {loss:.5f}; mean of {len(nats)} tokens {nats.mean():.5f}, of the last {LENGTH - 1} {later:.5f}")
    holds &= len(nats) == counted and abs(loss - float(nats.mean())) < 1e-5
    holds &= abs(without_first - later) < 1e-5 and (counted < LENGTH or abs(loss - later) > 1e-2)
sys.exit(0 if holds else 1)
PY
"$folder/venv/bin/python" -W ignore "$folder/loss.py"
