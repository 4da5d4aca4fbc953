"""The length of a run that is given in epochs of its text (train.epochs), in steps: settled before the first one."""

import math

from gptjax import schedule
from gptjax.data.rows import pipeline
from gptjax.errors import UserError, imported


def resolved(config, alive=lambda: None):
    """A config with train.steps in the place of train.epochs: the steps that read that many times the rows of an epoch,
    the last one perhaps some more. So a run's config.json has steps, and what a resume compares are steps.

    Raises UserError: the text is a mixture, whose sources have epochs of their own.
    """
    epochs = config.train.epochs
    if config.data.mixture is not None:
        raise UserError(
            f"train.epochs={epochs:g} counts passes through one text, and data.mixture has {len(config.data.mixture)};"
            " give train.steps or train.tokens."
        )
    steps = schedule.steps_of_rows(config, math.ceil(epochs * _rows_per_epoch(config, alive)))
    return config.replace(train={"epochs": None, "steps": steps})


def _rows_per_epoch(config, alive) -> int:
    if config.data.examples is not None:
        store = imported(config.data.examples.open, "data")(config, alive)
        return len(store.examples.train.examples)
    store, objective = pipeline.open_text(config.data, config.model.context_length, alive)
    rows = pipeline.TrainRows(store, config.data, config.model.context_length, objective, alive)
    [count] = rows.rows_per_epoch.values()
    return count
