"""Makes preferences.npz: losses of preferences and their gradients as TRL has them, of one small GPT-2 and one batch.

    HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 python tests/golden/make_preferences.py

Needs torch, transformers, trl and datasets; made with torch 2.13, transformers 5.24 and trl 1.16. Weights and batch are those
of `weights()` and `batch()`, so that only losses and gradients are kept. CASES has, by our train.loss, how TRL has the same.
"""

import pathlib
import tempfile
import types

import numpy as np

HERE = pathlib.Path(__file__).parent
SHAPE = dict(vocab_size=32, n_positions=20, n_embd=8, n_layer=1, n_head=2)
PAD, END = 31, 30
DPO = {  # our train.loss: fields of DPOConfig
    "dpo(beta=0.3)": dict(loss_type="sigmoid"),
    "hinge(beta=0.3)": dict(loss_type="hinge"),
    "ipo(beta=0.3)": dict(loss_type="ipo"),
    "robust(beta=0.3, label_smoothing=0.2)": dict(loss_type="robust", label_smoothing=0.2),
    "exo_pair(beta=0.3, label_smoothing=0.01)": dict(loss_type="exo_pair", label_smoothing=0.01),
    "nca(beta=0.3)": dict(loss_type="nca_pair"),
    "bco(beta=0.3)": dict(loss_type="bco_pair"),
    "sppo_hard(beta=0.3)": dict(loss_type="sppo_hard"),
    "aot(beta=0.3, label_smoothing=0.1)": dict(loss_type="aot", label_smoothing=0.1),
    "apo_zero(beta=0.3)": dict(loss_type="apo_zero"),
    "apo_down(beta=0.3)": dict(loss_type="apo_down"),
    "discopop(beta=0.3, tau=0.5)": dict(loss_type="discopop", discopop_tau=0.5),
    "sigmoid_norm(beta=3.0)": dict(loss_type="sigmoid_norm", beta=3.0),
}
ONE_BY_ONE = {"dpo(beta=0.3, nll=0.5)": dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5])}  # TRL's sft is a
# mean over all tokens of a batch, ours over those of each answer: of one pair they are the same
OF_LOGPROBS = {  # (trainer, its attributes, means over tokens, log-ratios to the reference, weight of the answer's nll)
    "dpo(beta=0.3, label_smoothing=0.2)": ("cpo", dict(loss_type="sigmoid", label_smoothing=0.2), False, True, 0.0),
    "ipo(beta=0.3, per_token=False)": ("cpo", dict(loss_type="ipo"), False, True, 0.0),
    "simpo(beta=2.0, gamma=0.7)": ("cpo", dict(loss_type="simpo", beta=2.0, simpo_gamma=0.7), True, False, 0.0),
    "cpo(beta=0.3, nll=0.5)": ("cpo", dict(loss_type="sigmoid"), False, False, 0.5),
    "orpo(beta=0.3)": ("orpo", dict(), True, False, 1.0),
}
KTO = {
    "kto(beta=0.3, good_weight=1.5, bad_weight=0.8)": dict(
        loss_type="kto", desirable_weight=1.5, undesirable_weight=0.8
    )
}
CASES = (*DPO, *ONE_BY_ONE, *OF_LOGPROBS, *KTO)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """The state dict of a GPT2LMHeadModel of SHAPE, large enough that no gradient vanishes; of seed 1: the reference."""
    V, T, D, N = (SHAPE[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer"))
    shapes = {"wte.weight": (V, D), "wpe.weight": (T, D)}
    for n in range(N):
        block = {"ln_1.weight": (D,), "ln_1.bias": (D,), "attn.c_attn.weight": (D, 3 * D), "attn.c_attn.bias": (3 * D,)}
        block |= {"attn.c_proj.weight": (D, D), "attn.c_proj.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,)}
        block |= {"mlp.c_fc.weight": (D, 4 * D), "mlp.c_fc.bias": (4 * D,)}
        block |= {"mlp.c_proj.weight": (4 * D, D), "mlp.c_proj.bias": (D,)}
        shapes |= {f"h.{n}.{name}": shape for name, shape in block.items()}
    shapes |= {"ln_f.weight": (D,), "ln_f.bias": (D,)}
    rng = np.random.RandomState(seed)  # whose numbers NumPy has promised to keep
    return {
        f"transformer.{name}": (0.2 * rng.standard_normal(shape) + name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")))
        .astype(np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip


def batch(seed: int = 7) -> dict[str, np.ndarray]:
    """Five prompts, each with two answers of different lengths: token_BKT, length_BK and prompt_B tokens of each prompt."""
    rng, T = np.random.RandomState(seed), SHAPE["n_positions"]
    prompt_B = rng.randint(2, 6, 5)
    token_BKT, length_BK = np.zeros((5, 2, T), np.int32), np.zeros((5, 2), np.int32)
    for b, prompt in enumerate(prompt_B):
        token_BKT[b, :, :prompt] = rng.randint(0, END, prompt)
        for k in range(2):
            answer = [*rng.randint(0, END, rng.randint(1, 9)), END]
            length_BK[b, k] = prompt + len(answer)
            token_BKT[b, k, prompt : length_BK[b, k]] = answer
    return {"token_BKT": token_BKT, "length_BK": length_BK, "prompt_B": prompt_B}


def judged(seed: int = 14) -> dict[str, np.ndarray]:
    """The first answers of `batch` as good and bad ones (label_B), each with the mismatched one that TRL rotates to it. Of this seed
    the mean log-ratio of the latter is above 0, where the loss depends on it."""
    pairs = batch(seed)
    token_BKT, length_BK = np.zeros_like(pairs["token_BKT"]), np.zeros_like(pairs["length_BK"])
    for b, prompt in enumerate(pairs["prompt_B"]):
        answers = [pairs["token_BKT"][i, 0, pairs["prompt_B"][i] : pairs["length_BK"][i, 0]] for i in (b, (b - 1) % 5)]
        for k, answer in enumerate(answers):
            length_BK[b, k] = prompt + len(answer)
            token_BKT[b, k, : length_BK[b, k]] = [*pairs["token_BKT"][b, 0, :prompt], *answer]
    return {
        "token_BKT": token_BKT,
        "length_BK": length_BK,
        "prompt_B": pairs["prompt_B"],
        "label_B": np.array([1, 0, 0, 1, 0]),
    }


# ---- what follows needs torch


def model_of(arrays: dict):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, **dropout, pad_token_id=PAD, eos_token_id=END, bos_token_id=None))
    missing, unexpected = model.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()}, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    return model


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {f"w{i}": i for i in range(END)} | {"<end>": END, "<pad>": PAD}
    made = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def inputs_of(token_RT, length_R, prompt_R) -> dict:
    """Arrays that TRL's trainers read of sequences, one a row."""
    import torch

    place_T = np.arange(token_RT.shape[1])
    there_RT = place_T < length_R[:, None]
    return {
        "input_ids": torch.tensor(np.where(there_RT, token_RT, PAD)).long(),
        "attention_mask": torch.tensor(there_RT).long(),
        "completion_mask": torch.tensor(there_RT & (place_T >= prompt_R[:, None])).long(),
    }


def trainer_of(kind: str, fields: dict, folder: str):
    import trl
    from datasets import Dataset

    common = dict(output_dir=folder, report_to="none", bf16=False, use_cpu=True, per_device_train_batch_size=2,
                  gradient_checkpointing=False, max_steps=1)  # fmt: skip
    record = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4"}
    records = [record, record] if kind == "DPO" else [{"prompt": "w1", "completion": " w3", "label": i == 0} for i in (0, 1)]  # fmt: skip
    settings = getattr(trl, f"{kind}Config")(**common, **{"beta": 0.3} | fields)
    return getattr(trl, f"{kind}Trainer")(model=model_of(weights()), ref_model=model_of(weights(1)), args=settings,
                                          train_dataset=Dataset.from_list(records), processing_class=tokenizer())  # fmt: skip


def of_dpo(fields: dict, folder: str):
    """(model, [loss of the batch])."""
    pairs, trainer = batch(), trainer_of("DPO", fields, folder)
    rows = [np.concatenate([pairs[name][:, k] for k in (0, 1)]) for name in ("token_BKT", "length_BK")]
    inputs = inputs_of(*rows, np.tile(pairs["prompt_B"], 2))
    return trainer.model, [trainer._compute_loss(trainer.model.train(), inputs, False)]


def of_dpo_one_by_one(fields: dict, folder: str):
    """(model, losses of batches of one pair each)."""
    pairs, trainer = batch(), trainer_of("DPO", fields, folder)
    parts = [inputs_of(pairs["token_BKT"][b], pairs["length_BK"][b], pairs["prompt_B"][[b, b]]) for b in range(5)]
    return trainer.model, [trainer._compute_loss(trainer.model.train(), part, False) for part in parts]


def of_kto(fields: dict, folder: str):
    import torch

    rows, trainer = judged(), trainer_of("KTO", fields, folder)
    of_answer, of_other = (
        inputs_of(rows["token_BKT"][:, k], rows["length_BK"][:, k], rows["prompt_B"]) for k in (0, 1)
    )
    inputs = of_answer | {f"KL_{name}": array for name, array in of_other.items()}
    inputs["label"] = torch.tensor(rows["label_B"] > 0)
    return trainer.model, [trainer._compute_loss(trainer.model.train(), inputs, False)]


def logprobs(model, inputs: dict):
    """(sums over each answer's tokens, how many they are)."""
    from trl.trainer.utils import selective_log_softmax

    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    mask = inputs["completion_mask"][:, 1:]
    return (selective_log_softmax(logits, inputs["input_ids"][:, 1:]) * mask).sum(-1), mask.sum(-1)


def of_logprobs(kind: str, fields: dict, is_mean: bool, has_reference: bool, nll: float):
    import torch
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    pairs, model = batch(), model_of(weights()).train()
    sides = []
    for k in (0, 1):
        inputs = inputs_of(pairs["token_BKT"][:, k], pairs["length_BK"][:, k], pairs["prompt_B"])
        logprob, length = logprobs(model, inputs)
        with torch.no_grad():
            reference = logprobs(model_of(weights(1)), inputs)[0] if has_reference else 0.0
        sides.append(((logprob - reference) / (length if is_mean else 1), -logprob / length))
    trainer = {"cpo": CPOTrainer, "orpo": ORPOTrainer}[kind]
    trainer = trainer.__new__(trainer)
    trainer.accelerator = types.SimpleNamespace(device="cpu")
    for name, value in (dict(beta=0.3, alpha=0.0, label_smoothing=0.0) | fields).items():
        setattr(trainer, name, value)
    arguments = sides[0][0], sides[1][0]
    loss = trainer.cpo_loss(*arguments)[0] if kind == "cpo" else -trainer.odds_ratio_loss(*arguments)[0]
    return model, [loss.mean() + nll * sides[0][1].mean()]


def expected(case: str) -> dict[str, np.ndarray]:
    """The loss of a case, and its gradients by the names of GPT-2's state dict."""
    with tempfile.TemporaryDirectory() as folder:
        if case in OF_LOGPROBS:
            model, losses = of_logprobs(*OF_LOGPROBS[case])
        elif case in KTO:
            model, losses = of_kto(KTO[case], folder)
        else:
            model, losses = of_dpo(DPO[case], folder) if case in DPO else of_dpo_one_by_one(ONE_BY_ONE[case], folder)
        loss = sum(losses) / len(losses)
        loss.backward()
    grads = {name: parameter.grad.numpy() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert grads.keys() == weights().keys(), grads.keys() ^ weights().keys()
    return {"loss": np.float32(loss.item())} | grads


if __name__ == "__main__":
    arrays = {f"{case}/{name}": array for case in CASES for name, array in expected(case).items()}
    for case in CASES:
        print(f"{case:50} {arrays[f'{case}/loss']:.6f}")
    vectors = {  # of one case one array: a file of many is mostly names
        case: np.concatenate([arrays[f"{case}/{name}"].ravel() for name in ("loss", *weights())]) for case in CASES
    }
    np.savez_compressed(HERE / "preferences.npz", **vectors)
    print((HERE / "preferences.npz").stat().st_size, "bytes")
