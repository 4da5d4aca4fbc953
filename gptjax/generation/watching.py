"""Reading along with a text while its tokens come: stop strings wherever they lie between tokens, and whole characters."""

import codecs
import functools


class Watcher:
    """Finds stop strings in one text, in bytes, and says what can be read of it already: no half of a character, and nothing
    that may turn out to begin a stop string."""

    def __init__(self, tokenizer, stop: tuple[str, ...] = ()):
        self._spelling = tokenizer.spelling
        self._stop = [text.encode() for text in stop]
        self._begun = [0] * len(stop)  # of each, how many of its first bytes end the text
        self._bytes = bytearray()
        self._ends = []  # bytes up to and with each token
        self._told = 0  # bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.cut = None  # the text, where a stop string ended it

    def feed(self, new, final: bool) -> tuple[str, int | None]:
        """(what can be read now and was not before, how many tokens there are up to a stop string and with it, or None).

        new: the next tokens. final: none follow.
        """
        searched = len(self._bytes)
        for token in new:
            self._bytes += self._spelling[token]
            self._ends.append(len(self._bytes))
        place_and_size = self._find(searched)
        if place_and_size is not None:
            at, size = place_and_size
            self.cut = bytes(self._bytes[:at]).decode("utf-8", errors="replace")
            return self._read(at, True), next(i for i, end in enumerate(self._ends) if end >= at + size) + 1
        self._follow(searched)
        held = 0 if final else max(self._begun, default=0)
        return self._read(len(self._bytes) - held, final), None

    def _find(self, searched: int) -> tuple[int, int] | None:
        """(place, bytes) of the stop string that ends first; of those that end together the longest."""
        best = None
        for stop in self._stop:
            at = self._bytes.find(stop, max(0, searched - len(stop) + 1))
            if at >= 0:
                candidate = (at + len(stop), -len(stop))
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[0] + best[1], -best[1])

    def _follow(self, start: int) -> None:
        """Counts anew how much of each stop string the text may have begun with its last bytes, of which none is whole. Each
        byte is looked at about once, however long a stop string is (Knuth, Morris and Pratt 1977)."""
        for i, stop in enumerate(self._stop):
            borders, begun = _borders(stop), self._begun[i]
            for byte in self._bytes[start:]:
                while begun and stop[begun] != byte:
                    begun = borders[begun - 1]
                begun += stop[begun] == byte
            self._begun[i] = begun

    def _read(self, until: int, final: bool) -> str:
        """What is new up to a byte, whole characters only."""
        if until < self._told:
            return ""
        piece = self._decoder.decode(bytes(self._bytes[self._told : until]), final)
        self._told = until
        return piece


@functools.lru_cache(maxsize=256)
def _borders(text: bytes) -> list[int]:
    """For each of its beginnings, the bytes of the longest shorter beginning that it ends in."""
    borders, length = [0], 0
    for byte in text[1:]:
        while length and text[length] != byte:
            length = borders[length - 1]
        length += text[length] == byte
        borders.append(length)
    return borders
