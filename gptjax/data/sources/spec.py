"""A SPEC: a source in one word.

corpus                                  the plays that gptjax carries
KIND:PATH                               text, jsonl, parquet, arrayrecord, warc or prepared; PATH is a file, a
                                        folder or a glob, local or gs://
PATH                                    its ending says the kind, or a folder's files do; a folder with a
                                        manifest.json is `prepared`
tfds:NAME[@SPLIT]                       tfds:wikipedia/20230601.en:1.0.0@train[:1%]
hf:NAME[@SPLIT]                         hf:wikitext, hf:allenai/c4, or a folder
hf:OWNER/NAME/CONFIG[@SPLIT]            hf:Salesforce/wikitext/wikitext-103-v1@validation

With data.text_field as it is: tfds:wikipedia/20230601.en, tfds:c4/en, tfds:lm1b; set to book_text: tfds:pg19. Corpora
that come as lines are named by their files, such as the Pile's jsonl:pile/train/*.jsonl.zst or jsonl:c4/en/*.json.gz.
"""

import collections
import contextlib
import dataclasses

from gptjax.config import spelling, text_kinds
from gptjax.config.fields import DataConfig
from gptjax.data.sources import files
from gptjax.errors import UserError
from gptjax.storage import folder_kinds

NO_TEXT = (
    *(folder_kinds.RUN, folder_kinds.BEGUN, folder_kinds.STUDY, folder_kinds.CHECKPOINT, folder_kinds.CHECKPOINTS),
    *(folder_kinds.TOKENIZER, folder_kinds.MODEL),
)


def from_spec(spec: str, base: DataConfig) -> DataConfig:
    """base with the source that spec names. Raises UserError: it names none, or a path whose kind cannot be told."""
    if not spec:
        raise UserError(f"source '': expected a path or one of: {', '.join(text_kinds.SOURCES)}.")
    if ":" in spec or (spec in text_kinds.SOURCES and text_kinds.SOURCES[spec].needs is None):
        if (fields := spelling.source_fields(spec)) is not None:
            return _with_source(base, **fields)
    spelling.check_kind(spec)
    return _with_source(base, _kind(spec), path=spec)


@contextlib.contextmanager
def naming_field(key: str):
    """What is raised inside names the field that held the SPEC, and not one of `data`, which nobody typed."""
    try:
        yield
    except UserError as error:
        line = str(error)
        for of_data in ("data.path=", "source ", "data.source (of labelled examples)="):
            if line.startswith(of_data):
                raise UserError(f"{key}={line.removeprefix(of_data)}") from error
        raise


def _with_source(base: DataConfig, source: str, **fields) -> DataConfig:
    """base with all that names a source anew; text_field, separator and tfds_dir say how it is read, and stay."""
    names = {name for kind in text_kinds.SOURCES.values() for name in (kind.needs, kind.split)}
    unset = {field.name: field.default for field in dataclasses.fields(base) if field.name in names}
    return dataclasses.replace(base, source=source, **unset | fields)


def kind_of_path(path: str) -> str:
    """The kind of data.path alone: as in a SPEC, but text where no ending says it. Raises UserError as from_spec does."""
    try:
        return _kind(path)
    except _NoKnownEnding:
        return "text"


class _NoKnownEnding(UserError):
    pass


def _kind(path: str) -> str:
    """By the ending of path, or of the files that it names."""
    from etils import epath

    if found := _kind_of_name(path.rstrip("/")):
        return found
    named = files.find_files(path, ("",))
    kind = folder_kinds.kind_of(path)
    if kind in (folder_kinds.SHARDS, folder_kinds.UNFINISHED):
        return "prepared"
    if kind in NO_TEXT:
        raise UserError(f"{path} is {folder_kinds.said(path)}, which holds no text; expected text or token shards.")
    if epath.Path(path).expanduser() / "manifest.json" in named:
        return "prepared"
    kinds = collections.Counter(filter(None, (_kind_of_name(f.name) for f in named)))
    if len(kinds) > 1:
        there_are = " and ".join(f"{n} of {kind}" for kind, n in kinds.most_common())
        raise UserError(
            f"{path} holds files of several kinds, {there_are}; say which: {kinds.most_common()[0][0]}:{path}"
        )
    if not kinds:
        endings = ", ".join(ending for kind in text_kinds.SOURCES.values() for ending in kind.endings)
        raise _NoKnownEnding(
            f"{path}: no file's ending says its kind; expected {endings}, packed or not; or KIND:PATH, as in text:{path}."
        )
    return kinds.most_common()[0][0]


def _kind_of_name(name: str) -> str | None:
    return next((kind for kind in text_kinds.SOURCES if name.endswith(files.endings(kind))), None)
