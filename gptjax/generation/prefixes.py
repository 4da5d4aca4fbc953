"""What is kept of prompts that were read, for those that begin as they do."""

import collections
import hashlib
import itertools

import numpy as np


class Prefixes:
    """Pieces of caches, one of each chunk of a prompt, under all tokens up to the end of the chunk. Where there are more than
    so many, those that were not used for longest go, the end of a prefix before its beginning."""

    def __init__(self, pieces: int, chunk: int):
        self._most, self._chunk = pieces, chunk
        self._piece_of = collections.OrderedDict()  # the least recently used first

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return len(self._piece_of) * self._chunk

    def keys(self, prompt_L: np.ndarray) -> list[bytes]:
        """A digest of all tokens up to the end of each whole chunk of a prompt: no two beginnings have the same by chance."""
        keys, digest = [], b""
        for end in range(self._chunk, len(prompt_L) + 1, self._chunk):
            tokens = np.ascontiguousarray(prompt_L[end - self._chunk : end], np.int32)
            digest = hashlib.sha256(digest + tokens.tobytes()).digest()
            keys.append(digest)
        return keys

    def longest(self, keys: list[bytes]) -> list:
        """Pieces of the longest beginning of a prompt that is kept, in order."""
        held = list(itertools.takewhile(self._piece_of.__contains__, keys))
        self._touch(held)
        return [self._piece_of[key] for key in held]

    def lacks(self, key: bytes) -> bool:
        """Whether the piece that ends with this key is to be kept, and is not."""
        return self._most > 0 and key not in self._piece_of

    def keep(self, keys: list[bytes], piece) -> None:
        """Keeps the piece of the last of these chunks."""
        self._piece_of[keys[-1]] = piece
        self._touch(keys)
        while len(self._piece_of) > self._most:
            self._piece_of.popitem(last=False)

    def _touch(self, keys: list[bytes]) -> None:
        for key in reversed(keys):
            if key in self._piece_of:
                self._piece_of.move_to_end(key)
