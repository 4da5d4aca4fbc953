"""Row g of a run: which text, which tokens, on any number of hosts. Held-out tokens are predicted once."""

import math
import threading
import time

import numpy as np
import pytest

from gptjax.config.fields import DataConfig
from gptjax.data.rows.objectives import NextToken
from gptjax.data.rows.pipeline import EvalRows, TrainRows
from gptjax.data.rows.reading import Prefetcher
from gptjax.data.tokens.folder import TextStore
from gptjax.data.tokens.shards import MemoryShard, Tokens
from gptjax.data.tokens.store import TokenStore
from gptjax.errors import UserError


def tokens_of(*lengths: int, first: int = 0) -> Tokens:
    """Documents of such lengths. Tokens count up from `first`, so that a row shows where it was cut."""
    start = np.cumsum([0, *lengths])
    return Tokens([MemoryShard(np.arange(start[-1]) + first, start[:-1])], byte_count=int(start[-1]))


def source(first: int, lengths) -> TextStore:
    """Tokens from `first` on; the fingerprint is of these alone."""
    said = f"the training text of {first}"
    return TextStore(
        tokens_of(*lengths, first=first), tokens_of(9), f"{hash((first, *lengths)) % 2**64:064x}"[::-1], {}, said
    )


LENGTHS = {"a": [40, 7, 1, 300], "b": [5] * 60, "c": [90, 30, 2, 17, 4]}
SOURCES = {name: source(1000 * i, lengths) for i, (name, lengths) in enumerate(LENGTHS.items())}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
STAGED = dict(weights=WEIGHTS, weight_stages=((90 * 8, {"a": 0.0, "b": 1.0, "c": 3.0}),))


def train_rows(tmp_path, names="abc", length=8, objective=None, **fields) -> TrainRows:
    """Of the first sources, rows of 8 tokens."""
    config = DataConfig(cache_dir=str(tmp_path), **fields)
    store = TokenStore(None, {name: SOURCES[name] for name in names})
    return TrainRows(store, config, length, objective or NextToken())


def equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)


KINDS = [dict(), dict(mask_documents=True), dict(packing="best_fit")]


# ---- training rows


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("names", ["a", "abc"])
def test_rows_are_the_same_however_they_are_split(kind, names, tmp_path):
    mixed = STAGED if names == "abc" else {}
    rows = train_rows(tmp_path, names, seed=5, **kind, **mixed)
    whole, hashes = rows.rows(60, 120), rows.hashes(60, 120)  # over several epochs and the change of weights
    assert len(whole["token_BT"]) == 60
    again = train_rows(tmp_path, names, seed=5, **kind, **mixed)
    parts = [again.rows(a, b) for a, b in ((60, 61), (61, 93), (93, 120))]
    equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})
    np.testing.assert_array_equal(hashes, np.concatenate([again.hashes(60, 77), again.hashes(77, 120)]))


def test_the_order_of_a_source_alone_is_that_of_the_seed(tmp_path):
    rows = train_rows(tmp_path, "a", seed=1)
    assert rows.rows_per_epoch == {"a": 42}
    assert rows.rows(41, 45)["token_BT"][:, 0].tolist() == [323, 266, 26, 314]
    assert (
        rows.rows(41, 45)["token_BT"][:, 0].tolist()
        != train_rows(tmp_path, "a", seed=2).rows(41, 45)["token_BT"][:, 0].tolist()
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_source_of_a_mixture_is_read_in_whole_epochs(kind, tmp_path):
    rows = train_rows(tmp_path, **kind, **STAGED)
    source_B, _, id_B = rows.locate(0, 2000)
    assert set(source_B[:90]) == {0, 1, 2} and set(source_B[90:]) == {1, 2}
    for i, n in enumerate(rows.rows_per_epoch.values()):
        ids = id_B[source_B == i]
        for first in range(0, len(ids) - n, n):
            assert len(set(ids[first : first + n])) == n, "an epoch has every row once"
    batch = rows.rows(0, 200)
    assert (batch["token_BT"][:, 0] // 1000 == source_B[:200]).all()


def test_another_source_in_the_mixture_changes_no_order_of_the_others(tmp_path):
    ids = {}
    for names in ("ab", "abc", "ca"):
        rows = train_rows(tmp_path, names, weights={name: 1.0 for name in names})
        source_B, _, id_B = rows.locate(0, 900)
        ids[names] = [id_B[source_B == names.index("a")][:200].tolist()]
    assert ids["ab"] == ids["abc"] == ids["ca"]


def test_sources_of_equal_length_are_in_orders_of_their_own(tmp_path):
    store = TokenStore(None, {"x": source(0, [800]), "y": source(1000, [800])})
    rows = TrainRows(store, DataConfig(cache_dir=str(tmp_path), weights={"x": 1.0, "y": 1.0}), 8, NextToken())
    source_B, _, id_B = rows.locate(0, 190)
    assert id_B[source_B == 0].tolist() != id_B[source_B == 1].tolist()


def test_without_weights_every_source_has_its_share_of_rows_and_is_read_once_an_epoch(tmp_path):
    rows = train_rows(tmp_path)
    n = sum(rows.rows_per_epoch.values())
    for name, epochs in rows.epochs(100 * n).items():
        assert abs(epochs - 100) < 2 / rows.rows_per_epoch[name] * 100, name


def test_epochs_are_rows_read_over_rows_there_are(tmp_path):
    rows = train_rows(tmp_path, **STAGED)
    for n in (0, 1, 89, 90, 500):
        counts = np.bincount(rows.locate(0, n)[0], minlength=3)
        assert rows.epochs(n) == {name: c / rows.rows_per_epoch[name] for name, c in zip("abc", counts)}
    assert train_rows(tmp_path, "a").epochs(21) == {"a": 0.5}


def test_weights_change_at_the_row_that_has_seen_so_many_tokens(tmp_path):
    only = lambda name: {other: float(other == name) for other in "abc"}  # noqa: E731
    stages = ((9, only("b")), (16, only("c")), (33, only("a")))  # tokens, in rows of 8
    rows = train_rows(tmp_path, weights=only("a"), weight_stages=stages)
    assert rows.locate(0, 8)[0].tolist() == [0, 0, 2, 2, 2, 0, 0, 0]


class Recording:
    """An objective that takes rows of 5 tokens and shows the keys it was given."""

    symbols = ()

    def source_tokens(self, row_tokens: int) -> int:
        return row_tokens - 4

    def __call__(self, batch, key_B):
        return batch | {"key_B": key_B}


def test_an_objective_has_rows_of_the_size_it_asked_for_and_a_key_for_each_draw(tmp_path):
    rows = train_rows(tmp_path, objective=Recording(), **STAGED)
    batch = rows.rows(0, 300)
    assert batch["token_BT"].shape == (300, 5) and len(np.unique(batch["key_B"])) == 300  # also in another epoch
    np.testing.assert_array_equal(rows.rows(17, 18)["key_B"], batch["key_B"][17:18])


def test_a_source_too_short_for_a_row_is_refused_by_name(tmp_path):
    with pytest.raises(
        UserError, match="the training text of 2000 has 143 tokens, but a row of model.context_length=200"
    ):
        train_rows(tmp_path, length=200, **STAGED)


def test_an_unknown_packing_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match="data.packing='bestfit'.*best_fit"):
        train_rows(tmp_path, packing="bestfit")


def test_plans_in_a_bucket_are_refused(tmp_path):
    with pytest.raises(UserError, match="data.cache_dir=gs://b is not a local folder"):
        train_rows("gs://b", packing="best_fit")


def test_the_sum_of_hashes_knows_every_row_and_its_place_and_no_order_of_reading(tmp_path):
    rows = train_rows(tmp_path, **STAGED)
    whole = rows.hashes(100, 112).sum()
    assert np.concatenate([rows.hashes(107, 112), rows.hashes(100, 107)]).sum() == whole
    other_text = SOURCES | {"b": source(1000, [*[5] * 59, 4, 1])}
    other = TrainRows(TokenStore(None, other_text), DataConfig(cache_dir=str(tmp_path), **STAGED), 8, NextToken())
    twice = np.concatenate([rows.hashes(100, 111), rows.hashes(110, 111)])
    others = [rows.hashes(101, 113), rows.hashes(100, 111), twice, other.hashes(100, 112)]
    others += [train_rows(tmp_path, **(STAGED | changes)).hashes(100, 112) for changes in CHANGES]
    assert len({whole, *(array.sum() for array in others)}) == len(others) + 1


def test_the_same_rows_in_another_order_have_another_sum(tmp_path):
    one, other = (train_rows(tmp_path, "a", packing="best_fit", seed=seed) for seed in (0, 1))
    n = one.rows_per_epoch["a"]
    ids = [rows.locate(0, n)[2] for rows in (one, other)]
    assert sorted(ids[0]) == sorted(ids[1]) and ids[0].tolist() != ids[1].tolist()
    assert one.hashes(0, n).sum() != other.hashes(0, n).sum()


CHANGES = [dict(seed=1), dict(weights=WEIGHTS | {"a": 0.7}), dict(packing="best_fit")]


def test_the_hash_of_packed_rows_is_of_their_documents_and_not_of_the_plans_numbers(tmp_path):
    rows = train_rows(tmp_path, names="b", packing="best_fit")
    n, plan = rows.rows_per_epoch["b"], rows.by_source["b"].plan
    before, row_B = rows.hashes(0, n), rows.locate(0, n)[2]
    plan.start = plan.start.copy()
    plan.start[[0, -1]] = plan.start[[-1, 0]]  # the first and last of equally long documents change places
    np.testing.assert_array_equal(rows.hashes(0, n) != before, (row_B == 0) | (row_B == n - 1))


# ---- held-out rows


class Spelling:
    """What judges a text needs of a tokenizer."""

    def __init__(self, token_bytes):
        self.token_bytes = token_bytes


def eval_rows(tokens, token_bytes, context_length: int, apart: bool, max_tokens=None, stride=None) -> EvalRows:
    config = DataConfig(mask_documents=apart)
    return EvalRows(tokens, Spelling(token_bytes), context_length, config, NextToken(), max_tokens, stride=stride)


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
    rows = eval_rows(tokens_of(n_tokens), np.ones(n_tokens), 8, apart=False)
    assert rows.num_rows == math.ceil((n_tokens - 1) / 8)
    assert predicted(rows, batch_size) == list(range(1, n_tokens))


def test_every_held_out_token_has_the_token_before_it_as_input():
    batch = eval_rows(tokens_of(30), np.ones(30), 8, False).rows(0, 4)
    inside = batch["weight_BL"] > 0
    np.testing.assert_array_equal(batch["token_BT"][:, :-1][inside] + 1, batch["token_BT"][:, 1:][inside])


def test_max_tokens_limits_what_is_predicted():
    rows = eval_rows(tokens_of(100), np.ones(100), 8, False, max_tokens=11)
    assert rows.num_rows == 2 and predicted(rows, 2) == list(range(1, 12))
    assert predicted(eval_rows(tokens_of(100), np.ones(100), 8, False, max_tokens=1000), 2) == list(range(1, 100))


def test_held_out_bytes_are_those_of_the_predicted_tokens():
    token_bytes = np.arange(20) % 5
    rows = eval_rows(tokens_of(20), token_bytes, 8, False)
    assert rows.rows(0, 4)["bytes_B"].tolist() == [*(token_bytes[a:b].sum() for a, b in ((1, 9), (9, 17), (17, 20))), 0]
    masked = eval_rows(tokens_of(3, 17), token_bytes, 8, True)
    assert masked.rows(0, 4)["bytes_B"].sum() == token_bytes[1:].sum() - token_bytes[3]


def test_masked_held_out_rows_predict_all_but_first_tokens_and_pad_in_range():
    rows = eval_rows(tokens_of(5, 1, 18, 6), np.ones(30), 8, apart=True)
    assert predicted(rows, 3) == [t for t in range(1, 30) if t not in (5, 6, 24)]
    batch = rows.rows(0, 9)
    assert (batch["position_BL"] >= 0).all() and (batch["position_BL"] < 8).all()
    assert (np.diff(batch["segment_BT"], axis=1) >= 0).all() and (batch["segment_BT"][:, 0] == 0).all()


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
@pytest.mark.parametrize("n_tokens", [2, 9, 10, 11, 14, 40])
def test_with_a_stride_every_token_but_the_first_is_predicted_once_from_a_longer_context(n_tokens, stride):
    rows = eval_rows(tokens_of(n_tokens), np.ones(n_tokens), 8, False, stride=stride)
    assert predicted(rows, 3) == list(range(1, n_tokens))
    batch = rows.rows(0, rows.num_rows)
    row, column = np.nonzero(batch["weight_BL"])
    target = batch["token_BT"][row, column + 1]  # token t is the number t
    context = target - batch["token_BT"][row, 0]
    assert (context >= np.minimum(target, 8 - stride + 1)).all() and (context <= 8).all()


def test_a_stride_of_the_context_length_gives_the_windows_that_touch():
    plain, strided = (eval_rows(tokens_of(5, 1, 18, 6), np.arange(30), 8, True, 25, stride) for stride in (None, 8))
    assert plain.num_rows == strided.num_rows and plain.rows_per_window == strided.rows_per_window == 1
    for name, array in plain.rows(0, 6).items():
        np.testing.assert_array_equal(array, strided.rows(0, 6)[name], name)
    assert eval_rows(tokens_of(30), np.ones(30), 8, False, stride=3).rows_per_window == 3


def test_with_a_stride_first_tokens_of_documents_stay_unpredicted():
    rows = eval_rows(tokens_of(5, 1, 18, 6), np.ones(30), 8, apart=True, stride=3)
    assert predicted(rows, 4) == [t for t in range(1, 30) if t not in (5, 6, 24)]


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_would_leave_tokens_out_is_refused(stride):
    with pytest.raises(UserError, match=f"--stride={stride} must be from 1 to the context length, 8"):
        eval_rows(tokens_of(30), np.ones(30), 8, False, stride=stride)


def test_held_out_text_without_a_token_to_predict_is_refused():
    with pytest.raises(UserError, match="held-out text has 1 tokens"):
        eval_rows(tokens_of(1), np.ones(1), 8, False)


# ---- reading ahead


@pytest.mark.parametrize("prefetch", [1, 3])
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


def test_an_exception_is_raised_where_its_value_was_due_and_the_thread_ends():
    def value(step):
        if step == 2:
            raise OSError("disk")
        return step

    before = threading.active_count()
    values = Prefetcher(value, 0)
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
