"""A reward model of which of two numbers is larger, or smaller, from the model of configs/sft_quickstart.py.

    gptjax train --config=configs/quickstart.py --workdir=runs/quickstart
    gptjax train --config=configs/sft_quickstart.py --workdir=runs/sft_quickstart
    gptjax train --config=configs/reward_quickstart.py --workdir=runs/reward_quickstart

Hardware: two CPU cores, as two JAX devices that share each batch. 70 seconds of CPU time; expect that of 240 held-out pairs,
of prompts that were never seen, 0.996 +- 0.004 are in the right order.

Source: nobody's recipe. The pairs are constructed (configs/chat/make_pairs.py). Model and mesh are those of
configs/sft_quickstart.py; another base is named in train.start_from and, for its tokenizer, in data.tokenizer.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=128, n_layers=4, d_model=192, n_heads=6, dtype="float32", scan_unroll=4)
    config.model.task_head = "score"
    config.data = dict(
        source="jsonl:configs/chat/pairs.jsonl",
        chat="gptjax",
        preferences="compared",
        val_fraction=0.2,  # the last ones: no prompt is there twice
        tokenizer="runs/sft_quickstart/tokenizer",
    )
    config.optim = dict(peak_lr=1e-3, warmup_steps=20, final_lr_fraction=0.0)
    config.mesh = dict(replica=-1, fsdp=1, cpu_devices=2)
    config.train = dict(steps=300, batch_size=16, log_every=10, loss="reward", start_from="runs/sft_quickstart")
    config.checkpoint = dict(every_steps=150)
    config.eval = dict(every_steps=100, batch_size=64)
    return config
