import dataclasses
import json
import math

import judging
import numpy as np
import pytest

from gptjax.data.tokens.folder import with_end, write_manifest
from gptjax.data.tokens.shards import ShardWriter, Tokens
from gptjax.errors import UserError
from gptjax.evaluation import run_loss
from gptjax.evaluation import texts as evaluation_text


@pytest.fixture(scope="module")
def one():
    return judging.made_run()


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    file = tmp_path_factory.mktemp("book") / "book.txt"
    file.write_text(judging.random_text(0))
    return file


def hugging_faces_loop(run, ids, length: int, stride: int) -> tuple[float, int]:
    """(nats, tokens) as the documentation of transformers' "Perplexity of fixed-length models" sums them."""
    nats, tokens, end_before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        new = end - end_before
        log_probability = judging.log_probability(run, ids[begin:end])[-new:]
        nats, tokens = nats - log_probability.sum(), tokens + len(log_probability)
        end_before = end
        if end == len(ids):
            break
    return nats, tokens


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_the_loss_with_a_stride_is_that_of_hugging_faces_loop(one, book, stride):
    ids = one.tokenizer.encode(book.read_text())
    nats, tokens = hugging_faces_loop(one, ids, one.config.model.context_length + 1, stride)
    [result] = one.evaluate(f"text:{book}", stride=stride).values()
    assert result.tokens == tokens == len(ids) - 1
    assert result.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / (len(ids) - 1), rel=1e-5)


def test_a_stride_of_the_context_length_is_no_stride_bit_for_bit(one, book):
    assert one.evaluate(str(book), stride=16) == one.evaluate(str(book))
    assert one.evaluate(str(book), stride=4) != one.evaluate(str(book))


def test_documents_apart_are_judged_alone_whatever_the_stride(tmp_path):
    run = judging.made_run(apart=True)
    texts = [judging.random_text(seed, 12) for seed in range(4)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    [result] = run.evaluate(str(tmp_path / "texts.jsonl"), stride=1).values()
    nats, tokens, start = 0.0, 0, 0
    for text in texts:
        ids = run.tokenizer.encode(text)
        for t in range(1, len(ids)):  # a window that ends at each token, or the first one
            begin = max(0, start + t - 16)
            context = max(begin - start, 0) if start + t > 16 else 0
            nats -= judging.log_probability(run, ids[context : t + 1])[-1]
            tokens += 1
        start += len(ids)
    assert result.tokens == tokens
    assert result.loss == pytest.approx(nats / tokens, rel=1e-5)


def test_several_texts_are_taken_as_one_and_each(one, book, tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps({"body": judging.random_text(1, 40)}) + "\n")
    found = one.evaluate([str(book), f"second=jsonl:{tmp_path}/other.jsonl"], text_field="body", batch_size=3)
    assert list(found) == ["all", "book.txt", "second"]
    assert found["all"].tokens == found["book.txt"].tokens + found["second"].tokens
    assert found == one.evaluate(
        {"book.txt": str(book), "second": f"jsonl:{tmp_path}/other.jsonl"}, text_field="body", batch_size=3
    )


def test_max_tokens_takes_the_start_of_a_text(one, book):
    [short] = one.evaluate(str(book), max_tokens=48).values()
    nats, _ = hugging_faces_loop(one, one.tokenizer.encode(book.read_text())[:49], 17, 16)
    assert short.tokens == 48 and short.loss == pytest.approx(nats / 48, rel=1e-5)


def write_folder(folder, texts: dict[str, list[str]], tokenizer) -> None:
    """As gptjax prepare leaves it."""
    shards = {}
    for split, documents in texts.items():
        writer = ShardWriter(folder / f"{split}-00000-of-00001", np.dtype(np.uint16))
        for text in documents:
            writer.add(with_end(tokenizer.encode(text), tokenizer), len(text.encode()))
        shards[split] = {f"{split}-00000-of-00001": writer.close()}
    write_manifest(folder, {}, tokenizer, shards)


@pytest.mark.parametrize("kind", ["chars", "bytes"])
def test_of_a_prepared_folder_the_held_out_split_is_judged_whoever_tokenised_it(one, tmp_path, kind):
    held_out = [judging.random_text(seed, 20) for seed in (3, 4)]
    write_folder(tmp_path / "folder", {"train": ["abc abc"], "val": held_out}, judging.tokenizer(kind))
    (tmp_path / "same.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
    reading = run_loss.reading_of(one, f"prepared:{tmp_path}/folder")
    said = reading.convention(one)["text"]["folder"]
    assert said.startswith(f"the held-out split of {tmp_path}/folder") and ("again" in said) == (kind == "bytes")
    [folders] = run_loss.evaluate_on(one, reading).values()
    assert [folders] == list(one.evaluate(f"{tmp_path}/same.jsonl").values())


def test_documents_are_those_that_tokens_were_made_from():
    tokenizer = judging.tokenizer("bytes")
    texts = ["ab", "", "c\n d"]
    tokens = evaluation_text.tokenise(texts, tokenizer, "these")
    assert tokens.n_documents == 3 and tokens.byte_count == 6 and tokens.n_tokens == 9
    assert list(evaluation_text.documents_of(tokens, tokenizer)) == texts
    assert isinstance(tokens, Tokens)


@pytest.mark.parametrize(
    "texts, message",
    [
        (["a/x.txt", "b/x.txt"], "two texts are called 'x.txt'; name this one"),
        (["all=x.txt"], "all texts together are called 'all'"),
        (["jsnl:x"], "'jsnl' is no kind"),
    ],
)
def test_texts_that_cannot_be_told_apart_or_read_are_refused(one, texts, message):
    with pytest.raises(UserError, match=message):
        one.evaluate(texts)


def test_names_of_texts_are_short():
    specs = ["jsonl:a/b.jsonl", "hf:Salesforce/wikitext/wikitext-103-v1@test", "tfds:lm1b@test", "corpus", "x=corpus"]
    assert list(evaluation_text.named(specs)) == ["b.jsonl", "wikitext-103-v1", "lm1b", "corpus", "x"]


def test_an_empty_text_is_refused(one, tmp_path):
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(UserError, match="empty.jsonl has no text to evaluate"):
        one.evaluate(f"{tmp_path}/empty.jsonl")


def test_a_model_judged_by_itself_takes_no_stride_and_no_protocol(one, book):
    config = dataclasses.replace(one.config, data=dataclasses.replace(one.config.data, objective="prefix_lm"))
    run = dataclasses.replace(one, config=config)
    with pytest.raises(
        UserError, match="^stride=4: a model of data.objective='prefix_lm' is evaluated on whole windows"
    ):
        run.evaluate(str(book), stride=4)
    with pytest.raises(UserError, match="^protocol=ptb needs the loss of each next token"):
        run.evaluate(str(book), protocol="ptb")
