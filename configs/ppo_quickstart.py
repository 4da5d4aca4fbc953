from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(
        context_length=16, n_layers=2, d_model=64, n_heads=4, dtype="float32", scan_unroll=2, critic="shared"
    )
    config.data = dict(chat="gptjax", tokenizer="bytes")
    config.optim = dict(peak_lr=5e-4, schedule="constant", warmup_steps=40, weight_decay=0.0)
    config.train = dict(
        steps=1600,
        batch_size=128,
        steps_per_call=8,
        loss="ppo(value_coef=0.1)",
        log_every=80,
        start_from="runs/rl_base",
    )
    config.rl = dict(
        prompts="arithmetic(digits=1)",
        problems=1000,
        rewards="numeric",
        group=1,
        epochs=4,
        max_tokens=4,
        advantage="gae",
        kl_coef=0.01,
    )
    config.checkpoint = dict(every_steps=800)
    config.eval = dict(every_steps=400, sample_every_steps=800)
    return config
