"""Tiny models that lm-evaluation-harness asks, the tasks it asks them, and the answers request by request."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import vocabularies
from places import ROOT

from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.huggingface import exporting
from gptjax.models import architectures
from gptjax.parallel.meshes import make_mesh
from gptjax.run import run
from gptjax.rundir import run_directory
from gptjax.training import program as programs

TASKS = ROOT / "configs" / "tasks"
SPECS = [str(TASKS / f"{name}.yaml") for name in ("last_word", "next_line", "scene", "unscramble")]
SHOTS, LIMIT = 1, 3  # of those that ask for examples; documents of each task

GPT2 = ModelConfig(context_length=96, n_layers=2, d_model=24, n_heads=3, init_std=0.3, dtype="float32")
GPT1 = dict(norm_position="post", final_norm=False, scale_residual_init=False)
MODELS = {  # name -> (config, tokenizer)
    "gpt2_bytes": (GPT2, "bytes"),
    "gpt1_bytes": (dataclasses.replace(GPT2, **GPT1), "bytes"),
    "gpt2_bpe": (dataclasses.replace(GPT2, d_model=12, n_heads=2, context_length=40), "gpt2"),
}


def make_run(name: str, directory="/nowhere", **sizes) -> run.Run:
    """A Run of a model with random parameters, the same everywhere, none at its initial zero or one."""
    config, kind = MODELS[name]
    tokenizer = tokenizers.from_spec(f"gpt2:{vocabularies.GPT2_FOLDER}" if kind == "gpt2" else kind)
    mesh_config = MeshConfig(**dict.fromkeys(MeshConfig.AXES, 1) | sizes)
    count = int(np.prod([getattr(mesh_config, axis) for axis in MeshConfig.AXES]))
    config = Config(
        model=dataclasses.replace(config, vocab_size=tokenizer.vocab_size),
        train=TrainConfig(steps=1, batch_size=8),
        mesh=mesh_config,
    )
    program = programs.build(config, make_mesh(config, jax.devices()[:count]), "xla")
    params = architectures.abstract(config.model)[1]
    rng = np.random.default_rng(0)

    def value(path, leaf):
        center = 1.0 if path[-1].key == "gain" else 0.0
        return jnp.asarray(center + config.model.init_std * rng.standard_normal(leaf.shape), jnp.float32)

    params = jax.device_put(jax.tree_util.tree_map_with_path(value, params), program.state_sharding.params)
    return run.Run(run_directory.RunDirectory(pathlib.Path(directory)), config, tokenizer, program, params, step=1)


def hf_backend(name: str, folder, batch_size: int = 4):
    """The same model, exported, in lm-eval's own Hugging Face backend. Needs torch."""
    from lm_eval.models.huggingface import HFLM

    out = f"{folder}/{name}"
    exporting.export_run(make_run(name), out, dtype="float32")
    return HFLM(pretrained=out, device="cpu", dtype="float32", batch_size=batch_size)


def answers(lm, loaded) -> dict:
    """{task: {"answers": of each request in turn, "metrics": {name: value}}} of any lm-eval model."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", 0 if task.get_config("num_fewshot") == 0 else SHOTS)
        task.set_fewshot_seed(1234)
    results = evaluate(lm, loaded, limit=LIMIT, bootstrap_iters=0, log_samples=True)
    metrics = {
        task: {name: float(value) for name, value in found.items() if "," in name and "stderr" not in name}
        for task, found in results["results"].items()
    }
    said = {
        task: [answer for sample in samples for repeated in sample["resps"] for answer in repeated]
        for task, samples in results["samples"].items()
    }
    return {task: {"answers": said[task], "metrics": metrics[task]} for task in metrics}
