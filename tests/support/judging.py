"""Runs with a model that says something, made without training or a directory, and one that was trained; and a slow reference of their losses."""

import dataclasses
import functools

import jax
import numpy as np
import runs

from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.tokenizers.simple import ByteTokenizer, CharTokenizer
from gptjax.parallel import meshes
from gptjax.run import run
from gptjax.training import main
from gptjax.training import program as programs

LETTERS = " .abcdefgh\n"


def tokenizer(kind: str):
    return ByteTokenizer.read(None) if kind == "bytes" else CharTokenizer.train(DataConfig(), [LETTERS])


@functools.cache
def made_run(kind: str = "chars", context_length: int = 16, apart: bool = False, devices: int = 1) -> run.Run:
    """Parameters are drawn anew, with a spread at which the model has opinions; the same for the same arguments."""
    words = tokenizer(kind)
    config = Config(
        model=ModelConfig(
            vocab_size=words.vocab_size,
            context_length=context_length,
            n_layers=2,
            d_model=16,
            n_heads=2,
            dtype="float32",
        ),
        data=DataConfig(tokenizer=kind, mask_documents=apart),
        train=TrainConfig(steps=1, batch_size=8),
    )
    program = programs.build(config, meshes.make_mesh(config, jax.devices()[:devices]), "xla")
    return run.Run(None, config, words, program, parameters(program, 0), 0)


def parameters(program, seed: int, spread: float = 0.4):
    rng = np.random.default_rng(seed)
    values = jax.tree.map(
        lambda leaf: (spread * rng.standard_normal(leaf.shape)).astype(leaf.dtype), program.abstract_state.params
    )
    return jax.device_put(values, program.state_sharding.params)


def other(one: run.Run, seed: int, weight: float = 1.0) -> run.Run:
    """The same model with other parameters, or so much of them."""
    drawn = parameters(one.program, seed)
    return dataclasses.replace(one, params=jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, one.params, drawn))


def log_probability(one: run.Run, ids) -> np.ndarray:
    """float64 [L]: of each token but the first of ids, given those before."""
    ids = np.asarray(ids)
    padded = np.zeros(one.config.model.context_length, np.int32)  # what follows changes nothing
    padded[: len(ids) - 1] = ids[:-1]
    with jax.set_mesh(one.mesh):
        logit_LV = np.float64(_logits(one)(one.params, padded[None]))[0, : len(ids) - 1, : one.tokenizer.vocab_size]
    logit_LV -= logit_LV.max(-1, keepdims=True)
    return logit_LV[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logit_LV).sum(-1))


@functools.lru_cache(maxsize=4)
def _logits_of(graph, mesh):
    from flax import nnx

    return jax.jit(lambda params, token_BL: nnx.merge(graph, params)(token_BL))


def _logits(one: run.Run):
    return _logits_of(one.graph, one.mesh)


def trained_values(values: dict) -> dict:
    """Of a run of 6 steps that evaluates every 2 and keeps steps 4 and 6, with averaged parameters. values: conftest's."""
    return runs.changed(
        values,
        model=dict(n_layers=1, d_model=16, residual_dropout=0.0),
        train=dict(steps=6, batch_size=8),
        optim=dict(ema_decay=0.5),
        checkpoint=dict(every_steps=2, keep=2),
        eval=dict(every_steps=2, batch_size=8, max_tokens=200),
    )


def trained_run(values: dict, folder):
    """The folder of a run of `trained_values`."""
    assert main.train(from_dict(trained_values(values)), str(folder)) == 0
    return folder


def random_text(seed: int, n_words: int = 150) -> str:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(1, 6))) for _ in range(n_words)]
    return " ".join(words) + ".\n"
