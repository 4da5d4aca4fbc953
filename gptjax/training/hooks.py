"""What a run does between two calls of the train step, and at its end, beside training, saving, stopping and going back.

    before the first step   check(session), facts()
    a start, a resume, or a rollback to a step      begin(training, step)
    after a call            due(step) -> run(state, step, should_stop)      (of the last step: after its checkpoint)
    a run at its end        end(state) -> lines for the terminal
    a run that ends in any way                      close(state)

A hook is a class and an entry in HOOKS, which makes it from the config; the loop knows none of them by name.
"""

import importlib

from gptjax import schedule
from gptjax.errors import UserError
from gptjax.rundir import metrics


class Hook:
    """One such thing; `due` and `run` are what each says for itself. All processes of a run have the same hooks."""

    drains = True  # whether the numbers of the call before are read first, and its time is no part of the throughput
    catches_up = False  # whether a run that goes on from a step at which it is due may have been stopped in it
    doing = "running a hook"  # for the watchdog
    ended: str | None = None  # why the run is to end here, after `begin` or `run`; the same in all processes
    wants_save = False  # whether a checkpoint is to be saved after `run`, likewise

    def __init__(self, config):
        self.config = config

    def check(self, session) -> None:
        """Raises UserError, before the first step, for what this hook could not do with a Session."""

    def facts(self) -> dict:
        """JSON values that must be the same in all processes of a run, by what they are of."""
        return {}

    def begin(self, training, step: int) -> None:
        """The run starts, goes on, or has gone back to this step. training: a `loop.Training`."""
        self.training = training

    def due(self, step: int) -> bool:
        """Whether it is to be run when so many steps are taken, the same in all processes if it drains."""
        raise NotImplementedError

    def run(self, state, step: int, should_stop) -> None:
        """state: the TrainState after `step` steps. should_stop(): whether the run was asked to stop; a sign of life too."""
        raise NotImplementedError

    def end(self, state) -> list[str]:
        """Lines for the terminal when the run has come to its end."""
        return []

    def close(self, state) -> None:
        """The run ends, or stops, or has failed, after `begin`."""


class HeldOut(Hook):
    """Loss on held-out text: of the parameters, and of their average if the run keeps one."""

    catches_up = True
    doing = "evaluating"

    def __init__(self, config, evaluation=None):
        """evaluation: another way than `evaluation` below to evaluate, with the same arguments."""
        super().__init__(config)
        self._every, self._last = config.eval.every_steps, schedule.total_steps(config)
        self._evaluation = evaluation or self.evaluation
        self._done = None  # the step evaluated last, if it is the run's

    def begin(self, training, step: int) -> None:
        super().begin(training, step)
        peers = training.peers
        done = peers.tell("evaluated", peers.index == 0 and self._is_logged(step))
        self._done = step if done else None

    def _is_logged(self, step: int) -> bool:
        """A run may have been killed between saving its last step and evaluating it."""
        file = self.training.directory.metrics
        rows = metrics.read_metrics(file, "eval") if file.exists() else []
        last = f"{self._prefixes()[-1]}loss"  # of those that are logged one by one
        return any(row["step"] == step and last in row for row in rows)

    def _prefixes(self) -> tuple[str, ...]:
        return ("",) if self.config.optim.ema_decay is None else ("", "ema_")

    def metrics_of(self, session) -> list[str]:
        """Names of the numbers that an evaluation of this run logs."""
        from gptjax.evaluation import held_out

        names = list(session.eval_rows)
        return [name for prefix in self._prefixes() for name in held_out.logged_names(prefix, names)]

    def due(self, step: int) -> bool:
        return step == self._last or is_multiple(step, self._every)

    def run(self, state, step: int, should_stop) -> None:
        if self._done == step:
            return
        for prefix in self._prefixes():
            results = self._evaluation(state, prefix, should_stop)
            if results is None:
                return
            self._log(prefix, step, results)
        self._done = step

    def evaluation(self, state, prefix: str, should_stop) -> dict | None:
        """{source: held_out.Evaluation} of the parameters as they are, or of their average. None: asked to stop meanwhile."""
        from gptjax.evaluation import run_loss

        session, params = self.training.session, state.ema if prefix else state.params
        rows, size = session.eval_rows, session.config.eval_batch_size
        return run_loss.evaluator(session.config.data)(session.program, params, rows, size, should_stop=should_stop)

    def _log(self, prefix: str, step: int, results: dict) -> None:
        from gptjax.evaluation import held_out

        for i, (source, result) in enumerate(results.items()):
            name = f"{source:>12}" if i else "eval"
            self.training.progress.message(f"step {step:>7}  {prefix}{name} {result}")
        self.training.log.write("eval", step, **held_out.logged(prefix, results))


class Sample(Hook):
    """A text of eval.sample_tokens tokens at the end, and every eval.sample_every_steps steps: always with the same seed."""

    doing = "sampling"

    def check(self, session) -> None:
        """Raises UserError, before the first step and not after the last: the sample has nothing to start from."""
        tokenizer, prompt = session.store.tokenizer, self.config.eval.sample_prompt
        if prompt is None and tokenizer.eot_id is not None:
            return
        try:
            tokenizer.encode("\n" if prompt is None else prompt)
        except UserError as error:
            if prompt is not None:
                raise UserError(f"eval.sample_prompt={prompt!r}: {error}") from None
            raise UserError(
                f"eval.sample_tokens={self.config.eval.sample_tokens}, but the tokenizer {tokenizer.kind!r} has neither"
                " an end-of-text token nor a line break to start a sample from; set eval.sample_prompt, or 0."
            ) from None

    def begin(self, training, step: int) -> None:
        super().begin(training, step)
        self._began = step

    def due(self, step: int) -> bool:
        every = self.config.eval.sample_every_steps
        return every is not None and step % every == 0 and step < schedule.total_steps(self.config)

    def run(self, state, step: int, should_stop) -> None:
        self.training.progress.message(f"step {step:>7}  sample {self._sample(state, step)!r}")

    def end(self, state) -> list[str]:
        return ["", "a sample:", self._sample(state, int(state.step)), ""]

    def _sample(self, state, step: int) -> str:
        """A prompt (none given: a line break, or end-of-text where the tokenizer has it) and its continuation, logged."""
        from gptjax.generation.engine import Engine
        from gptjax.generation.settings import Settings
        from gptjax.generation.text import generate

        session, config = self.training.session, self.config.eval
        tokenizer, prompt = session.store.tokenizer, config.sample_prompt
        if prompt is None and tokenizer.eot_id is None:
            prompt = "\n"
        engine = Engine(session.program.graph, state.params, entries=tokenizer.vocab_size)
        [made] = generate(engine, tokenizer, prompt, Settings(max_tokens=config.sample_tokens))
        if not self._is_logged(step, made.prompt):
            self.training.log.write("event", step, event="sample", prompt=made.prompt, text=made.text)
        return str(made)

    def _is_logged(self, step: int, prompt: str) -> bool:
        """In process 0, which logs. Only a finished run that is started again can have a sample of the step before it."""
        file = self.training.directory.metrics
        if self.training.peers.index != 0 or self._began != step or not file.exists():
            return False
        samples = [row for row in metrics.read_metrics(file, "event") if row["event"] == "sample"]
        return any((row["step"], row["prompt"]) == (step, prompt) for row in samples)


def held_out(config) -> Hook:
    """On held-out text, or of a run with reinforcement learning, the reward of answers."""
    if config.rl.prompts is None:
        return HeldOut(config)
    return importlib.import_module("gptjax.posttrain.reward_evaluation").HeldOutReward(config)


def _profile(config) -> Hook | None:
    if config.train.profile_steps is None:
        return None
    return importlib.import_module("gptjax.training.profiling").Profile(config)


def _tasks(config) -> Hook | None:
    if config.eval.tasks is None:
        return None
    return importlib.import_module("gptjax.tasks.task_evaluation").TaskEvaluation(config)


def _early_stop(config) -> Hook | None:
    metric = config.train.stop_metric
    return None if metric is None else importlib.import_module("gptjax.training.judged").EarlyStop(config, metric)


def _keep_best(config) -> Hook | None:
    metric = config.checkpoint.keep_best
    return None if metric is None else importlib.import_module("gptjax.training.judged").KeepBest(config, metric)


def _preference_rows(config) -> Hook | None:
    if config.data.preferences is None or config.model.task_head is not None:
        return None
    return importlib.import_module("gptjax.posttrain.preference_rows").PreferenceRows(config)


def is_multiple(step: int, every: int | None) -> bool:
    """Whether something is due that is done every so many steps; None: never."""
    return every is not None and step % every == 0


HOOKS = {
    "held_out": held_out,
    "early_stop": _early_stop,  # these two read what held_out has logged
    "keep_best": _keep_best,
    "tasks": _tasks,
    "sample": lambda config: Sample(config) if config.eval.sample_tokens else None,
    "profile": _profile,
    "preference_rows": _preference_rows,
}
"""Name -> a function of the config: the hook, or None where the config does not ask for it. They are run in this order."""


def chosen(config) -> list[Hook]:
    """The hooks of a run. Raises UserError for what is wrong with them whatever the text."""
    return [hook for make in HOOKS.values() if (hook := make(config)) is not None]
