"""A compiled step in a file: the same losses bit for bit, and one line for every way it can be the wrong one."""

import json

import jax
import numpy as np
import pytest

from gptjax import attention, data, executable, meshes, metrics, plan, rundir, session, train
from gptjax.config import from_dict
from gptjax.errors import UserError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join("".join(rng.choice(list("abcde"), size=4)) for _ in range(2000)))
    values = {
        "model": dict(context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32", residual_dropout=0.1),
        "data": dict(path=str(text), tokenizer="chars", cache_dir=str(text.parent / "cache")),
        "optim": dict(peak_lr=3e-3, warmup_steps=2),
        "train": dict(steps=8, batch_size=16, log_every=1, tensorboard=False),
        "checkpoint": dict(every_steps=8),
        "eval": dict(every_steps=None, max_tokens=256),
    }
    values["train"] |= dict(batch_ramp_start=8, batch_ramp_increment=8, batch_ramp_tokens=8 * 16 * 3)
    return from_dict(values)


@pytest.fixture(scope="module")
def ready(config):
    """(resolved config, mesh, kernel) as training would have them."""
    resolved = session.with_vocabulary(config, data.prepare(config.data).tokenizer)
    return resolved, meshes.make_mesh(resolved), attention.choose_kernel(resolved, "cpu")[0]


@pytest.fixture(scope="module")
def saved(ready, tmp_path_factory):
    """The file of a compiled step. It is compiled afresh: what a compilation cache hands out cannot be serialised."""
    from jax._src import compilation_cache

    config, mesh, kernel = ready
    path = tmp_path_factory.mktemp("executable") / "step.exe"
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        compiled, _, _ = plan.compile_step(config, mesh, kernel)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    assert executable.save(str(path), compiled, config, mesh, kernel) == path.stat().st_size
    return path


def losses(workdir) -> list:
    rows = metrics.read_metrics(rundir.open_run(str(workdir)).metrics, "train")
    return [(row["step"], row["loss"], row["grad_norm"], row["param_norm"]) for row in rows]


def test_a_run_with_a_loaded_step_has_the_losses_of_one_that_compiles_through_its_batch_ramp(config, saved, tmp_path):
    assert train.train(config, str(tmp_path / "compiled")) == 0
    assert train.train(config, str(tmp_path / "loaded"), (), str(saved)) == 0
    assert losses(tmp_path / "loaded") == losses(tmp_path / "compiled")
    assert len(losses(tmp_path / "loaded")) == 8


def test_the_loaded_step_is_the_one_that_runs(ready, saved, tmp_path):
    """A file whose executable was torn is not passed over in favour of compiling."""
    config, mesh, kernel = ready
    torn = tmp_path / "torn.exe"
    torn.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(UserError, match="could not be loaded"):
        executable.load(str(torn), config, mesh, kernel)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model": {"n_layers": 3}}, "config is"),
        ({"optim": {"peak_lr": 1e-3}}, None),
        ({"train": {"batch_size": 32}}, "config is"),
        ({"train": {"steps": 99}}, None),
        ({"data": {"prefetch": 5}}, None),
        ({"mesh": {"fsdp": 4, "tensor": 2}}, "mesh is"),
    ],
)
def test_another_config_or_mesh_is_named(ready, saved, changes, named):
    config, _, kernel = ready
    changed = config.replace(**changes)
    mesh = meshes.make_mesh(changed)
    found = json.loads(saved.read_bytes().split(b"\n")[0])
    if named is None:
        executable.check("f", found, executable.header(changed, mesh, kernel))
        return
    with pytest.raises(UserError, match=f"compiled for something else: {named}"):
        executable.load(str(saved), changed, mesh, kernel)


@pytest.mark.parametrize("key", ["jax", "jaxlib", "device", "kernel"])
def test_another_jax_or_device_is_named(ready, saved, tmp_path, key):
    line, _, body = saved.read_bytes().partition(b"\n")
    other = tmp_path / "other.exe"
    other.write_bytes(json.dumps(json.loads(line) | {key: "another"}).encode() + b"\n" + body)
    with pytest.raises(UserError, match=f"{key} is another, this run's"):
        executable.load(str(other), *ready)


def test_a_file_that_is_missing_or_something_else_is_one_line(ready, tmp_path):
    with pytest.raises(UserError, match="no such file; write one with gptjax plan"):
        executable.load(str(tmp_path / "none"), *ready)
    (tmp_path / "text").write_text("hello\nworld")
    with pytest.raises(UserError, match="is no gptjax-executable-1 file"):
        executable.load(str(tmp_path / "text"), *ready)
