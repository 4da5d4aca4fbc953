"""What a run does when training goes wrong: when it gives up, and how it goes back, past the text it went wrong on.

    first bad step b, last bad step e    a loss, gradient or parameter that is not finite (b = e), or
                                         train.max_skips updates left out in a row (skipping.py)
    rollback                             the newest checkpoint of c <= b steps is taken, and the rows that steps c to
                                         e read are left out: step c goes on with those after

Steps, learning rates and random keys stay as they are; only what text a step reads moves on. PaLM (Chowdhery et al.
2022, section 5.1) did so by hand: from a checkpoint some 100 steps before a spike, past 200 to 500 batches, after which
the spikes did not come back; the same text did no harm from another checkpoint.

All follows from the checkpoint, the config and the numbers of the steps, which are the same in every process and every
time. So what is left out need not be written when it is decided: a run killed after a rollback goes on from the older
checkpoint, goes wrong in the same way and decides the same. Later checkpoints carry it in their manifest. Needs no JAX.
"""

import math

from gptjax.errors import Diverged
from gptjax.schedule import Rewinds


def rewound(config, now: Rewinds, known: Rewinds, step: int, error: Diverged) -> Rewinds:
    """After a rollback to the checkpoint of `step`, which knows of `known`, from a run that is at `now`. In reinforcement learning
    the whole iteration is left out, whose answers would be drawn again: a call of the train step."""
    call = 1 if config.rl.prompts is None else config.train.steps_per_call
    past = now.first_row(config, -(-error.step // call) * call)
    return Rewinds(now.count + 1, (*known.windows, (step, past - known.first_row(config, step))))


def advice(config, rewinds: Rewinds) -> str:
    """What may help a run that has diverged."""
    tried = (
        f" after {rewinds.count} of train.max_rollbacks={config.train.max_rollbacks} rollbacks" if rewinds.count else ""
    )
    others = []
    if config.optim.skip == "none":
        others.append("skip such updates with optim.skip='nonfinite' or 'outliers'")
    if not config.train.max_rollbacks:
        others.append("go back to a checkpoint and skip that text with train.max_rollbacks=3")
    return f"{tried}. Try a lower optim.peak_lr or a longer warmup" + "".join(f"; or {other}" for other in others) + "."


class WorseThanGuessing:
    """Whether a run does worse than one that learnt nothing, for so long that no batch and no warmup explains it: its loss is
    above `limit` for STEPS steps in a row. That is MARGIN above ln(vocabulary), the loss of guessing all tokens alike, or above
    the first loss that was seen since the run began, went on or went back, where that is larger: what was high then has been
    told, or falls from a large initialisation. It is told once; of a loss that is no cross-entropy of tokens nothing is said.
    """

    STEPS, MARGIN = 20, 0.1

    def __init__(self, config):
        self._config, self._uniform = config, math.log(config.model.vocab_size)
        self.limit, self._above, self._tells = None, 0, config.train.loss == "next_token"

    def begins(self, loss: float) -> bool:
        """Takes the loss of the next step. True: now it is so long."""
        if self.limit is None:
            self.limit = max(self._uniform, loss) * (1 + self.MARGIN)
        self._above = self._above + 1 if loss > self.limit else 0
        begins = self._tells and self._above == self.STEPS
        self._tells = self._tells and not begins
        return begins

    def said(self, loss: float) -> str:
        return (
            f"warning: the training loss has been above {self.limit:.3g} for {self.STEPS} steps and is {loss:.4g} now; a model that"
            f" has learnt nothing has {self._uniform:.3g}. Training has probably diverged: stop it, and lower"
            f" optim.peak_lr={self._config.optim.peak_lr:g}."
        )
