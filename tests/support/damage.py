"""What a disk does to the files of a checkpoint."""

import os
import pathlib


def data_file(step) -> pathlib.Path:
    """The file with the most of the parameters."""
    return max((step / "params").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(file, bit=2) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    file.write_bytes(content)


def truncate(file) -> None:
    os.truncate(file, file.stat().st_size // 2)
