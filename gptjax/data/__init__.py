"""From text to batches: sources of documents, tokenizers, tokens on disk, and rows as a function of the step.

    store, objective = open_text(config.data, context_length)
    rows = TrainRows(store, config.data, context_length, objective)
    with Prefetcher(lambda step: rows.rows(step * B, (step + 1) * B), first_step, config.data.prefetch) as batches:
        batch = batches.next()

Heavy libraries (sentencepiece, tensorflow_datasets, tiktoken, grain ...) are imported by the functions that need them.
"""

from gptjax.data.folder import TextStore, open_folder
from gptjax.data.pipeline import EvalRows, Prefetcher, TrainRows, open_text
from gptjax.data.shards import Tokens
from gptjax.data.store import TokenStore, prepare
from gptjax.data.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer

__all__ = [
    "TOKENIZERS",
    "EvalRows",
    "Prefetcher",
    "TextStore",
    "TokenStore",
    "Tokenizer",
    "Tokens",
    "TrainRows",
    "load_tokenizer",
    "open_folder",
    "open_text",
    "prepare",
    "save_tokenizer",
    "train_tokenizer",
]
