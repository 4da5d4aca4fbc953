"""What a run does by a metric of its evaluations on held-out text: it ends early, and it keeps its best checkpoint.

Both are functions of the rows in metrics.jsonl alone, so that a resumed run does what an undisturbed one does.
"""

import difflib

from gptjax import schedule
from gptjax.errors import UserError
from gptjax.evaluation import judging
from gptjax.rundir import metrics
from gptjax.training.hooks import Hook, is_multiple


class Judged(Hook):
    """A hook that reads a metric behind every evaluation on held-out text. Process 0 reads it, for all."""

    catches_up = True  # with the evaluation
    doing = "judging an evaluation"
    field = ""  # of the config, that names the metric

    def __init__(self, config, metric: str):
        super().__init__(config)
        self.metric = metric
        self._every, self._last = config.eval.every_steps, schedule.total_steps(config)

    def check(self, session) -> None:
        """Raises UserError, before the first step: no evaluation will log the metric. What losses of other examples than text
        and rewards log is seen at the first evaluation."""
        if self.config.train.loss == "next_token" or self.config.rl.prompts is not None:
            from gptjax.training.hooks import held_out

            self._check_logged(held_out(self.config).metrics_of(session))

    def _check_logged(self, names) -> None:
        if self.metric not in names:
            near = difflib.get_close_matches(self.metric, names, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}."
            raise UserError(f"{self.field}={self.metric!r} is not in the evaluations of this run; {advice}")

    def due(self, step: int) -> bool:
        return step == self._last or is_multiple(step, self._every)

    def values(self) -> dict[int, float]:
        """{step: value} of the evaluations so far, in process 0."""
        self.training.log.flush()
        file = self.training.directory.metrics
        rows = metrics.read_metrics(file, "eval") if file.exists() else []
        return {row["step"]: float(row[self.metric]) for row in rows if self.metric in row}

    def newest_values(self, step: int) -> dict[int, float]:
        """`values`, or {} where the evaluation of this step was broken off. Raises UserError: it has no such metric."""
        rows = [row for row in metrics.read_metrics(self.training.directory.metrics, "eval") if row["step"] == step]
        if rows:
            self._check_logged([name for row in rows for name in row if name not in ("kind", "step", "time")])
        return self.values() if rows else {}


class EarlyStop(Judged):
    """Ends the run when train.stop_metric has not improved by more than train.stop_change in the last train.stop_patience
    evaluations (Prechelt 1998, the class UP)."""

    field = "train.stop_metric"

    def begin(self, training, step: int) -> None:
        super().begin(training, step)
        self._judge(step)

    def run(self, state, step: int, should_stop) -> None:
        if self.training.peers.index == 0:
            self.newest_values(step)
        self._judge(step)

    def _judge(self, step: int) -> None:
        peers = self.training.peers
        self.ended = peers.tell("early stop", self._reason() if peers.index == 0 else None)
        if self.ended and peers.index == 0:
            self._write_down(step)

    def _reason(self) -> str | None:
        train, values = self.config.train, self.values()
        if not values:
            return None
        waited, best = judging.since_improvement(self.metric, values, train.stop_change)
        if waited < train.stop_patience:
            return None
        by = f" by more than {train.stop_change:g}" if train.stop_change else ""
        return (
            f"{self.metric} has not improved{by} in {waited} evaluations (train.stop_patience={train.stop_patience}) since"
            f" step {best}, which has {values[best]:.6g}"
        )

    def _write_down(self, step: int) -> None:
        """The reason in metrics.jsonl, once, and in the manifest."""
        directory = self.training.directory
        events = metrics.read_metrics(directory.metrics, "event")
        if not any(row["event"] == "ended_early" and row["step"] == step for row in events):
            self.training.log.write("event", step, event="ended_early", reason=self.ended)
        ended = {"step": step, "reason": self.ended}
        directory.write_json("manifest.json", directory.manifest() | {"ended_early": ended})


class KeepBest(Judged):
    """Has a checkpoint saved behind each evaluation that is the best so far; that it stays is the Keeper's."""

    field = "checkpoint.keep_best"

    def run(self, state, step: int, should_stop) -> None:
        peers = self.training.peers
        self.wants_save = peers.tell("best", self._is_best(step) if peers.index == 0 else None)

    def _is_best(self, step: int) -> bool:
        values = self.newest_values(step)
        return step in values and judging.best_step(self.metric, values) == step
