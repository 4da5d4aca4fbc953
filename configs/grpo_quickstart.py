from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=16, n_layers=2, d_model=64, n_heads=4, dtype="float32", scan_unroll=2)
    config.data = dict(chat="gptjax", tokenizer="bytes")
    config.optim = dict(peak_lr=7e-4, schedule="constant", warmup_steps=10, weight_decay=0.0)
    config.train = dict(
        steps=800, batch_size=128, steps_per_call=2, loss="grpo", log_every=20, start_from="runs/rl_base"
    )
    config.rl = dict(prompts="arithmetic(digits=1)", problems=1000, rewards="numeric", group=16, max_tokens=4)
    config.checkpoint = dict(every_steps=400)
    config.eval = dict(every_steps=200, sample_every_steps=400)
    return config
