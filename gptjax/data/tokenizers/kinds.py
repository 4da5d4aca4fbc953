"""The tokenizer that a config or a SPEC names: KIND, KIND:PATH, or a folder that a tokenizer was saved in."""

import dataclasses
import hashlib

from gptjax.config import spelling
from gptjax.config.fields import DataConfig
from gptjax.config.text_kinds import TOKENIZERS
from gptjax.data.tokenizers import folder
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.errors import UserError, did_you_mean, shorten
from gptjax.storage import folder_kinds


def train_tokenizer(config: DataConfig, documents) -> Tokenizer:
    """The tokenizer that config names, made from an iterable of documents (which some kinds don't read).

    Raises UserError: an unknown kind, too little text for data.tokenizer_vocab_size, an unusable data.tokenizer_path.
    """
    kind = tokenizer_class(config)
    return kind.train(config, documents) if config.tokenizer_path is None else _read(kind, config.tokenizer_path)


def tokenizer_class(config: DataConfig) -> type[Tokenizer]:
    """Raises UserError: an unknown kind."""
    name, path = config.tokenizer, config.tokenizer_path
    if name is None and path is not None:
        name = folder.saved_kind(path)
        if name is None and not path.endswith(".model") and folder_kinds.kind_of(path) != folder_kinds.FILE:
            raise _none_there(path)
    if name is not None and name not in TOKENIZERS:
        raise UserError(
            f"data.tokenizer={shorten(repr(name), 80)} is not known{did_you_mean(name, TOKENIZERS)}; expected one of:"
            f" {', '.join(_shown(name) for name in sorted(TOKENIZERS))} or a folder that a tokenizer was saved in."
        )
    return TOKENIZERS[name or "sentencepiece"]


def tokenizer_settings(config: DataConfig) -> dict:
    """What, beside the text, decides which tokenizer train_tokenizer gives. Raises as train_tokenizer."""
    kind = tokenizer_class(config)
    settings = {"kind": kind.kind}
    if config.tokenizer_path is not None:
        tokenizer = _read(kind, config.tokenizer_path)
        model = {"model": hashlib.sha256(tokenizer.definition).hexdigest()}
        ends = {} if tokenizer.ends is None else {"ends": list(tokenizer.ends)}
        return settings | model | ends | ({"special": list(tokenizer.added)} if tokenizer.added else {})
    return settings | kind.settings(config)


def from_spec(spec: str) -> Tokenizer:
    """The tokenizer of a SPEC. Raises UserError: no such kind or folder, or a kind made from a text."""
    name, path = _parsed(spec)
    if name is None:
        return folder.load_tokenizer(path)
    kind = TOKENIZERS[name]
    if path is None and kind.made_from_text:
        or_file = f", or {name}:PATH of {kind.file}" if kind.file else ""
        raise UserError(
            f"the tokenizer {spec!r} is made from a text; give the folder of one that was saved, as gptjax tokenizer"
            f" train writes{or_file}."
        )
    return _read(kind, path)


def with_spec(config: DataConfig, spec: str) -> DataConfig:
    """config with the tokenizer of a SPEC, which may be one to train. Raises UserError: no such kind or folder."""
    name, path = _parsed(spec)
    return dataclasses.replace(config, tokenizer=name or folder.saved_kind(path), tokenizer_path=path)


def _parsed(spec: str) -> tuple[str | None, str | None]:
    """(kind, path); the kind is None for a folder that a tokenizer was saved in."""
    name, path = spelling.tokenizer_parts(spec)
    if name is not None or folder.saved_kind(spec) is not None:
        return name, path
    raise _none_there(spec)


def _none_there(spec: str) -> UserError:
    """Of a SPEC that is no kind, and no folder that a tokenizer was saved in."""
    kind = folder_kinds.kind_of(spec)
    if kind in folder_kinds.SAID and kind != folder_kinds.MISSING:
        its_own = (
            f"give the folder of its tokenizer, {spec}/tokenizer" if kind == folder_kinds.RUN else "give a tokenizer's"
        )
        return UserError(f"the tokenizer {spec!r} is {folder_kinds.said(spec)}; {its_own}.")
    name = spec.partition(":")[0]
    return UserError(
        f"the tokenizer {spec!r} is neither a kind nor a folder that a tokenizer was saved in"
        f"{did_you_mean(name, TOKENIZERS)}; expected {', '.join(_shown(name) for name in sorted(TOKENIZERS))} or a folder."
    )


def _shown(name: str) -> str:
    kind = TOKENIZERS[name]
    return name + (":PATH" if kind.needs_file else "[:PATH]" if kind.file else "")


def _read(kind: type[Tokenizer], path: str | None) -> Tokenizer:
    """The tokenizer of a kind from a folder it was saved in, or from the files of others."""
    saved = None if path is None else folder.saved_kind(path)
    if saved is None:
        return kind.read(path)
    if saved != kind.kind:
        raise UserError(f"{path} holds a tokenizer of kind {saved!r}, not {kind.kind!r}; set data.tokenizer={saved!r}.")
    return folder.load_tokenizer(path)
