"""A scaling study for two cores: 9k to 3M parameters on the manuals of a Linux system, byte by byte, and LSTMs beside GPTs.

    python notebooks/registry_corpus.py --out=corpus/raw
    gptjax study plan configs/studies/manuals_ladder.py
    gptjax study run configs/studies/manuals_ladder.py --out=studies/manuals_ladder
    gptjax study fit studies/manuals_ladder --report=studies/manuals_ladder/report

Hardware: two CPU cores, within an hour. What came out: docs/manuals_ladder/report.md.

Source: nobody's recipe. Shapes widen and deepen together at 32 to 64 dimensions a head's worth of eight; budgets are half a
decade apart; at each a window of sizes around the best one. Learning rates are tuned per size at one budget, up to the
sizes that a budget of it can train; larger ones take that of the largest tuned. The larger run is four times the top
budget and is predicted before it starts.
"""

from ml_collections import ConfigDict

from gptjax import study

GPT = {  # name: (layers, width)
    "9k": (1, 16),
    "13k": (2, 16),
    "24k": (2, 24),
    "38k": (2, 32),
    "75k": (3, 40),
    "0.14M": (3, 56),
    "0.28M": (4, 72),
    "0.56M": (4, 104),
    "1.2M": (5, 136),
    "2.6M": (6, 184),
}
LSTM = {"lstm-24k": (2, 32), "lstm-75k": (2, 56), "lstm-0.28M": (2, 120)}
BUDGETS = (5e10, 1.6e11, 5e11, 1.6e12)
WINDOWS = dict(zip(BUDGETS, [(0, 5), (0, 6), (1, 8), (2, 10)]))  # of GPT's sizes, first to last but one
TUNING = 1.6e11


def get_study():
    return study.Study(
        base=base(),
        sizes={name: shape(*dial) for name, dial in GPT.items()} | {name: lstm(*dial) for name, dial in LSTM.items()},
        budgets=BUDGETS,
        seeds=(0, 1),
        learning_rate=study.tuned((2e-3, 4e-3, 8e-3, 16e-3, 32e-3), budget=TUNING),
        warmup=study.recipes.warmup_fraction(0.05),
        keep=keep,
        targets=(study.Target({"0.28M-long": shape(4, 72)}, 4 * BUDGETS[-1]),),
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
    return {"model.n_layers": n_layers, "model.d_model": d_model, "model.n_heads": d_model // 8}


def lstm(n_layers, d_model):
    return {"model.architecture": "lstm", "model.n_layers": n_layers, "model.d_model": d_model}


def keep(factors):
    """Tuning runs of all but the largest sizes; of the grid a window of sizes at each budget."""
    sizes = list(GPT)
    if factors["stage"] == "target":
        return True
    if factors["family"] == "lstm":
        return factors["stage"] == "tune" or factors["budget"] >= TUNING
    if factors["stage"] == "tune":
        return sizes.index(factors["size"]) < 8
    first, end = WINDOWS[factors["budget"]]
    return first <= sizes.index(factors["size"]) < end
