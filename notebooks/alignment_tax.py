"""The alignment tax in small: how much worse PPO makes a model at text, with and without text beside it.

    python notebooks/alignment_tax.py DIR [STEPS [SEEDS]]

A byte model of configs/ppo_quickstart.py's size reads the Shakespeare that ships with gptjax, without every tenth paragraph,
and among it sums with rough answers (configs/rl/sums.jsonl, each SUMS times). From there PPO learns for STEPS steps (640 if
nothing is said), for each of SEEDS seeds (3), to answer sums right; once by rewards alone, and once with rows of the same text
in the same steps (ptx_coef=COEF; Ouyang et al. 2022, equation 2). Both of a pair have one seed and see the same prompts.

    DIR/data/      the text and what is held out      DIR/runs/      the runs
    DIR/results.json      the loss of the held-out text behind each run, and its last rewards

Killed and started again, it goes on where it stopped. Hardware: two CPU cores, 6 minutes.
"""

import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUMS, COEF = 20, 1.0
SHAPE = {"context_length": 32, "n_layers": 2, "d_model": 64, "n_heads": 4, "dtype": "float32", "scan_unroll": 2}
QUIET = {"checkpoint": {"every_steps": 640}, "eval": {"every_steps": None}}


def gptjax(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "gptjax", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def train(folder: pathlib.Path, name: str, config: dict) -> str:
    """The directory of the run, trained or found."""
    (folder / f"{name}.json").write_text(json.dumps(config, indent=2))
    gptjax("train", f"--config={folder}/{name}.json", f"--workdir={folder}/runs/{name}")
    return f"{folder}/runs/{name}"


def write_data(folder: pathlib.Path) -> None:
    """text.jsonl (to learn from), plays.jsonl (of it, what is no sum) and held_out.jsonl."""
    plays = [file.read_text() for file in sorted((ROOT / "gptjax" / "data" / "corpus").glob("*.txt"))]
    paragraphs = [part for play in plays for part in play.split("\n\n") if part.strip()]
    sums = [json.loads(line) for line in (ROOT / "configs" / "rl" / "sums.jsonl").read_text().splitlines()]
    learnt = [text for i, text in enumerate(paragraphs) if i % 10]
    parts = {
        "plays": learnt,
        "text": learnt + [one["prompt"] + one["completion"] for one in sums] * SUMS,
        "held_out": paragraphs[::10],
    }
    for name, texts in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def pretrained(folder: pathlib.Path) -> str:
    config = {
        "model": SHAPE,
        "data": {"source": f"jsonl:{folder}/data/text.jsonl", "tokenizer": "bytes", "cache_dir": f"{folder}/cache"}
        | {"packing": "best_fit", "val_split": "document", "val_fraction": 0.01},
        "optim": {"peak_lr": 3e-3, "warmup_steps": 20, "final_lr_fraction": 0.1},
        "train": {"steps": 1500, "batch_size": 64, "log_every": 100, "tensorboard": False},
    }
    return train(folder, "pretrained", config | QUIET)


def reinforced(folder: pathlib.Path, base: str, steps: int, seed: int, with_text: bool) -> str:
    coef = COEF if with_text else 0.0
    config = {
        "model": SHAPE | {"critic": "shared"},
        "data": {"tokenizer": "bytes", "packing": "best_fit", "cache_dir": f"{folder}/cache", "seed": seed},
        "optim": {"peak_lr": 5e-4, "schedule": "linear", "warmup_steps": 40, "final_lr_fraction": 0.1}
        | {"weight_decay": 0.0},
        "train": {"steps": steps, "batch_size": 128, "steps_per_call": 8, "log_every": 80, "start_from": base}
        | {"loss": f"ppo(value_coef=0.1, ptx_coef={coef})", "seed": seed, "tensorboard": False},
        "rl": {"prompts": "arithmetic(digits=1)", "problems": 1000, "rewards": "numeric", "group": 1, "max_tokens": 4}
        | {"epochs": 4, "advantage": "gae", "kl_coef": 0.01}
        | ({"ptx": f"jsonl:{folder}/data/plays.jsonl", "ptx_rows": 64} if with_text else {}),
    }
    return train(folder, f"ppo-{'with' if with_text else 'without'}-text-{seed}", config | QUIET)


def text_loss(folder: pathlib.Path, run: str) -> float:
    """Nats per byte of the held-out paragraphs."""
    data = f"--data=jsonl:{folder}/data/held_out.jsonl"
    return json.loads(gptjax("eval", f"--workdir={run}", data, "--max_tokens=65536", "--json"))["loss"]


def last_reward(run: str, iterations: int = 5) -> float:
    rows = [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()]
    return statistics.mean(row["reward"] for row in [row for row in rows if row["kind"] == "rollout"][-iterations:])


def mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} +- {error:.4f}"


def main() -> None:
    folder = pathlib.Path(sys.argv[1]).absolute()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    steps, seeds = (int(word) for word in [*sys.argv[2:], *("640", "3")[len(sys.argv) - 2 :]])
    write_data(folder / "data")
    base = pretrained(folder)
    results = {"pretrained": text_loss(folder, base), "ppo": []}
    for seed in range(seeds):
        for with_text in (False, True):
            run = reinforced(folder, base, steps, seed, with_text)
            one = {"seed": seed, "with_text": with_text, "loss": text_loss(folder, run), "reward": last_reward(run)}
            results["ppo"].append(one)
            (folder / "results.json").write_text(json.dumps(results, indent=2))
    print("\n".join(table(results)))


def table(results: dict) -> list[str]:
    """Each number as the mean over seeds with its standard error."""
    rises, lines = {}, [f"loss of text before, nats per byte: {results['pretrained']:.4f}"]
    for with_text in (False, True):
        runs = [one for one in results["ppo"] if one["with_text"] == with_text]
        rises[with_text] = [one["loss"] - results["pretrained"] for one in runs]
        reward = mean_and_error([one["reward"] for one in runs])
        name = "with" if with_text else "without"
        lines.append(f"PPO {name} text: rise {mean_and_error(rises[with_text])}, reward {reward}")
    spared = [without - with_ for without, with_ in zip(rises[False], rises[True])]
    return [*lines, f"spared by text, in pairs of one seed: {mean_and_error(spared)}"]


if __name__ == "__main__":
    main()
