"""Makes the files beside this one: outputs, losses and gradients of transformers' models with heads, tiny and random.

pip install torch==2.13.0 transformers==5.24.0 && python tests/golden/heads/make_heads.py

Weights and inputs are drawn by NumPy from the names of the tensors, so that a test draws them again: only what transformers
made of them is kept.
"""

import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent
SIZES = dict(n_embd=12, n_layer=2, n_head=3, n_positions=10, vocab_size=29)
VOCAB, PAD, LENGTHS = 28, 28, (10, 3, 7, 8)  # the id of PAD is in no text

# {name: (class, fields of its config, the names of its head's weight and bias, what to learn)}
CASES = {
    "gpt1_classes": (
        "OpenAIGPTForSequenceClassification",
        dict(num_labels=3, pad_token_id=PAD),
        ("score.weight",),
        "classify",
    ),
    "gpt1_choice": (
        "OpenAIGPTDoubleHeadsModel",
        {},
        ("multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"),
        "choice",
    ),
    "gpt2_classes": (
        "GPT2ForSequenceClassification",
        dict(num_labels=3, pad_token_id=PAD),
        ("score.weight",),
        "classify",
    ),
    "gpt2_numbers": (
        "GPT2ForSequenceClassification",
        dict(num_labels=2, pad_token_id=PAD),
        ("score.weight",),
        "regress",
    ),
    "gpt2_tokens": ("GPT2ForTokenClassification", dict(num_labels=4), ("classifier.weight", "classifier.bias"), "tag"),
    "gpt2_span": ("GPT2ForQuestionAnswering", {}, ("qa_outputs.weight", "qa_outputs.bias"), "span"),
}
LM_COEF = {"gpt1_choice": 0.5}


def drawn(name: str, shape) -> np.ndarray:
    """A weight of this name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    is_gain = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
    return (is_gain + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def batch(kind: str) -> dict[str, np.ndarray]:
    """Of models/labelled.py. Sequences of a choice are all of one length, over which the mean of transformers' loss is ours."""
    rng = np.random.default_rng(len(kind))
    B, C, L = 4, 3 if kind == "choice" else 1, SIZES["n_positions"]
    whole = kind in ("choice", "tag", "span")
    length_BC = np.full((B, C), L) if whole else np.array(LENGTHS)[:, None]
    token_BCL = rng.integers(0, VOCAB, (B, C, L)) * (np.arange(L) < length_BC[..., None])
    labels = {
        "classify": {"label_B": rng.integers(0, 3, B)},
        "choice": {"label_B": rng.integers(0, C, B)},
        "tag": {"label_BL": rng.integers(0, 4, (B, L)), "weight_BL": rng.integers(0, 2, (B, L)).astype(np.float32)},
        "span": {"label_B2": np.sort(rng.integers(0, L, (B, 2)), axis=1)},
        "regress": {"label_BO": rng.standard_normal((B, 2)).astype(np.float32)},
    }[kind]
    integers = {"token_BCL": token_BCL, "length_BC": length_BC} | labels
    arrays = {name: a if a.dtype == np.float32 else a.astype(np.int32) for name, a in integers.items()}
    return arrays | {"weight_B": np.ones(B, np.float32)}


def model_of(case: str):
    """Transformers' model of a case, its dropout off."""
    import torch
    import transformers

    architecture, fields, _, kind = CASES[case]
    kind_of = getattr(transformers, architecture)
    off = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, summary_first_dropout=0.0, classifier_dropout=0.0)
    problem = dict(problem_type="regression") if kind == "regress" else {}
    model = kind_of(kind_of.config_class(**SIZES, **off, **fields, **problem))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(drawn(name, weight.shape)))
    return model.train()


def made(case: str) -> dict[str, np.ndarray]:
    """output, loss, and the gradient of each tensor under its name."""
    import torch

    kind, model = CASES[case][3], model_of(case)
    arrays = {
        name: torch.from_numpy(a).long() if a.dtype == np.int32 else torch.from_numpy(a)
        for name, a in batch(kind).items()
    }
    token_BL = arrays["token_BCL"][:, 0]
    if kind in ("classify", "regress"):
        places = torch.arange(token_BL.shape[1])
        token_BL = torch.where(places < arrays["length_BC"], token_BL, PAD)
        out = model(token_BL, labels=arrays["label_B" if kind == "classify" else "label_BO"])
        output, loss = out.logits, out.loss
    elif kind == "choice":
        tokens = arrays["token_BCL"]
        out = model(tokens, mc_token_ids=arrays["length_BC"] - 1, mc_labels=arrays["label_B"], labels=tokens)
        output, loss = out.mc_logits, out.mc_loss + LM_COEF[case] * out.loss
    elif kind == "tag":
        labels = torch.where(arrays["weight_BL"] > 0, arrays["label_BL"], -100)
        out = model(token_BL, labels=labels)
        output, loss = out.logits, out.loss
    else:
        out = model(token_BL, start_positions=arrays["label_B2"][:, 0], end_positions=arrays["label_B2"][:, 1])
        output, loss = torch.stack([out.start_logits, out.end_logits], -1), out.loss
    loss.backward()
    gradients = {name: weight.grad.numpy() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"output": output.detach().numpy(), "loss": loss.detach().numpy(), **gradients}


if __name__ == "__main__":
    for case in CASES:
        np.savez_compressed(HERE / f"{case}.npz", **made(case))
