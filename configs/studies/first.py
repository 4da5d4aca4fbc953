"""draft"""

from ml_collections import ConfigDict

from gptjax import study

SIZES = {"2k": (1, 8), "5k": (1, 16), "9k": (2, 16), "20k": (2, 24), "34k": (2, 32)}


def get_study():
    base = ConfigDict()
    base.model = dict(context_length=64, dtype="float32", bias=False, init_std=0.1, position_init_std=0.1)
    base.data = dict(tokenizer="chars", val_split="document")
    base.optim = dict(final_lr_fraction=0.0, beta2=0.99)
    base.train = dict(batch_size=16, steps_per_call=10, log_every=20, tensorboard=False)
    base.checkpoint = dict(every_steps=None)
    base.eval = dict(max_tokens=65_536, batch_size=64)
    return study.Study(
        base=base,
        sizes={name: shape(*dial) for name, dial in SIZES.items()},
        budgets=(2e10, 5e10, 1.25e11),
        seeds=(0, 1),
        learning_rate=study.recipes.Rule("tuned", lambda facts: 0.032 * (facts.params / 3000) ** -0.55),
        warmup=study.recipes.warmup_fraction(0.05),
    )


def shape(n_layers, d_model):
    return {"model.n_layers": n_layers, "model.d_model": d_model, "model.n_heads": d_model // 8}
