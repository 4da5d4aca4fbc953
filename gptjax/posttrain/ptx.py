"""Rows of text learnt in the same steps as answers, so that a policy keeps what pretraining taught it (rl.ptx; Ouyang et al.
2022, equation 2).

Row r of the text is a function of (text, data.seed, r), as in pretraining (data/rows/pipeline.py), and an iteration reads the
next ones. Axes: S minibatches of a call, R rows of text in each, T = L + 1 tokens.
"""

import dataclasses

import numpy as np

from gptjax.data import sources
from gptjax.data.rows import pipeline
from gptjax.errors import UserError
from gptjax.posttrain.policy_losses import ptx_weights


def rows_of_step(session) -> int:
    """Rows of text in a step. Raises UserError: they do not divide over the devices."""
    config = session.config
    size, unit = config.rl.ptx_rows or config.train.batch_size, config.train.microbatches * session.batch_unit
    if size % unit:
        raise UserError(
            f"rl.ptx_rows={size} does not divide over {unit} (devices along the batch times"
            f" train.microbatches={config.train.microbatches}); use a multiple of {unit}."
        )
    return size


def data_of(config):
    """The DataConfig of the text. Raises UserError: there is none."""
    with sources.naming_field("rl.ptx"):
        data = dataclasses.replace(sources.from_spec(config.rl.ptx, config.data), chat=None)
        sources.identity(data)
    return data


class TextRows:
    """The text of rl.ptx in the tokens of a run. Raises UserError: it cannot be read, has another tokenizer, or its rows do not
    divide over the devices."""

    def __init__(self, session):
        config = session.config
        self.size, self._steps = rows_of_step(session), config.train.steps_per_call
        data = data_of(config)
        with sources.naming_field("rl.ptx"):
            store, objective = pipeline.open_text(data, config.model.context_length)
        if store.tokenizer.base_hash != session.store.tokenizer.base_hash:
            raise UserError(
                f"rl.ptx={config.rl.ptx!r} has another tokenizer ({store.tokenizer.kind}) than the run"
                f" ({session.store.tokenizer.kind}); set data.tokenizer, or give other text."
            )
        self._rows = pipeline.TrainRows(store, data, config.model.context_length, objective)

    def batch(self, iteration: int, weight_S) -> dict[str, np.ndarray]:
        """{ptx_NAME: [S, R, ...]} of what a batch of pretraining has, in an iteration. weight_S: of the policy's loss in each
        step."""
        first = iteration * self._steps * self.size
        steps = [self._rows.rows(first + i * self.size, first + (i + 1) * self.size) for i in range(self._steps)]
        for rows, weight in zip(steps, weight_S):
            rows["weight_BL"] = ptx_weights(rows["weight_BL"], float(weight))
        return {f"ptx_{name}": np.stack([rows[name] for rows in steps]) for name in steps[0]}
