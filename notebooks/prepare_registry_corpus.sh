#!/bin/sh
# The sources of configs/registry_corpus.py, from what notebooks/registry_corpus.py left in FOLDER/raw:
#   sh notebooks/prepare_registry_corpus.sh FOLDER
# Killed and started again, it goes on where it stopped.
set -e
folder=${1:?name the folder, as in: sh notebooks/prepare_registry_corpus.sh corpus}
raw=$folder/raw

[ -e "$folder/tokenizer/tokenizer.json" ] || gptjax tokenizer train --out="$folder/tokenizer" \
    --source="jsonl:$raw/manuals" --source="jsonl:$raw/dictionaries" --source="jsonl:$raw/code_python" \
    --source="jsonl:$raw/code_go" --source="jsonl:$raw/zh_poems" --source="jsonl:$raw/zh_sayings" \
    --vocab_size=8192 --train_bytes=20e6 --val_fraction=0.02 --special=chat,fim

prepare() {
    name=$1
    shift
    gptjax prepare --out="$folder/$name" --tokenizer="$folder/tokenizer" --val_fraction=0.02 --dedup=minhash "$@"
}
prepare manuals --source="jsonl:$raw/manuals" --clean=unicode,length=200
prepare html_manuals --source="jsonl:$raw/html_manuals" --clean=html,unicode,gopher_repetition
prepare dictionaries --source="jsonl:$raw/dictionaries"
prepare python --source="jsonl:$raw/code_python"
prepare go --source="jsonl:$raw/code_go"
prepare zh_poems --source="jsonl:$raw/zh_poems"
prepare zh_html --source="jsonl:$raw/zh_html" --clean=html,unicode
