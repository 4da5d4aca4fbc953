"""Every byte of a folder of tokens against what was written: SHA-256 of each file, CRC-32C of each block of tokens.

Opening a folder checks the small files whole and the others by their size, and a block when it is first read. This reads
everything once, in pieces, so that a disk's or a copy's mistake is found before a run comes to it.
"""

import hashlib

import google_crc32c
import numpy as np
from etils import epath

from gptjax.data.tokens.folder import all_files, read_manifest
from gptjax.data.tokens.shards import BLOCK, WEIGHTS
from gptjax.errors import UserError

_PIECE = 1 << 22  # bytes, of files without blocks


def verify(folder: str, report=lambda done, total: None) -> dict:
    """{"folder", "files", "blocks", "bytes", "bad": [{"file", "block", "why"}]}: what was read and what is not right.

    block: counted in the file; None: the file as a whole. report(bytes done, of how many) is called again and again.
    Raises UserError: there is no folder, or its manifest cannot be read.
    """
    path = epath.Path(folder).expanduser()
    if not path.exists():
        raise UserError(
            f"{path} is missing, because this text was not prepared yet; gptjax data --config=FILE prepares it."
        )
    manifest = read_manifest(path)
    entries = dict(all_files(manifest))
    width = np.dtype(manifest["dtype"]).itemsize
    total, done, blocks, bad = sum(entry["size"] for entry in entries.values()), 0, 0, []
    for name, entry in entries.items():
        checked, wrong = _check(path / name, entry, _record_bytes(name, width), done, total, report)
        bad += [{"file": str(path / name)} | one for one in wrong]
        blocks += checked
        done += entry["size"]
        report(done, total)
    return {"folder": str(path), "files": len(entries), "blocks": blocks, "bytes": total, "bad": bad}


def _record_bytes(name: str, width: int) -> int | None:
    """Of a block with its CRC; None: the file has none. width: bytes of a token."""
    if not name.endswith("/c/0"):
        return None
    return BLOCK * (4 if name.endswith(f"/{WEIGHTS}/c/0") else width) + 4


def _check(file, entry: dict, record: int | None, done: int, total: int, report) -> tuple[int, list[dict]]:
    """Blocks of a file that were held against their CRC, and what is wrong with it. record: bytes of a block with its
    CRC; None: the file has none."""
    if not file.exists():
        return 0, [{"block": None, "why": "is missing"}]
    if (size := file.stat().length) != entry["size"]:
        return 0, [{"block": None, "why": f"has {size} bytes, but was written with {entry['size']}"}]
    blocks = 0 if record is None else (size - 4) // (record + 16)  # the index at the end: 16 bytes a block, and a CRC
    sha256, bad = hashlib.sha256(), []
    with file.open("rb") as stream:
        for i in range(blocks):
            data = stream.read(record)
            sha256.update(data)
            if google_crc32c.value(data[:-4]).to_bytes(4, "little") != data[-4:]:
                bad.append({"block": i, "why": "has another CRC-32C"})
            report(done + (i + 1) * record, total)
        while data := stream.read(_PIECE):
            sha256.update(data)
    as_written = sha256.hexdigest() == entry["sha256"]
    if bad and as_written:
        why = f"is undamaged, but not stored in blocks of {BLOCK} tokens: by another version of gptjax"
        bad = [{"block": None, "why": why}]
    if not bad and not as_written:
        bad = [{"block": None, "why": "has another SHA-256"}]
    return blocks, bad
