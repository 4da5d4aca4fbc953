"""DPO on preferences, from the model of configs/sft_quickstart.py: which of two numbers is larger, or smaller.

    gptjax train --config=configs/quickstart.py --workdir=runs/quickstart
    gptjax train --config=configs/sft_quickstart.py --workdir=runs/sft_quickstart --config.train.start_from=runs/quickstart
    gptjax train --config=configs/dpo_quickstart.py --workdir=runs/dpo_quickstart --config.train.start_from=runs/sft_quickstart

Hardware: two CPU cores, as two JAX devices that share each batch. A minute of CPU time. Expect all of 240 held-out pairs, of
prompts that were never seen, to have their chosen answer ahead, and both answers to have become less likely (log-probabilities
of -41 and -98 nats, from -20 both): docs/dpo.md has what to do about it.

Source: nobody's recipe. The pairs are constructed (configs/chat/make_pairs.py), and are those of configs/reward_quickstart.py;
beta is that of Rafailov et al. 2023.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=128, n_layers=4, d_model=192, n_heads=6, dtype="float32", scan_unroll=4)
    config.data = dict(
        source="jsonl:configs/chat/pairs.jsonl",
        chat="gptjax",
        preferences="compared",
        val_fraction=0.2,
        tokenizer="runs/sft_quickstart/tokenizer",
    )
    config.optim = dict(peak_lr=1e-3, warmup_steps=20, final_lr_fraction=0.0)
    config.mesh = dict(replica=-1, fsdp=1, cpu_devices=2)
    config.train = dict(steps=150, batch_size=32, log_every=10, loss="dpo(beta=0.1)", start_from="runs/sft_quickstart")
    config.checkpoint = dict(every_steps=150)
    config.eval = dict(every_steps=50, batch_size=64)
    return config
