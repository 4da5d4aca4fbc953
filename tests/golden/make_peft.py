"""Writes tests/golden/peft: tiny models of transformers, adapters of PEFT on them, and what PEFT computes with both.

    HF_HUB_OFFLINE=1 python tests/golden/make_peft.py        (torch 2.13.0, transformers 5.24.0, peft 0.21.2)

Adapters are drawn at random, since an untrained one does nothing. `expected.npz` of an adapter holds logits, the loss (mean
over predicted tokens), its gradients by the names of adapter_model.safetensors, and the logits of the merged model.
"""

import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file

FOLDER = pathlib.Path(__file__).parent / "peft"
TOKENS = np.random.default_rng(0).integers(0, 65, (2, 12))
GPT2 = dict(vocab_size=65, n_positions=24, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None)  # fmt: skip
LLAMA = dict(vocab_size=65, max_position_embeddings=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, intermediate_size=24, initializer_range=0.2, bos_token_id=None, eos_token_id=None)  # fmt: skip
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
}
OF_GPT2 = dict(task_type="CAUSAL_LM", target_modules=["c_attn", "mlp.c_fc", "attn.c_proj"], fan_in_fan_out=True)
OF_LLAMA = dict(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])
ADAPTERS = {
    "gpt2/lora": lambda: peft.LoraConfig(r=2, lora_alpha=6, **OF_GPT2),
    "gpt2/dora": lambda: peft.LoraConfig(r=2, lora_alpha=4, use_dora=True, **OF_GPT2),
    "gpt2/adalora": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, tinit=1, tfinal=2, total_step=8, **OF_GPT2
    ),
    "gpt2/ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=True),
    "llama/lora": lambda: peft.LoraConfig(r=2, lora_alpha=6, **OF_LLAMA),
    "llama/rslora": lambda: peft.LoraConfig(r=2, lora_alpha=6, use_rslora=True, **OF_LLAMA),
    "llama/dora": lambda: peft.LoraConfig(r=2, lora_alpha=4, use_dora=True, **OF_LLAMA),
    "llama/adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=8, **OF_LLAMA),
    "llama/ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
    **{
        f"{name}/prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        for name in MODELS
    },
    **{
        f"{name}/prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        for name in MODELS
    },
}


def base_of(name: str):
    torch.manual_seed(1)
    model = MODELS[name]().float().eval()
    for parameter in model.parameters():  # biases start at 0, which would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter) * (parameter.ndim == 1)
    return model


def made(name: str):
    """The PEFT model of an adapter with drawn parameters."""
    model = peft.get_peft_model(base_of(name.partition("/")[0]), ADAPTERS[name]())
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def expected(model, tensors) -> dict:
    tokens = torch.from_numpy(TOKENS)
    logits = model(input_ids=tokens).logits
    logits = logits[:, logits.shape[1] - tokens.shape[1] :]  # prompt tuning's are of its own tokens too
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    values = {"token_BL": TOKENS, "logits": logits, "loss": loss}
    by_name = {name.replace(".default", ""): parameter.grad for name, parameter in model.named_parameters()}
    for name in tensors:
        grad = by_name.get(name, by_name.get(f"{name}.weight"))  # DoRA's vector is a module's weight
        grad = by_name["prompt_encoder.embedding.weight"] if name == "prompt_embeddings" else grad
        values[f"grad/{name}"] = grad
    if not isinstance(model.peft_config["default"], peft.PromptLearningConfig):
        with torch.no_grad():
            values["merged"] = model.merge_and_unload()(input_ids=tokens).logits
    return {name: np.asarray(value.detach() if torch.is_tensor(value) else value) for name, value in values.items()}


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in MODELS:
        base_of(name).save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    for name in ADAPTERS:
        model = made(name)
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        np.savez_compressed(
            FOLDER / name / "expected.npz", **expected(model, load_file(FOLDER / name / "adapter_model.safetensors"))
        )
