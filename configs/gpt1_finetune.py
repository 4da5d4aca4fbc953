"""GPT-1's fine-tuning, Radford et al. 2018: a pretrained model and a linear head on labelled texts.

    gptjax train --config=configs/gpt1_finetune.py --workdir=runs/gpt1_finetune \
        --config.train.start_from=runs/gpt1 --config.data.tokenizer=runs/gpt1/tokenizer \
        --config.data.path=reviews.jsonl --config.train.steps=STEPS

reviews.jsonl has lines such as {"text": "a fine book", "label": 1}. STEPS is 3 epochs: 3 / 32 of the training examples.
Of another pretrained model, copy the `model` section of its config, set task_head, and vocab_size=None. Other tasks: docs/classification.md.

Hardware: one GPU of 16 GB. Time and result: not run with GPT-1's weights, which are not public as a run; a small model and
what its pretraining is worth: docs/classification.md.

Sources: Radford et al. 2018, sections 3.2, 3.3 and 4.1, and the code released with it (finetune-transformer-lm a69b5c4): rate,
batch, 3 epochs, warmup over 0.2% of the steps and a line to 0, lm_coef, dropout, decay of all that has two dimensions,
clipping, Adam. The vocabulary is GPT-1's 40,478 and three control tokens. Two differences: their dropout of embeddings acts on the matrix (all places of a token lose the same
entries, and so does the tied output), ours on what each place adds up to; their rate within the warmup is lower by up to
0.2%. The warmup here is of 1 step, which 0.2% of up to 500 steps is.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = dict(vocab_size=40481, context_length=512, n_layers=12, d_model=768, n_heads=12)
    config.model.update(norm_position="post", final_norm=False, scale_residual_init=False, mlp="gelu_tanh")
    config.model.update(embed_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1, init_std=0.02)
    config.model.task_head = "classes(n=2, dropout=0.1)"
    config.data = dict(path="reviews.jsonl", task="classify(text='text', label='label')")
    config.data.update(val_split="document", val_fraction=0.1)
    config.optim = dict(peak_lr=6.25e-5, schedule="linear(whole=True)", warmup_steps=1, final_lr_fraction=0.0)
    config.optim.update(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, decay_embeddings=True, clip_norm=1.0)
    config.train = dict(steps=300, batch_size=32, loss="classify", lm_coef=0.5)
    config.checkpoint = dict(every_steps=None)
    config.eval = dict(every_steps=100)
    return config
