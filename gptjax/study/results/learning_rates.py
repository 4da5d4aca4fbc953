"""What tuning runs say of each size: the best learning rate, and how much a wrong one costs."""

import itertools


def curves(tuned: list[dict]) -> dict | None:
    """{"sizes": [{size, params, best, sensitivity, at_edge, points}]}; None without tuning runs.

    tuned: {size, params, tokens, learning_rate, loss, diverged, initial_loss} of each run, see study_points.py. A curve
    is of runs of one length; of several seeds the mean, diverged where one did. at_edge: the best rate is the smallest or
    largest that was tried, so that a better one may lie beyond.
    """
    tuned = sorted(tuned, key=lambda one: (*_curve(one), one["learning_rate"]))
    sizes = [_of_size([_mean(list(seeds)) for _, seeds in itertools.groupby(runs, key=lambda one: one["learning_rate"])])
             for _, runs in itertools.groupby(tuned, key=_curve)]  # fmt: skip
    names = [one["size"] for one in sizes]
    for one in sizes:
        if names.count(one["size"]) > 1:
            one["size"] = f"{one['size']}, {one['tokens']:.3g} tokens"
    return {"sizes": sizes} if sizes else None


def _curve(one: dict) -> tuple:
    return one["params"], one["size"], one["tokens"]


def _mean(seeds: list[dict]) -> dict:
    """Of runs that differ in their seed alone."""
    diverged = any(one["diverged"] for one in seeds)
    loss = None if diverged else sum(one["loss"] for one in seeds) / len(seeds)
    initial = sum(one["initial_loss"] for one in seeds) / len(seeds)
    return seeds[0] | {"loss": loss, "diverged": diverged, "initial_loss": initial}


def _of_size(runs: list[dict]) -> dict:
    rates = [one["learning_rate"] for one in runs]
    ended = [one for one in runs if not one["diverged"]]
    best = min(ended, key=lambda one: one["loss"])["learning_rate"] if ended else None
    return {
        "size": runs[0]["size"],
        "params": runs[0]["params"],
        "tokens": runs[0]["tokens"],
        "best": best,
        "at_edge": best in (rates[0], rates[-1]) and len(rates) > 1,
        "sensitivity": sensitivity([one["loss"] for one in ended], runs[0]["initial_loss"], len(runs) - len(ended)),
        "points": [{name: one[name] for name in ("learning_rate", "loss", "diverged")} for one in runs],
    }


def sensitivity(losses: list[float], initial_loss: float, diverged: int = 0) -> float | None:
    """Mean over learning rates of min(loss, initial loss), less the smallest loss (Wortsman et al. 2023, section 3.1).

    A run that diverged counts with the initial loss. None where all did.
    """
    if not losses:
        return None
    capped = [min(loss, initial_loss) for loss in losses] + [initial_loss] * diverged
    return sum(capped) / len(capped) - min(losses)
