"""GRPO on sums of two digits: from an answer in six that is right to nine in ten, by rewards alone.

    gptjax train --config=configs/rl_base.py --workdir=runs/rl_base
    gptjax train --config=configs/grpo_quickstart.py --workdir=runs/grpo_quickstart

Hardware: two CPU cores, a minute. The mean reward of an iteration rises from 0.15 to 0.96 or 0.98 in 600 steps; then 0.88 to
0.93 of the held-out sums are right (three seeds, docs/reinforcement_running.md).

Source: nobody's recipe. Model and tokenizer are those of configs/rl_base.py, which the run starts from.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=16, n_layers=2, d_model=64, n_heads=4, dtype="float32", scan_unroll=2)
    config.data = dict(chat="gptjax", tokenizer="bytes")
    config.optim = dict(peak_lr=5e-4, schedule="constant", warmup_steps=10, weight_decay=0.0)
    config.train = dict(steps=600, batch_size=256, steps_per_call=2, log_every=20, start_from="runs/rl_base")
    config.train.update(loss="grpo(beta=0.02)")
    config.rl = dict(prompts="arithmetic(digits=1)", problems=1000, rewards="numeric", group=16, max_tokens=4)
    config.checkpoint = dict(every_steps=200)
    config.eval = dict(every_steps=100, sample_every_steps=200)
    return config
