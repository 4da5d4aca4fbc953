"""A character-level GPT on Shakespeare: nanoGPT's recipe for one GPU.

    gptjax train --config=configs/shakespeare_char_gpu.py --workdir=runs/shakespeare_char_gpu

Hardware: one GPU. Time and result on the Shakespeare that ships with gptjax: not measured yet.
For nanoGPT's own text add --config.data.path=tinyshakespeare.txt: its README gives a best validation loss of
1.4697 nats per character, in about 3 minutes on an A100. The model overfits: the best is not the last.

Source of every number: nanoGPT's config/train_shakespeare_char.py over the defaults of its train.py.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=256, n_layers=6, d_model=384, n_heads=6, bias=False, dtype="bfloat16")
    config.model.update(embed_dropout=0.2, attention_dropout=0.2, residual_dropout=0.2)
    config.data = dict(tokenizer="chars", val_fraction=0.1, val_split="tail")
    config.optim = dict(peak_lr=1e-3, warmup_steps=100, decay_steps=5000, final_lr_fraction=0.1)
    config.optim.update(beta1=0.9, beta2=0.99, weight_decay=0.1, clip_norm=1.0)
    config.train = dict(steps=5000, batch_size=64, log_every=10)
    config.checkpoint = dict(every_steps=250)
    config.eval = dict(every_steps=250, sample_tokens=500)
    return config
