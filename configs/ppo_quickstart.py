"""PPO on sums of two digits: from an answer in six that is right to nine in ten, by rewards alone.

    gptjax train --config=configs/rl_base.py --workdir=runs/rl_base
    gptjax train --config=configs/ppo_quickstart.py --workdir=runs/ppo_quickstart

Hardware: two CPU cores, 40 seconds. The mean reward of an iteration rises from 0.15 to 0.98 or 0.99 in 1,280 steps; then 0.83
to 0.99 of the held-out sums are right (three seeds, docs/reinforcement_running.md).

Source: nobody's recipe. Model and tokenizer are those of configs/rl_base.py, which the run starts from.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=16, n_layers=2, d_model=64, n_heads=4, dtype="float32", scan_unroll=2)
    config.model.update(critic="shared")
    config.data = dict(chat="gptjax", tokenizer="bytes")
    config.optim = dict(peak_lr=5e-4, schedule="linear", warmup_steps=40, final_lr_fraction=0.1, weight_decay=0.0)
    config.train = dict(steps=1280, batch_size=128, steps_per_call=8, log_every=80, start_from="runs/rl_base")
    config.train.update(loss="ppo(value_coef=0.1)")
    config.rl = dict(prompts="arithmetic(digits=1)", problems=1000, rewards="numeric", group=1, max_tokens=4)
    config.rl.update(epochs=4, advantage="gae", kl_coef=0.01)
    config.checkpoint = dict(every_steps=640)
    config.eval = dict(every_steps=320, sample_every_steps=640)
    return config
