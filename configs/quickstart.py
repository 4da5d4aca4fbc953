"""A first run: a small GPT on the text that ships with gptjax, with a SentencePiece vocabulary of its own.

    gptjax train --config=configs/quickstart.py --workdir=runs/quickstart

Hardware: two CPU cores, meant to stay under 5 minutes. Time and result: not measured yet.

Source: nobody's recipe; a shape between nanoGPT's two character models, with the learning rate they use.
steps_per_call changes speed only.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=128, n_layers=4, d_model=192, n_heads=6, dtype="float32")
    config.data = dict(tokenizer="sentencepiece", tokenizer_vocab_size=4096)
    config.optim = dict(peak_lr=1e-3, warmup_steps=50)
    config.train = dict(steps=1000, batch_size=16, steps_per_call=10, log_every=10)
    config.checkpoint = dict(every_steps=200)
    config.eval = dict(every_steps=200, sample_tokens=200)
    return config
