"""Records by number: TensorFlow Datasets by name, read as ArrayRecord without TensorFlow."""

from collections.abc import Iterator

from gptjax.config import DataConfig
from gptjax.data.sources.records import Document, OnError, Source, Unit, decoded, first_line, named_field
from gptjax.errors import UserError, did_you_mean

_BATCH = 256
"""Records read at once: one by one, reading takes three times as long."""


# ---- tfds: TensorFlow Datasets by name, read as ArrayRecord without TensorFlow


def ranges(source: str, name: str, n: int, n_bytes: int, unit_bytes: int) -> list[Unit]:
    """Units of about unit_bytes of a data set of n records, n_bytes in all."""
    step = max(1, n * unit_bytes // max(n_bytes, 1))
    return [Unit(source, (name,), first, min(first + step, n)) for first in range(0, n, step)]


def _tfds_units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    builder = _tfds_builder(config)
    n = builder.info.splits[_tfds_split(builder, config)].num_examples
    whole = builder.info.splits.values()
    n_bytes = n * sum(s.num_bytes for s in whole) // max(sum(s.num_examples for s in whole), 1)
    return ranges("tfds", builder.info.full_name, n, n_bytes, unit_bytes)


def _read_tfds(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    builder = _tfds_builder(config)
    records = builder.as_data_source(_tfds_split(builder, config))
    for first in range(unit.first, unit.stop, _BATCH):
        numbers = range(first, min(first + _BATCH, unit.stop))
        for i, record in zip(numbers, records.__getitems__(numbers)):
            where = f"example {i} of data.tfds_name={config.tfds_name!r}"
            try:
                document = Document(decoded(named_field(record, config.text_field, where), where), where)
            except UserError as error:
                on_error(error)
                continue
            yield document


def _tfds_identity(config: DataConfig) -> dict:
    builder = _tfds_builder(config)
    split = builder.info.splits[_tfds_split(builder, config)]
    return {
        "name": builder.info.full_name,
        "split": config.tfds_split,
        "examples": split.num_examples,
        "text_field": config.text_field,
    }


def _tfds_builder(config: DataConfig):
    """The builder, its data downloaded and prepared if they were not."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers wikipedia, c4 and others

    key = f"data.tfds_name={config.tfds_name!r}"
    folder = None if config.tfds_dir is None else str(config.tfds_dir)
    try:
        builder = tfds.builder(config.tfds_name, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = did_you_mean(config.tfds_name.split("/")[0].split(":")[0], known) or "."
        raise UserError(f"{key} is not known to TFDS{near} Nor is it a folder in data.tfds_dir={folder}.") from error
    except (ValueError, AssertionError) as error:  # an unknown config or version
        raise UserError(f"{key}: {first_line(error)}") from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, no space, a source that moved
        raise UserError(
            f"{key} could not be prepared: {type(error).__name__}: {first_line(error)}; prepare it as ArrayRecord"
            " where it can be downloaded, and set data.tfds_dir."
        ) from error
    return builder


def _tfds_split(builder, config: DataConfig) -> str:
    try:
        builder.info.splits[config.tfds_split]
    except (ValueError, KeyError) as error:
        there_are = ", ".join(builder.info.splits)
        key = f"data.tfds_split={config.tfds_split!r}"
        raise UserError(f"{key} is not a split of {builder.info.full_name}; there are: {there_are}.") from error
    return config.tfds_split


TFDS = Source(_tfds_identity, _tfds_units, _read_tfds)
