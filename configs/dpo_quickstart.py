from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=128, n_layers=4, d_model=192, n_heads=6, dtype="float32", scan_unroll=4)
    config.data = dict(
        source="jsonl:configs/chat/pairs.jsonl",
        chat="gptjax",
        preferences="compared",
        val_split="document",
        tokenizer="runs/sft_quickstart/tokenizer",
    )
    config.optim = dict(peak_lr=3e-4, warmup_steps=20, final_lr_fraction=0.0)
    config.mesh = dict(replica=-1, fsdp=1, cpu_devices=2)
    config.train = dict(steps=200, batch_size=32, log_every=10, loss="dpo(beta=0.1)", start_from="runs/sft_quickstart")
    config.checkpoint = dict(every_steps=200)
    config.eval = dict(every_steps=50, batch_size=64)
    return config
