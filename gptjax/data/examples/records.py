"""The records of a labelled set: objects of JSON lines, packed or not, and rows of Parquet files, with where each stands.

What cannot be read is told to on_error, as of running text, and the reading goes on behind it.
"""

import functools
from collections.abc import Iterator

from gptjax.config.extras import library
from gptjax.config.fields import DataConfig
from gptjax.data import sources
from gptjax.data.sources import files, packing
from gptjax.data.sources.records import Damaged, OnError, Unit, json_value
from gptjax.errors import UserError, choose, first_line


def read(config: DataConfig, on_error: OnError) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) of each record of a DataConfig's files, in order.

    Raises UserError: a source that has no records, or no file.
    """
    kind = sources.source_name(config)
    read_file = choose(_READERS, kind, "data.source (of labelled examples)")
    for file in _files(config, kind):
        unit = Unit(kind, (str(file),))
        yield from files.read(unit, on_error, functools.partial(read_file, on_error=on_error))


def identity(config: DataConfig) -> dict:
    """JSON values that change when the files do."""
    kind = sources.source_name(config)
    choose(_READERS, kind, "data.source (of labelled examples)")
    return {"source": kind, "files": files.identity(_files(config, kind))}


def _files(config: DataConfig, kind: str) -> list:
    return files.find_files(config.path, files.endings(kind))


def _of_lines(file, on_error: OnError) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(files.lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            record = json_value(line, where)
            if not isinstance(record, dict):
                raise UserError(f"{where} holds a {type(record).__name__}; expected an object.")
        except UserError as error:
            on_error(error)
            continue
        yield where, record


def _of_table(file, on_error: OnError) -> Iterator[tuple[str, dict]]:
    parquet = library("pyarrow.parquet", "source parquet")
    number = 0
    with file.open("rb") as stream:
        try:
            for batch in parquet.ParquetFile(stream).iter_batches():
                for record in batch.to_pylist():
                    yield f"{file} row {number}", record
                    number += 1
        except UserError:
            raise
        except Exception as error:
            damage = packing.not_opened(file, "Parquet", first_line(error)) if not number else None
            raise damage or Damaged(
                f"{file}: nothing after row {number - 1} can be read ({first_line(error)})."
            ) from error


_READERS = {"jsonl": _of_lines, "parquet": _of_table}
