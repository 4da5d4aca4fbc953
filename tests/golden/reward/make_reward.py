"""Makes reward.npz beside this file: losses and gradients of TRL's RewardTrainer, on a GPT-2 that is tiny and random.

pip install torch==2.13.0 transformers==5.24.0 trl==1.16.0 && python tests/golden/reward/make_reward.py

Weights and inputs are drawn by NumPy from the names of the tensors, as in golden/heads, so that a test draws them again.
"""

import os
import pathlib
import tempfile
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent
SIZES = dict(n_embd=12, n_layer=2, n_head=3, n_positions=10, vocab_size=29)
PAD = 28  # the id of PAD is in no text
LENGTHS = ((10, 7), (3, 9), (5, 5), (8, 2))  # of chosen and rejected, in tokens
MARGINS = (0.5, 0.0, 1.5, -0.25)
CASES = {
    "plain": {},
    "centered": {"centering": 0.3},
    "margin": {"margin": True},
    "both": {"margin": True, "centering": 0.01},
}


def drawn(name: str, shape) -> np.ndarray:
    """A weight of this name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    is_gain = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
    return (is_gain + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids of chosen and rejected."""
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(0, PAD, length) for length in both) for both in LENGTHS]


def model():
    import torch
    import transformers

    off = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config = transformers.GPT2Config(
        **SIZES, **off, num_labels=1, pad_token_id=PAD, bos_token_id=None, eos_token_id=None
    )
    made = transformers.GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(torch.from_numpy(drawn(name, weight.shape)))
    return made


def tokenizer():
    import tokenizers
    import transformers

    vocab = {f"t{i}": i for i in range(PAD)} | {"<pad>": PAD}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="t0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library, pad_token="<pad>", eos_token="t1")


def made(case: str) -> dict[str, np.ndarray]:
    """loss, and the gradient of each tensor under its name."""
    import datasets
    import trl

    options = CASES[case]
    rows = [{"chosen_ids": chosen.tolist(), "rejected_ids": rejected.tolist()} for chosen, rejected in pairs()]
    if options.get("margin"):
        rows = [row | {"margin": margin} for row, margin in zip(rows, MARGINS)]
    with tempfile.TemporaryDirectory() as folder:
        args = trl.RewardConfig(
            output_dir=folder, report_to="none", bf16=False, use_cpu=True, per_device_train_batch_size=len(rows),
            gradient_checkpointing=False, max_steps=1, disable_dropout=True,
            center_rewards_coefficient=options.get("centering"),
        )  # fmt: skip
        trainer = trl.RewardTrainer(
            model(), args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer()
        )
        loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(rows))
    loss.backward()
    named = trainer.model.named_parameters()
    return {"loss": loss.detach().numpy()} | {name: weight.grad.numpy() for name, weight in named}


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    np.savez_compressed(
        HERE / "reward.npz", **{f"{case}/{name}": array for case in CASES for name, array in made(case).items()}
    )
