"""From text to batches: sources of documents, tokenizers, tokens on disk, and rows as a function of the step.

    store, objective = open_text(config.data, context_length)
    rows = TrainRows(store, config.data, context_length, objective)
    batch = rows.rows(step * B, (step + 1) * B)

    sources/        where documents come from         tokenizers/     text to tokens and back
    tokens/         tokens on disk                    preparing/      `gptjax prepare`: documents to tokens
    examples/       labelled examples in the place of text
    pairs/          preferences in the place of text
    rows/           row g of a run, as arithmetic     looking/        `gptjax data`: what a run reads
    chat/           conversations to tokens

Heavy libraries (sentencepiece, tensorflow_datasets, tiktoken, grain ...) are imported by the functions that need them.
"""

import importlib

_HOMES = {  # imported when asked for
    "TextStore": "gptjax.data.tokens.folder",
    "open_folder": "gptjax.data.tokens.folder",
    "EvalRows": "gptjax.data.rows.pipeline",
    "TrainRows": "gptjax.data.rows.pipeline",
    "open_text": "gptjax.data.rows.pipeline",
    "Tokens": "gptjax.data.tokens.shards",
    "TokenStore": "gptjax.data.tokens.store",
    "prepare": "gptjax.data.tokens.store",
    "TOKENIZERS": "gptjax.data.tokenizers",
    "Tokenizer": "gptjax.data.tokenizers",
    "load_tokenizer": "gptjax.data.tokenizers",
    "save_tokenizer": "gptjax.data.tokenizers",
    "train_tokenizer": "gptjax.data.tokenizers",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
