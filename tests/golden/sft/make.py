"""Makes trl.npz: what TRL's SFTTrainer makes of conversations.json, as labels, loss and gradients.

    HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 python tests/golden/sft/make.py          (torch, transformers, trl, datasets)

The tokenizer has the ids of gptjax's `bytes` with the control tokens of its own chat format, and that format's Jinja
template (template.jinja). The model is a GPT-2 whose weights are `weights()`, so that they need not be kept. Of torch 2.13, transformers
5.24 and trl 1.16.
"""

import json
import pathlib
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
SPECIAL = (
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|tool|>",
    "<pad>",
)  # ids from 256 on
SHAPE = dict(vocab_size=263, n_positions=128, n_embd=16, n_layer=2, n_head=2)


def weights() -> dict[str, np.ndarray]:
    """The state dict of a GPT2LMHeadModel of SHAPE, large enough that no gradient vanishes."""
    V, T, D, N = (SHAPE[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer"))
    shapes = {"wte.weight": (V, D), "wpe.weight": (T, D)}
    for n in range(N):
        block = {"ln_1.weight": (D,), "ln_1.bias": (D,), "attn.c_attn.weight": (D, 3 * D), "attn.c_attn.bias": (3 * D,)}
        block |= {"attn.c_proj.weight": (D, D), "attn.c_proj.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,)}
        block |= {"mlp.c_fc.weight": (D, 4 * D), "mlp.c_fc.bias": (4 * D,)}
        block |= {"mlp.c_proj.weight": (4 * D, D), "mlp.c_proj.bias": (D,)}
        shapes |= {f"h.{n}.{name}": shape for name, shape in block.items()}
    shapes |= {"ln_f.weight": (D,), "ln_f.bias": (D,)}
    rng = np.random.RandomState(0)  # whose numbers NumPy has promised to keep
    return {
        f"transformer.{name}": (0.2 * rng.standard_normal(shape) + name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")))
        .astype(np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip


def conversations() -> list[dict]:
    return json.loads((HERE / "conversations.json").read_text())


def tokenizer():
    """Of transformers, with the ids of our `bytes` and the control tokens behind them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    made = Tokenizer(models.BPE(vocab={char: byte for byte, char in bytes_to_unicode().items()}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|endoftext|>", eos_token="<|end|>", pad_token="<pad>"
    )
    fast.chat_template = (HERE / "template.jinja").read_text()
    return fast


def expected() -> dict[str, np.ndarray]:
    """Of one batch of all conversations: token_BT and label_BT (-100: none), loss, and the gradients by name."""
    import torch
    from datasets import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel
    from trl import SFTConfig, SFTTrainer

    tok = tokenizer()
    dropout = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, **dropout, pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id, bos_token_id=None))  # fmt: skip
    missing, unexpected = model.load_state_dict({k: torch.tensor(v) for k, v in weights().items()}, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(output_dir=folder, report_to="none", bf16=False, use_cpu=True, max_steps=1, max_length=None,
                             per_device_train_batch_size=len(conversations()), gradient_checkpointing=False, assistant_only_loss=True)  # fmt: skip
        data = Dataset.from_list(conversations())
        trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tok)
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        loss.backward()
    grads = {name: parameter.grad.numpy() for name, parameter in trainer.model.named_parameters()}
    return {"token_BT": batch["input_ids"].numpy(), "label_BT": batch["labels"].numpy(), "loss": loss.item()} | grads


if __name__ == "__main__":
    np.savez_compressed(HERE / "trl.npz", **expected())
    print((HERE / "trl.npz").stat().st_size, "bytes")
