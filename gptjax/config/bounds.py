"""The largest value that each number of a user may have: in one table, with what justifies it.

Generous, and finite: no run that a machine could make is refused, and none that none could hold is begun. Lower bounds,
and what fits together, are those of checks.py. Every integer that no row names is a count in int32; every real number has to be
one that float32 tells from 0 and from infinity.
"""

import argparse
import dataclasses
import math

from gptjax.errors import UserError

INT32 = 2**31 - 1
FLOAT32, LEAST_FLOAT32 = 3.4028234e38, 1.1754944e-38  # the largest, and the smallest with all its digits
LONGEST_NUMBER = 30  # digits that a number on the command line may have

COUNTED = (INT32, "counts are int32 on the devices")
LONGEST = (2**24, "tokens of one sequence; the longest contexts published have 2**24")
WIDEST = (2**24, "a matrix of two such sides has 2**48 entries, a petabyte")
CHIPS = (2**20, "a mesh axis of more chips than were ever built")
HOST = (1024, "each is a device or process of this one host, with threads and memory of its own")
TEXT = (2**53, "tokens and bytes of text are counted in float64 as well, which is exact up to 2**53")
SECONDS = (1e9, "32 years; threads cannot wait for much longer")

FIELDS = {
    "model.vocab_size": (2**24, "32 times the largest vocabulary published"),
    "model.context_length": LONGEST,
    "model.band_width": LONGEST,
    "model.n_layers": (10_000, "10 times the deepest transformer published"),
    "model.d_model": (2**20, "20 times the widest model published"),
    "model.n_heads": (2**20, "no more than model.d_model"),
    "model.n_kv_heads": (2**20, "no more than model.d_model"),
    "model.head_dim": (2**20, "no more than model.d_model"),
    "model.d_ff": WIDEST,
    "model.base_width": (2**20, "no more than model.d_model"),
    "model.base_depth": (10_000, "no more than model.n_layers"),
    "model.base_d_ff": WIDEST,
    "model.scan_unroll": (10_000, "no more than model.n_layers"),
    "data.weight_stages": TEXT,
    "data.tokenizer_vocab_size": (2**24, "no more than model.vocab_size"),
    "data.seed": (2**64 - 1, "the order of rows is hashed in uint64"),
    "data.prefetch_workers": HOST,
    "optim.warmup_tokens": TEXT,
    "optim.decay_tokens": TEXT,
    "optim.skip_window": (2**20, "a window in the state of the run, of which every step takes a deviation"),
    **{f"mesh.{axis}": CHIPS for axis in ("replica", "stage", "fsdp", "sequence", "tensor", "dcn_replica", "dcn_fsdp")},
    "mesh.pipeline_repeats": (10_000, "no more than model.n_layers"),
    "mesh.cpu_devices": HOST,
    "train.tokens": TEXT,
    "train.batch_ramp_tokens": TEXT,
    "train.seed": (2**32 - 1, "jax.random.key takes 32 bits: a larger seed would be that of another run"),
    "train.stall_seconds": SECONDS,
    "checkpoint.every_minutes": SECONDS,
    "eval.max_tokens": TEXT,
    "eval.sample_tokens": LONGEST,
}

FLAGS = {  # of commands; those that stand for a field of a config are checked with it too
    "devices": CHIPS,
    "num_slices": CHIPS,
    "search_compiles": (2**16, "each takes seconds to minutes"),
    "workers": HOST,
    "parallel": (2**16, "each is a process or a job, looked at again and again"),
    "seed": (2**32 - 1, "jax.random.key takes 32 bits: a larger seed would be that of another"),
    "num_shards": (99_999, "their names have five digits"),
    "vocab_size": (2**24, "32 times the largest vocabulary published"),
    "train_bytes": TEXT,
    "max_tokens": LONGEST,
    "length": LONGEST,
    "top_k": (2**24, "no more than a vocabulary has"),
    "num_beams": (2**16, "rows of one batch, each with a cache of its own"),
    "num_return_sequences": (2**20, "texts that wait in the memory of this host"),
    "batched": HOST,
    "bootstrap": (10**7, "each fits every law once more"),
    "steps": (2**20, "each is compared"),
    "rows": (2**20, "rows of one batch"),
    "seconds": SECONDS,
    "slots": (2**16, "rows of one batch, each with a cache of its own"),
    "queue": (2**20, "texts that wait in the memory of this host"),
    "places": LONGEST,
    "port": (65535, "ports have 16 bits"),
    "drain_seconds": SECONDS,
    "most_megabytes": (2**12, "a request is held in the memory of this host"),
}
MAY_BE_EMPTY = {"prompt", "text", "stop", "special", "allow_change", "separator"}  # text flags


class AsTyped(argparse.Action):
    """Of a flag that is kept under another name than it is typed: what is wrong with its value is said of that (`typed`)."""

    def __call__(self, parser, args, value, option_string=None) -> None:
        setattr(args, self.dest, value)
        args.typed = {f"--{self.dest}": option_string}  # of which a command has one


def check_config(config) -> None:
    """Raises UserError for the first number of a Config that is too large, not finite, or 0 in float32."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            key = f"{section.name}.{field.name}"
            for number in _numbers(getattr(values, field.name)):
                check(number, key, FIELDS.get(key, COUNTED))
    _check_products(config)


def _check_products(config) -> None:
    """What is laid out as one array."""
    m, t = config.model, config.train
    arrays = {
        "model.n_heads times model.head_dim": (m.n_heads * m.head_size if m.n_heads else 0, WIDEST),
        "train.batch_size times model.context_length times train.steps_per_call, the tokens of a call,": (
            t.batch_size * m.context_length * t.steps_per_call,
            (INT32, "8 GB on the host, numbered in int32"),
        ),
        "eval.batch_size times model.context_length": (
            (config.eval.batch_size or 0) * m.context_length,
            (INT32, "8 GB on the host, numbered in int32"),
        ),
    }
    for what, (size, most) in arrays.items():
        check(size, what, most)


def check_flags(flags: dict) -> None:
    """Raises UserError for the first flag of a command that is too large, not finite, or empty. flags: {name: value}."""
    for name, value in flags.items():
        if value == []:  # as argparse of Python 3.11 reads it
            raise UserError(f"--{name}=-- has no value that can be read; give another.")
        for text in value if isinstance(value, list) else [value]:
            if text == "" and name not in MAY_BE_EMPTY:
                raise UserError(f"--{name}= is empty; give a value, or leave the flag out.")
        for number in _numbers(value):
            check(number, f"--{name}", FLAGS.get(name, COUNTED))


def check(value: float, key: str, most: tuple[float, str]) -> None:
    """Raises UserError: a number above a bound of the table, or a real one beyond float32."""
    real = isinstance(value, float)
    limit, why = (FLOAT32, "float32 holds no more") if real and most == COUNTED else most
    if real and not math.isfinite(value):  # of a long integer it cannot be asked
        raise UserError(f"{key}={value} must be finite.")
    if value > limit or value < -limit:
        size, way = ("large", "at most ") if value > 0 else ("small", "at least -")
        raise UserError(f"{key}={shown(value)} is too {size}; use {way}{limit} ({why}).")
    if real and 0 < abs(value) < LEAST_FLOAT32:
        raise UserError(f"{key}={value} is 0 in float32; use 0, or at least {LEAST_FLOAT32}.")


def shown(value) -> str:
    """A number as people read it, however many digits it has."""
    if isinstance(value, int) and abs(value) >= 10**LONGEST_NUMBER:
        return f"a number of more than {LONGEST_NUMBER} digits"
    return str(value)


def whole_number(text: str) -> int | None:
    """Of the digits 0 to 9; None: text is no such number, or one that nothing counts to."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER else None


def _numbers(value):
    """The numbers in the value of a field, which may be a tuple or a dict of them."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, dict):
        yield from _numbers(tuple(value.values()))
