"""nanoGPT's character model for a CPU: 0.8M parameters, 1.5 million characters of Shakespeare.

    gptjax train --config=configs/shakespeare_char.py --workdir=runs/shakespeare_char

Hardware: two CPU cores, as two JAX devices that share each batch. Three minutes. On nanoGPT's own text
(--config.data.path=tinyshakespeare.txt) expect a validation loss of 1.78 nats per character, on all of the held-out
text, mean of three seeds; nanoGPT's README gives 1.88, on 20 random batches.

Source of every number but one: nanoGPT's README, the CPU recipe, over its config/train_shakespeare_char.py and
train.py. The learning rate is 3e-3 instead of 1e-3, which gives 1.90.
steps_per_call, scan_unroll, the mesh and eval.batch_size change speed only.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=64, n_layers=4, d_model=128, n_heads=4, bias=False)
    config.model.update(dtype="float32", scan_unroll=4)
    config.data = dict(tokenizer="chars", val_fraction=0.1, val_split="tail")
    config.optim = dict(peak_lr=3e-3, warmup_steps=100, decay_steps=2000, final_lr_fraction=0.1)
    config.optim.update(beta1=0.9, beta2=0.99, weight_decay=0.1, clip_norm=1.0)
    config.mesh = dict(replica=-1, fsdp=1, cpu_devices=2)
    config.train = dict(steps=2000, batch_size=12, steps_per_call=10, log_every=10)
    config.checkpoint = dict(every_steps=250)
    config.eval = dict(every_steps=250, batch_size=128, sample_tokens=500)
    return config
