"""Eight CPU devices, a compilation cache that reruns share, and the small models that several files test."""

import dataclasses
import functools
import os
import pathlib
import tempfile

import quick_compilation

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {quick_compilation.FLAGS}"
cache = pathlib.Path(tempfile.gettempdir()) / f"gptjax-test-xla-cache-{os.getuid()}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import judging  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import runs  # noqa: E402

from gptjax.config.fields import Config, ModelConfig, TrainConfig  # noqa: E402
from gptjax.models import architectures  # noqa: E402

TINY = ModelConfig(
    vocab_size=65, context_length=16, n_layers=2, d_model=32, n_heads=4, init_std=0.3, dtype="float32"
)  # init_std: a model that says something from the start
GPTS = {
    "gpt1": dict(norm_position="post", final_norm=False, scale_residual_init=False),
    "gpt2": dict(),
    "gpt3": dict(n_layers=4, band_width=3),
    "modern": dict(
        position="rope",
        rope_theta=100.0,
        norm="rmsnorm",
        mlp="swiglu",
        n_kv_heads=2,
        qk_norm=True,
        logit_softcap=15.0,
        tied_head=False,
        bias=False,
    ),
    "patterned": dict(  # windows and rotary positions in some layers, scaled, and biases in some maps
        n_layers=4,
        position="rope",
        rope_theta=100.0,
        rope_scaling="yarn(factor=4, original_context_length=4, beta_fast=1, beta_slow=0.1)",
        rope_pattern="RN",
        band_width=3,
        window_pattern="SSLS",
        norm="rmsnorm",
        mlp="swiglu",
        bias=False,
        linear_bias="qkv",
    ),
    "gemma": dict(
        position="rope",
        rope_theta=100.0,
        rope_scaling="llama3(factor=4, original_context_length=8, low_freq_factor=0.5, high_freq_factor=2)",
        head_dim=16,
        n_kv_heads=1,
        norm="rmsnorm_plus_one",
        mlp="geglu",
        bias=False,
        linear_bias="out,mlp",
        scale_embedding=True,
    ),
    "wide_heads": dict(head_dim=16, d_ff=48, mlp="relu2", norm="rmsnorm", n_kv_heads=1),
}
VARIANTS = GPTS | {"lstm": dict(architecture="lstm", n_heads=ModelConfig.n_heads)}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A model of one of the VARIANTS with no parameter at its initial zero or one, which would hide mistakes."""

    config: ModelConfig
    graph: object
    params: dict


def pytest_runtest_teardown(item, nextitem):
    """Programs of a file are let go at its end: those of all files are more than half the memory of a worker."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


@pytest.fixture
def tiny_config():
    """A Config of a GPT-2 with 32 dimensions and 65 tokens."""
    return Config(model=TINY, train=TrainConfig(steps=4, batch_size=8, log_every=1))


@pytest.fixture(params=VARIANTS)
def variant_config(request):
    """The ModelConfig of each variant in turn."""
    return dataclasses.replace(TINY, **VARIANTS[request.param])


@pytest.fixture(params=VARIANTS)
def variant(request):
    """Each variant in turn, as a Tiny."""
    return tiny_variant(request.param)


@pytest.fixture(params=GPTS)
def gpt_variant(request):
    """Each variant of the GPT in turn, as a Tiny."""
    return tiny_variant(request.param)


@pytest.fixture
def make_variant():
    """make_variant(name, **fields) is the Tiny of that name, with other fields of its config if they are given."""
    return tiny_variant


@functools.cache
def tiny_variant(name: str, **fields) -> Tiny:
    config = dataclasses.replace(TINY, **VARIANTS[name], **fields)
    graph, shapes, _ = architectures.abstract(config)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        center = 1.0 if path[-1].key == "gain" else 0.0
        return jnp.asarray(center + config.init_std * rng.standard_normal(leaf.shape), jnp.float32)

    return Tiny(config, graph, jax.tree_util.tree_map_with_path(value, shapes))


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of random words of eight letters."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    runs.write_text(file)
    return file


@pytest.fixture(scope="session")
def values(text):
    """A tiny run of 40 steps, as nested dicts."""
    return {
        "model": dict(context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32", residual_dropout=0.1),
        "data": dict(path=str(text), tokenizer="chars", cache_dir=str(text.parent / "cache")),
        "optim": dict(peak_lr=3e-3, warmup_steps=5),
        "train": dict(steps=40, batch_size=16, log_every=1, tensorboard=False),
        "checkpoint": dict(every_steps=10, keep=3),
        "eval": dict(every_steps=20, max_tokens=512),
    }


@pytest.fixture(scope="session")
def trained(values, tmp_path_factory):
    """The directory of a run of 6 steps that was evaluated every 2 and keeps steps 4 and 6. Copy it to change it."""
    return judging.trained_run(values, tmp_path_factory.mktemp("trained") / "run")
