"""A server for tests: tiny runs, `gptjax serve` as a process of its own, and what its clients need."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import httpx
import jax.numpy as jnp
import jax.tree_util
import numpy as np
import openai

from gptjax.checkpoints import consistency
from gptjax.checkpoints.checkpointer import Checkpointer
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.data.chat import chat_format
from gptjax.models import architectures
from gptjax.rundir import model_directory, run_directory

PACKED = {"packing": "best_fit", "val_split": "document"}  # as conversations have to be
SECONDS = 240.0  # for anything that is waited for: far more than it takes
KEY = "sk-a-secret-key"


def write_run(folder, chat: bool = True, seed: int = 0, context: int = 128, symbols=()):
    """A run directory of a model of bytes with random parameters. symbols: control tokens beside the chat format's."""
    tokenizer = tokenizers.from_spec("bytes")
    if chat:
        tokenizer = tokenizer.with_special(chat_format("gptjax").symbols)
    if symbols:
        tokenizer = tokenizer.with_special(symbols)
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, context_length=context, n_layers=2, d_model=32, n_heads=4, init_std=0.3, dtype="float32"
    )  # fmt: skip
    data = (
        DataConfig(tokenizer="bytes", chat="gptjax", source="jsonl", path="x", **PACKED)
        if chat
        else DataConfig(tokenizer="bytes")
    )
    config = Config(model=shape, data=data, train=TrainConfig(steps=1, batch_size=8))
    about = {"imported": {"from": "a test"}}
    model_directory.write(run_directory.open_run(str(folder)), config, _params(shape, seed), tokenizer, about)
    return folder


def add_step(folder, step: int, seed: int) -> None:
    """A checkpoint of other parameters, as if the run had gone on."""
    directory = run_directory.open_run(str(folder))
    config, run = directory.config(), consistency.of_checkpoint(directory.manifest())
    checkpointer = Checkpointer(directory.checkpoints, config, run=run)
    try:
        checkpointer.save({"params": _params(config.model, seed)}, step)
        checkpointer.wait()
    finally:
        checkpointer.close()


def _params(shape: ModelConfig, seed: int):
    """None of them at its initial zero or one."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        center = 1.0 if path[-1].key == "gain" else 0.0
        return jnp.asarray(center + shape.init_std * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(value, architectures.abstract(shape)[1])


@dataclasses.dataclass
class Running:
    """A server process. log: what it says."""

    process: subprocess.Popen
    log: pathlib.Path
    url: str = ""
    key: str | None = None

    def said(self) -> str:
        return self.log.read_text()

    def wait_until(self, condition) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"not in time:\n{self.said()}"
            assert self.process.poll() is None, f"the server has ended:\n{self.said()}"
            time.sleep(0.02)

    def ends_with(self) -> int:
        """Waits for its end, and returns its exit code."""
        return self.process.wait(SECONDS)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ends_with()

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=SECONDS)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=SECONDS)

    def http(self, method: str, path: str, **options) -> httpx.Response:
        headers = ({"Authorization": f"Bearer {self.key}"} if self.key else {}) | options.pop("headers", {})
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=SECONDS, **options)

    def gauge(self, name: str) -> float:
        """The sum of a line of /metrics over its labels."""
        text = self.http("GET", "/metrics").text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


@contextlib.contextmanager
def server(folder, *flags: str, key: str | None = None, program: str = "", **environment):
    """`gptjax serve` with these flags, once it answers. program: lines of Python that run before it; folder: for its log."""
    code = f"import sys\n{program}\nfrom gptjax import cli\nsys.exit(cli.main())"
    log = pathlib.Path(folder) / f"server-{len(list(pathlib.Path(folder).glob('server-*')))}.log"
    devices = re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"])
    keys = [] if key is None else [f"--api_key={key}"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port=0", *flags, *keys],
            env=os.environ | {"XLA_FLAGS": devices} | environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    running = Running(process, log, key=key)
    try:
        running.wait_until(lambda: re.search(r"^(https?://\S+)  ", running.said(), re.M))
        running.url = re.search(r"^(https?://\S+)  ", running.said(), re.M)[1]
        yield running
    finally:
        process.kill()
        process.wait()
