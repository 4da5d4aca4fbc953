"""Tables whose column data.text_field holds a document a row, or whose rows are conversations (data.chat): Parquet files,
and data sets of Hugging Face `datasets`.

A Parquet file is cut between row groups. Of a group, a few MiB of what is read are in memory at a time.
"""

import functools
import os
from collections.abc import Iterator

from gptjax.config.fields import DataConfig
from gptjax.data.sources import files, packing
from gptjax.data.sources.records import (
    Damaged,
    Document,
    LeftOut,
    OnError,
    Source,
    Unit,
    check_blame,
    conversation_of,
    decoded,
    did_not_load,
    documents,
    fields_read,
    library,
    ranges,
)
from gptjax.errors import UserError, first_line

ENDINGS = files.endings("parquet")
_BATCH_BYTES = 4 << 20


def _rows(table, config: DataConfig, name: str, first: int) -> Iterator[tuple]:
    """Where each row of an Arrow table or batch is, rows first and on of what is called name, and the bytes of its one
    column, or where it is a conversation, all of it."""
    pa = library("pyarrow", "a table")
    if config.chat is None:  # bytes, so that a bad row is named and not all of its batch
        table = table.column(0).cast(pa.large_binary())
    return ((f"{name} row {row}", data) for row, data in enumerate(table.to_pylist(), start=first))


def _document_of(config: DataConfig, data, where: str) -> Document:
    if config.chat is not None:
        return conversation_of(config, data, where)
    if data is None:
        raise UserError(f"{where}: field {config.text_field!r} is null; expected a string.")
    return Document(decoded(data, where), where)


def _check_column(schema, config: DataConfig, name: str) -> None:
    """Raises Damaged: there is no such column, or none of strings. What a conversation needs, each row says."""
    if config.chat is not None:
        return
    pa, field = library("pyarrow", "a table"), config.text_field
    if schema.names.count(field) != 1:
        columns = ", ".join(map(repr, schema.names))
        raise Damaged(f"{name} has no column {field!r}; it has: {columns}. Set data.text_field.")
    kind = schema.field(field).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(test(value) for test in (*is_text, pa.types.is_string_view, pa.types.is_binary_view)):
        raise Damaged(f"{name}: column {field!r} is of type {kind}; expected strings. Set data.text_field.")


# ---- parquet


def _identity(config: DataConfig) -> dict:
    return {"files": files.identity(files.find_files(config.path, ENDINGS))} | fields_read(config)


def _units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    return files.units("parquet", files.find_files(config.path, ENDINGS), unit_bytes, _row_group_ranges)


def _row_group_ranges(file, size: int, unit_bytes: int) -> list[tuple[int, int | None]]:
    """Runs of row groups of about unit_bytes. A file that cannot be opened is left to its reader to report."""
    try:
        with file.open("rb") as stream:
            n = _opened(stream, file).metadata.num_row_groups
    except (Damaged, OSError):
        return [(0, None)]
    starts = range(0, n, max(1, n * unit_bytes // size))
    return list(zip(starts, [*starts[1:], None])) or [(0, None)]


def _opened(stream, file):
    """Raises Damaged: it is no Parquet file."""
    parquet = library("pyarrow.parquet", "source parquet")
    source = str(file) if "://" not in str(file) else stream
    try:
        table = parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        table.schema_arrow.names, [table.metadata.row_group(i) for i in range(table.num_row_groups)]  # read here
        return table
    except Exception as error:
        raise packing.not_opened(file, "Parquet", _damage(error)) from error


def _read(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    return files.read(unit, on_error, functools.partial(_documents, config, unit, on_error))


def _documents(config: DataConfig, unit: Unit, on_error: OnError, file) -> Iterator[Document]:
    with file.open("rb") as stream:
        table = _opened(stream, file)
        _check_column(table.schema_arrow, config, str(file))
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        n_rows = sum(group.num_rows for group in groups)
        if n_rows != table.metadata.num_rows and not unit.first:
            what = f"its row groups have {n_rows} rows, and the whole {table.metadata.num_rows}"
            on_error(UserError(f"{file} is damaged: by its metadata {what}; fetch it again."))
        for i in range(len(groups))[unit.first : unit.stop]:
            first = sum(group.num_rows for group in groups[:i])
            rows = _rows_of_group(table, i, first, config, on_error, file)
            yield from documents(rows, functools.partial(_document_of, config), on_error)


def _rows_of_group(table, i: int, first: int, config: DataConfig, on_error: OnError, file) -> Iterator[tuple]:
    """As _rows, of a row group; the rest of one that is damaged is told to on_error."""
    group, row, batches = table.metadata.row_group(i), first, None
    stop = first + group.num_rows
    columns = [config.text_field] if config.chat is None else None
    while True:
        try:
            batches = batches or table.iter_batches(_batch_rows(group), [i], columns, use_threads=False)
            batch = next(batches, None)
            rows = () if batch is None else _rows(batch, config, str(file), row)
        except Exception as error:
            what = f"rows {row} to {stop - 1}, the rest of row group {i}, cannot be read ({_damage(error)})"
            on_error(LeftOut(f"{file} is damaged: {what}; fetch it again.", max(1, stop - row)))
            return
        if batch is None:
            break
        yield from rows
        row += batch.num_rows
    if row != stop:
        what = f"row group {i} has {row - first} rows, and by its metadata {group.num_rows}"
        on_error(LeftOut(f"{file} is damaged: {what}; fetch it again.", max(1, stop - row)))


def _damage(error: Exception) -> str:
    """What Arrow says of damaged bytes, in exceptions of any kind. Raises error, if they are not to blame."""
    pa = library("pyarrow", "source parquet")
    if not isinstance(error, pa.ArrowException):  # one of its own is taken, even that a memory is too small
        check_blame(error)
    return first_line(error)


def _batch_rows(group) -> int:
    """By the bytes of all columns: asked for one of a damaged footer, pyarrow 26 ends the process (std::terminate)."""
    return max(1, min(1 << 14, group.num_rows * _BATCH_BYTES // max(group.total_byte_size, 1)))


PARQUET = Source(_identity, _units, _read)


# ---- hf: Hugging Face datasets, from its cache, the Hub or a folder


def _hf_identity(config: DataConfig) -> dict:
    data = _dataset(config.path, config.hf_split)
    return {
        "name": config.path,
        "split": config.hf_split,
        "examples": len(data),
        "fingerprint": data._fingerprint,
    } | fields_read(config)


def _hf_units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    data = _dataset(config.path, config.hf_split)
    return ranges("hf", config.path, len(data), data.data.nbytes, unit_bytes)


def _read_hf(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    data = _dataset(config.path, config.hf_split)
    name = f"data.path={config.path!r} of hf"
    try:
        _check_column(data.features.arrow_schema, config, name)
    except Damaged as error:
        on_error(error)
        return
    table = (data.select_columns([config.text_field]) if config.chat is None else data).with_format("arrow")
    step = max(1, min(1 << 14, len(data) * _BATCH_BYTES // max(data.data.nbytes, 1)))
    for first in range(unit.first, unit.stop, step):
        stop = min(first + step, unit.stop)
        try:
            rows = _rows(table[first:stop], config, name, first)
        except Exception as error:
            what = f"{name}: rows {first} to {stop - 1} cannot be read ({_damage(error)})"
            on_error(LeftOut(f"{what}; make the data set again.", stop - first))
            continue
        yield from documents(rows, functools.partial(_document_of, config), on_error)


@functools.lru_cache(maxsize=4)  # a second or more, for each unit
def _dataset(path: str, split: str):
    """Raises UserError: `datasets` is not installed, or gives no such data set."""
    datasets = library("datasets", "source hf")
    owner, slash, config = (
        path.rpartition("/") if path.count("/") == 2 and not os.path.exists(path) else (path, "", None)
    )
    try:
        if os.path.exists(os.path.join(path, "dataset_dict.json")) or os.path.exists(os.path.join(path, "state.json")):
            return _split_of_saved(datasets.load_from_disk(path), path, split)
        return datasets.load_dataset(owner, config, split=split)
    except UserError:
        raise
    except Exception as error:  # no network, no space, no such name, config or split
        raise did_not_load(f"data.path={path!r} of hf, data.hf_split={split!r}", error) from error


def _split_of_saved(saved, path: str, split: str):
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise UserError(f"data.hf_split={split!r} is not a split of {path}; there are: {', '.join(saved)}.")
    return saved[split]


HF = Source(_hf_identity, _hf_units, _read_hf)
