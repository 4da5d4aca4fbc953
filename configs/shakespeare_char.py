"""A character-level GPT on Shakespeare: nanoGPT's recipe for a computer without a GPU.

    gptjax train --config=configs/shakespeare_char.py --workdir=runs/shakespeare_char

Hardware: any CPU. Time and result on the Shakespeare that ships with gptjax: not measured yet.
For nanoGPT's own text add --config.data.path=tinyshakespeare.txt: expect a validation loss near 1.88 nats per
character, which its README gives after about 3 minutes on a laptop (there on 20 random batches; here on all of
the held-out text).

Source of every number: nanoGPT's README, the CPU recipe, over its config/train_shakespeare_char.py and
train.py. steps_per_call and eval.batch_size change speed only.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=64, n_layers=4, d_model=128, n_heads=4, bias=False, dtype="float32")
    config.data = dict(tokenizer="chars", val_fraction=0.1, val_split="tail")
    config.optim = dict(peak_lr=1e-3, warmup_steps=100, decay_steps=2000, final_lr_fraction=0.1)
    config.optim.update(beta1=0.9, beta2=0.99, weight_decay=0.1, clip_norm=1.0)
    config.train = dict(steps=2000, batch_size=12, steps_per_call=10, log_every=10)
    config.checkpoint = dict(every_steps=250)
    config.eval = dict(every_steps=250, batch_size=128, sample_tokens=500)
    return config
