import dataclasses
import math
import warnings

import jax
import numpy as np
import pytest

from gptjax.config.config_file import from_dict
from gptjax.data.rows.objectives import NextToken
from gptjax.data.tokenizers.simple import ByteTokenizer
from gptjax.data.tokens.folder import TextStore
from gptjax.data.tokens.shards import MemoryShard, Tokens
from gptjax.data.tokens.store import TokenStore
from gptjax.errors import UserError
from gptjax.evaluation import held_out
from gptjax.parallel import meshes, placement, sharding
from gptjax.training import session


def test_summary_of_hand_worked_rows():
    result = held_out.summarise(held_out.Sums([2.0, 6.0, 0.0], [1.0, 3.0, 0.0], [2, 6, 0]))
    assert result.loss == 2.0 and result.tokens == 4
    assert result.perplexity == pytest.approx(math.exp(2))
    assert result.bits_per_byte == pytest.approx(8 / math.log(2) / 8)
    assert result.standard_error == 0.0  # both rows have mean 2
    assert result.bits_per_byte_error == 0.0 and result.bytes == 8
    assert result.perplexity_interval == (result.perplexity, result.perplexity)


def test_errors_of_bits_per_byte_and_perplexity_are_hand_worked():
    """Rows of 2 and 6 nats on 1 token each, of 2 and 2 bytes: 2 nats/byte, residuals -2 and 2."""
    result = held_out.summarise(held_out.Sums([2.0, 6.0], [1.0, 1.0], [2, 2]))
    assert result.bits_per_byte_error == pytest.approx(math.sqrt((4 + 4) * 2 / 1) / 4 / math.log(2))
    assert result.standard_error == 2.0  # of the mean of 2 and 6
    assert result.perplexity_interval == pytest.approx((math.exp(4 - 1.96 * 2), math.exp(4 + 1.96 * 2)))


def test_rows_that_share_a_window_are_taken_together():
    sums = held_out.Sums(np.arange(5.0), np.ones(5), np.arange(5)).clustered(2)
    assert [a.tolist() for a in sums] == [[1, 5, 4], [2, 2, 1], [1, 5, 4]]


def test_perplexity_per_word_is_that_of_the_whole_text():
    """4 tokens of 2 nats are 8 nats, on the 4 words after the first."""
    result = held_out.summarise(held_out.Sums([4.0, 4.0], [2.0, 2.0], [1, 1]))
    assert result.word_perplexity is None and "words" not in result.as_dict()
    counted = dataclasses.replace(result, words=5)
    assert counted.word_perplexity == pytest.approx(math.exp(8 / 4)) == counted.as_dict()["word_perplexity"]


def test_standard_error_is_that_of_the_mean_for_rows_of_one_token():
    losses = np.random.default_rng(0).standard_normal(50)
    result = held_out.summarise(held_out.Sums(losses, np.ones(50), np.zeros(50)))
    assert result.standard_error == pytest.approx(losses.std(ddof=1) / math.sqrt(50))
    assert math.isnan(result.bits_per_byte)


def test_standard_error_covers_the_truth_when_rows_are_correlated():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        count = rng.integers(1, 20, size=60)
        row_mean = 3 + rng.standard_normal(60)  # tokens of a row share their row's mean
        result = held_out.summarise(held_out.Sums(count * row_mean, count, count))
        inside += abs(result.loss - 3) < 1.96 * result.standard_error
    assert 0.90 < inside / 400 < 0.98


def test_a_batch_on_the_mesh_is_the_batch_read_and_every_row_is_read_once():
    config = from_dict({"train": {"steps": 1, "batch_size": 8}, "mesh": {"fsdp": 4, "tensor": 2}})
    mesh = meshes.make_mesh(config, jax.devices())
    whole = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return {"token_BT": whole[:, start:stop]}

    batch = placement.device_batch(read, 8, sharding.batch_sharding(mesh, leading=1), dim=1)
    np.testing.assert_array_equal(batch["token_BT"], whole)
    assert sorted(reads) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_sources_taken_as_one_have_the_sums_of_all():
    rng = np.random.default_rng(0)
    sums = [held_out.Sums(rng.uniform(1, 9, n), rng.integers(1, 5, n), rng.integers(1, 99, n)) for n in (3, 1, 8)]
    whole, parts = held_out.summarise(held_out.pool(sums)), [held_out.summarise(one) for one in sums]
    assert whole.tokens == sum(part.tokens for part in parts)
    nats = sum(part.loss * part.tokens for part in parts)
    assert whole.loss == pytest.approx(nats / whole.tokens)
    assert whole.bits_per_byte == pytest.approx(nats / math.log(2) / sum(one.bytes_R.sum() for one in sums))
    assert min(part.loss for part in parts) < whole.loss < max(part.loss for part in parts)


def test_a_source_with_too_little_held_out_text_is_named():
    tokens = {n: Tokens([MemoryShard(np.zeros(n, np.int32))]) for n in (1, 50)}
    texts = {name: TextStore(tokens[50], tokens[n], "0" * 64, {}, name) for name, n in (("web", 50), ("code", 1))}
    config = from_dict({"train": {"steps": 1}})
    with pytest.raises(UserError, match="the held-out text of 'code' has 1 tokens, but predicting one takes 2"):
        session.held_out_rows(config, TokenStore(ByteTokenizer(), texts), NextToken())
    alone = TokenStore(ByteTokenizer(), {"code": texts["code"]})
    with pytest.raises(UserError, match="^the held-out text has 1 tokens, .* of gptjax prepare. or more text"):
        session.held_out_rows(config, alone, NextToken())


@pytest.mark.parametrize("count", [1, 2, 8])
def test_what_a_process_reads_of_a_batch_is_all_that_its_devices_hold(count):
    config = from_dict({"train": {"steps": 1, "batch_size": 8}, "mesh": {"fsdp": count}})
    place = sharding.batch_sharding(meshes.make_mesh(config, jax.devices()[:count]), leading=1)
    ranges = placement.local_rows(8, place, dim=1)
    assert ranges == placement.own_rows(8, place, dim=1) == tuple((a, a + 8 // count) for a in range(0, 8, 8 // count))


def test_a_perplexity_of_eighty_digits_is_shown_as_a_power_of_ten():
    hopeless = held_out.Evaluation(183.58, 0.01, 108.0, 0.01, float(np.exp(183.58)), 100, 250)
    assert f"perplexity {np.exp(183.58):.3g} [" in str(hopeless) and len(str(hopeless)) < 160


def test_a_loss_whose_perplexity_no_float_holds_is_infinite_without_a_word():
    sums = held_out.Sums(np.full(4, 8000.0), np.full(4, 8.0), np.full(4, 8.0))
    with warnings.catch_warnings(action="error"):
        found = dataclasses.replace(held_out.summarise(sums), words=5)
        assert found.loss == 1000 and found.perplexity == found.word_perplexity == math.inf
        assert found.perplexity_interval == (math.inf, math.inf) and "perplexity inf" in str(found)
