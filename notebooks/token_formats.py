"""Random reads of token windows from four formats: python notebooks/token_formats.py --tokens=FILE --out=DIR [--json]

FILE: uint16 tokens end to end, as in a folder that gptjax prepared (train.bin; train_documents.bin beside it says where
documents start). DIR, on the disk to be measured, gets the same tokens as
    raw                   the file itself, mapped by numpy
    raw_random            the same, with the kernel's readahead off (MADV_RANDOM)
    raw_ahead             the same, and the pages of a batch asked for (MADV_WILLNEED) before any of them is read
    zarr3                 tensorstore, zarr3 sharded: inner chunks of 32768 tokens with crc32c, one shard for all
    zarr3_mapped          the file of zarr3, mapped, its index read by us, as raw_ahead (checksums are not looked at)
    zarr3_4096            zarr3 with inner chunks of 4096 tokens
    arrayrecord           ArrayRecord, group_size:1, uncompressed, records of 32768 tokens
    arrayrecord_zstd      the same with ArrayRecord's default compression
    arrayrecord_documents ArrayRecord, group_size:1, uncompressed, a document a record
Rows are windows of 1025 tokens at random starts, the same for every format and checked to be equal, in batches of 32.
Cold: the pages of the files were given up before; warm: the same rows read again. The formats take turns.
"""

import argparse
import json
import mmap
import pathlib
import shutil

import numpy as np
import tensorstore
from array_record.python import array_record_module

from gptjax.diagnostics.bench_data import Timer, forget_pages

BLOCK, WINDOW, BATCH = 1 << 15, 1025, 32


def raw(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray):
    """Returns a function that opens; which returns one from starts [B] to tokens [B, WINDOW]. So do the others."""
    token.tofile(folder / "tokens.bin")

    def open_it():
        mapped = np.memmap(folder / "tokens.bin", token.dtype, mode="r")
        return lambda start_B: mapped[start_B[:, None] + np.arange(WINDOW)]

    return open_it


def raw_random(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray):
    return _mapped(folder, token, ahead=False)


def raw_ahead(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray):
    return _mapped(folder, token, ahead=True)


def _mapped(folder: pathlib.Path, token: np.ndarray, ahead: bool):
    token.tofile(folder / "tokens.bin")

    def open_it():
        with open(folder / "tokens.bin", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_RANDOM)  # else the kernel fetches much around every page that is missing
        array = np.frombuffer(mapped, token.dtype)

        def read(start_B):
            if ahead:
                for first in (start_B * token.itemsize // mmap.PAGESIZE * mmap.PAGESIZE).tolist():
                    mapped.madvise(mmap.MADV_WILLNEED, first, min(2 * mmap.PAGESIZE, len(mapped) - first))
            return array[start_B[:, None] + np.arange(WINDOW)]

        return read

    return open_it


def zarr3(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray, block=BLOCK):
    n_blocks = -(-len(token) // block)
    sharding = {
        "chunk_shape": [block],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(folder)},
        "metadata": {
            "shape": [len(token)],
            "data_type": token.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [n_blocks * block]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
    }
    tensorstore.open(spec, create=True).result().write(token).result()

    def open_it():
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        array = tensorstore.open(spec, context=context).result()

        def read(start_B):
            futures = [array[start : start + WINDOW].read() for start in start_B.tolist()]
            return np.stack([future.result() for future in futures])

        return read

    return open_it


def zarr3_mapped(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray):
    """The shard's last bytes are its index: offset and size of every inner chunk, uint64, and a crc32c."""
    zarr3(folder, token, document_start)

    def open_it():
        with open(folder / "c" / "0", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        n_blocks = -(-len(token) // BLOCK)
        offset = np.frombuffer(mapped, "<u8", 2 * n_blocks, len(mapped) - 16 * n_blocks - 4)[::2].astype(np.int64)
        array = np.frombuffer(mapped, token.dtype, len(mapped) // token.itemsize)

        def read(start_B):
            index_BT = start_B[:, None] + np.arange(WINDOW)
            place_BT = offset[index_BT // BLOCK] // token.itemsize + index_BT % BLOCK
            for first in (place_BT[:, 0] * token.itemsize // mmap.PAGESIZE * mmap.PAGESIZE).tolist():
                mapped.madvise(mmap.MADV_WILLNEED, first, min(2 * mmap.PAGESIZE, len(mapped) - first))
            return array[place_BT]

        return read

    return open_it


def zarr3_4096(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray):
    return zarr3(folder, token, document_start, block=4096)


def arrayrecord(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray, options="uncompressed"):
    bounds = np.append(np.arange(0, len(token), BLOCK), len(token))
    return _array_record(folder, token, bounds, options)


def arrayrecord_zstd(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray):
    return arrayrecord(folder, token, document_start, "zstd:3")


def arrayrecord_documents(folder: pathlib.Path, token: np.ndarray, document_start: np.ndarray):
    return _array_record(folder, token, np.append(document_start, len(token)), "uncompressed")


def _array_record(folder: pathlib.Path, token: np.ndarray, bounds: np.ndarray, options: str):
    """Record r holds the tokens from bounds[r] to bounds[r + 1]."""
    path = str(folder / "tokens.arrayrecord")
    writer = array_record_module.ArrayRecordWriter(path, f"group_size:1,{options}")
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        writer.write(token[start:stop].tobytes())
    writer.close()

    def open_it():
        # readahead off, or each random read fetches 16 MB, as Grain's ArrayRecord source has it
        reader = array_record_module.ArrayRecordReader(
            path, options="readahead_buffer_size:0,index_storage_option:in_memory"
        )

        def read(start_B):
            first_B = np.searchsorted(bounds, start_B, side="right") - 1
            last_B = np.searchsorted(bounds, start_B + WINDOW, side="left")  # beyond the last record needed
            wanted = np.unique(np.concatenate([np.arange(a, b) for a, b in zip(first_B, last_B)])).tolist()
            record = dict(zip(wanted, reader.read(wanted)))
            rows = []
            for start, first, last in zip(start_B.tolist(), first_B.tolist(), last_B.tolist()):
                piece = np.frombuffer(b"".join(record[i] for i in range(first, last)), token.dtype)
                rows.append(piece[start - bounds[first] :][:WINDOW])
            return np.stack(rows)

        return read

    return open_it


FORMATS = (
    raw,
    raw_random,
    raw_ahead,
    zarr3,
    zarr3_mapped,
    zarr3_4096,
    arrayrecord,
    arrayrecord_zstd,
    arrayrecord_documents,
)


def format_rates(token: np.ndarray, document_start: np.ndarray, out: pathlib.Path, batches: int, rounds: int) -> dict:
    """{format: bytes on disk, seconds to write, rows per second and CPU seconds per row, cold and warm}."""
    results, openers = {}, {}
    for form in FORMATS:
        folder = out / form.__name__
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        timer = Timer()
        (openers[form],) = timer([lambda f: form(f, token, document_start)], [folder])
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        results[form.__name__] = {"bytes": size, "write_seconds": timer.wall[0], "write_cpu_seconds": timer.cpu[0]}
    timers = {(form, name): Timer() for form in FORMATS for name in ("cold", "warm")}
    for i in range(rounds):
        start_SB = np.random.default_rng(i).integers(0, len(token) - WINDOW, (batches, BATCH))
        for form in FORMATS[:: -1 if i % 2 else 1]:
            for file in (out / form.__name__).rglob("*"):
                if file.is_file():
                    forget_pages(file)
            read = openers[form]()
            for name in ("cold", "warm"):
                rows = timers[form, name]([lambda starts: [read(start_B) for start_B in starts]], [start_SB])[0]
            expected = token[start_SB[..., None] + np.arange(WINDOW)]
            if not np.array_equal(np.stack(rows), expected):
                raise SystemExit(f"{form.__name__} gives other tokens than were written")
    for (form, name), timer in timers.items():
        rates = timer.rates([batches * BATCH] * rounds)
        results[form.__name__][name] = {
            "rows_per_second": rates["per_second"],
            "cpu_microseconds_per_row": 1e6 / rates["per_cpu_second"],
            "disk_bytes_per_row": timer.disk_bytes / (rounds * batches * BATCH),
        }
    return results


def table(results: dict) -> str:
    lines = [f"{'format':22} {'MB':>6} {'write s':>8}   {'rows/s, CPU us/row, disk kB/row: cold':38} warm"]
    for name, row in results.items():
        cells = [
            f"{row[way]['rows_per_second']:9,.0f} {row[way]['cpu_microseconds_per_row']:8.1f}"
            f" {row[way]['disk_bytes_per_row'] / 1e3:8.1f}"
            for way in ("cold", "warm")
        ]
        lines.append(
            f"{name:22} {row['bytes'] / 1e6:6.1f} {row['write_cpu_seconds']:8.2f}   {'          '.join(cells)}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--batches", type=int, default=50, help="of 32 rows, in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    token = np.fromfile(args.tokens, np.uint16)
    document_start = np.fromfile(args.tokens.with_name(f"{args.tokens.stem}_documents.bin"), np.int64)
    results = format_rates(token, document_start, args.out, args.batches, args.rounds)
    print(json.dumps(results, indent=1) if args.json else table(results))


if __name__ == "__main__":
    main()
