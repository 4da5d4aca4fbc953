"""Words and runs of words, in scripts with and without spaces."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gptjax.data.preparing import words


def test_two_characters_of_a_script_without_spaces_are_a_word():
    assert words.count_words("one two  three\n") == 3
    assert words.count_words("天下大势") == 2
    assert words.count_words("the 天下 of Romance") == 4
    assert words.count_words("สวัสดี") == 2  # four letters, two of them with a vowel above
    assert words.count_words("안녕 하세요") == 2  # Korean has spaces


def test_a_text_is_spaceless_if_most_letters_are():
    assert words.is_spaceless("话说天下大势") and words.is_spaceless("天下a")
    assert not words.is_spaceless("天a") and not words.is_spaceless("plain") and not words.is_spaceless("Привет, мир é")


@given(st.lists(st.sampled_from(["a", "bc", "风", "月"]), max_size=30), st.integers(1, 4))
def test_windows_are_the_shortest_runs_of_n_words_and_equal_ones_have_equal_hashes(unit, n):
    weight = words.unit_weights(unit)
    size = [0.5 if u in "风月" else 1.0 for u in unit]
    slow = []
    for i in range(len(unit)):
        stops = [j for j in range(i + 1, len(unit) + 1) if sum(size[i:j]) >= n]
        slow += [(i, stops[0])] if stops else []
    first, stop = words.windows(weight, len(unit), n)
    assert list(zip(first.tolist(), stop.tolist())) == slow
    number = {u: i for i, u in enumerate(unit)}
    hashes = words.WindowHasher(np.array([number[u] for u in unit], np.int64))(first, stop)
    for (x, (a, b)), (y, (i, j)) in itertools.combinations(enumerate(slow), 2):
        assert (hashes[x] == hashes[y]) == (unit[a:b] == unit[i:j])
