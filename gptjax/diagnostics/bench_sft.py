"""`gptjax bench --sft`: how fast supervised fine-tuning is, beside TRL's SFTTrainer with its packing, alternated in one process.

Both train a model of the same shape from random parameters, float32, without dropout, with AdamW, on the same constructed
conversations, packed best-fit into rows of the context length. A step of ours is train.batch_size rows at once. One of
TRL's accumulates them row by row, which is its faster way: it flattens a batch of packed rows into one sequence, whose
attention grows with the square of the batch. What counts are loss-bearing tokens, those of the answers, per second;
compilation and a first step of each are left out. Only the ratio means something on a machine that others use.
"""

import itertools
import logging
import statistics
import tempfile
import time
import warnings

import jax
import numpy as np

from gptjax.config.extras import library
from gptjax.data.rows import conversations, packing
from gptjax.data.tokens.shards import MemoryShard, Tokens
from gptjax.errors import UserError
from gptjax.huggingface import families
from gptjax.parallel import numerics
from gptjax.planning import info
from gptjax.training import program as programs

CONVERSATIONS = 512
FEWEST_TOKENS = 16  # of a context: two turns
_DROPOUT = ("embed_dropout", "attention_dropout", "residual_dropout")


@numerics.settings()
def bench(config, seconds: float) -> dict:
    """Loss-bearing tokens per second of both, medians, and the median of the ratios of neighbouring steps.

    Raises UserError: torch, trl or datasets is missing, transformers has no such model, or the context is too short.
    """
    length = config.model.context_length
    if length < FEWEST_TOKENS:
        raise UserError(f"model.context_length={length} is too short for --sft; use at least {FEWEST_TOKENS}.")
    config = info.resolved(config).replace(model={"dtype": "float32"} | dict.fromkeys(_DROPOUT, 0.0))
    made = constructed(config.model.vocab_size, length)
    program = programs.of(config)
    theirs = _Trl(config, made)
    with numerics.on_mesh(program.mesh):
        ours = _Ours(config, program, made)
        return {"context_length": length, "rows": config.train.batch_size} | _alternated(ours, theirs, seconds)


def _alternated(ours, theirs, seconds: float) -> dict:
    """Pairs of steps until the time is over, three at least."""
    ours(), theirs()
    rates = {"ours": [], "theirs": []}
    deadline = time.perf_counter() + 2 * seconds
    while len(rates["ours"]) < 3 or time.perf_counter() < deadline:
        for name, step in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            targets = step()
            rates[name].append(targets / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["theirs"]))
    return {name: statistics.median(each) for name, each in rates.items()} | {
        "ratio": ratio,
        "pairs": len(rates["ours"]),
    }


def constructed(vocab_size: int, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(token_L, weight_L) of conversations of one to three turns, from a sixteenth of the context to all of it."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(CONVERSATIONS):
        size, turns = int(np.exp(rng.uniform(np.log(length / 16 + 4), np.log(length + 1)))), int(rng.integers(1, 4))
        edge = np.linspace(0, size, 2 * turns + 1).astype(int)
        weight_L = np.zeros(size, np.float32)
        for first, stop in zip(edge[1::2], edge[2::2]):
            weight_L[first:stop] = 1
        made.append((rng.integers(2, vocab_size, size).astype(np.int32), weight_L))
    return made


class _Ours:
    """A call is a step, and returns its loss-bearing tokens."""

    def __init__(self, config, program, made):
        self._program, self._rates = program, np.full(1, config.optim.peak_lr, np.float32)
        length_D = np.array([len(token_L) for token_L, _ in made])
        token, weight = (np.concatenate(parts) for parts in zip(*made))
        start_D = np.cumsum(length_D) - length_D
        tokens = Tokens([MemoryShard(token, start_D)], 0, Tokens([MemoryShard(weight)]), int(weight.sum()))
        row_tokens = config.model.context_length + 1
        row_D = packing.best_fit_decreasing(length_D, row_tokens)
        order = np.argsort(row_D, kind="stable")
        row_first = np.concatenate([[0], np.cumsum(np.bincount(row_D))])
        plan = conversations.InOrder(start_D[order], length_D[order], row_first)
        overflow = conversations.Overflow.of(tokens, row_tokens, "refuse", "the text of --sft")
        rows = conversations.ConversationRows(tokens, row_tokens, 0, plan, conversations.assistant, overflow)
        size = config.train.batch_size
        self._batches = (rows.rows(rows.ids(np.arange(first, first + size))) for first in itertools.count(0, size))
        self._state = program.init()

    def __call__(self) -> int:
        batch = {name: array[None] for name, array in next(self._batches).items()}
        targets = int(batch["weight_BL"].sum())
        batch = jax.device_put(batch, self._program.train_batch_sharding)
        self._state, numbers = self._program.train(self._state, batch, self._rates)
        jax.block_until_ready(numbers)
        return targets


class _Trl:
    """A call is a step, and returns its loss-bearing tokens."""

    def __init__(self, config, made):
        trl, datasets = (library(name, "--sft measures beside TRL, which") for name in ("trl", "datasets"))
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        datasets.disable_progress_bars()
        rows = {  # whose assistant_masks become labels
            "input_ids": [t.tolist() for t, _ in made],
            "assistant_masks": [w.astype(int).tolist() for _, w in made],
        }
        self._rows, self._folder = config.train.batch_size, tempfile.TemporaryDirectory()
        settings = trl.SFTConfig(
            output_dir=self._folder.name,
            **dict(report_to="none", bf16=False, use_cpu=True, max_steps=1, per_device_train_batch_size=1),
            **dict(packing=True, max_length=config.model.context_length),
            **dict(learning_rate=config.optim.peak_lr, gradient_checkpointing=False),
        )
        self._trainer = trl.SFTTrainer(
            model=_their_model(config.model),
            args=settings,
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=_their_tokenizer(),
        )
        self._trainer.create_optimizer_and_scheduler(1 << 20)
        self._trainer.current_gradient_accumulation_steps = self._rows
        loader = self._trainer.get_train_dataloader()
        self._batches = itertools.chain.from_iterable(loader for _ in itertools.count())

    def __call__(self) -> int:
        import torch

        trainer, targets = self._trainer, 0
        for _ in range(self._rows):
            batch = next(self._batches)
            targets += int((batch["labels"][:, 1:] != -100).sum())
            trainer.training_step(trainer.model, batch)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return targets


def _their_model(shape):
    torch = library("torch", "--sft measures beside TRL, which")
    transformers = library("transformers", "--sft measures beside TRL, which")
    values = families.family_for(shape).config_out(shape, "float32", None)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    return transformers.AutoModelForCausalLM.from_config(config)


def _their_tokenizer():
    """One that trl asks for and that encodes nothing: the conversations are tokens already."""
    tokenizers = library("tokenizers", "--sft measures beside TRL, which")
    transformers = library("transformers", "--sft measures beside TRL, which")
    model = tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")
    made = tokenizers.Tokenizer(model)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def table(results: dict) -> str:
    """bench() for a person."""
    return (
        f"{results['rows']} rows of {results['context_length']} tokens a step, float32, packed\n"
        f"loss-bearing tokens/s: {results['ours']:.1f}, TRL's SFTTrainer {results['theirs']:.1f}: {results['ratio']:.2f} times as"
        f" fast (median of {results['pairs']} pairs of steps)"
    )
