"""tokenizer.json, the format of Hugging Face's `tokenizers`: made here, of vocabularies that come in other files."""

import json

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def bpe(vocab: dict[str, int], merges: list) -> dict:
    """The model of byte-pair encoding, as the format has it."""
    settings = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    settings |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **settings, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def added(special: dict[str, int]) -> list[dict]:
    """Special tokens as added tokens, by their ids: the library numbers those that the vocabulary lacks in this order."""
    return [{"id": i, "content": name, **_FLAGS} for name, i in sorted(special.items(), key=lambda item: item[1])]


def tokenizer_json(
    special: dict[str, int],
    model: dict,
    split: dict | None,
    decoder: dict = BYTE_LEVEL,
    plain: dict[str, int] | None = None,
    normalizer: dict | None = None,
) -> bytes:
    """plain: added tokens that texts may spell."""
    tokens = [*added(special), *({**token, "special": False} for token in added(plain or {}))]
    return dumped(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": sorted(tokens, key=lambda token: token["id"]),
            "normalizer": normalizer,
            "pre_tokenizer": split,
            "post_processor": None,
            "decoder": decoder,
            "model": model,
        }
    )


def dumped(value) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
