"""Tokenizer files: those of a folder of transformers as a tokenizer of ours, and ours as files that transformers reads."""

import json

from gptjax.data import tokenizers
from gptjax.data.tokenizers import library_json, merges, sentencepiece_json
from gptjax.data.tokenizers.base import END_OF_TEXT, PROBES, Tokenizer
from gptjax.data.tokenizers.byte_level import byte_of_character
from gptjax.data.tokenizers.library_json import BYTE_LEVEL
from gptjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from gptjax.errors import UserError


def read(folder) -> tuple[Tokenizer | None, list[str]]:
    """(the tokenizer of a folder of transformers, notes); None: it has none. Raises UserError: gptjax cannot read it.

    vocab.json and merges.txt that are numbered as GPT-2's, and say what a tokenizer.json beside them says, are the kind
    "gpt2"; else tokenizer.json counts, and is made of the two where there is none.
    """
    has_json, has_two = (folder / "tokenizer.json").exists(), merges.names_in(folder) is not None
    if has_json and (of_pieces := _sentencepiece_in(folder / "tokenizer.json")):
        return of_pieces
    numbered = _gpt2_numbered(folder) if has_two else None
    if numbered is None:
        return (tokenizers.from_spec(f"hf:{folder}") if has_json or has_two else None), []
    if not has_json:
        return numbered, []
    try:
        of_json = tokenizers.from_spec(f"hf:{folder / 'tokenizer.json'}")
    except UserError as error:
        return numbered, [f"vocab.json and merges.txt are the tokenizer; tokenizer.json is not read: {error}"]
    if _same(of_json, numbered):
        return numbered, []
    return of_json, ["tokenizer.json is the tokenizer; vocab.json and merges.txt say something else"]


def _sentencepiece_in(file) -> tuple[Tokenizer, list[str]] | None:
    """(the tokenizer, notes) of a tokenizer.json that holds a SentencePiece model; None: it holds another, or none."""
    definition = file.read_bytes()
    try:
        fields = json.loads(definition)
    except (ValueError, RecursionError):
        return None  # which is said where it is read
    if not sentencepiece_json.is_sentencepiece(fields):
        return None
    model = sentencepiece_json.as_model(definition, str(file), with_prefix=False)
    notes = []
    if sentencepiece_json.puts_a_space_before(definition, str(file)):
        notes.append("tokenizer.json puts a space before texts; it is not: a text has the tokens of its own, no more")
    return SentencePieceTokenizer.checked(model, str(file)), notes


def _gpt2_numbered(folder) -> Tokenizer | None:
    """The tokenizer of two files that are numbered as GPT-2's, with nothing added to them."""
    try:
        numbered = tokenizers.from_spec(f"gpt2:{folder}")
    except UserError:
        return None
    special = {token["content"]: token["id"] for token in json.loads(merges.as_tokenizer_json(folder))["added_tokens"]}
    return numbered if special.items() <= numbered.special.items() else None


def _same(a: Tokenizer, b: Tokenizer) -> bool:
    texts = [*PROBES, *b.special]
    return (a.spelling, a.special) == (b.spelling, b.special) and all(
        a.encode(text).tolist() == b.encode(text).tolist() for text in texts
    )


def files(tokenizer: Tokenizer, context_length: int, imported: dict[str, dict] | None = None) -> dict | None:
    """{name: content} of what AutoTokenizer loads with the same ids; None: transformers has no such tokenizer. imported:
    what the folder that the model came from said, which is given back."""
    if tokenizer.kind not in _WRITERS:
        return None
    imported = imported or {}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_length}
    settings |= {f"{part}_token": name for part, name in _part_names(tokenizer).items()}
    settings |= {"clean_up_tokenization_spaces": False}
    written = _WRITERS[tokenizer.kind](tokenizer)
    if "vocab.json" in written:
        settings["tokenizer_class"] = "GPT2Tokenizer"
    settings = imported.get("tokenizer_config.json", settings)
    written |= {"tokenizer_config.json": library_json.dumped(settings)}
    if names := imported.get("special_tokens_map.json"):
        written |= {"special_tokens_map.json": library_json.dumped(names)}
    return written


def _part_names(tokenizer: Tokenizer) -> dict[str, str]:
    """The names of what begins and ends documents, by the names that transformers has for such parts."""
    name_of = {i: name for name, i in reversed(tokenizer.special.items())}
    parts = {"bos": tokenizer.bos_id, "eos": tokenizer.eot_id, "unk": tokenizer.eot_id}
    written = set(_special(tokenizer).values())  # a name without an entry would be given another id
    return {part: name_of[i] for part, i in parts.items() if i in written}


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    """The special symbols that a file can say: those behind a gap in the numbers would be given others."""
    entries, special = sum(map(bool, tokenizer.spelling)), {}
    for name, i in sorted(tokenizer.special.items(), key=lambda item: item[1]):
        if i > entries + len(set(special.values())):
            break
        special[name] = i
    return special


def _gpt2(tokenizer: Tokenizer) -> dict[str, bytes]:
    """GPT-2's own two files, and the same as tokenizer.json."""
    rank = {spelled: i for i, spelled in enumerate(tokenizer.spelling) if spelled}
    pairs = [pair for spelled in sorted(rank, key=rank.get) if (pair := _merged_from(spelled, rank))]
    pairs = [tuple(_written(part) for part in pair) for pair in pairs]
    vocab = {_written(spelled): i for spelled, i in rank.items()} | {END_OF_TEXT: tokenizer.special[END_OF_TEXT]}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    return {
        "vocab.json": library_json.dumped(vocab),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
        "tokenizer.json": _file(tokenizer, library_json.bpe(vocab, pairs), BYTE_LEVEL),
    }


def _merged_from(spelled: bytes, rank: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that a token was merged from: those left when all merges before its own are done."""
    parts = [spelled[i : i + 1] for i in range(len(spelled))]
    rank_of_whole = rank[spelled]
    while len(parts) > 2:
        ranks = [rank.get(a + b, rank_of_whole) for a, b in zip(parts, parts[1:])]
        best = min(range(len(ranks)), key=ranks.__getitem__)
        if ranks[best] >= rank_of_whole:
            raise UserError(f"the token {spelled!r} of this vocabulary is no merge of two others; export it by hand.")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return tuple(parts) if len(parts) == 2 else None


def _hf(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The file as it came; with what was added to it here, if something was."""
    fields = json.loads(tokenizer.definition)
    in_file = {token["content"] for token in fields.get("added_tokens", [])} | fields["model"]["vocab"].keys()
    ids = {tokenizer.special[name] for name in in_file & tokenizer.special.keys()}
    lacking = {name: i for name, i in _special(tokenizer).items() if name not in in_file and i not in ids}
    if not lacking:
        return {"tokenizer.json": tokenizer.definition}
    fields["added_tokens"] = [*fields.get("added_tokens", []), *library_json.added(lacking)]
    return {"tokenizer.json": library_json.dumped(fields)}


def _sentencepiece(tokenizer: Tokenizer) -> dict[str, bytes]:
    added = {name: tokenizer.special[name] for name in tokenizer.added}
    return {"tokenizer.json": sentencepiece_json.as_tokenizer_json(tokenizer.definition, added)}


def _bytes(tokenizer: Tokenizer) -> dict[str, bytes]:
    vocab = {_written(bytes([b])): b for b in range(256)}
    return {"tokenizer.json": _file(tokenizer, library_json.bpe(vocab, []), BYTE_LEVEL | {"use_regex": False})}


def _chars(tokenizer: Tokenizer) -> dict[str, bytes]:
    vocab = {spelled.decode(): i for i, spelled in enumerate(tokenizer.spelling) if spelled}
    unknown = END_OF_TEXT if tokenizer.eot_id is not None else next(iter(vocab))
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": unknown}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return {"tokenizer.json": _file(tokenizer, model, split, decoder={"type": "Fuse"})}


_WRITERS = {"gpt2": _gpt2, "hf": _hf, "bytes": _bytes, "chars": _chars, "sentencepiece": _sentencepiece}


def _file(tokenizer: Tokenizer, model: dict, split: dict, **decoder) -> bytes:
    return library_json.tokenizer_json(_special(tokenizer), model, split, **decoder)


def _written(spelled: bytes) -> str:
    """Bytes in the characters that stand for them in vocabulary files."""
    character = {b: c for c, b in byte_of_character().items()}
    return "".join(character[b] for b in spelled)
