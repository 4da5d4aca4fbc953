"""Fingerprints estimate similarity as they should, and what phase 2 keeps is what comparing all pairs keeps."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.preparing import dedup, duplicates
from gptjax.errors import UserError

MINHASH = dedup.parse("minhash:0.8")
EXACT = dedup.parse("exact")


def write(folder, rows, sizes) -> list:
    files, first = [], 0
    for i, size in enumerate(sizes):
        files.append(folder / f"{i}.bin")
        rows[first : first + size].tofile(files[-1])
        first += size
    assert first == len(rows)
    return files


def kept(folder, rows, sizes, how=MINHASH, parts=None):
    found = duplicates.find_duplicates(write(folder, rows, sizes), how, folder / "work", parts)
    assert [len(keep) for keep in found.keep] == list(sizes)
    return np.concatenate(found.keep), found.report


def reference(rows, how, window=10**9) -> np.ndarray:
    """Every pair compared: the first of each connected component stays. window: as duplicates._WINDOW."""
    root = list(range(len(rows)))
    for i, j in itertools.combinations(range(len(rows)), 2):
        same = (rows[i] == rows[j]).all()
        if how.kind == "minhash" and not same:
            n = how.bands * how.rows
            bands = (rows[i, :n] == rows[j, :n]).reshape(how.bands, how.rows).all(axis=1)
            same = bands.any() and (rows[i] == rows[j]).sum() >= how.threshold * how.permutations
            same = same and any(near(rows, how, i, j, band, window) for band in np.flatnonzero(bands))
        if same:
            a, b = sorted((root[i], root[j]))
            root = [a if r == b else r for r in root]
    return np.array([r == i for i, r in enumerate(root)])


def near(rows, how, i, j, band, window) -> bool:
    """Whether i and j are compared in the bucket of their band: i is its first, or j at most window behind i."""
    part = rows[:, band * how.rows : (band + 1) * how.rows]
    first = {row.tobytes(): k for k, row in reversed(list(enumerate(rows)))}
    bucket = [k for k in np.flatnonzero((part == part[i]).all(axis=1)) if first[rows[k].tobytes()] == k]
    if i not in bucket or j not in bucket:
        return False  # equal to an earlier one, which stands for them
    return i == bucket[0] or bucket.index(j) - bucket.index(i) <= window


def family(rng, n, changes) -> np.ndarray:
    """Rows of which many are copies of earlier ones with some of their 128 values drawn anew."""
    rows = rng.integers(0, 1 << 32, (n, 128), dtype=np.uint32)
    for i in range(1, n):
        if rng.random() < 0.7:
            rows[i] = rows[rng.integers(i)]
            place = rng.choice(128, rng.integers(changes + 1), replace=False)
            rows[i, place] = rng.integers(0, 1 << 32, len(place), dtype=np.uint32)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_is_what_comparing_all_pairs_leaves(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows = family(rng, 80, changes=(10, 30, 60, 128)[seed])
    expected = reference(rows, MINHASH)
    assert 0.1 < expected.mean() < 0.9
    found, report = kept(tmp_path, rows, (30, 0, 49, 1))
    np.testing.assert_array_equal(found, expected)
    assert report["documents"] == 80 and report["removed"] == 80 - expected.sum() == report["equal"] + report["near"]


@pytest.mark.parametrize("parts", [1, 2, 7, 100])
@pytest.mark.parametrize("how", [MINHASH, EXACT], ids=["minhash", "exact"])
def test_the_answer_does_not_depend_on_parts_or_files(tmp_path, how, parts):
    rng = np.random.default_rng(1)
    rows = family(rng, 60, 25) if how is MINHASH else rng.integers(0, 40, (60, 2)).astype(np.uint64) // 7
    found, report = kept(tmp_path, rows, (60,), how, parts)
    np.testing.assert_array_equal(found, reference(rows, how))
    (tmp_path / "b").mkdir()
    again, report_again = kept(tmp_path / "b", rows, (1, 30, 29), how)
    np.testing.assert_array_equal(found, again)
    counts = ("documents", "removed", "equal", "near", "clusters")
    assert [report[c] for c in counts] == [report_again[c] for c in counts]
    assert [c["size"] for c in report["largest"]] == [c["size"] for c in report_again["largest"]]


def test_equal_documents_far_apart_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_CHUNK_BYTES", 64)  # four of the sixty are read at a time
    rows = np.random.default_rng(5).integers(0, 4, (60, 2)).astype(np.uint64)
    np.testing.assert_array_equal(kept(tmp_path, rows, (60,), EXACT, parts=1)[0], reference(rows, EXACT))


@pytest.mark.parametrize("changes", [1, 40])
def test_small_chunks_of_documents_and_pairs_give_the_same(tmp_path, monkeypatch, changes):
    rows = family(np.random.default_rng(2), 60, changes)
    monkeypatch.setattr(duplicates, "_PAIRS", 3)
    monkeypatch.setattr(duplicates, "_CHUNK_BYTES", 512)
    np.testing.assert_array_equal(kept(tmp_path, rows, (60,))[0], reference(rows, MINHASH))


def one_band(rng, n) -> np.ndarray:
    """Rows that all share the first band. Most are copies: of a third, each of the other bands differs in a value, so
    that they agree in 108 of 128 places and share no other band; of a third, none."""
    rows = rng.integers(0, 1 << 32, (n, 128), dtype=np.uint32)
    rows[:, : MINHASH.rows] = 7
    for i in range(1, n):
        kind = rng.integers(3)
        if kind:
            rows[i] = rows[rng.integers(i)]
        if kind == 1:
            place = np.arange(1, MINHASH.bands) * MINHASH.rows + rng.integers(MINHASH.rows, size=MINHASH.bands - 1)
            rows[i, place] = rng.integers(0, 1 << 32, MINHASH.bands - 1, dtype=np.uint32)
    return rows


@pytest.mark.parametrize("window, block", [(1, 2), (2, 3), (5, 7), (100, 100)])
def test_large_buckets_are_compared_within_a_window(tmp_path, monkeypatch, window, block):
    rows = one_band(np.random.default_rng(4), 40)
    monkeypatch.setattr(duplicates, "_WINDOW", window)
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    expected = reference(rows, MINHASH, window)
    assert (expected.sum() > reference(rows, MINHASH).sum()) == (window < 40)
    np.testing.assert_array_equal(kept(tmp_path, rows, (40,))[0], expected)


def test_a_pair_behind_the_first_of_its_bucket_counts_from_the_threshold_on(tmp_path):
    """The pair shares the one band that all three share: it differs in each of the others."""
    rows = np.arange(3 * 128, dtype=np.uint32).reshape(3, 128)
    rows[:, :6] = 7
    for apart, stays in (
        ([*range(6, 126, 6), 7, 8, 9, 10, 11, 13], True),
        ([*range(6, 126, 6), 7, 8, 9, 10, 11], False),
    ):
        rows[2] = rows[1]
        rows[2, apart] += 1000
        assert (rows[1] == rows[2]).sum() == (102 if stays else 103)
        assert kept(tmp_path, rows, (3,))[0].tolist() == [True, True, stays]


def test_the_report_names_clusters_and_where_they_are(tmp_path):
    rows = np.arange(8 * 128, dtype=np.uint32).reshape(8, 128)
    rows[[3, 5, 7]], rows[6] = rows[1], rows[2]
    found, report = kept(tmp_path, rows, (4, 4))
    assert found.tolist() == [True, True, True, False, True, False, False, False]
    assert report == {
        "documents": 8,
        "removed": 4,
        "equal": 4,
        "near": 0,
        "clusters": 2,
        "largest": [{"size": 4, "members": [[0, 1], [0, 3], [1, 1], [1, 3]]}, {"size": 2, "members": [[0, 2], [1, 2]]}],
    }
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["keep.bin", "parents.bin", "sizes.bin"]


def test_a_shared_band_is_not_enough_and_a_chain_is_one_cluster(tmp_path):
    rows = np.arange(4 * 128, dtype=np.uint32).reshape(4, 128)
    rows[1, :102] = rows[0, :102]  # 102 of 128 agree: 0.797
    assert kept(tmp_path, rows, (4,))[0].all()
    rows[1, :103] = rows[0, :103]  # 0.805
    assert kept(tmp_path, rows, (4,))[0].tolist() == [True, False, True, True]
    rows[2, 25:] = rows[1, 25:]  # like 1, and 0 only in 78 places
    assert kept(tmp_path, rows, (4,))[0].tolist() == [True, False, False, True]


def test_no_documents_and_no_files_are_answers(tmp_path):
    for how in (EXACT, MINHASH):
        assert kept(tmp_path, np.zeros((0, how.length), how.dtype), (0, 0), how)[1]["removed"] == 0
        assert duplicates.find_duplicates([], how, tmp_path / "none").keep == []


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Eight times the documents (46 MB of fingerprints more, 30 MB of keys) take less than 12 MB more."""
    script = """
import sys, resource, numpy as np
from gptjax.data.preparing import dedup, duplicates
duplicates._PART_BYTES = duplicates._CHUNK_BYTES = 1 << 20
folder, rng = sys.argv[1], np.random.default_rng(0)
with open(folder + "/rows.bin", "wb") as stream:
    for _ in range(int(sys.argv[2])):
        row = rng.integers(0, 1 << 32, (1000, 128), dtype=np.uint32)
        row[900:], row[-50:, :20] = row[:100], row[500:550, :20]
        stream.write(row.tobytes())
found = duplicates.find_duplicates([folder + "/rows.bin"], dedup.parse("minhash"), folder + "/work")
assert found.report["equal"] > 0 < found.report["near"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    peak = {}
    for thousands in (13, 104):
        run = [sys.executable, "-c", script, str(tmp_path), str(thousands)]
        peak[thousands] = float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert peak[104] - peak[13] < 12


# ---- fingerprints


def test_exact_sees_through_white_space_and_nothing_else():
    mark = dedup.Fingerprinter(EXACT)
    assert (mark(" a  b\r\nc ") == mark("a b c")).all()
    for other in ("a bc", "a b C", "a b c.", ""):
        assert (mark(other) != mark("a b c")).any()
    assert mark("x").dtype == EXACT.dtype and mark("x").shape == (EXACT.length,)


def pair(rng, n, shared) -> tuple[str, str]:
    """Texts of n different words each, of which `shared` are in both, in another order."""
    number = rng.integers(1 << 40) + np.arange(2 * n - shared)
    a, b = number[:n], np.concatenate([number[:shared], number[n:]])
    return " ".join(f"w{i}" for i in a), " ".join(f"w{i}" for i in rng.permutation(b))


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.9])
def test_signatures_agree_in_the_share_that_is_the_similarity(similarity):
    """200 pairs of 128 places; the mean lies within 4 standard errors, and so does each pair's spread allow."""
    how = dedup.Settings("minhash", 0.8, shingle_words=1)
    mark, rng = dedup.Fingerprinter(how), np.random.default_rng(0)
    shared = round(2 * 300 * similarity / (1 + similarity))
    truth = shared / (600 - shared)
    agree = [np.mean(np.equal(*map(mark, pair(rng, 300, shared)))) for _ in range(200)]
    error = math.sqrt(truth * (1 - truth) / 128)
    assert abs(np.mean(agree) - truth) < 4 * error / math.sqrt(200)
    assert 0.5 * error < np.std(agree) < 1.2 * error


@pytest.mark.parametrize(
    "similarity, least, most", [(0.95, 1.0, 1.0), (0.85, 0.85, 1.0), (0.7, 0.0, 0.02), (0.5, 0, 0)]
)
def test_planted_near_duplicates_are_found_and_others_are_not(tmp_path, similarity, least, most):
    """The docstring promises 1.000, 0.936, 0.000, 0.000; of 200 pairs the bounds are four standard deviations away."""
    how = dedup.Settings("minhash", 0.8, shingle_words=1)
    mark, rng = dedup.Fingerprinter(how), np.random.default_rng(1)
    shared = round(2 * 200 * similarity / (1 + similarity))
    rows = np.array([mark(text) for _ in range(200) for text in pair(rng, 200, shared)])
    found, report = kept(tmp_path, rows, (400,), how)
    assert found[::2].all() and report["clusters"] == report["removed"]
    assert least <= report["removed"] / 200 <= most


def chances(settings: dedup.Settings, similarity: float) -> tuple[float, float]:
    """That a pair of this similarity shares a band, and (from below) that its signatures agree often enough too."""
    n, least = settings.permutations, math.ceil(settings.threshold * settings.permutations)
    agree = sum(math.comb(n, k) * similarity**k * (1 - similarity) ** (n - k) for k in range(least, n + 1))
    found = 1 - (1 - similarity**settings.rows) ** settings.bands
    return found, max(0.0, found + agree - 1)


def test_the_chances_in_the_docstring_are_those_of_the_formula():
    lines = [line.split() for line in dedup.__doc__.splitlines()]
    table = {line[0]: [float(x) for x in line[1:]] for line in lines if line and line[0] in ("s", "found", "taken")}
    assert (MINHASH.bands, MINHASH.rows) == (21, 6)
    for s, found, taken in zip(table["s"], table["found"], table["taken"], strict=True):
        assert chances(MINHASH, s) == pytest.approx((found, taken), abs=5.1e-4)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_found_with_a_chance_of_99_percent(threshold):
    how = dedup.parse(f"minhash:{threshold}")
    assert chances(how, threshold)[0] >= 0.99
    assert how.bands * how.rows <= how.permutations


def test_shingles_are_five_words_or_ten_characters():
    assert dedup.shingles("The cat sat on the MAT today", 5) == [
        "the cat sat on the",
        "cat sat on the mat",
        "sat on the mat today",
    ]
    assert dedup.shingles("one two", 5) == ["one two"]
    assert dedup.shingles("", 5) == [""]
    assert dedup.shingles("滚滚长江东逝水浪花淘尽", 5) == [
        " ".join("滚滚长江东逝水浪花淘"),
        " ".join("滚长江东逝水浪花淘尽"),
    ]


def test_near_copies_of_chinese_are_found_and_other_chinese_stays(tmp_path):
    rng = np.random.default_rng(3)
    first, other = ("".join(map(chr, rng.integers(0x4E00, 0x9FFF, 400))) for _ in range(2))
    near = first[:200] + "一" + first[201:]  # 10 of 391 shingles differ: similarity 381 / 401 = 0.95
    rows = np.array(list(map(dedup.Fingerprinter(MINHASH), (first, other, near))))
    assert kept(tmp_path, rows, (3,))[0].tolist() == [True, True, False]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=12))
def test_exact_keeps_the_first_of_each_text(texts):
    import tempfile
    from pathlib import Path

    mark = dedup.Fingerprinter(EXACT)
    rows = np.array([mark(text) for text in texts], np.uint64).reshape(len(texts), 2)
    normal = [" ".join(text.split()) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        found, _ = kept(Path(folder), rows, (len(texts),), EXACT)
    assert found.tolist() == [normal.index(text) == i for i, text in enumerate(normal)]


def test_fingerprints_are_the_same_in_another_process():
    script = "from gptjax.data.preparing import dedup; print(dedup.Fingerprinter(dedup.parse('minhash'))('a b c d e f').sum())"
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(there) == dedup.Fingerprinter(MINHASH)("a b c d e f").sum()


BAD = {
    "minhsh": "--dedup='minhsh' is not known; did you mean 'minhash'?; expected exact or minhash",
    "exact:0.8": "exact has no threshold; expected exact or minhash:0.8",
    "minhash:": "expected a similarity from 0.5 to 1",
    "minhash:80": "expected a similarity from 0.5 to 1",
    "minhash:nan": "expected a similarity from 0.5 to 1",
    "minhash:high": "expected a similarity from 0.5 to 1",
}


@pytest.mark.parametrize("spec", BAD)
def test_a_bad_spec_is_one_line(spec):
    with pytest.raises(UserError) as caught:
        dedup.parse(spec)
    assert BAD[spec] in str(caught.value) and "\n" not in str(caught.value)


def test_a_cut_fingerprint_file_is_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"0" * 513)
    with pytest.raises(UserError, match="a.bin has 513 bytes, no multiple of the 512 bytes of a minhash fingerprint"):
        duplicates.find_duplicates([tmp_path / "a.bin"], MINHASH, tmp_path / "work")


def test_a_full_disk_is_one_line(tmp_path):
    files = write(tmp_path, family(np.random.default_rng(0), 10, 5), (10,))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "part-00000.bin").symlink_to("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(UserError, match="work has no space left; deduplication needs up to 0.0 GB there"):
        duplicates.find_duplicates(files, MINHASH, tmp_path / "work")
