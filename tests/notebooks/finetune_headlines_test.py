"""notebooks/finetune_headlines.py: what it makes of the package. Nothing is fetched."""

import argparse
import importlib
import itertools
import json
import sys
import zipfile

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        yield importlib.import_module("finetune_headlines")
    finally:
        sys.path.remove(str(ROOT / "notebooks"))


def line(headline: str, label: str) -> str:
    messages = [{"role": "system", "content": "Respond with 1 or 0"}, {"role": "user", "content": headline}]
    return json.dumps({"input": messages, "ideal": label}) + "\n"


@pytest.fixture(scope="module")
def rows(script, tmp_path_factory):
    """The rows of test.jsonl and of train.jsonl, of 800 headlines, one repeated and one under both labels."""
    folder = tmp_path_factory.mktemp("headlines")
    (folder / "packages").mkdir()
    lines = [line(f"news {i}", str(i % 2)) for i in range(800)]
    lines += [line("news 0", "0"), line("which is it", "0"), line("which is it", "1")]
    with zipfile.ZipFile(folder / "packages" / "evals-3.0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("evals/registry/data/sarcasm/samples.jsonl", "".join(lines))
        wheel.writestr("evals/registry/data/other-sarcasm/samples.jsonl", line("not this one", "1"))
    script.write_data(folder, labels=200)
    return [
        [json.loads(one) for one in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("test", "train")
    ]


def test_a_headline_stands_in_the_test_or_in_the_training_set_once_with_its_label(rows):
    test, train = rows
    assert (len(test), len(train)) == (600, 200)
    texts = [row["text"] for row in test + train]
    assert len(set(texts)) == len(texts)
    assert all(row["label"] == int(row["text"].removeprefix("news ")) % 2 for row in test + train)


def test_a_headline_under_both_labels_or_of_another_file_is_left_out(rows):
    texts = {row["text"] for row in itertools.chain(*rows)}
    assert not texts & {"which is it", "not this one"}


def test_more_labels_than_headlines_are_refused(script):
    with pytest.raises(SystemExit, match="--labels=28000: 27898 headlines are left beside the test"):
        script.check_enough(28_498, 28_000)


def test_lora_has_ten_times_the_rate_and_only_runs_from_the_base_start_from_it(script):
    args = argparse.Namespace(context=24, rate=1e-4, scratch_rate=5e-4, small_epochs=10)
    kinds = script.kinds({"n_layers": 3, "vocab_size": 50, "context_length": 99}, args)
    assert kinds["lora"].rate == pytest.approx(10 * kinds["pretrained"].rate)
    assert [kind.starts_from_base for kind in kinds.values()] == [True, True, False, False]
    assert kinds["scratch"].model == {"n_layers": 3, "vocab_size": None, "context_length": 24}


def test_naive_bayes_weighs_the_words_of_each_label_and_ignores_new_ones(script):
    train = [{"text": text, "label": label} for text, label in (("a b", 1), ("a c", 1), ("d b", 0), ("d c", 0))]
    test = [{"text": text, "label": label} for text, label in (("a new b", 1), ("d D new", 0), ("c d", 1))]
    assert script.naive_bayes_accuracy(train, test) == pytest.approx(2 / 3)
