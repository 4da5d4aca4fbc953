"""Hashes and permutations have the values they always had: the order of every run's data is made of them."""

import math

import numpy as np
import pytest

from gptjax.data.rows.hashing import DRAW_STREAM, OFFSET_STREAM, hash_of, hash_of_name, mix, permute


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


def test_hashes_have_the_values_they_always_had():
    assert mix(np.arange(2, dtype=np.uint64)).tolist() == [16294208416658607535, 10451216379200822465]
    assert hash_of(3, np.array([0, 1]), OFFSET_STREAM).tolist() == [11625503530604507757, 5053925213064416630]
    assert hash_of_name("0 wiki") == 10189532449284932423


def test_streams_and_seeds_and_indices_give_unrelated_numbers():
    index = np.arange(1000)
    numbers = [hash_of(seed, index, stream) for seed in (0, 1) for stream in (0, 5, OFFSET_STREAM, DRAW_STREAM)]
    assert len(np.unique(numbers)) == 8 * 1000
    bits = np.unpackbits(np.array(numbers).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / math.sqrt(bits.size)
