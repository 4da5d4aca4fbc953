"""A scaling study for two cores: 3k to 2.5M parameters on the manuals of a Linux system, byte by byte, GPTs and LSTMs.

    python notebooks/registry_corpus.py --out=corpus/raw
    gptjax study plan configs/studies/manuals_ladder.py
    gptjax study run configs/studies/manuals_ladder.py --out=studies/manuals_ladder
    gptjax study fit studies/manuals_ladder --report=studies/manuals_ladder/report

Hardware: two CPU cores, within an hour. What came out: docs/manuals_ladder.md.

Source: nobody's recipe. Shapes widen and deepen together, in heads of eight dimensions; budgets are half a decade apart, and
at each there is a window of sizes about the best one, and a few far above it. Weights start at 0.1, since 0.02 is for
widths of a thousand: with it a model of 71k parameters ends at 2.95 instead of 2.64. Learning rates are tuned for each
size at one budget, but for the sizes that it is too small for, which take that of the largest tuned. The larger run has
four times the top budget and is predicted before it starts.
"""

from ml_collections import ConfigDict

from gptjax import study

GPT = {  # name: (layers, width)
    "3k": (1, 8),
    "6k": (1, 12),
    "8k": (1, 16),
    "11k": (2, 16),
    "22k": (2, 24),
    "35k": (2, 32),
    "71k": (3, 40),
    "0.13M": (3, 56),
    "0.55M": (4, 104),
    "2.5M": (6, 184),
}
LSTM = {"lstm-25k": (2, 32), "lstm-65k": (2, 56), "lstm-0.26M": (2, 120)}
BUDGETS = (4e10, 1.2e11, 4e11, 1.2e12)
WINDOWS = dict(zip(BUDGETS, [("3k", "35k"), ("3k", "71k"), ("3k", "0.13M"), ("8k", "2.5M")]))  # of GPT's sizes
TUNING = BUDGETS[1]
LARGEST_TUNED = "0.13M"


def get_study():
    return study.Study(
        base=base(),
        sizes={name: shape(*dial) for name, dial in GPT.items()} | {name: lstm(*dial) for name, dial in LSTM.items()},
        budgets=BUDGETS,
        seeds=(0, 1),
        learning_rate=study.tuned((2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3), budget=TUNING),
        warmup=study.recipes.warmup_fraction(0.05),
        keep=keep,
        targets=(study.Target({"98k": shape(3, 48)}, 4 * BUDGETS[-1]),),
    )


def base():
    config = ConfigDict()
    config.model = dict(context_length=64, dtype="float32", bias=False)
    config.data = dict(source="jsonl", path="corpus/raw/manuals", tokenizer="bytes")
    config.data.update(val_split="document", val_fraction=0.02)
    config.optim = dict(final_lr_fraction=0.0, beta2=0.99, weight_decay=0.1)
    config.train = dict(batch_size=16, steps_per_call=10, log_every=10, tensorboard=False)
    config.checkpoint = dict(every_steps=2000, keep=2)
    config.eval = dict(max_tokens=131_072, batch_size=64)
    return config


def shape(n_layers, d_model):
    fields = {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": d_model // 8,
        "init_std": 0.1,
        "position_init_std": 0.1,
    }
    return {f"model.{name}": value for name, value in fields.items()}


def lstm(n_layers, d_model):
    return {"model.architecture": "lstm", "model.n_layers": n_layers, "model.d_model": d_model}


def keep(factors):
    """Of the grid a window of sizes at each budget; of the tuning runs all but the largest sizes."""
    if factors["stage"] == "target":
        return True
    if factors["family"] == "lstm":
        return factors["stage"] == "tune" or factors["budget"] in BUDGETS[1:3]
    first, last = ("3k", LARGEST_TUNED) if factors["stage"] == "tune" else WINDOWS[factors["budget"]]
    sizes = list(GPT)
    return sizes.index(first) <= sizes.index(factors["size"]) <= sizes.index(last)
