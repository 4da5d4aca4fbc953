"""Statistics computed from tables of documents are those of counting every token of every row, slowly."""

import collections
import dataclasses

import numpy as np
import pytest

from gptjax import schedule
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.looking import statistics
from gptjax.data.rows import objectives
from gptjax.data.rows.packing import BestFitRows, ConcatRows, plan_rows
from gptjax.data.rows.pipeline import TrainRows
from gptjax.data.tokenizers import train_tokenizer
from gptjax.data.tokens.folder import TextStore
from gptjax.data.tokens.shards import MemoryShard, Tokens
from gptjax.data.tokens.store import TokenStore

LENGTHS = {
    "short": [3, 1, 9, 2, 40, 17, 18, 5, 5, 1, 33, 2, 8],
    "long": [100, 16, 70, 17, 1, 15, 64, 31, 2, 90],
}
BYTES = 3  # of a document, times its number


def tokens_of(lengths: list[int], n_shards: int = 2) -> Tokens:
    parts = [part for part in np.array_split(np.array(lengths), n_shards) if len(part)]
    shards = [
        MemoryShard(np.arange(part.sum()), np.cumsum(part) - part, BYTES * np.arange(1, len(part) + 1))
        for part in parts
    ]
    return Tokens(shards, sum(int(shard.document_bytes.sum()) for shard in shards))


@pytest.fixture(params=["concat", "concat, documents apart", "best_fit"])
def config(request, tmp_path):
    packing, _, apart = request.param.partition(",")
    data = DataConfig(
        packing=packing,
        mask_documents=bool(apart),
        mixture={"short": "a.txt", "long": "b.txt"},
        weights={"short": 1.0, "long": 2.0},
        weight_stages=((20 * 16, {"short": 3.0, "long": 1.0}), (10**9, {"short": 0.0, "long": 1.0})),
        tokenizer="bytes",
        cache_dir=str(tmp_path),
    )
    train = TrainConfig(steps=11, batch_size=8, batch_ramp_start=2, batch_ramp_increment=2, batch_ramp_tokens=400)
    return Config(model=ModelConfig(context_length=16, n_layers=1, d_model=8, n_heads=1), data=data, train=train)


@pytest.fixture
def store(config):
    sources = {
        name: TextStore(tokens_of(lengths), tokens_of([5, 6]), f"{len(lengths):x}" * 64, {}, name)
        for name, lengths in LENGTHS.items()
    }
    return TokenStore(train_tokenizer(config.data, []), sources)


@pytest.fixture
def rows(config, store):
    return TrainRows(store, config.data, 16, objectives.NextToken())


def pieces(part, ids: np.ndarray) -> list[list[tuple[int, int]]]:
    """(first token, end) of the pieces of text in each row."""
    row_P, start_P, length_P = part.spans(ids)
    return [[(int(s), int(s + n)) for s, n in zip(start_P[row_P == i], length_P[row_P == i])] for i in range(len(ids))]


def random_lengths(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 14, 9).tolist()


def check_packing(part, lengths: list[int]) -> None:
    ids = part.ids(np.arange(part.rows_per_epoch))
    batch, spans = part.rows(ids), pieces(part, ids)
    found, length = statistics.packing(part), part.row_tokens
    read = {token for row in spans for a, b in row for token in range(a, b)}
    documents = [set(range(b - n, b)) for n, b in zip(lengths, np.cumsum(lengths))]
    whole = [any(a <= min(d) and max(d) < b for row in spans for a, b in row) for d in documents]
    assert found["rows_per_epoch"] == len(ids) and found["slots"] == (length - 1) * len(ids)
    assert found["predicted"] == int(batch["weight_BL"].sum())
    assert found["efficiency"] == batch["weight_BL"].mean()
    assert found["padding"] == sum(length - sum(b - a for a, b in row) for row in spans)
    assert found["slots"] == found["predicted"] + found["document_starts"] + found["padding"]
    assert found["tokens_left_out"] == part.tokens.n_tokens - len(read)
    assert found["documents_left_out"] == sum(not d & read for d in documents)
    assert found["documents_cut"] == sum(bool(d & read) and not w for d, w in zip(documents, whole))


@pytest.mark.parametrize("seed", range(40))
def test_packing_is_what_an_epoch_of_rows_holds(seed, tmp_path):
    lengths = random_lengths(seed)
    tokens = tokens_of(lengths)
    for apart in (False, True):
        check_packing(ConcatRows(tokens, 6, seed, apart), lengths)
    check_packing(BestFitRows(tokens, 6, seed, plan_rows(tokens, 6, tmp_path / "plan")), lengths)


def test_packing_of_a_mixture_is_that_of_its_sources(config, store, rows):
    facts = statistics.statistics(config, store, rows)["sources"]
    for name, part in rows.by_source.items():
        check_packing(part, LENGTHS[name])
        assert facts[name]["packing"] == statistics.packing(part)
    assert config.data.documents_apart == (facts["short"]["packing"]["document_starts"] > 0)


@pytest.mark.parametrize("seed", range(5))
def test_tokens_of_part_of_an_epoch_are_those_of_its_rows(seed, tmp_path):
    tokens = tokens_of(random_lengths(seed))
    part = BestFitRows(tokens, 12, seed, plan_rows(tokens, 12, tmp_path / "plan"))
    for n_rows in range(3 * part.rows_per_epoch + 1):
        weight_BL = part.rows(part.ids(np.arange(n_rows)))["weight_BL"]
        assert statistics.reading(part, n_rows)["tokens_read"] == weight_BL.sum()


def test_reading_counts_every_row_of_the_run(config, rows):
    n_rows = schedule.rows_before(config, schedule.total_steps(config))
    source_B, _, id_B = rows.locate(0, n_rows)
    facts = {name: statistics.reading(part, rows.counts(n_rows)[name]) for name, part in rows.by_source.items()}
    for i, (name, part) in enumerate(rows.by_source.items()):
        epoch = np.arange(np.sum(source_B == i)) // part.rows_per_epoch
        index = np.arange(np.sum(source_B == i))
        ids = id_B[source_B == i] - (part.offsets(epoch) if config.data.packing == "concat" else 0)
        times = collections.Counter(ids.tolist())
        expected = collections.Counter(times.values())
        expected[0] = part.rows_per_epoch - len(times)
        assert {one["times"]: one["rows"] for one in facts[name]["times_read"]} == {
            k: n for k, n in expected.items() if n
        }
        spans = [sum(b - a - 1 for a, b in row) for row in pieces(part, part.ids(index))]
        assert facts[name]["tokens_read"] == sum(spans)
        per_times = collections.Counter()
        for row_id, n in dict(zip(ids.tolist(), spans)).items():
            per_times[times[row_id]] += n
        assert {one["times"]: one["tokens"] for one in facts[name]["times_read"] if one["times"]} == per_times
        assert facts[name]["rows_read_again"] == sum(n - 1 for n in times.values())
        assert facts[name]["epochs"] == len(index) / part.rows_per_epoch
    assert max(one["epochs"] for one in facts.values()) > 1.2  # else nothing is read again


def test_stages_have_the_rows_that_the_run_reads_in_them(config, store, rows):
    n_rows = schedule.rows_before(config, schedule.total_steps(config))
    first, second, never = statistics.stages(config, rows, n_rows)
    source_B, _, _ = rows.locate(0, n_rows)
    for stage, part_B, wanted in ((first, source_B[:20], (1 / 3, 2 / 3)), (second, source_B[20:], (3 / 4, 1 / 4))):
        assert stage["rows"] == len(part_B) > 0
        assert [one["rows"] for one in stage["sources"].values()] == np.bincount(part_B, minlength=2).tolist()
        assert [one["wanted"] for one in stage["sources"].values()] == pytest.approx(wanted)
        assert [one["got"] for one in stage["sources"].values()] == pytest.approx(np.bincount(part_B) / len(part_B))
    assert (first["from_tokens"], second["from_tokens"]) == (0, 320)
    assert never["rows"] == 0 and all(one["got"] is None for one in never["sources"].values())
    shares = statistics.statistics(config, store, rows)["sources"]
    assert [one["reading"]["share_of_rows"] for one in shares.values()] == (np.bincount(source_B) / n_rows).tolist()


@pytest.mark.parametrize("lengths", [*LENGTHS.values(), [7], [4, 4], [1, 2, 3, 2000]])
def test_lengths_are_those_of_numpy_with_few_documents_in_memory_and_many_long_ones(lengths, monkeypatch):
    monkeypatch.setattr(statistics, "_GROUP", 3)
    monkeypatch.setattr(statistics, "_LONG", 16)
    found = statistics.lengths(tokens_of(lengths))
    assert (found["mean"], found["median"]) == (np.mean(lengths), np.median(lengths))
    assert found["shortest"] == {"document": int(np.argmin(lengths)), "tokens": min(lengths)}
    assert found["longest"] == {"document": int(np.argmax(lengths)), "tokens": max(lengths)}
    assert found["histogram"][0]["documents"] and found["histogram"][-1]["documents"]
    assert sum(one["documents"] for one in found["histogram"]) == len(lengths)
    for one in found["histogram"]:
        inside = [n for n in lengths if one["from"] <= n <= one["to"]]
        assert (one["documents"], one["tokens"]) == (len(inside), sum(inside))


def test_a_source_without_documents_has_no_lengths():
    found = statistics.lengths(Tokens([MemoryShard([], [])]))
    assert found == {"mean": None, "median": None, "shortest": None, "longest": None, "histogram": []}


def test_text_and_held_out_text_are_counted(config, store, rows):
    short = statistics.statistics(config, store, rows)["sources"]["short"]
    n = sum(LENGTHS["short"])
    size = store.sources["short"].train.byte_count
    assert short["train"] == {"documents": 13, "tokens": n, "bytes": size, "bytes_per_token": size / n}
    assert short["held_out"]["documents"] == 2 and short["held_out"]["tokens"] == 11
    held_out = short["held_out"]["bytes"]
    assert held_out == 2 * BYTES and short["held_out"]["share_of_bytes"] == held_out / (held_out + size)


def test_the_objective_is_sampled_over_the_whole_run(config, store):
    config = config.replace(data={"objective": "prefix_lm", "packing": "concat", "mask_documents": False})
    objective = objectives.make_objective(config.data, store.tokenizer, 16)
    rows = TrainRows(store, config.data, 16, objective)
    n_rows = schedule.rows_before(config, schedule.total_steps(config))
    found = statistics.statistics(config, store, rows)["objective"]
    exact = rows.rows(0, n_rows)["weight_BL"].mean()
    assert found["sampled_rows"] == min(n_rows, 64) and 0.1 < exact < 0.9
    assert abs(found["predicted_share"] - exact) < 0.1
    few = dataclasses.replace(config, train=TrainConfig(steps=1, batch_size=5))
    sample = statistics.statistics(few, store, rows)["objective"]
    assert sample["sampled_rows"] == 5 and sample["predicted_share"] == rows.rows(0, 5)["weight_BL"].mean()
