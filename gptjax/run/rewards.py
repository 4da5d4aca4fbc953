"""A reward model whose scores are put on a scale: 0 for demonstrations, or mean 0 and standard deviation 1.

Comparisons say nothing about the zero of a score, and little about its unit; reinforcement learning adds scores to other
rewards. The scale is kept in the parameters of the head, so whoever reads the run has it.
"""

import dataclasses
import math
import typing

import jax
import numpy as np

from gptjax.config import task_heads
from gptjax.config.fields import CheckpointConfig, OptimConfig, TrainConfig
from gptjax.data import sources
from gptjax.data.chat import kinds
from gptjax.errors import UserError, choose
from gptjax.evaluation import preferred, run_loss, scored
from gptjax.parallel import numerics
from gptjax.rundir import model_directory, run_directory
from gptjax.storage import folder_kinds, outputs

SCALES = {  # name: what it is, for people
    "zero": "demonstrations, the best answers of the training preferences, score 0 on average (Ouyang et al. 2022)",
    "standard": "all answers have mean 0 and standard deviation 1 (Ziegler et al. 2019, section 2.1)",
}


class Scale(typing.NamedTuple):
    """A score r becomes (r - mean) / deviation."""

    mean: float
    deviation: float
    answers: int  # that it was measured on


def measured(run, scale: str, spec: str | None = None, batch_size: int | None = None) -> Scale:
    """spec: a SPEC of conversations, the last answer of each of which is scored; None: the training preferences of the run.

    Raises UserError: no reward model, no such scale, answers that all have one score."""
    choose(SCALES, scale, "--to")
    _check_head(run)
    score_E = _scores(run, scale, spec, run_loss.batch_rows(run, batch_size))
    deviation = float(score_E.std()) if scale == "standard" else 1.0
    if not deviation > 0 or not math.isfinite(deviation):
        raise UserError(f"the {len(score_E):,} answers have the same score, so that there is no unit; use --to=zero.")
    return Scale(float(score_E.mean()), deviation, len(score_E))


def _check_head(run) -> None:
    if not task_heads.scores_answers(run.config.model) or not task_heads.of(run.config.model).bias:
        raise UserError(
            f"model.task_head={run.config.model.task_head!r} has no score with a bias to move; use a run of 'score'."
        )
    if run.config.model.adapter is not None:
        raise UserError("this reward model has an adapter; merge it first (gptjax adapter merge).")
    if run.dtype is not None:
        raise UserError(f"a reward model is put on a scale in float32: load it without dtype={run.dtype!r}.")


def _scores(run, scale: str, spec: str | None, batch_size: int) -> np.ndarray:
    """float64 [E]."""
    if spec is not None:
        text = dataclasses.replace(run.config.data, preferences=None, packing="best_fit", val_split="document")
        documents = sources.whole_documents(sources.from_spec(spec, text))
        return np.float64(scored.score(run, [list(each.conversation.messages) for each in documents], batch_size))
    rows = preferred.rows_of(run, preferred.open_own(run).examples.train.examples)
    with numerics.on_mesh(run.mesh):
        scores = preferred.scores_of(run.program, run.params, rows, batch_size)
    if scale == "standard":
        return np.concatenate(scores)
    return np.array([score_K[0] for score_K in scores])


def scaled(run, scale: Scale):
    """The Run whose scores are on that scale: weight / deviation, (bias - mean) / deviation."""
    head = run.params["task_head"]
    changed = {"weight": head["weight"] / scale.deviation, "bias": (head["bias"] - scale.mean) / scale.deviation}
    places = run.program.param_sharding["task_head"]
    head = {name: jax.device_put(array, places[name]) for name, array in changed.items()}
    return dataclasses.replace(run, params=run.params | {"task_head": head})


def write(run, scale: str, out: str, spec: str | None = None) -> Scale:
    """Makes a run directory of the reward model on a scale, as gptjax import makes one. Raises UserError: as `measured`, or
    the folder holds something."""
    if (kind := folder_kinds.kind_of(out)) not in (folder_kinds.MISSING, folder_kinds.EMPTY):
        not_empty = "no folder" if kind == folder_kinds.FILE else "not empty"
        raise UserError(f"--out={out} is {not_empty}: it is {folder_kinds.said(out)}; give a new directory.")
    outputs.check_folder("--out", out)
    of_answers = measured(run, scale, spec)
    config = dataclasses.replace(
        run.config,
        optim=OptimConfig(),
        train=TrainConfig(steps=1, batch_size=8, tensorboard=False, loss=run.config.train.loss),
        checkpoint=CheckpointConfig(every_steps=None),
    )
    origin = {"from": "reward", "folder": str(run.directory.path), "step": run.step, "dtype": "float32", "files": {}}
    about = {"imported": origin, "scale": {"to": scale, "data": spec} | of_answers._asdict()}
    directory = run_directory.open_run(out)
    model_directory.write(directory, config, scaled(run, of_answers).params, run.tokenizer, about)
    if (template := kinds.of_folder(run.directory.tokenizer)) is not None:
        kinds.keep(template, directory.tokenizer)
    return of_answers
