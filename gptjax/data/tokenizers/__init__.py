"""Text to tokens and back: bytes, characters, a SentencePiece model, GPT-2's BPE, or a Hugging Face tokenizer.json.

All of them are lossless on any text: `decode(encode(text)) == text`, and the tokens' byte counts add up to the
text's, which is what bits per byte needs (a tokenizer.json may turn out to change a rare text: then it is refused). No
text can spell a special token: only the data pipeline adds those.

    base            what tokenizers have in common: spellings, special symbols, hashes
    kinds           the tokenizer that a config or a SPEC names
    folder          a tokenizer on disk
    simple, sentencepiece, gpt2, huggingface        the tokenizers: bytes, characters and ids; and three libraries
    sentencepiece_model, sentencepiece_json     SentencePiece's files taken apart, and as tokenizer.json
    byte_level, merges, library_json        what byte-pair encodings share; vocabularies in other programs' files
    lossless        whether a tokenizer.json gives back the texts it is given
    symbols         the standard names of special symbols

A tokenizer is its `definition`, the bytes it is rebuilt from without any other file, the ids that part documents where
an imported model has its own, and the names of the special symbols that were added to it. `hash` is of all, `base_hash` of
the definition alone: tokens of a text are those of every tokenizer with that base_hash.
"""

from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer
from gptjax.data.tokenizers.folder import check_same, load_tokenizer, save_tokenizer
from gptjax.data.tokenizers.kinds import (
    TOKENIZERS,
    from_spec,
    tokenizer_class,
    tokenizer_settings,
    train_tokenizer,
    with_spec,
)
from gptjax.data.tokenizers.symbols import SYMBOLS, parse_symbols

__all__ = [
    "END_OF_TEXT",
    "SYMBOLS",
    "TOKENIZERS",
    "Tokenizer",
    "check_same",
    "from_spec",
    "load_tokenizer",
    "parse_symbols",
    "save_tokenizer",
    "tokenizer_class",
    "tokenizer_settings",
    "train_tokenizer",
    "with_spec",
]
