"""From text to batches: sources of documents, tokenizers, tokens on disk, and rows as a function of the step.

    store = prepare(config.data)
    rows = TrainRows(store.train, context_length, seed, mask_documents)
    with Prefetcher(lambda step: rows.rows(step * B, (step + 1) * B), first_step, config.data.prefetch) as batches:
        batch = batches.next()

Heavy libraries (sentencepiece, tensorflow_datasets) are imported by the functions that need them.
"""

from gptjax.data.pipeline import EvalRows, Prefetcher, TrainRows, permute, row_hashes
from gptjax.data.store import Tokens, TokenStore, prepare
from gptjax.data.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer, save_tokenizer, train_tokenizer

__all__ = [
    "TOKENIZERS",
    "EvalRows",
    "Prefetcher",
    "TokenStore",
    "Tokenizer",
    "Tokens",
    "TrainRows",
    "load_tokenizer",
    "permute",
    "prepare",
    "row_hashes",
    "save_tokenizer",
    "train_tokenizer",
]
