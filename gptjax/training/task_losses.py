"""Losses of labelled examples (models/labelled.py): that of the task, and train.lm_coef times the language model's.

The language model's loss of an example is a mean over the tokens of each of its sequences and over these, as in GPT-1's
released fine-tuning code, where its weight is 0.5 (Radford et al. 2018, section 3.2). It counts as often as the example does
in the loss of the task: once, or once for each labelled token.
"""

import jax.numpy as jnp

from gptjax.config import task_heads
from gptjax.models import labelled
from gptjax.training.losses import Mean


def _minimised(params, batch: dict, key, graph, config):
    """(objective, (loss sum, weight sum), numbers, outputs) of a batch of labelled examples."""
    head, coef = task_heads.of(config.model), config.train.lm_coef
    output, lm_B = labelled.outputs(
        params,
        batch,
        graph=graph,
        mesh_config=config.mesh,
        head=head,
        chunks=config.train.vocab_chunks,
        key=key if max(config.model.max_dropout, head.dropout) else None,
        with_lm=coef > 0,
    )
    loss_B, weight_B = labelled.LOSSES[head.loss](output, batch)
    sums = loss_B.sum(), weight_B.sum()
    if not coef:
        return sums[0], sums, {}, output
    lm_sum = jnp.sum(lm_B * weight_B)
    return sums[0] + coef * lm_sum, sums, {"lm_loss": Mean(lm_sum, sums[1])}, output


def _with_accuracy(right, weight, objective, sums, numbers):
    return objective, (sums, {"accuracy": Mean(jnp.sum(right * weight), weight.sum()), **numbers})


def classify(params, batch, key, *, graph, config):
    """Cross-entropy of an example's class, nats/example, and the accuracy."""
    objective, sums, numbers, logit_BO = _minimised(params, batch, key, graph, config)
    return _with_accuracy(logit_BO.argmax(-1) == batch["label_B"], batch["weight_B"], objective, sums, numbers)


choice = classify  # whose classes are the sequences of an example


def tag(params, batch, key, *, graph, config):
    """Cross-entropy of the class of each labelled token, nats/token, and the accuracy."""
    objective, sums, numbers, logit_BLO = _minimised(params, batch, key, graph, config)
    return _with_accuracy(logit_BLO.argmax(-1) == batch["label_BL"], batch["weight_BL"], objective, sums, numbers)


def span(params, batch, key, *, graph, config):
    """Cross-entropy of the first and the last token of an answer, their mean, nats/example."""
    objective, sums, numbers, _ = _minimised(params, batch, key, graph, config)
    return objective, (sums, numbers)


def regress(params, batch, key, *, graph, config):
    """Mean squared error of an example's numbers."""
    objective, sums, numbers, _ = _minimised(params, batch, key, graph, config)
    return objective, (sums, numbers)
