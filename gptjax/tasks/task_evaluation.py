"""Tasks of lm-evaluation-harness while a run is training: on its own mesh, with its parameters as they are."""

from gptjax.run import run
from gptjax.rundir import metrics
from gptjax.tasks import task_set


def open_tasks(config) -> task_set.TaskSet | None:
    """The tasks of eval.tasks with their data; None: there are none. Raises UserError: see `tasks.TaskSet`."""
    if config.eval.tasks is None:
        return None
    return task_set.TaskSet(config.eval.tasks.split(","), config.eval.tasks_limit)


def check(session) -> None:
    """Raises UserError: tasks of a Session ask what its model cannot answer, such as of characters it has no token for."""
    if session.tasks is not None:
        from gptjax.tasks import harness

        lm = harness.DryLM(_run(session, directory=None, params=None, step=0))
        session.tasks.check(lm, session.config.eval.tasks_num_fewshot)


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


def _run(session, directory, params, step: int) -> run.Run:
    return run.Run(directory, session.config, session.store.tokenizer, session.program, params, step)


class TaskEvaluation:
    """The tasks of a Session, when they are due. All processes of a run evaluate, each the same numbers.

    done: (step, prefix) of what is logged already, as `logged` finds it.
    """

    def __init__(self, session, directory, progress, log, done=()):
        self._session, self._directory, self._progress, self._log = session, directory, progress, log
        self._config = session.config.eval
        self._done = {tuple(pair) for pair in done}
        self._failed = set()  # likewise, in this process: not tried twice

    def due(self, step: int) -> bool:
        every = self._config.tasks_every_steps
        return self._session.tasks is not None and every is not None and step % every == 0

    def evaluate(self, state, step: int, should_stop) -> None:
        """Of the parameters, and of their average if one is kept: rows of metrics.jsonl and of the terminal. Nothing is
        logged of an evaluation that should_stop() cut short."""
        if self._session.tasks is None:
            return
        from gptjax.tasks import harness

        averages = {} if state.ema is None else {"ema_": state.ema}
        for prefix, params in {"": state.params, **averages}.items():
            if (step, prefix) in self._done | self._failed:
                continue
            size = self._session.config.eval_batch_size
            lm = harness.GptjaxLM(
                _run(self._session, self._directory, params, step), batch_size=size, should_stop=should_stop
            )
            try:
                results = self._session.tasks.evaluate(lm, (self._config.tasks_num_fewshot,))
            except harness.Stopped:
                return
            except task_set.TaskFailed as error:  # as of a model whose losses are beyond all measure: it may yet mend
                self._progress.message(f"gptjax: step {step}: {prefix}tasks are not evaluated: {error}")
                self._log.write("event", step, event="tasks_failed", parameters=prefix, reason=str(error))
                self._failed.add((step, prefix))
                continue
            self._say(prefix, step, results)
            self._done.add((step, prefix))

    def ending(self) -> list[str]:
        """A line at the end of a run in which tasks could not be evaluated and were not since; none where all were."""
        reasons = failed(self._directory.metrics)
        if not reasons:
            return []
        names = [f"{step} (ema)" if prefix else str(step) for step, prefix in reasons]
        steps, last, reason = ", ".join(names), names[-1], list(reasons.values())[-1]
        return [f"gptjax: tasks are not evaluated at step {steps} (see gptjax eval --tasks); at {last}: {reason}"]

    def _say(self, prefix: str, step: int, results: task_set.TaskResults) -> None:
        for row in results.rows:
            value = task_set.shown(row.value, row.standard_error)
            self._progress.message(f"step {step:>7}  {prefix}{row.name} {value}  ({row.samples:,} documents)")
        self._progress.message(f"step {step:>7}  {prefix}tasks took {results.seconds:.1f} s")
        numbers = {f"{prefix}{row.name}": row.value for row in results.rows}
        errors = {
            f"{prefix}{row.name}_stderr": row.standard_error for row in results.rows if row.standard_error is not None
        }
        self._log.write("tasks", step, **numbers, **errors, **{f"{prefix}seconds": results.seconds})
