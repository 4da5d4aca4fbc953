"""Supervised fine-tuning of the model of configs/registry_corpus.py on conversations in English and Chinese.

    python notebooks/sft_registry.py --out=sft
    gptjax train --config=configs/sft_registry.py --workdir=runs/sft_registry \
        --config.train.start_from=runs/registry_corpus
    python notebooks/sft_evaluate.py runs/sft_registry --exercises=sft/exercises.jsonl \
        --held_out 'jsonl:sft/held_out/*.jsonl' --out=runs/sft_registry_evaluation

Hardware: two CPU cores, as two JAX devices that share each batch. 1.6M tokens: eleven minutes at the tokens per second that
configs/registry_corpus.py has on two idle cores; it took 35 beside other work. All answers end, the held-out loss falls from 7.64 to
4.18 nats/token, and 9% of the exercises are right: docs/finetuning.md.

Source: nobody's recipe. The weights make of each source what a model of this size can learn from it: the pairs of the chat
robot are most of the conversations and would be most of the rows, and the small sources would be read too often. Another
base is named in train.start_from and, for its tokenizer, in data.tokenizer; model is its model.
"""

from ml_collections import ConfigDict

WEIGHTS = dict(small_talk=2.0, robot=2.0, translation=3.0, arithmetic=3.0, reading=2.0, classification=0.5)
WEIGHTS |= dict(pairs_en=0.5, pairs_zh=0.2, faq_en=0.2, faq_zh=0.2)


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=256, n_layers=6, d_model=256, n_heads=8, dtype="float32", scan_unroll=6)
    config.data = dict(mixture={name: f"jsonl:sft/train/{name}.jsonl" for name in WEIGHTS}, weights=WEIGHTS)
    config.data.update(chat="gptjax", chat_overflow="cut", packing="best_fit")
    config.data.update(val_split="document", val_fraction=0.02, tokenizer="runs/registry_corpus/tokenizer")
    config.optim = dict(peak_lr=1e-3, warmup_steps=50, final_lr_fraction=0.0)
    config.mesh = dict(replica=-1, fsdp=1, cpu_devices=2)
    config.train = dict(steps=800, batch_size=8, log_every=10, start_from="runs/registry_corpus")
    config.checkpoint = dict(every_steps=400, keep=4)  # all, and so step 0, for sft_evaluate.py
    config.eval = dict(every_steps=400, batch_size=32, max_tokens=32_768)
    return config
