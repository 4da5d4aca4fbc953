"""Both packings against slow references: every token predicted once, whole documents, rows that depend on nothing else."""

import collections
import pathlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.rows import packing
from gptjax.data.rows.packing import BestFitRows, ConcatRows, best_fit_decreasing, plan_rows, window_rows
from gptjax.data.tokens.shards import MemoryShard, Tokens
from gptjax.errors import UserError


def make_tokens(lengths, shard_size: int = 3) -> Tokens:
    """Token i is i, so that a row shows where it was cut; documents of such lengths, in shards of a few each."""
    first, shards = np.cumsum([0, *lengths]), []
    for i in range(0, len(lengths), shard_size):
        edge = first[i : i + shard_size + 1]
        shards.append(MemoryShard(np.arange(edge[0], edge[-1]), edge[:-1] - edge[0]))
    return Tokens(shards)


def planned(tokens: Tokens, row_tokens: int, tmp_path_factory, seed: int = 0) -> BestFitRows:
    folder = tmp_path_factory.mktemp("plan") / "rows"
    return BestFitRows(tokens, row_tokens, seed, plan_rows(tokens, row_tokens, folder))


lengths_of_documents = st.lists(st.integers(0, 40), min_size=1, max_size=30)
row_sizes = st.integers(2, 17)


# ---- documents end to end


@pytest.mark.parametrize("n_tokens, length", [(1000, 16), (33, 16), (32, 16), (31, 16), (17, 16), (50, 1), (4097, 64)])
def test_an_epoch_covers_every_window_once(n_tokens, length):
    rows = ConcatRows(make_tokens([n_tokens]), length + 1, seed=3, apart=False)
    n = rows.rows_per_epoch
    for epoch in range(5):
        token_BT = rows.rows(rows.ids(np.arange(epoch * n, (epoch + 1) * n)))["token_BT"]
        start_B = np.sort(token_BT[:, 0])
        assert np.array_equal(token_BT, token_BT[:, :1] + np.arange(length + 1))
        assert np.array_equal(np.diff(start_B), np.full(n - 1, length))
        assert 0 <= start_B[0] and start_B[-1] + length < n_tokens < (n + 2) * length


def test_a_small_text_is_cut_at_every_offset_and_no_token_is_never_seen():
    rows = ConcatRows(make_tokens([100]), 9, seed=0, apart=False)
    start_B = rows.ids(np.arange(rows.rows_per_epoch * 200))
    assert set(start_B % 8) == set(range(8))
    assert set(rows.rows(start_B[:2000])["token_BT"].ravel()) == set(range(100))


def test_rows_have_the_order_they_always_had():
    rows = ConcatRows(make_tokens([1000]), 17, seed=1, apart=False)
    assert rows.rows_per_epoch == 61
    assert rows.ids(np.arange(59, 67)).tolist() == [239, 975, 534, 54, 630, 662, 902, 326]


def test_without_masking_a_batch_has_tokens_and_weights_of_one():
    rows = ConcatRows(make_tokens([50, 50]), 9, 0, apart=False)
    batch = rows.rows(rows.ids(np.arange(4)))
    assert set(batch) == {"token_BT", "weight_BL"}
    assert batch["token_BT"].shape == (4, 9) and batch["token_BT"].dtype == np.int32
    assert batch["weight_BL"].shape == (4, 8) and batch["weight_BL"].dtype == np.float32
    assert (batch["weight_BL"] == 1).all()


def test_documents_are_masked_as_worked_by_hand():
    # Documents of 3, 1 and 5 tokens, and the whole text as one row that has lost its first token or none.
    rows = ConcatRows(make_tokens([3, 1, 5], shard_size=1), 8, seed=0, apart=True)
    assert set(rows.ids(np.arange(20))) == {0, 1}
    row = rows.rows(np.array([0]))
    assert row["segment_BT"].tolist() == [[0, 0, 0, 1, 2, 2, 2, 2]]
    assert row["position_BL"].tolist() == [[0, 1, 2, 0, 0, 1, 2]]
    assert row["weight_BL"].tolist() == [[1, 1, 0, 0, 1, 1, 1]]
    row = rows.rows(np.array([1]))
    assert row["segment_BT"].tolist() == [[0, 0, 1, 2, 2, 2, 2, 2]]
    assert row["position_BL"].tolist() == [[0, 1, 0, 0, 1, 2, 3]]
    assert row["weight_BL"].tolist() == [[1, 0, 0, 1, 1, 1, 1]]
    dtypes = {key: array.dtype for key, array in row.items()}
    assert dtypes["segment_BT"] == dtypes["position_BL"] == np.int32 and dtypes["weight_BL"] == np.float32


def by_definition(lengths, start_B, row_tokens: int, apart: bool) -> dict:
    """The rows of window_rows token by token: as gptjax 0.1 computed them, through a table of [B, T] document numbers."""
    start_D = np.cumsum([0, *lengths])[:-1]
    last = sum(lengths) - 1
    start_B = np.minimum(start_B, last)
    index_BT = np.minimum(start_B[:, None] + np.arange(row_tokens), last)
    batch = {"token_BT": index_BT.astype(np.int32)}
    if not apart:
        return batch | {"weight_BL": np.ones((len(start_B), row_tokens - 1), np.float32)}
    document_BT = np.searchsorted(start_D, index_BT, side="right") - 1
    begin_BT = np.maximum(start_D[document_BT], start_B[:, None])
    segments = [np.unique(row, return_inverse=True)[1] for row in document_BT]  # empty documents are not counted
    return batch | {
        "weight_BL": (document_BT[:, 1:] == document_BT[:, :-1]).astype(np.float32),
        "segment_BT": np.array(segments, np.int32).reshape(index_BT.shape),
        "position_BL": (index_BT - begin_BT)[:, :-1].astype(np.int32),
    }


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents.filter(sum), row_sizes, st.booleans(), st.integers(1, 5))
def test_windows_of_documents_end_to_end_are_those_of_the_definition(lengths, row_tokens, apart, shard_size):
    start_B = np.arange(sum(lengths) + 5)
    got = window_rows(make_tokens(lengths, shard_size), start_B, row_tokens, apart)
    wanted = by_definition(lengths, start_B, row_tokens, apart)
    assert got.keys() == wanted.keys()
    if apart:  # what repeats the last token, behind the text, counts on
        inside_BL = start_B[:, None] + np.arange(row_tokens - 1) < sum(lengths)
        assert (got["position_BL"] < row_tokens - 1).all()
        got["position_BL"] *= inside_BL
        wanted["position_BL"] *= inside_BL
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert got[name].dtype == array.dtype, name


@settings(max_examples=40, deadline=None)
@given(lengths_of_documents.filter(lambda lengths: sum(lengths) >= 20), row_sizes)
def test_with_documents_apart_an_epoch_predicts_each_token_at_most_once_and_misses_only_the_two_ends(
    lengths, row_tokens
):
    rows = ConcatRows(make_tokens(lengths), row_tokens, 0, apart=True)
    id_B = rows.ids(np.arange(rows.rows_per_epoch))
    batch = rows.rows(id_B)
    predicted = batch["token_BT"][:, 1:][batch["weight_BL"] > 0]
    first_tokens = set(np.cumsum([0, *lengths])[:-1])
    inside = range(id_B.min() + 1, id_B.max() + row_tokens)
    assert sorted(predicted) == [t for t in inside if t not in first_tokens]
    assert sum(lengths) - len(inside) < 2 * row_tokens


def test_too_little_text_for_a_row_is_refused_with_the_numbers():
    message = "the training text has 16 tokens, but a row of model.context_length=16 needs 17"
    with pytest.raises(UserError, match=message):
        ConcatRows(make_tokens([16]), 17, 0, False)
    with pytest.raises(UserError, match="the training text of 'wiki' has 16 tokens"):
        ConcatRows(make_tokens([16]), 17, 0, False, "the training text of 'wiki'")


# ---- whole documents


def slow_best_fit(lengths, capacity: int) -> list[int]:
    """Room left in each row: one piece after the other, the longest first, into the fullest row that has room."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        rooms[min(fitting, key=rooms.__getitem__)] -= length
    return sorted(rooms)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
def test_best_fit_is_the_strict_one_and_no_row_overflows(drawn):
    capacity, lengths = drawn
    row_P = best_fit_decreasing(np.array(lengths, np.int64), capacity)
    used_R = np.bincount(row_P, lengths, 0).astype(int) if lengths else np.zeros(0, int)
    assert sorted(capacity - used_R) == slow_best_fit(lengths, capacity)


def test_best_fit_of_many_documents_is_the_strict_one():
    lengths = np.minimum(np.random.default_rng(0).geometric(0.02, 1500), 128)
    used_R = np.bincount(best_fit_decreasing(lengths, 128), lengths).astype(int)
    assert sorted(128 - used_R) == slow_best_fit(lengths.tolist(), 128)
    assert used_R.sum() / used_R.size / 128 > 0.99


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents.filter(lambda lengths: max(lengths) > 1), row_sizes)
def test_best_fit_predicts_all_but_first_tokens_once_an_epoch_from_the_text_before_them(
    tmp_path_factory, lengths, row_tokens
):
    rows = planned(make_tokens(lengths), row_tokens, tmp_path_factory)
    for epoch in range(2):
        batch = rows.rows(rows.ids(np.arange(rows.rows_per_epoch) + epoch * rows.rows_per_epoch))
        counted = batch["weight_BL"] > 0
        first_D = np.cumsum([0, *lengths])
        wanted = [t for a, b in zip(first_D, first_D[1:]) for t in range(a + 1, b)]
        assert sorted(batch["token_BT"][:, 1:][counted]) == wanted
        assert (batch["token_BT"][:, 1:] - batch["token_BT"][:, :-1] == 1)[counted].all()
        assert (batch["segment_BT"][:, 1:] == batch["segment_BT"][:, :-1])[counted].all()


def pieces_of(batch) -> list[list[list[int]]]:
    """For each row its segments' tokens; what pads it left out."""
    rows = []
    for token_T, segment_T, weight_L in zip(batch["token_BT"], batch["segment_BT"], batch["weight_BL"]):
        found = [token_T[segment_T == segment].tolist() for segment in range(segment_T.max() + 1)]
        counted = [(weight_L[segment_T[1:] == segment] > 0).any() for segment in range(segment_T.max() + 1)]
        assert all(counted[:-1]), "only the last segment may be padding"
        rows.append([tokens for tokens, some in zip(found, counted) if some])
    return rows


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents.filter(lambda lengths: max(lengths) > 1), row_sizes)
def test_documents_that_fit_are_never_split_and_pieces_of_longer_ones_overlap_by_one_token(
    tmp_path_factory, lengths, row_tokens
):
    rows = planned(make_tokens(lengths), row_tokens, tmp_path_factory)
    batch = rows.rows(np.arange(rows.rows_per_epoch))
    pieces = sorted(piece for row in pieces_of(batch) for piece in row)
    wanted, first_D = [], np.cumsum([0, *lengths]).tolist()
    for a, b in zip(first_D, first_D[1:]):
        while b - a > 1:
            wanted.append(list(range(a, min(b, a + row_tokens))))
            a += row_tokens - 1
    assert pieces == wanted
    starts_BT = np.diff(batch["segment_BT"], prepend=-1) != 0
    for position_L, starts_T in zip(batch["position_BL"], starts_BT):
        begins = np.maximum.accumulate(np.where(starts_T, np.arange(row_tokens), 0))
        assert position_L.tolist() == (np.arange(row_tokens) - begins)[:-1].tolist()
    assert [row_tokens - sum(map(len, row)) for row in pieces_of(batch)].count(row_tokens) == 0


def test_a_packed_row_is_as_worked_by_hand(tmp_path_factory):
    rows = planned(make_tokens([5, 1, 3, 0]), 10, tmp_path_factory)
    batch = rows.rows(rows.ids(np.array([0])))
    assert rows.rows_per_epoch == 1
    assert batch["token_BT"].tolist() == [[0, 1, 2, 3, 4, 6, 7, 8, 0, 0]]
    assert batch["segment_BT"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 2, 2]]
    assert batch["position_BL"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0]]
    assert batch["weight_BL"].tolist() == [[1, 1, 1, 1, 0, 1, 1, 0, 0]]
    assert {name: array.dtype for name, array in batch.items()} == dict(
        token_BT=np.int32, segment_BT=np.int32, position_BL=np.int32, weight_BL=np.float32
    )


@pytest.mark.parametrize("kind", ["concat", "apart", "best_fit"])
def test_a_row_does_not_depend_on_the_rows_it_is_read_with(kind, tmp_path_factory):
    tokens = make_tokens(np.random.default_rng(1).integers(0, 60, 200).tolist(), 17)
    rows = planned(tokens, 33, tmp_path_factory) if kind == "best_fit" else ConcatRows(tokens, 33, 0, kind == "apart")
    id_B = rows.ids(np.arange(2 * rows.rows_per_epoch))
    together = rows.rows(id_B)
    shuffled = np.random.default_rng(0).permutation(len(id_B))
    for name, array in rows.rows(id_B[shuffled]).items():
        np.testing.assert_array_equal(array, together[name][shuffled], err_msg=name)
    for i in (0, 7, len(id_B) - 1):
        for name, array in rows.rows(id_B[i : i + 1]).items():
            np.testing.assert_array_equal(array[0], together[name][i], err_msg=name)


def test_each_epoch_has_all_rows_in_an_order_of_its_own(tmp_path_factory):
    tokens = make_tokens(np.random.default_rng(1).integers(2, 60, 200).tolist())
    rows, other = (planned(tokens, 33, tmp_path_factory, seed) for seed in (0, 1))
    n = rows.rows_per_epoch
    epochs = [rows.ids(np.arange(i * n, (i + 1) * n)).tolist() for i in range(3)] + [other.ids(np.arange(n)).tolist()]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_the_plan_of_documents_in_several_groups_has_all_of_them(monkeypatch, tmp_path_factory):
    lengths = np.random.default_rng(1).integers(0, 60, 200).tolist()
    monkeypatch.setattr(packing, "_GROUP", 7)
    alive = collections.Counter()
    tokens, folder = make_tokens(lengths), tmp_path_factory.mktemp("plan")
    plan = plan_rows(tokens, 33, folder / "rows", lambda: alive.update(["alive"]))
    assert alive["alive"] == -(-200 // 7)
    batch = BestFitRows(tokens, 33, 0, plan).rows(np.arange(len(plan.row_first) - 1))
    assert sorted(batch["token_BT"][:, 1:][batch["weight_BL"] > 0]) == [
        t for a, n in zip(np.cumsum([0, *lengths]), lengths) for t in range(a + 1, a + n)
    ]


def test_the_memory_of_a_plan_is_that_of_a_group(monkeypatch, tmp_path):
    """A plan kept whole takes 20 bytes a piece, twice: 6 MB here."""
    monkeypatch.setattr(packing, "_GROUP", 1 << 10)
    tokens = Tokens([MemoryShard(np.broadcast_to(np.uint16(0), (300_000,)), np.arange(0, 300_000, 2))])
    tracemalloc.start()
    try:
        plan_rows(tokens, 9, tmp_path / "rows")
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("lengths", [[1, 1, 0, 1], [0], []])
def test_text_without_a_token_to_predict_is_refused_and_leaves_nothing_behind(lengths, tmp_path):
    with pytest.raises(UserError, match="no document of the training text has two tokens"):
        plan_rows(make_tokens(lengths), 9, tmp_path / "rows")
    assert not list(tmp_path.iterdir())


def test_who_loses_the_race_for_a_plan_uses_the_winners_and_leaves_nothing_behind(tmp_path):
    tokens, won = make_tokens([5, 9, 3, 30]), []

    def another_is_faster():
        if not won:
            won.append(True)
            won.append(plan_rows(tokens, 9, tmp_path / "rows"))

    plan = plan_rows(tokens, 9, tmp_path / "rows", another_is_faster)
    assert [file.name for file in tmp_path.iterdir()] == ["rows"]
    for name in plan.DTYPES:
        np.testing.assert_array_equal(getattr(plan, name), getattr(won[1], name))


def cut(n_bytes: int):
    return lambda file: file.write_bytes(file.read_bytes()[:n_bytes])


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, cut(15), cut(16), cut(0)])
@pytest.mark.parametrize("name", packing.Plan.DTYPES)
def test_a_damaged_plan_is_refused_by_name(damage, name, tmp_path):
    tokens = make_tokens([5, 9, 3, 30])
    plan_rows(tokens, 9, tmp_path / "rows")
    damage(tmp_path / "rows" / f"{name}.bin")
    with pytest.raises(UserError, match=f"{tmp_path / 'rows'} is damaged .*: remove it and run again") as error:
        plan_rows(tokens, 9, tmp_path / "rows")
    assert "\n" not in str(error.value)
