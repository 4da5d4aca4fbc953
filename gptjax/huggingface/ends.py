"""The ids that end and begin a document: what the files of a folder of transformers say, in transformers' own order.

`generate` of transformers ends a text at what generation_config.json says, or config.json where there is no such file;
the tokenizer's own files come after them. An id that the model does not have, or that texts are written with, cannot
part documents here: it is passed over, in a note.
"""

import dataclasses

from gptjax.data.tokenizers.base import Tokenizer

# (file, field of the end, field of the beginning), the first to be asked first
SOURCES = (
    ("generation_config.json", "eos_token_id", "bos_token_id"),
    ("config.json", "eos_token_id", "bos_token_id"),
    ("tokenizer_config.json", "eos_token", "bos_token"),
    ("special_tokens_map.json", "eos_token", "bos_token"),
)


@dataclasses.dataclass(frozen=True)
class Ends:
    eot_id: int | None
    bos_id: int | None  # None: nothing stands before a text
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Named:
    """What one field of one file says."""

    file: str
    field: str
    ids: tuple[int, ...]  # those that can part documents


def find(contents: dict[str, dict], tokenizer: Tokenizer, vocab_size: int, sources=SOURCES) -> Ends:
    """contents: of the files of sources that there are. vocab_size: the model's. A tokenizer's own end-of-text, if its
    file has it, is asked last; where nothing is named, texts have no end."""
    notes = []
    ends = [_read(contents, file, eos, tokenizer, vocab_size, notes) for file, eos, _ in sources if file in contents]
    ends = [named for named in ends if named.ids]
    eot_id = ends[0].ids[0] if ends else _own_end(tokenizer, vocab_size)
    if ends:
        notes += _contradictions(ends)
    elif eot_id is None:
        notes.append("nothing names an end token: texts go on to --max_tokens; with --stop they end at a string")
    begins = [_read(contents, file, bos, tokenizer, vocab_size, []) for file, _, bos in sources if file in contents]
    bos_id = next((named.ids[0] for named in begins if named.ids), eot_id)
    return Ends(eot_id, bos_id, tuple(notes))


def _own_end(tokenizer: Tokenizer, vocab_size: int) -> int | None:
    eot_id = tokenizer.eot_id
    return None if eot_id is None or tokenizer.invented_eot or eot_id >= vocab_size else eot_id


def _read(contents, file: str, field: str, tokenizer: Tokenizer, vocab_size: int, notes: list[str]) -> _Named:
    value = contents[file].get(field)
    usable = []
    for each in value if isinstance(value, list) else [value]:
        if each is None:
            continue
        i = _id_of(each, tokenizer)
        obstacle = _obstacle(i, tokenizer, vocab_size)
        if obstacle is None:
            usable.append(i)
        else:
            notes.append(f"{file}: {field}={_shown(each)} {obstacle}, and ends nothing here")
    return _Named(file, field, tuple(usable))


def _id_of(token, tokenizer: Tokenizer) -> int | None:
    """Of an id, the name of a token, or an added token written out."""
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str):
        token_id = tokenizer.special.get(token)
        spelled = token.encode("utf-8", errors="replace")
        if token_id is None and spelled in tokenizer.spelling:
            token_id = tokenizer.spelling.index(spelled)
        return token_id
    return token if type(token) is int else None


def _obstacle(i: int | None, tokenizer: Tokenizer, vocab_size: int) -> str | None:
    """Why an id cannot part documents; None: it can."""
    if i is None:
        return "is no token of the tokenizer"
    if not 0 <= i < vocab_size:
        return f"is none of the model's {vocab_size} tokens"
    if tokenizer.kind == "ids" or i >= tokenizer.vocab_size or not tokenizer.spelling[i]:
        return None
    text = tokenizer.spelling[i].decode(errors="replace")
    if "\ufffd" not in text and tokenizer.encode(text).tolist() != [i]:
        return None  # no text has it
    return f"is a token of texts, {text!r} (give sample --stop instead)"


def _contradictions(ends: list[_Named]) -> list[str]:
    first, *others = ends
    notes = []
    if len(first.ids) > 1:
        more = ", ".join(map(str, first.ids[1:]))
        notes.append(f"{first.file}: of {first.field} the first ends texts, {first.ids[0]}; {more} do not here")
    for other in others:
        if first.ids[0] not in other.ids:
            notes.append(
                f"{first.file} ends texts with token {first.ids[0]}, {other.file} with {other.ids[0]}: the first is"
                " followed, as by transformers"
            )
    return notes


def _shown(token) -> str:
    return repr(token.get("content") if isinstance(token, dict) else token)
