"""Stop strings are held back as soon as they may have begun, and no longer."""

import random

import pytest

from gptjax.data import tokenizers
from gptjax.generation.watching import Watcher

TOKENIZER = tokenizers.from_spec("bytes")


def fed(text: str, stops, rng) -> tuple[list[str], bool]:
    """(all that can be read after each piece, whether a stop string ended it)."""
    watcher, ids, read = Watcher(TOKENIZER, stops), TOKENIZER.encode(text).tolist(), [""]
    while ids:
        size = rng.randint(1, 4)
        new, ids = ids[:size], ids[size:]
        piece, keep = watcher.feed(new, final=not ids)
        read.append(read[-1] + piece)
        if keep is not None:
            return read, True
    return read, False


def readable(text: str, stops) -> str:
    """By trying every length: the text before what may begin a stop string."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(lengths, default=0)]


@pytest.mark.parametrize("seed", range(3))
def test_of_random_texts_all_is_read_but_what_may_begin_a_stop_string(seed):
    rng = random.Random(seed)
    for _ in range(300):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 7))) for _ in range(rng.randint(1, 3))]
        text = "".join(rng.choices("ab", k=rng.randint(1, 30)))
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        read, ended = fed(text, stops, rng)
        assert ended == bool(ends)
        if ended:
            end = min(ends)
            longest = max(len(stop) for stop in stops if text[:end].endswith(stop))
            assert read[-1] == text[: end - longest]
        else:
            assert read[-1] == text
        for piece in read[1:-1]:
            assert any(piece == readable(text[:size], stops) for size in range(len(piece), len(text) + 1))


def test_a_stop_string_far_longer_than_the_text_holds_it_all_back_until_it_ends():
    """Each byte is looked at once: trying every length of 2 ** 20 would take hours for this text."""
    watcher, ids = Watcher(TOKENIZER, ("a" * 2**20,)), TOKENIZER.encode("a" * 3000).tolist()
    assert [watcher.feed([token], final=False) for token in ids] == [("", None)] * 3000
    assert watcher.feed([], final=True) == ("a" * 3000, None)
