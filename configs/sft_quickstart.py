"""Supervised fine-tuning of the model of configs/quickstart.py: it learns to answer, and to end its answer.

    gptjax train --config=configs/quickstart.py --workdir=runs/quickstart
    gptjax train --config=configs/sft_quickstart.py --workdir=runs/sft_quickstart --config.train.start_from=runs/quickstart

Hardware: two CPU cores, as two JAX devices that share each batch. A minute of CPU time; expect a held-out loss of the
answers near 0.65 nats per token (7.75 before), and that `gptjax sample --workdir=runs/sft_quickstart --chat
--prompt="What is 3 + 4?"` answers and stops.

Source: nobody's recipe. The conversations are constructed (configs/chat/make_dialogues.py). Model and mesh are those of
configs/quickstart.py; another base is named in train.start_from and, for its tokenizer, in data.tokenizer.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=128, n_layers=4, d_model=192, n_heads=6, dtype="float32", scan_unroll=4)
    config.data = dict(
        source="jsonl:configs/chat/dialogues.jsonl",
        chat="gptjax",
        packing="best_fit",
        val_split="document",
        tokenizer="runs/quickstart/tokenizer",
    )
    config.optim = dict(peak_lr=1e-3, warmup_steps=20, final_lr_fraction=0.0)
    config.mesh = dict(replica=-1, fsdp=1, cpu_devices=2)
    config.train = dict(steps=200, batch_size=8, log_every=10, start_from="runs/quickstart")
    config.checkpoint = dict(every_steps=100)
    config.eval = dict(every_steps=50, batch_size=32)
    return config
