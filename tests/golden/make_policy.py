"""Makes policy_grpo.npz and policy_ppo.npz: losses, gradients and advantages of TRL's trainers of reinforcement learning.

    export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1
    python tests/golden/make_policy.py          (torch 2.13, transformers 5.24, datasets, and trl: 1.16 makes the first,
                                                1.12.0, the last one with PPO, the second)

The models are GPT-2s whose weights are `weights(seed)`, so that they need not be kept; batches are `batch()` and `rollouts()`.
"""

import json
import pathlib
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
SHAPE = dict(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2)
PROMPT, ANSWER, ROWS, GROUP = 4, 9, 6, 3
PPO_ROWS = 8  # fewer are refused where rewards are whitened
PAD, EOS = 0, 1
TEMPERATURE = 0.8
# name: (attributes of the trainer, of its args, weights of a sampler that the batch has)
VARIANTS = {
    "grpo": (dict(loss_type="grpo", beta=0.04), {}, None),
    "grpo_kl_ratio": (dict(loss_type="grpo", beta=0.3), dict(use_bias_correction_kl=True), None),
    "grpo_high": (dict(loss_type="grpo", beta=0.0, epsilon_high=0.28), dict(delta=1.5), None),
    "bnpo": (dict(loss_type="bnpo", beta=0.04), {}, None),
    "dapo": (dict(loss_type="dapo", beta=0.0, epsilon_high=0.28), {}, None),
    "dr_grpo": (dict(loss_type="dr_grpo", beta=0.0), {}, None),
    "gspo": (dict(loss_type="grpo", beta=0.0, importance_sampling_level="sequence"), {}, None),
    "token_truncate": (dict(loss_type="grpo", beta=0.04), {}, "token_truncate"),
    "token_mask": (dict(loss_type="grpo", beta=0.0), {}, "token_mask"),
    "sequence_truncate": (dict(loss_type="dapo", beta=0.0), {}, "sequence_truncate"),
    "sequence_mask": (dict(loss_type="dapo", beta=0.0), {}, "sequence_mask"),
}
CAP = 1.2
PPO_VARIANTS = {
    "ppo": dict(kl_coef=0.05, gamma=1.0, lam=0.95, whiten_rewards=False, missing_eos_penalty=1.0),
    "ppo_k3": dict(kl_coef=0.2, gamma=0.97, lam=0.9, whiten_rewards=True, kl_estimator="k3", cliprange_value=0.05),
}


def weights(seed: int, prefix: str = "transformer.") -> dict[str, np.ndarray]:
    """The state dict of a GPT-2 of SHAPE, large enough that no gradient vanishes."""
    V, T, D, N = (SHAPE[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer"))
    block = {"ln_1.weight": (D,), "ln_1.bias": (D,), "attn.c_attn.weight": (D, 3 * D), "attn.c_attn.bias": (3 * D,)}
    block |= {"attn.c_proj.weight": (D, D), "attn.c_proj.bias": (D,), "ln_2.weight": (D,), "ln_2.bias": (D,)}
    block |= {"mlp.c_fc.weight": (D, 4 * D), "mlp.c_fc.bias": (4 * D,)}
    block |= {"mlp.c_proj.weight": (4 * D, D), "mlp.c_proj.bias": (D,)}
    shapes = {"wte.weight": (V, D), "wpe.weight": (T, D)}
    shapes |= {f"h.{n}.{name}": shape for n in range(N) for name, shape in block.items()}
    shapes |= {"ln_f.weight": (D,), "ln_f.bias": (D,)}
    rng = np.random.RandomState(seed)  # whose numbers NumPy has promised to keep
    made = {}
    for name, shape in shapes.items():
        is_gain = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
        made[prefix + name] = (0.2 * rng.standard_normal(shape) + is_gain).astype(np.float32)
    return made


def score_weights(seed: int) -> np.ndarray:
    """[1, D] of the scalar head of a reward or value model."""
    return np.random.RandomState(seed).standard_normal((1, SHAPE["n_embd"])).astype(np.float32)


def batch() -> dict[str, np.ndarray]:
    """Prompts of one length with answers of several: token_BT, and of the answers' tokens weight, log-probabilities before
    the update, of the reference and of a sampler, and an advantage of each row."""
    rng = np.random.RandomState(3)
    token_BT = rng.randint(2, SHAPE["vocab_size"], (ROWS, PROMPT + ANSWER)).astype(np.int32)
    length_B = np.array([9, 3, 7, 1, 8, 5])
    weight_BA = (np.arange(ANSWER) < length_B[:, None]).astype(np.float32)
    token_BT[:, PROMPT:] = np.where(weight_BA > 0, token_BT[:, PROMPT:], PAD)
    old_BA, reference_BA = ((-3.7 + 0.25 * rng.standard_normal((ROWS, ANSWER))).astype(np.float32) for _ in range(2))
    sampler_BA = (old_BA + 0.2 * rng.standard_normal((ROWS, ANSWER))).astype(np.float32)
    advantage_B = np.array([1.2, -0.7, 0.4, -1.1, 0.9, -0.3], np.float32)
    return dict(token_BT=token_BT, weight_BA=weight_BA, old_BA=old_BA, reference_BA=reference_BA,
                sampler_BA=sampler_BA, advantage_B=advantage_B)  # fmt: skip


def rollouts() -> dict[str, np.ndarray]:
    """Answers that fill their length, half of them with an end token there, and the logits that they were drawn from."""
    rng = np.random.RandomState(4)
    token_BT = rng.randint(2, SHAPE["vocab_size"], (PPO_ROWS, PROMPT + ANSWER)).astype(np.int32)
    token_BT[::2, -1] = EOS
    logit_BAV = rng.standard_normal((PPO_ROWS, ANSWER, SHAPE["vocab_size"])).astype(np.float32)
    return dict(token_BT=token_BT, logit_BAV=0.3 * logit_BAV)


def _model(folder, seed: int, scalar: bool = False):
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    dropout = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    config = GPT2Config(**SHAPE, **dropout, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None, num_labels=1)
    model = (GPT2ForSequenceClassification if scalar else GPT2LMHeadModel)(config)
    state = {name: torch.tensor(array) for name, array in weights(seed).items()}
    state |= {"score.weight": torch.tensor(score_weights(seed))} if scalar else {}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)  # trainers look for its folder


def _tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate(["<pad>", "<eos>", *(f"t{i}" for i in range(2, 40))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="t2"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def _gradients(module, prefix: str = "") -> np.ndarray:
    """One array of all, in the order of weights()."""
    parameters = dict(module.named_parameters())
    return np.concatenate([parameters[prefix + name].grad.numpy().ravel() for name in weights(0)])


def unpacked(gradient: np.ndarray) -> dict[str, np.ndarray]:
    """A gradient as `_gradients` packs it, by name."""
    like = weights(0)
    ends = np.cumsum([array.size for array in like.values()])
    assert gradient.size == ends[-1]
    return {name: part.reshape(like[name].shape) for name, part in zip(like, np.split(gradient, ends[:-1]))}


def sampler_weights(kind: str, given: dict[str, np.ndarray]) -> np.ndarray:
    """The importance weights that a trainer is given, as its documentation has them."""
    difference_BA = (given["old_BA"] - given["sampler_BA"]) * given["weight_BA"]
    if kind.startswith("sequence"):
        difference_BA = difference_BA.sum(-1, keepdims=True)
    ratio = np.exp(difference_BA)
    return np.minimum(ratio, CAP) if kind.endswith("truncate") else np.where(ratio > CAP, 0, ratio)


def _trainer(kind: str, folder: str):
    import trl
    from datasets import Dataset

    model = _model(folder, 0)
    common = dict(output_dir=folder, report_to="none", bf16=False, use_cpu=True, max_steps=1, gradient_checkpointing=False,
                  per_device_train_batch_size=ROWS, num_generations=GROUP, temperature=TEMPERATURE, max_completion_length=12)  # fmt: skip
    config, trainer = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    made = trainer(model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config(**common),
                   train_dataset=Dataset.from_list([{"prompt": "t5"}] * 4), processing_class=_tokenizer())  # fmt: skip
    made.model.train()
    return made


def _inputs(given: dict[str, np.ndarray]) -> dict:
    import torch

    token_BT = torch.tensor(given["token_BT"]).long()
    return {
        "prompt_ids": token_BT[:, :PROMPT],
        "prompt_mask": torch.ones(ROWS, PROMPT).long(),
        "completion_ids": token_BT[:, PROMPT:],
        "completion_mask": torch.tensor(given["weight_BA"]).long(),
        "advantages": torch.tensor(given["advantage_B"]),
        "old_per_token_logps": torch.tensor(given["old_BA"]),
        "ref_per_token_logps": torch.tensor(given["reference_BA"]),
        "old_logps": torch.tensor((given["old_BA"] * given["weight_BA"]).sum(-1)),
        "num_items_in_batch": torch.tensor(given["weight_BA"]).sum(),
    }


def expected_grpo() -> dict[str, np.ndarray]:
    """Of each of VARIANTS, and of rloo: "NAME/loss" and "NAME/gradient"."""
    import torch

    given, expected = batch(), {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer("GRPO", folder)
        trainer.current_gradient_accumulation_steps = 1
        plain = dict(epsilon_low=0.2, epsilon_high=0.2, importance_sampling_level="token")
        for name, (attributes, of_args, sampler) in VARIANTS.items():
            vars(trainer).update(plain | attributes | {"use_vllm": sampler is not None})
            trainer.vllm_importance_sampling_correction = sampler is not None
            vars(trainer.args).update({"delta": None, "use_bias_correction_kl": False} | of_args)
            inputs = _inputs(given)
            if sampler is not None:
                inputs["importance_sampling_ratio"] = torch.tensor(sampler_weights(sampler, given))
            expected |= _loss_and_gradients(name, trainer, inputs)
    with tempfile.TemporaryDirectory() as folder:
        expected |= _loss_and_gradients("rloo", _trainer("RLOO", folder), _inputs(given))
    return expected


def _loss_and_gradients(name: str, trainer, inputs: dict) -> dict[str, np.ndarray]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return {f"{name}/loss": np.float32(loss.item()), f"{name}/gradient": _gradients(trainer.model)}


def expected_ppo() -> dict[str, np.ndarray]:
    """Of one update of PPOTrainer in each of PPO_VARIANTS: "NAME/policy", "NAME/value" and "NAME/score", the gradients
    of policy, critic and its head, and the numbers that it logs."""
    import torch
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    given, expected = rollouts(), {}
    query_response, logits = torch.tensor(given["token_BT"]).long(), torch.tensor(given["logit_BAV"])
    ppo_trainer.batch_generation = lambda *_: (query_response, logits.clone())
    for name, settings in PPO_VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            parts = {part: _model(f"{folder}/{part}", seed, scalar) for part, seed, scalar in
                     (("model", 0, False), ("ref_model", 1, False), ("value_model", 2, True), ("reward_model", 5, True))}  # fmt: skip
            args = PPOConfig(output_dir=folder, report_to="none", bf16=False, use_cpu=True, per_device_train_batch_size=PPO_ROWS,
                             gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=1, total_episodes=PPO_ROWS,
                             response_length=ANSWER, stop_token="eos", temperature=TEMPERATURE, num_sample_generations=0,
                             gradient_checkpointing=False, local_rollout_forward_batch_size=PPO_ROWS, save_strategy="no", **settings)  # fmt: skip
            data = Dataset.from_list([{"input_ids": row[:PROMPT].tolist()} for row in given["token_BT"]])
            trainer = PPOTrainer(args=args, processing_class=_tokenizer(), train_dataset=data, **parts)
            grads, logged = {}, {}
            step = trainer.optimizer.step

            def keep_gradients(*arguments, **options):
                model = trainer.model  # noqa: B023
                grads.update(policy=_gradients(model, "policy."), value=_gradients(model, "value_model."),
                             score=model.value_model.score.weight.grad.numpy()[0].copy())  # fmt: skip # noqa: B023
                return step(*arguments, **options)  # noqa: B023

            trainer.optimizer.step = keep_gradients
            trainer.log = logged.update
            trainer.dataloader = [{"input_ids": query_response[:, :PROMPT]}]
            scores = _scores(parts["reward_model"], query_response)
            trainer.train()
        kept = ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "val/clipfrac_avg")  # fmt: skip
        expected |= {f"{name}/{key}": np.float32(logged[key]) for key in kept}
        expected |= {f"{name}/{key}": array for key, array in grads.items()}
        expected[f"{name}/scores"] = scores
    return expected


def _scores(reward_model, query_response) -> np.ndarray:
    """Of a reward model, at the last token: before any penalty."""
    import torch

    with torch.no_grad():
        x = reward_model.transformer(query_response).last_hidden_state
        return reward_model.score(x)[:, -1, 0].numpy()


if __name__ == "__main__":
    import trl

    kind, make = ("ppo", expected_ppo) if trl.__version__ == "1.12.0" else ("grpo", expected_grpo)
    np.savez_compressed(HERE / f"policy_{kind}.npz", **make())
    print(json.dumps({"trl": trl.__version__, "bytes": (HERE / f"policy_{kind}.npz").stat().st_size}))
