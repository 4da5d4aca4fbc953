from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=16, n_layers=2, d_model=64, n_heads=4, dtype="float32", scan_unroll=2)
    config.data = dict(
        source="jsonl:configs/rl/sums.jsonl", chat="gptjax", packing="best_fit", val_split="document", tokenizer="bytes"
    )
    config.optim = dict(peak_lr=3e-3, warmup_steps=20, final_lr_fraction=0.0)
    config.train = dict(steps=600, batch_size=64, log_every=50)
    config.checkpoint = dict(every_steps=None)
    config.eval = dict(every_steps=None)
    return config
