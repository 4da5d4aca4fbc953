"""Tasks of lm-evaluation-harness while a run is training: on its own mesh, with its parameters as they are."""

from gptjax import schedule
from gptjax.run import run
from gptjax.rundir import metrics
from gptjax.tasks import task_set
from gptjax.training import hooks


def logged(file, step: int) -> list[tuple[int, str]]:
    """(step, prefix) of the tasks that a metrics.jsonl has of a step: "" are those of the parameters, "ema_" of their
    average."""
    rows = metrics.read_metrics(file, "tasks") if file.exists() else []
    rows = [row for row in rows if row["step"] == step]
    return [(step, prefix) for prefix in ("", "ema_") if any(f"{prefix}seconds" in row for row in rows)]


def failed(file) -> dict[tuple[int, str], str]:
    """{(step, prefix): why} of the tasks that a metrics.jsonl says could not be evaluated, and that it has no numbers of."""
    events = metrics.read_metrics(file, "event") if file.exists() else []
    reasons = {(row["step"], row["parameters"]): row["reason"] for row in events if row["event"] == "tasks_failed"}
    return {pair: reason for pair, reason in reasons.items() if pair not in logged(file, pair[0])}


class TaskEvaluation(hooks.Hook):
    """The tasks of eval.tasks, with their data. All processes of a run evaluate, each the same numbers.

    Raises UserError: see `tasks.TaskSet`.
    """

    catches_up = True
    doing = "evaluating tasks"

    def __init__(self, config):
        super().__init__(config)
        self._tasks = task_set.TaskSet(config.eval.tasks.split(","), config.eval.tasks_limit)
        self._every, self._last = config.eval.tasks_every_steps, schedule.total_steps(config)
        self._shots = config.eval.tasks_num_fewshot
        self._done = set()  # (step, prefix) of what is logged, as `logged` finds it
        self._failed = set()  # likewise, in this process: not tried twice

    def check(self, session) -> None:
        """Raises UserError: tasks ask what the model cannot answer, such as of characters it has no token for."""
        from gptjax.tasks import harness

        self._tasks.check(harness.DryLM(_run(session, directory=None, params=None, step=0)), self._shots)

    def facts(self) -> dict:
        return {"tasks": self._tasks.digests}

    def begin(self, training, step: int) -> None:
        super().begin(training, step)
        done = logged(training.directory.metrics, step) if training.peers.index == 0 else None
        self._done = {tuple(pair) for pair in training.peers.tell("tasks that are done", done)}
        self._failed = set()

    def due(self, step: int) -> bool:
        return step == self._last or hooks.is_multiple(step, self._every)

    def run(self, state, step: int, should_stop) -> None:
        """Of the parameters, and of their average if one is kept: rows of metrics.jsonl and of the terminal. Nothing is
        logged of an evaluation that should_stop() cut short."""
        from gptjax.tasks import harness

        averages = {} if state.ema is None else {"ema_": state.ema}
        for prefix, params in {"": state.params, **averages}.items():
            if (step, prefix) in self._done | self._failed:
                continue
            model = _run(self.training.session, self.training.directory, params, step)
            lm = harness.GptjaxLM(model, batch_size=model.config.eval_batch_size, should_stop=should_stop)
            try:
                results = self._tasks.evaluate(lm, (self._shots,))
            except harness.Stopped:
                return
            except task_set.TaskFailed as error:  # as of a model whose losses are beyond all measure: it may yet mend
                self._say_failed(prefix, step, str(error))
                continue
            self._say(prefix, step, results)
            self._done.add((step, prefix))

    def end(self, state) -> list[str]:
        """A line at the end of a run in which tasks could not be evaluated and were not since; none where all were."""
        reasons = failed(self.training.directory.metrics)
        if not reasons:
            return []
        names = [f"{step} (ema)" if prefix else str(step) for step, prefix in reasons]
        steps, last, reason = ", ".join(names), names[-1], list(reasons.values())[-1]
        return [f"gptjax: tasks are not evaluated at step {steps} (see gptjax eval --tasks); at {last}: {reason}"]

    def _say_failed(self, prefix: str, step: int, reason: str) -> None:
        self.training.progress.message(f"gptjax: step {step}: {prefix}tasks are not evaluated: {reason}")
        self.training.log.write("event", step, event="tasks_failed", parameters=prefix, reason=reason)
        self._failed.add((step, prefix))

    def _say(self, prefix: str, step: int, results: task_set.TaskResults) -> None:
        for row in results.rows:
            value = task_set.shown(row.value, row.standard_error)
            self.training.progress.message(f"step {step:>7}  {prefix}{row.name} {value}  ({row.samples:,} documents)")
        self.training.progress.message(f"step {step:>7}  {prefix}tasks took {results.seconds:.1f} s")
        numbers = {f"{prefix}{row.name}": row.value for row in results.rows}
        errors = {
            f"{prefix}{row.name}_stderr": row.standard_error for row in results.rows if row.standard_error is not None
        }
        self.training.log.write("tasks", step, **numbers, **errors, **{f"{prefix}seconds": results.seconds})


def _run(session, directory, params, step: int) -> run.Run:
    return run.Run(directory, session.config, session.store.tokenizer, session.program, params, step)
