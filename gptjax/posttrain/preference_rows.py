"""Rows of preferences made ready for a loss that judges answers by their log-probabilities: DPO, its family, and KTO.

training rows   answers behind other prompts, where the loss is KTO; log-probabilities under the reference
held-out rows   log-probabilities under the reference; answers are judged by the implicit rewards of the loss
"""

import functools

from gptjax.config.fields import MeshConfig
from gptjax.errors import UserError
from gptjax.hosts import compiling, coordination
from gptjax.posttrain import answers, mismatched, reference
from gptjax.training import losses
from gptjax.training.hooks import Hook


class PreferenceRows(Hook):
    """Readies the rows of a run before its first step. It runs no more after that."""

    doing = "computing log-probabilities under the reference"

    def __init__(self, config):
        super().__init__(config)
        self.loss = losses.chosen(config.train.loss)
        self._is_ready = False

    def check(self, session) -> None:
        """Raises UserError: all answers that are judged one by one have the same judgement."""
        if self.loss.preferences == "judged" and len({example.label for example in session.rows.examples}) == 1:
            up = "up" if session.rows.examples[0].label else "down"
            raise UserError(
                f"train.loss={self.config.train.loss!r} learns from thumbs up and down, and all training answers of the data are"
                f" {up}; give both, or use a loss that needs no judgement."
            )

    def due(self, step: int) -> bool:
        return False

    def begin(self, training, step: int) -> None:
        super().begin(training, step)
        if not self._is_ready:
            with training.watchdog.doing(self.doing):
                self._is_ready = self._ready(training, step)

    def _ready(self, training, step: int) -> bool:
        """False: the run was asked to stop meanwhile."""
        session, peers = training.session, training.peers
        for rows in session.eval_rows.values():
            rows.scores = rewards_of(self.loss, session.config)
        if self.loss.preferences == "judged":
            session.rows.replace(mismatched.with_mismatched(session.rows.examples, session.rows.shape[1]))
        if not self.loss.has_reference:
            return True
        chosen = reference.chosen(session.config, session, training.directory, step) if peers.index == 0 else None
        about = peers.tell("reference", chosen)
        if about is None:
            return True
        folder = training.directory.path / reference.FOLDER
        of_run = reference.ReferenceLogprobs(
            about, session.config, session.program, folder, peers, training.should_stop
        )
        if peers.index == 0:
            reference.keep(about, training.directory)
        for rows in (session.rows, *session.eval_rows.values()):
            where = of_run.attach(rows)
            if where is None:
                return False
            training.progress.message(f"reference: log-probabilities of {len(rows.examples):,} examples, {where}")
        return True


def rewards_of(loss, config):
    """(graph, params, batch) -> float32 [B, K], the implicit rewards of answers."""
    functions = {"config": config, "with_reference": loss.has_reference}

    @functools.partial(compiling.jit, static_argnums=0)
    def rewards(graph, params, batch):
        return loss.reward(answers.of_batch(params, batch, None, graph=graph, **functions))

    return rewards


def ready_for_evaluation(run, rows: dict) -> None:
    """The same for held-out rows of a loaded Run, {name: EvalPairs}. Raises UserError: its reference is not to be had."""
    config = run.config.replace(mesh=vars(MeshConfig()))
    loss = losses.chosen(config.train.loss)
    if not hasattr(loss, "reward"):
        return
    for one in rows.values():
        one.scores = rewards_of(loss, config)
    about = reference.kept(run.directory) if loss.has_reference else None
    if about is not None:
        folder, peers = run.directory.path / reference.FOLDER, coordination.among(run.mesh.devices.flat)
        of_run = reference.ReferenceLogprobs(about, config, run.program, folder, peers, keeps=False)
        for one in rows.values():
            of_run.attach(one)
