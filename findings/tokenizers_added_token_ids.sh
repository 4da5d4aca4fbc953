#!/usr/bin/env bash
# tokenizers 0.23.3: the id that tokenizer.json gives an added token is not the id the library uses.
#
# Expected: a file whose vocabulary has ids 0 to 4 and whose added token "<|end|>" has id 8 (a model trained with a
# padded vocabulary, whose special tokens stand behind the padding) gives that token the id 8, or is refused.
# Seen: it loads without a word in Python, and the token gets the next free id, 5. A model fed with that id sees a row
# of its embedding that was never trained. Written again, the file says 5, so the id of the original is gone.
# A token of the file's own vocabulary keeps its id. Who reads such a file must ask the library for its ids.
#
# Exits 0 while this holds, 1 when tokenizers behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
cat >"$folder/ids.py" <<'PY'
import json
import sys

from tokenizers import Tokenizer

VOCABULARY = {letter: number for number, letter in enumerate("abcde")}


def loaded(content, number):
    token = {"id": number, "content": content, "special": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "BPE", "vocab": VOCABULARY, "merges": []}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [token], "model": model}))


behind = loaded("<|end|>", 8)
written = json.loads(behind.to_str())["added_tokens"][0]["id"]
print("id in the file 8; in the library:        ", behind.token_to_id("<|end|>"))
print("ids of 'ab<|end|>':                      ", ids := behind.encode("ab<|end|>").ids)
print("id in the file that the library writes:  ", written)
print("a token of the vocabulary, 'c', file 2:  ", own := loaded("c", 2).token_to_id("c"))
sys.exit(0 if ids == [0, 1, 5] and written == 5 and own == 2 else 1)
PY
"$folder/venv/bin/python" "$folder/ids.py"
