"""Over-optimisation in small: what people meant (gold) against what a reward model of few comparisons says of it (proxy).

    gptjax train --config=configs/rl_base.py --workdir=runs/rl_base
    python notebooks/overoptimisation.py proxies
    gptjax study run configs/studies/overoptimisation.py --out=studies/overoptimisation
    python notebooks/overoptimisation.py curve studies/overoptimisation

PPO without a penalty learns from a reward model of 30, 120 or 480 comparisons; whether a sum is right is the gold reward. It
has the weight 0, so that it is logged and nothing learns from it. What came out: docs/reinforcement_running.md.

Hardware: two CPU cores, 25 seconds a run when idle. Source: Gao et al. 2022, section 3: rewards against the KL from the start.
"""

from ml_collections import ConfigDict

from gptjax import study

COMPARISONS = (30, 120, 480)
ITERATIONS, STEPS_PER_CALL, BATCH_SIZE, CONTEXT = 64, 8, 64, 16


def get_study():
    base = ConfigDict()
    base.model = dict(context_length=CONTEXT, n_layers=2, d_model=64, n_heads=4, dtype="float32", scan_unroll=2)
    base.model.update(critic="shared")
    base.data = dict(chat="gptjax", tokenizer="bytes")
    base.optim = dict(peak_lr=7e-4, schedule="constant", warmup_steps=40, weight_decay=0.0)
    base.train = dict(batch_size=BATCH_SIZE, steps_per_call=STEPS_PER_CALL, log_every=STEPS_PER_CALL, tensorboard=False)
    base.train.update(loss="ppo(value_coef=0.1)", start_from="runs/rl_base")
    base.rl = dict(prompts="arithmetic(digits=1)", problems=1000, rewards="numeric", group=1, max_tokens=4)
    base.rl.update(epochs=4, advantage="gae")
    base.checkpoint = dict(every_steps=None)
    base.eval = dict(every_steps=None)
    return study.Study(
        base=base,
        sizes={f"proxy{n}": {"rl.rewards": f"score(run='runs/proxy_{n}') + 0*numeric"} for n in COMPARISONS},
        tokens=(ITERATIONS * STEPS_PER_CALL * BATCH_SIZE * CONTEXT,),
    )
