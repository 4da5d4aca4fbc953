"""A source or a tokenizer in one word, a SPEC, which flags of commands and fields of configs take alike.

KIND                    of a source or a tokenizer that needs no more: corpus, bytes, chars
KIND:PATH, KIND:NAME    text:book.txt, gpt2:FOLDER, hf:NAME@SPLIT
PATH                    what lies there says its kind; of tokenizers the folder that one was saved in

In a Config it stands as the fields that it is short for. What lies at a path is looked at later, where it is read
(data/sources/spec.py, data/tokenizers/kinds.py).
"""

import os
import re

from etils import epath

from gptjax.config.text_kinds import SOURCES, TOKENIZERS
from gptjax.errors import UserError, did_you_mean, shorten


def spelt_out(given: dict) -> dict:
    """Fields of `data` with every SPEC (text_kinds.py) as the fields that it stands for.

    Raises UserError: one of those is given as well, and is another."""
    for key in ("source", "tokenizer") if given.get("source", "corpus") != "corpus" else ("path", "tokenizer"):
        if (fields := in_fields(key, given.get(key))) is None:
            continue
        for other in other_fields(key) & given.keys():
            if other != "source" and given[other] is not None and given[other] != fields.get(other):
                raise UserError(
                    f"data.{key}={shorten(repr(given[key]), 80)} says it all, and data.{other}={given[other]!r} is given, too;"
                    " give one of them."
                )
        given = {name: value for name, value in given.items() if name != key} | fields
    return given


def source_fields(spec: str) -> dict[str, str] | None:
    """The fields of DataConfig that KIND, KIND:PATH, KIND:NAME or KIND:NAME@SPLIT stands for; None: it is a path.

    Raises UserError: the kind needs a path or name and has none, or has one and needs none."""
    name, colon, rest = spec.partition(":")
    if name not in SOURCES or (colon and rest.startswith("//")):
        return None
    kind = SOURCES[name]
    if bool(rest) != (kind.needs is not None):
        expected = f"{name} alone" if kind.needs is None else f"{name}:{'NAME' if kind.split else 'PATH'}"
        raise UserError(f"source {spec!r}: expected {expected}.")
    if kind.split is None:
        return {"source": name} | ({kind.needs: rest} if kind.needs else {})
    dataset, at, split = rest.rpartition("@") if "@" in rest else (rest, "", "train")
    if not dataset or not split:
        raise UserError(f"source {spec!r}: expected {name}:NAME or {name}:NAME@SPLIT.")
    return {"source": name, kind.needs: dataset, kind.split: split}


def check_kind(spec: str) -> None:
    """Raises UserError: a SPEC begins like KIND:PATH, and there is neither such a kind nor such a path."""
    name, colon, rest = spec.partition(":")
    is_kind = colon and not rest.startswith("//") and re.fullmatch(r"\w+", name)
    if is_kind and name not in SOURCES and not epath.Path(spec).expanduser().exists():
        near = did_you_mean(name, SOURCES)
        raise UserError(f"source {spec!r}: {name!r} is no kind{near}; expected a path or one of: {', '.join(SOURCES)}.")


def tokenizer_parts(spec: str) -> tuple[str | None, str | None]:
    """(kind, path) of KIND, KIND:PATH or PATH; the kind is None for the folder that a tokenizer was saved in."""
    name, _, path = spec.partition(":")
    return (name, path or None) if name in TOKENIZERS else (None, spec)


def in_fields(key: str, value) -> dict | None:
    """What a SPEC given as data.source, data.path or data.tokenizer stands for in fields of DataConfig; None: it is no SPEC,
    but the name of a kind or a plain path, or a word that is neither.

    Raises UserError as source_fields does."""
    if not isinstance(value, str) or value in (TOKENIZERS if key == "tokenizer" else SOURCES):
        return None
    if key == "tokenizer":
        kind, path = tokenizer_parts(value)
        return {"tokenizer": kind, "tokenizer_path": path} if kind or _is_path(value) else None
    if key == "path":
        return source_fields(value) if ":" in value and not os.path.exists(value) else None
    check_kind(value)
    return source_fields(value) or ({"source": "corpus", "path": value} if _is_path(value) else None)


def _is_path(word: str) -> bool:
    """Whether it looks like a path, or is one here: no kind is spelt so."""
    return bool(re.search(r"[/\\.~*]", word)) or os.path.exists(word)


def other_fields(key: str) -> set[str]:
    """The fields that a SPEC given as data.<key> decides as well: those that name a text, or a tokenizer."""
    if key == "tokenizer":
        return {"tokenizer_path"}
    named = {field for kind in SOURCES.values() for field in (kind.needs, kind.split) if field}
    return (named | {"source", "path"}) - {key}
