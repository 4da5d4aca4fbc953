"""A study with all its parts: five sizes, four budgets, two seeds, tuned learning rates, and a larger run that is predicted.

The one to run first, in three minutes: configs/studies/first.py.

    gptjax study plan configs/studies/quickstart.py
    gptjax study run  configs/studies/quickstart.py --out=studies/quickstart
    gptjax study fit  studies/quickstart --report=studies/quickstart/report

Hardware: two CPU cores, by the pace of configs/studies/manuals_ladder.py half an hour; it was planned here, not run.

Source: nobody's recipe; the text is the one that ships with gptjax, byte by byte.
"""

from ml_collections import ConfigDict

from gptjax import study


def get_study():
    base = ConfigDict()  # as get_config() of a run, or the path of a config file
    base.model = dict(context_length=64, dtype="float32")
    base.data = dict(tokenizer="bytes")
    base.train = dict(batch_size=8, steps_per_call=10)
    return study.Study(
        base=base,
        sizes=study.by_depth([1, 2, 3, 4, 6], aspect=16, head_dim=8),  # {name: {"model.n_layers": ...}}
        budgets=(4e10, 1.2e11, 4e11, 1.2e12),  # exact FLOPs of a run
        seeds=(0, 1),
        learning_rate=study.tuned([2e-3, 4e-3, 8e-3, 16e-3], budget=1.2e11),
        warmup=study.recipes.warmup_fraction(0.05),
        targets=(study.Target(study.by_depth([8], aspect=16, head_dim=8), 5e12),),
    )
