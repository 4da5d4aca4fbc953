"""The drawings of a road's page."""

import pathlib

from gptjax.pages.palette import BLUE, VERMILION
from gptjax.rundir import metrics
from gptjax.study.pictures import style

GOLD = "exact"  # of rl.rewards: what is logged and not learnt from
MODEL = "score"


def rollouts(run: pathlib.Path) -> list[dict]:
    """The rows of a run whose rewards are both logged."""
    file = run / "metrics.jsonl"
    rows = metrics.read_metrics(file, "rollout") if file.exists() else []
    return [row for row in rows if f"reward/{GOLD}" in row and f"reward/{MODEL}" in row]


def optimisation(rows: list[dict]) -> bytes:
    """SVG: what the policy was trained on, and what it was meant for, by step and by divergence."""
    with style.settings():
        figure, axes = style.figure(columns=2, rows=2, height=4.2, sharex="col")
        for column, (name, label) in enumerate((("step", "step"), ("kl", "KL from the start (nats per answer)"))):
            rows_here = sorted(rows, key=lambda row: row[name])
            x = [row[name] for row in rows_here]
            for place, reward, colour in ((0, MODEL, BLUE), (1, GOLD, VERMILION)):
                axes[place, column].plot(x, [row[f"reward/{reward}"] for row in rows_here], ".-", color=colour)
            axes[1, column].set_xlabel(label)
        axes[0, 0].set_ylabel("score of the reward model")
        axes[1, 0].set_ylabel("share of right answers")
        axes[1, 0].set_ylim(bottom=0)
        axes[1, 1].set_ylim(bottom=0)
        return style.svg(style.Picture("optimisation", "", figure))
