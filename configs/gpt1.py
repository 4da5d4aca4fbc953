"""GPT-1, Radford et al. 2018.

    gptjax train --config=configs/gpt1.py --workdir=runs/gpt1

Hardware: 8 A100 of 40 GB; one holds it too.
Time: 6 N D = 8.25e19 FLOPs are 23 hours at 40% of the bfloat16 peak. Result: not run here; the paper's 18.4
token perplexity is for BooksCorpus.

Sources: Radford et al. 2018, section 4.1, for shape, norms, dropout, initialisation, batch, peak_lr, warm-up,
cosine to zero, weight decay and 100 epochs; betas, eps and clip_norm from memory of the released fine-tuning
code.
Not published: the number of steps. Here BooksCorpus has 984,846,357 words (Bandy and Vincent 2021) at an
assumed 1.2 tokens a word, 100 times: 118 billion tokens, 3.6 million steps. Independent check: OpenAI's
announcement, from memory, gives 0.96 petaflop/s-days = 8.3e19 FLOPs, which is 6 N times 119 billion.
BooksCorpus was withdrawn: PG-19 (books before 1919) stands in for it. The tokenizer is SentencePiece of the
same size, in place of GPT-1's BPE.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(vocab_size=40478, context_length=512, n_layers=12, d_model=768, n_heads=12)
    config.model.update(norm_position="post", final_norm=False, scale_residual_init=False, mlp="gelu_tanh")
    config.model.update(embed_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1, init_std=0.02)
    config.data = dict(source="tfds", tfds_name="pg19:0.1.1", text_field="book_text")
    config.data.update(val_split="document", val_fraction=5e-3, tokenizer="sentencepiece", tokenizer_vocab_size=40478)
    config.optim = dict(peak_lr=2.5e-4, schedule="cosine", warmup_steps=2000, final_lr_fraction=0.0)
    config.optim.update(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
    config.mesh = dict(fsdp=-1)
    config.train = dict(tokens=118e9, batch_size=64, vocab_chunks=4)
    config.checkpoint = dict(every_steps=10_000, keep_every=500_000)
    config.eval = dict(every_steps=10_000, max_tokens=4_194_304)
    return config
