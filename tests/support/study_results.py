"""Results of a study whose truth is known, in the form of `gptjax study fit --json`: Besiroglu's law, a little noise."""

import numpy as np

from gptjax.study.fits.laws import ParametricLaw

LAW = ParametricLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024
NAMES = ("E", "A", "B", "alpha", "beta", "a", "b")
NOISE = 0.003


def around(value: float, share: float) -> list[float]:
    return [value * (1 - share), value * (1 + share)]


def points(budgets=(1e18, 3e18, 1e19, 1e20), sizes: int = 5, seeds: int = 2) -> list[dict]:
    rng, made = np.random.default_rng(0), []
    for budget in budgets:
        best = LAW.optimum(budget)
        for size, ratio in enumerate(np.geomspace(1 / 6, 6, sizes)):
            for seed in range(seeds):
                params = best.params * ratio
                tokens = budget / 6 / params
                made.append(
                    {
                        "run": f"C{budget:.0e}-N{size}-seed{seed}",
                        "key": f"{len(made):012x}",
                        "params": params,
                        "params_non_embedding": params,
                        "params_total": params * 1.1,
                        "tokens": tokens,
                        "flops": budget,
                        "steps": round(tokens / 2**19),
                        "batch_size": 2**19,
                        "learning_rate": 3e-4,
                        "loss": float(LAW.loss(params, tokens) * np.exp(NOISE * rng.standard_normal())),
                        "seed": seed,
                        "status": "done",
                    }
                )
    return made


def vertices(made: list[dict]) -> list[dict]:
    """A parabola a budget; the largest budget's is turned upside down and refused."""
    optima, budgets = [], sorted({point["flops"] for point in made})
    for budget in budgets:
        group = [point for point in made if point["flops"] == budget]
        log_N = np.log([point["params"] for point in group])
        c2, c1, c0 = np.polyfit(log_N, [point["loss"] for point in group], 2)
        params = float(np.exp(-c1 / (2 * c2)))
        refused = None if budget < max(budgets) else "vertex at the edge of the window"
        optima.append(
            {
                "flops": budget,
                "params": params,
                "tokens": budget / 6 / params,
                "loss": float(c0 - c1**2 / (4 * c2)),
                "curvature": float(c2),
                "coefficients": [float(c0), float(c1), float(c2)],
                "window": [float(np.exp(log_N.min())), float(np.exp(log_N.max()))],
                "sizes": [float(np.exp(log_N.min())), float(np.exp(log_N.max()))],
                "n_points": len(group),
                "n_sizes": len(set(log_N)),
                "n_outside": 0,
                "widened": False,
                "residual": 0.0123,
                "seed_deviation": 0.0078,
                "refused": refused,
                "interval80": {"params": around(params, 0.06), "tokens": around(budget / 6 / params, 0.06)},
                "interval95": {"params": around(params, 0.1), "tokens": around(budget / 6 / params, 0.1)},
            }
        )
    return optima


def parametric(made: list[dict], refused=()) -> dict:
    constants = {name: getattr(LAW, name) for name in NAMES}
    optima = []
    for budget in np.geomspace(1e18, 1e22, 9):
        best = LAW.optimum(budget)
        numbers = {"params": best.params, "tokens": best.tokens, "loss": best.loss}
        optima.append(
            {
                "flops": float(budget),
                **numbers,
                "interval80": {k: around(v, 0.003 if k == "loss" else 0.07) for k, v in numbers.items()},
                "interval95": {k: around(v, 0.005 if k == "loss" else 0.12) for k, v in numbers.items()},
            }
        )
    held = [
        {**point, "predicted": float(LAW.loss(point["params"], point["tokens"]))}
        for point in made
        if point["flops"] >= 1e20
    ]
    for one in held:
        one["interval80"], one["interval95"] = around(one["predicted"], 0.003), around(one["predicted"], 0.005)
    return {
        **constants,
        "objective": 0.0123,
        "delta": 1e-3,
        "starts": 100,
        "starts_at_optimum": 97,
        "converged": True,
        "replicates": 1000,
        "points_used": len(made),
        "refused": list(refused),
        "interval80": {name: around(value, 0.02) for name, value in constants.items()},
        "interval95": {name: around(value, 0.04) for name, value in constants.items()},
        "correlation": {one: {other: 1.0 if one == other else 0.5 for other in NAMES[:5]} for one in NAMES[:5]},
        "optima": optima,
        "holdout_error": 0.0042,
        "holdout": {"above_flops": 1e20, "points": held},
        "sensitivity": [
            {"change": f"change <{i}>", "points_used": 60 - i, **{k: v * (1 + 0.01 * i) for k, v in constants.items()},
             "refused": ["E is not identified"] if i == 3 else []}
            for i in range(6)
        ],
    }  # fmt: skip


def results(**changed) -> dict:
    """Everything a report can show; `changed` replaces keys at the top."""
    made = points()
    accepted = vertices(made)
    sizes = sorted({point["params"] for point in made})[::9]
    whole = {
        "study": "a <b>ladder</b> & more",
        "command": "gptjax study fit OUT --report=OUT/report --holdout=1e20",
        "date": "2026-11-25",
        "versions": {"gptjax": "0.1.0", "numpy": np.__version__},
        "conventions": {"params": "non_embedding", "flops": "6n"},
        "notes": ["flops were not given: C = 6 N D <filled>"],
        "points": made,
        "points_excluded": [{"run": "w8-C1e18", "reason": "diverged at step 100 <nan>", "params": 1e6, "tokens": 2e7}],
        "parametric": parametric(made),
        "isoflop": {"a": 0.512, "b": 0.488, "N_scale": 0.09, "D_scale": 1.8, "points_used": 70, "refused": [],
                    "window": None, "window_fits": True, "residual": 0.004, "sensitivity": [],
                    "optima": accepted, "interval80": {"a": [0.5, 0.52]}, "interval95": {"a": [0.49, 0.53]}},
        "seed_noise": {"standard_deviation": 0.008, "relative": 0.003, "groups": 35, "runs": 70},
        "learning_rate": {"sizes": [
            {"params": size, "best": 1e-3 / 2**i, "sensitivity": 0.012 * (i + 1), "loss_at_init": 11.0, "points": [
                {"learning_rate": 1e-3 * 2.0**k, "loss": None if k > 2 else 3.5 - 0.1 * i + 0.01 * (k + i) ** 2, "diverged": k > 2}
                for k in range(-4, 4)]}
            for i, size in enumerate(sizes)]},
        "curves": [
            {"run": point["run"], "params": point["params"], "flops": (6 * point["params"] * tokens).tolist(),
             "tokens": tokens.tolist(), "loss": LAW.loss(point["params"], tokens).tolist()}
            for point in made[::2] for tokens in [np.geomspace(point["tokens"] / 30, point["tokens"], 20)]],
        "loss_to_loss": {"x": "wikipedia", "y": "books", "points": [
            {"run": point["run"], "x": point["loss"], "y": 0.3 + 1.05 * point["loss"]} for point in made]},
        "prediction": [
            {"run": "target", "params": 2e9, "tokens": 8e10, "flops": 9.6e20, "loss": 2.3456, "interval80": [2.33, 2.36],
             "interval95": [2.32, 2.37], "outcome": 2.3521},
            {"run": "later", "params": 4e9, "tokens": 8e10, "flops": 1.9e21, "loss": 2.2456, "interval80": [2.23, 2.26],
             "interval95": [2.22, 2.27], "outcome": None}],
        "verdict": {"headline": True, "text": "The parametric law stands.", "reasons": ["Held-out error is 0.42%."],
                    "standing": ["parametric", "isoflop"]},
    }  # fmt: skip
    return {**whole, **changed}
