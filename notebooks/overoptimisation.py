"""What configs/studies/overoptimisation.py needs, and the curve that comes out of it.

    python notebooks/overoptimisation.py proxies             runs/proxy_N, a reward model of each number of comparisons
    python notebooks/overoptimisation.py curve STUDY         a table; --picture=FILE draws it (pip install 'gptjax[study]')

A comparison is a sum with two answers, both off by -3 to 3 as the start answers, of which exactly one is right, and which one is
known: the gold reward without an error. The comparisons of a smaller proxy are the first of a larger one's.
"""

import argparse
import json
import math
import pathlib
import random
import subprocess
import sys

from gptjax.posttrain.problems import problem

COMPARISONS, FARTHEST, BINS = (30, 120, 480), 3, 8
SHAPE = {"context_length": 16, "n_layers": 2, "d_model": 64, "n_heads": 4, "dtype": "float32", "scan_unroll": 2}


def comparisons(count: int) -> list[dict]:
    drawn, made = random.Random(0), []
    while len(made) < count:
        a, b = drawn.randrange(10), drawn.randrange(10)
        prompt, right = f"{a}+{b}=", a + b
        wrong = abs(right + drawn.randint(-FARTHEST, FARTHEST))
        if wrong != right and not problem.is_held_out(prompt):
            made.append({"prompt": prompt, "chosen": str(right), "rejected": str(wrong)})
    return made


def proxies() -> None:
    folder = pathlib.Path("runs")
    for count in COMPARISONS:
        pairs = folder / f"comparisons_{count}.jsonl"
        pairs.write_text("".join(json.dumps(one) + "\n" for one in comparisons(count)))
        config = {
            "model": SHAPE | {"task_head": "score"},
            "data": {"source": f"jsonl:{pairs}", "chat": "gptjax", "preferences": "compared", "tokenizer": "bytes"}
            | {"val_fraction": 0.1, "val_split": "tail"},
            "optim": {"peak_lr": 1e-3, "warmup_steps": 10, "final_lr_fraction": 0.0},
            "train": {"steps": 150, "batch_size": 16, "log_every": 50, "loss": "reward", "tensorboard": False}
            | {"start_from": "runs/rl_base"},
            "checkpoint": {"every_steps": None},
            "eval": {"every_steps": None},
        }
        file = folder / f"proxy_{count}.json"
        file.write_text(json.dumps(config, indent=2))
        command = [sys.executable, "-m", "gptjax", "train", f"--config={file}", f"--workdir={folder}/proxy_{count}"]
        subprocess.run(command, check=True)


def iterations(run: pathlib.Path) -> list[dict]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "rollout"]


def curves(study: pathlib.Path) -> dict[str, list[dict]]:
    """{name of a run: its iterations}"""
    plan = json.loads((study / "study.json").read_text())
    return {run["name"]: iterations(study / "runs" / run["key"]) for run in plan["runs"]}


def binned(rows: list[dict]) -> list[tuple[float, float, float, float]]:
    """(square root of the KL, proxy, gold, standard error of gold) of as many iterations after one another."""
    size, made = math.ceil(len(rows) / BINS), []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        mean = lambda name: sum(row[name] for row in part) / len(part)  # noqa: B023, E731
        gold, answers = mean("reward/numeric"), len(part) * 128
        error = math.sqrt(gold * (1 - gold) / answers)
        made.append((math.sqrt(max(mean("kl"), 0)), mean("reward/score"), gold, error))
    return made


def curve(study: pathlib.Path, picture: str | None) -> None:
    made = {name: binned(rows) for name, rows in curves(study).items()}
    for name, points in made.items():
        print(f"\n| {name}: sqrt(KL) | proxy | gold |\n|---|---|---|")
        for root, proxy, gold, error in points:
            print(f"| {root:.2f} | {proxy:+.2f} | {gold:.3f} +- {error:.3f} |")
    if picture is not None:
        draw(made, picture)


def draw(made: dict, picture: str) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    for name, points in made.items():
        roots, proxies, golds, errors = zip(*points)
        left.plot(roots, proxies, marker="o", label=name.partition("-")[0])
        right.errorbar(roots, golds, errors, marker="o", label=name.partition("-")[0])
    left.set(xlabel="square root of the KL from the start, nats per answer", ylabel="proxy: score of the reward model")
    right.set(xlabel="square root of the KL from the start, nats per answer", ylabel="gold: share of right answers")
    right.legend(frameon=False)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("proxies", "curve"))
    parser.add_argument("study", nargs="?", type=pathlib.Path)
    parser.add_argument("--picture")
    options = parser.parse_args()
    if options.what == "proxies":
        proxies()
    elif options.study is None:
        parser.error("curve needs the folder of a study")
    else:
        curve(options.study, options.picture)


if __name__ == "__main__":
    main()
