#!/usr/bin/env bash
# llguidance 1.9.1: of two tokens that spell the same bytes, the mask allows one, and the matcher takes both.
#
# A SentencePiece vocabulary with byte fallback has such twins: the piece "e" and the byte <0x65>, for every byte that is a piece
# too (Llama 2, Mistral 7B, Gemma, T5).
#
# Expected: the mask of compute_bitmask() is what consume_token() accepts. So a model that is held to a grammar by the mask chooses
# among all tokens with which the text conforms to it.
# Seen: consume_token() accepts both, but only the one with the smaller id is in the mask. Where the bytes come before the pieces,
# as SentencePiece puts them, the mask takes the piece, which is the model's usual token, away, and leaves it the byte, which it
# hardly ever draws. Who applies the mask adds to it the twins of each token that is allowed.
#
# Exits 0 while this holds, 1 when llguidance behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 numpy
cat >"$folder/twins.py" <<'PY'
import sys

import llguidance
import llguidance.numpy as bitmasks

END = 0


class Vocabulary:
    """Each piece, and then or before it each byte: as SentencePiece's byte fallback has them."""

    eos_token_id, bos_token_id, special_token_ids = END, None, [END]

    def __init__(self, pieces_first: bool):
        pieces, rest = [b"y", b"e", b"s"], [bytes([i]) for i in range(256)]
        self.tokens = [b"", *(pieces + rest if pieces_first else rest + pieces)]

    def __call__(self, text):
        return [self.tokens.index(bytes([byte]), 1) for byte in (text if isinstance(text, bytes) else text.encode())]


def mask_and_taken(vocabulary, spelling: bytes):
    """Of the tokens that spell these bytes: those in the mask at the start of "yes", and those that the matcher takes there."""
    wrapped = llguidance.TokenizerWrapper(vocabulary)
    tokenizer = llguidance.LLTokenizer(wrapped, eos_token=[END], n_vocab=len(vocabulary.tokens))
    twins = [i for i, token in enumerate(vocabulary.tokens) if token == spelling]
    grammar = llguidance.LLMatcher.grammar_from_regex("[y]es?")
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    mask = bitmasks.allocate_token_bitmask(1, len(vocabulary.tokens))
    bitmasks.fill_next_token_bitmask(matcher, mask, 0)
    allowed = [i for i in twins if mask[0, i // 32] >> (i % 32) & 1]
    taken = [i for i in twins if llguidance.LLMatcher(tokenizer, grammar, log_level=0).consume_token(i)]
    return twins, allowed, taken


as_seen = True
for pieces_first in (True, False):
    twins, allowed, taken = mask_and_taken(Vocabulary(pieces_first), b"y")
    print(f"tokens that spell 'y': {twins}; in the mask: {allowed}; taken by consume_token: {taken}")
    as_seen &= taken == twins and allowed == twins[:1]
sys.exit(0 if as_seen else 1)
PY
"$folder/venv/bin/python" "$folder/twins.py"
