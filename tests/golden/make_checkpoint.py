"""Makes a golden checkpoint of the schema that this gptjax writes: once for each schema, with the code that wrote it.

    python tests/golden/make_checkpoint.py schema2

A run of six steps with a moving average, less what does not belong to a checkpoint, and logits.npz: what its model makes
of its tokens, float32. Schema 1 was made so by the code of commit 72bbd52, which had no gptjax.load.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
from flax import nnx

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        model=dict(context_length=16, n_layers=2, d_model=8, n_heads=2, d_ff=16, dtype="float32"),
        data=dict(path="text.txt", tokenizer="chars", cache_dir="cache"),
        optim=dict(name="sgd", peak_lr=0.1, warmup_steps=2, momentum=0.0, ema_decay=0.9),
        train=dict(steps=6, batch_size=8, log_every=1, tensorboard=False),
        checkpoint=dict(every_steps=6, keep=1),
        eval=dict(every_steps=None, max_tokens=64),
    ))
"""
TEXT = "the cat sat on the mat and the dog ran to the den. "
TOKENS = np.arange(32).reshape(2, 16) * 5 % 14


def main(name: str) -> None:
    target = pathlib.Path(__file__).parent / "checkpoints" / name
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        (place / "text.txt").write_text(TEXT * 60)
        (place / "fields.py").write_text(CONFIG)
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-m", "gptjax", "train", "--config=fields.py", f"--workdir={name}"]
        subprocess.run(command, cwd=place, env=environment, check=True)
        (place / name / "writer.lock").unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(place / name, target)
    np.savez(target / "logits.npz", tokens=TOKENS, **{item: _logits(target, item) for item in ("params", "ema")})


def _logits(target, item: str) -> np.ndarray:
    """Read with Orbax alone, so that gptjax's own reading is checked by it."""
    import orbax.checkpoint as ocp

    from gptjax.models import architectures
    from gptjax.rundir import run_directory

    graph, shapes, _ = architectures.abstract(run_directory.open_run(target).config().model)
    with ocp.PyTreeCheckpointer() as reader:
        params = reader.restore(target.resolve() / "checkpoints" / "6" / item)
    params = jax.tree.map(lambda shape, array: jax.numpy.asarray(array).reshape(shape.shape), shapes, params)
    return np.asarray(nnx.merge(graph, params)(TOKENS))


if __name__ == "__main__":
    main(sys.argv[1])
