"""Whether a small reward model learns what people rated a dialogue: python notebooks/preference_ratings.py DIR [STEPS [SEEDS]]

The PyPI package chitchat-dataset 0.9.0 (MIT) has 7,168 dialogues between two people, 5,988 of them with ratings of how witty,
interesting and upbeat they were, each 1 to 10. Half of the ratings are the form's default, three times 5: they are left out.
Left are about 3,000 dialogues, whose score is the sum of the three. Of each the model reads the first 600 characters, so that
it sees little of how long the dialogue was. A fifth, by a hash of the text, is the test. Rated dialogues stand in fours, each
in one: a prompt with four answers and their scores, of which ties are no pairs.

A GPT is pretrained for STEPS steps (600 if nothing is said) of 16 x 256 tokens on the dialogues that are not in the test, then
trained as a reward model for 3 epochs, for each of SEEDS seeds (3). People who talk in the test talk elsewhere too.

    DIR/package/          the package as fetched          DIR/data/     text, train and test, as JSON lines
    DIR/runs/             the runs                        DIR/results.json

Killed and started again, it goes on where it stopped.
"""

import hashlib
import json
import pathlib
import statistics
import subprocess
import sys
import zipfile

PACKAGE, CHARACTERS, TOGETHER, TEST_SHARE = "chitchat-dataset==0.9.0", 600, 4, 0.2
DEFAULT = {"witty": 5, "interesting": 5, "upbeat": 5}
SHAPE = {
    "context_length": 256,
    "n_layers": 2,
    "d_model": 128,
    "n_heads": 4,
    "dtype": "float32",
    "residual_dropout": 0.1,
}
PROMPT = "Write a witty, interesting and upbeat dialogue."


def fetch(folder: pathlib.Path) -> list[dict]:
    package = folder / "package"
    if not list(package.glob("*.whl")):
        run("pip", "download", "--no-deps", f"--dest={package}", PACKAGE, program=(sys.executable, "-m"))
    [wheel] = package.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return list(json.loads(archive.read("chitchat_dataset/dataset.json")).values())


def text_of(dialogue: dict) -> str:
    """The beginning of a dialogue, the two people as A and B."""
    names, lines = {}, []
    for turn in dialogue["messages"]:
        for message in turn:
            name = names.setdefault(message["sender"], "AB"[min(len(names), 1)])
            lines.append(f"{name}: {' '.join(message['text'].split())}")
    return "\n".join(lines)[:CHARACTERS].rpartition(" ")[0]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_test(text: str) -> bool:
    return int(digest(f"test {text}")[:8], 16) < TEST_SHARE * 2**32


def rated(dialogues: list[dict]) -> dict[str, int]:
    """{text: sum of its ratings} of those that somebody rated, in the order of a hash."""
    of_people = [one for one in dialogues if one.get("ratings") not in (None, DEFAULT)]
    scores = {text_of(one): sum(one["ratings"].values()) for one in of_people}
    return {text: scores[text] for text in sorted(scores, key=digest) if text}


def comparisons(scores: dict[str, int]) -> list[dict]:
    """Records of so many dialogues together, each in one."""
    texts = list(scores)
    parts = [texts[i : i + TOGETHER] for i in range(0, len(texts) - TOGETHER + 1, TOGETHER)]
    records = [{"prompt": PROMPT, "completions": part, "scores": [scores[text] for text in part]} for part in parts]
    return [record for record in records if len(set(record["scores"])) > 1]


def write_data(folder: pathlib.Path) -> pathlib.Path:
    data = folder / "data"
    if (data / "test.jsonl").exists():
        return data
    data.mkdir(parents=True, exist_ok=True)
    dialogues = fetch(folder)
    scores, texts = rated(dialogues), {text_of(one) for one in dialogues}
    test = {text: score for text, score in scores.items() if is_test(text)}
    parts = {
        "text": [{"text": text} for text in sorted(texts, key=digest) if text and not is_test(text)],
        "train": comparisons({text: score for text, score in scores.items() if text not in test}),
        "test": comparisons(test),
    }
    for name, part in parts.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    return data


def run(*words: str, program=(sys.executable, "-m", "gptjax")) -> str:
    return subprocess.run([*program, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def train(folder: pathlib.Path, name: str, config: dict) -> None:
    (folder / f"{name}.json").write_text(json.dumps(config, indent=2))
    run("train", f"--config={folder}/{name}.json", f"--workdir={folder}/runs/{name}")


def pretrain(folder: pathlib.Path, data: pathlib.Path, steps: int) -> None:
    if not (folder / "tokenizer").exists():
        run("tokenizer", "train", f"--source=jsonl:{data}/text.jsonl", "--vocab_size=2048", f"--out={folder}/tokenizer")
    config = {
        "model": SHAPE,
        "data": {"path": f"{data}/text.jsonl", "tokenizer": f"{folder}/tokenizer", "cache_dir": f"{folder}/cache"}
        | {"val_split": "document", "val_fraction": 0.05},
        "optim": {"peak_lr": 3e-3, "warmup_steps": 50},
        "train": {"steps": steps, "batch_size": 16, "log_every": 50, "tensorboard": False},
        "checkpoint": {"every_steps": 200},
        "eval": {"every_steps": steps // 2},
    }
    train(folder, "pretrained", config)


def reward_model(folder: pathlib.Path, data: pathlib.Path, seed: int) -> dict:
    """What `gptjax eval` says of a run on the test."""
    name = f"reward-{seed}"
    config = {
        "model": SHAPE | {"task_head": "score"},
        "data": {"path": f"{data}/train.jsonl", "tokenizer": f"{folder}/tokenizer", "chat": "gptjax", "seed": seed}
        | {"preferences": "compared", "val_fraction": 0.1},
        "optim": {"peak_lr": 3e-4, "warmup_steps": 10},
        "train": {"epochs": 3, "batch_size": 8, "loss": "reward", "seed": seed, "tensorboard": False}
        | {"start_from": f"{folder}/runs/pretrained"},
        "checkpoint": {"every_steps": 50},
        "eval": {"every_steps": 50},
    }
    train(folder, name, config)
    return json.loads(run("eval", f"--workdir={folder}/runs/{name}", f"--data=jsonl:{data}/test.jsonl", "--json"))


def main() -> None:
    folder = pathlib.Path(sys.argv[1]).absolute()
    steps, seeds = (int(word) for word in [*sys.argv[2:], *("600", "3")[len(sys.argv) - 2 :]])
    data = write_data(folder)
    pretrain(folder, data, steps)
    results = []
    for seed in range(1, seeds + 1):
        results.append(reward_model(folder, data, seed))
        (folder / "results.json").write_text(json.dumps(results, indent=2))
    for line in table(results):
        print(line)


def table(results: list[dict]) -> list[str]:
    """Each number as the mean over seeds, with the standard error of the test's prompts and of the seeds together."""
    lines = [f"{results[0]['examples']:,} prompts of the test, {results[0]['pairs']:,} pairs, {len(results)} seeds"]
    for name in ("accuracy", "accuracy_longer", "accuracy_shorter", "chosen_longer", "ece", "length_correlation"):
        values = [each[name] for each in results]
        of_seeds = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        error = (of_seeds**2 + statistics.mean(each[f"{name}_error"] for each in results) ** 2) ** 0.5
        ahead = f", {(statistics.mean(values) - 0.5) / error:.1f} errors above chance" if name == "accuracy" else ""
        each = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"{name:<18} {statistics.mean(values):.4f} +- {error:.4f} ({each}){ahead}")
    return lines


if __name__ == "__main__":
    main()
