"""Rows are arithmetic: every window once an epoch, on any number of hosts; every held-out token predicted once."""

import math
import threading
import time

import numpy as np
import pytest

from gptjax.data.pipeline import EvalRows, Prefetcher, TrainRows, permute, row_hashes
from gptjax.data.store import Tokens
from gptjax.errors import UserError


def make_tokens(n: int, document_start=(0,)) -> Tokens:
    """Token i is i, so that a row shows where it was cut."""
    return Tokens(np.arange(n, dtype=np.uint32), np.array(document_start, np.int64), byte_count=n)


# ---- the permutation


@pytest.mark.parametrize("n", [*range(1, 34), 63, 64, 65, 255, 256, 257, 1000, 4096, 4097, 20_011])
def test_permute_takes_every_index_to_another_place(n):
    for seed, epoch in ((0, 0), (0, 1), (2**40, 7)):
        assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


def test_permute_has_the_values_it_always_had():
    assert permute(np.arange(10), 10, 0, 0).tolist() == [5, 4, 2, 7, 0, 9, 8, 6, 1, 3]
    assert permute(np.arange(10), 10, 0, 1).tolist() == [4, 1, 0, 6, 8, 9, 2, 7, 5, 3]
    large = permute(np.arange(3) * 10**11, 10**12, 7, 3)
    assert large.tolist() == [663178336296, 955756586959, 453002467331]


def test_permute_takes_one_epoch_per_index():
    epoch = np.array([0, 1, 0, 5])
    together = permute(np.array([3, 3, 4, 4]), 100, 1, epoch)
    assert together.tolist() == [int(permute(i, 100, 1, e)) for i, e in zip([3, 3, 4, 4], epoch)]


@pytest.mark.parametrize("n", [2, 3, 5, 16, 100])
def test_permute_sends_each_index_everywhere_equally_often(n):
    draws = 20_000
    index = np.tile(np.arange(n), draws)
    count = np.zeros((n, n))
    np.add.at(count, (index, permute(index, n, 0, np.repeat(np.arange(draws), n))), 1)
    expected = draws / n
    degrees = (n - 1) ** 2
    chi2 = ((count - expected) ** 2 / expected).sum()
    assert abs(chi2 - degrees) < 5 * math.sqrt(2 * degrees)


def test_permute_of_neighbours_is_unrelated():
    n = 50_000
    p = permute(np.arange(n), n, 0, 0)
    assert abs(np.corrcoef(p[:-1], p[1:])[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(p, np.arange(n))[0, 1]) < 5 / math.sqrt(n)


# ---- training rows


@pytest.mark.parametrize("n_tokens, length", [(1000, 16), (33, 16), (32, 16), (31, 16), (17, 16), (50, 1), (4097, 64)])
def test_an_epoch_covers_every_window_once(n_tokens, length):
    rows = TrainRows(make_tokens(n_tokens), length, seed=3, mask_documents=False)
    n = rows.rows_per_epoch
    for epoch in range(5):
        token_BT = rows.rows(epoch * n, (epoch + 1) * n)["token_BT"]
        start_B = np.sort(token_BT[:, 0])
        assert np.array_equal(token_BT, token_BT[:, :1] + np.arange(length + 1))
        assert np.array_equal(np.diff(start_B), np.full(n - 1, length))
        assert 0 <= start_B[0] and start_B[-1] + length < n_tokens < (n + 2) * length


def test_a_small_text_is_cut_at_every_offset_and_no_token_is_never_seen():
    rows = TrainRows(make_tokens(100), 8, seed=0, mask_documents=False)
    start_B = rows.row_ids(0, rows.rows_per_epoch * 200)
    assert set(start_B % 8) == set(range(8))
    assert set(rows.rows(0, 2000)["token_BT"].ravel()) == set(range(100))


@pytest.mark.parametrize("mask_documents", [False, True])
def test_rows_are_the_same_however_they_are_split(mask_documents):
    rows = TrainRows(make_tokens(500, [0, 7, 100, 101]), 8, seed=5, mask_documents=mask_documents)
    first = rows.rows_per_epoch - 4  # the rows span two epochs
    whole = rows.rows(first, first + 8)
    parts = rows.rows(first, first + 3), rows.rows(first + 3, first + 8)
    for key, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([part[key] for part in parts]))
    again = TrainRows(make_tokens(500, [0, 7, 100, 101]), 8, seed=5, mask_documents=mask_documents)
    np.testing.assert_array_equal(again.row_ids(first, first + 8), whole["token_BT"][:, 0])


def test_rows_have_the_order_they_always_had():
    rows = TrainRows(make_tokens(1000), 16, seed=1, mask_documents=False)
    assert rows.rows_per_epoch == 61
    assert rows.row_ids(59, 67).tolist() == [239, 975, 534, 54, 630, 662, 902, 326]


def test_another_seed_and_another_epoch_give_another_order():
    n = TrainRows(make_tokens(1000), 16, 0, False).rows_per_epoch
    zero, one = (TrainRows(make_tokens(1000), 16, seed, False) for seed in (0, 1))
    assert not np.array_equal(zero.row_ids(0, n), one.row_ids(0, n))
    assert not np.array_equal(zero.row_ids(0, n), zero.row_ids(n, 2 * n))


def test_without_masking_a_batch_has_tokens_and_weights_of_one():
    batch = TrainRows(make_tokens(100, [0, 50]), 8, 0, False).rows(0, 4)
    assert set(batch) == {"token_BT", "weight_BL"}
    assert batch["token_BT"].shape == (4, 9) and batch["token_BT"].dtype == np.int32
    assert batch["weight_BL"].shape == (4, 8) and batch["weight_BL"].dtype == np.float32
    assert (batch["weight_BL"] == 1).all()


def test_documents_are_masked_as_worked_by_hand():
    # Documents of 3, 1 and 5 tokens, and the whole text as one row that has lost its first token or none.
    rows = TrainRows(make_tokens(9, [0, 3, 4]), 7, seed=0, mask_documents=True)
    by_start = {int(row["token_BT"][0, 0]): row for row in (rows.rows(g, g + 1) for g in range(20))}
    assert set(by_start) == {0, 1}
    row = by_start[0]
    assert row["segment_BT"].tolist() == [[0, 0, 0, 1, 2, 2, 2, 2]]
    assert row["position_BL"].tolist() == [[0, 1, 2, 0, 0, 1, 2]]
    assert row["weight_BL"].tolist() == [[1, 1, 0, 0, 1, 1, 1]]
    row = by_start[1]
    assert row["segment_BT"].tolist() == [[0, 0, 1, 2, 2, 2, 2, 2]]
    assert row["position_BL"].tolist() == [[0, 1, 0, 0, 1, 2, 3]]
    assert row["weight_BL"].tolist() == [[1, 0, 0, 1, 1, 1, 1]]
    dtypes = {key: array.dtype for key, array in row.items()}
    assert dtypes["segment_BT"] == dtypes["position_BL"] == np.int32 and dtypes["weight_BL"] == np.float32


def test_too_little_text_for_a_row_is_refused_with_the_numbers():
    with pytest.raises(UserError, match="has 16 tokens, but a row of model.context_length=16 needs 17"):
        TrainRows(make_tokens(16), 16, 0, False)


# ---- held-out rows


def predicted(rows: EvalRows, batch_size: int) -> list[int]:
    """The targets of weight 1, as a loop over batches sees them."""
    found = []
    for first in range(0, rows.num_rows, batch_size):
        batch = rows.rows(first, first + batch_size)
        assert batch["token_BT"].shape[0] == batch_size
        found += batch["token_BT"][:, 1:][batch["weight_BL"] > 0].tolist()
    return found


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 16, 17, 18, 100])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_held_out_token_but_the_first_is_predicted_once(n_tokens, batch_size):
    rows = EvalRows(make_tokens(n_tokens), np.ones(n_tokens), 8, mask_documents=False)
    assert rows.num_rows == math.ceil((n_tokens - 1) / 8)
    assert predicted(rows, batch_size) == list(range(1, n_tokens))


def test_every_held_out_token_has_the_token_before_it_as_input():
    batch = EvalRows(make_tokens(30), np.ones(30), 8, False).rows(0, 4)
    inside = batch["weight_BL"] > 0
    np.testing.assert_array_equal(batch["token_BT"][:, :-1][inside] + 1, batch["token_BT"][:, 1:][inside])


def test_max_tokens_limits_what_is_predicted():
    rows = EvalRows(make_tokens(100), np.ones(100), 8, False, max_tokens=11)
    assert rows.num_rows == 2 and predicted(rows, 2) == list(range(1, 12))
    assert predicted(EvalRows(make_tokens(100), np.ones(100), 8, False, max_tokens=1000), 2) == list(range(1, 100))


def test_held_out_bytes_are_those_of_the_predicted_tokens():
    token_bytes = np.arange(20) % 5
    rows = EvalRows(make_tokens(20), token_bytes, 8, False)
    assert rows.byte_count(0, 4).tolist() == [*(token_bytes[a:b].sum() for a, b in ((1, 9), (9, 17), (17, 20))), 0]
    masked = EvalRows(make_tokens(20, [0, 3]), token_bytes, 8, True)
    assert masked.byte_count(0, 4).sum() == token_bytes[1:].sum() - token_bytes[3]


def test_masked_held_out_rows_predict_all_but_first_tokens_and_pad_in_range():
    rows = EvalRows(make_tokens(30, [0, 5, 6, 24]), np.ones(30), 8, mask_documents=True)
    assert predicted(rows, 3) == [t for t in range(1, 30) if t not in (5, 6, 24)]
    batch = rows.rows(0, 9)
    assert (batch["position_BL"] >= 0).all() and (batch["position_BL"] < 8).all()
    assert (np.diff(batch["segment_BT"], axis=1) >= 0).all() and (batch["segment_BT"][:, 0] == 0).all()


def test_held_out_text_without_a_token_to_predict_is_refused():
    with pytest.raises(UserError, match="held-out text has 1 tokens"):
        EvalRows(make_tokens(1), np.ones(1), 8, False)


# ---- reading ahead


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetched_values_come_in_order_from_the_start_step(prefetch):
    with Prefetcher(lambda step: step * 10, 7, prefetch) as values:
        assert [values.next() for _ in range(20)] == [step * 10 for step in range(7, 27)]


def test_the_prefetcher_reads_ahead_that_far_and_no_further():
    called = []
    with Prefetcher(called.append, 0, 3) as values:
        values.next()
        deadline = time.monotonic() + 5
        while len(called) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert called == [0, 1, 2, 3]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exception_is_raised_where_its_value_was_due_and_the_thread_ends(prefetch):
    def value(step):
        if step == 2:
            raise OSError("disk")
        return step

    before = threading.active_count()
    values = Prefetcher(value, 0, prefetch)
    assert [values.next(), values.next()] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        values.next()
    with pytest.raises(AssertionError, match="closed"):
        values.next()
    assert threading.active_count() == before


def test_close_ends_the_thread_and_drops_what_was_not_begun():
    before, called = threading.active_count(), []
    values = Prefetcher(lambda step: (time.sleep(0.05), called.append(step)), 0, 50)
    values.close()
    values.close()
    assert len(called) <= 2 and threading.active_count() == before


def test_the_sum_of_row_hashes_knows_every_row_and_its_place_and_no_order_of_reading():
    token_BT = np.random.default_rng(0).integers(0, 50257, (12, 17), dtype=np.int32)
    whole = row_hashes(token_BT, 100).sum()
    assert np.concatenate([row_hashes(token_BT[7:], 107), row_hashes(token_BT[:7], 100)]).sum() == whole
    others = {row_hashes(token_BT, 101).sum(), row_hashes(token_BT[:11], 100).sum()}
    others.add(row_hashes(token_BT[[1, 0, *range(2, 12)]], 100).sum())  # two rows in each other's place
    others.add(row_hashes(token_BT[[0, 0, *range(2, 12)]], 100).sum())  # a row read twice
    for changed in (
        token_BT + (np.arange(17) == 16),
        token_BT[:, ::-1],
        np.where(token_BT == token_BT[3, 5], 0, token_BT),
    ):
        others.add(row_hashes(changed, 100).sum())
    assert whole not in others and len(others) == 7
