"""Evaluation tasks written in Python: one class each, and one entry of TASKS; then `gptjax eval --tasks=NAME` and eval.tasks.

An entry is the class, or its address, "module:Class": then it is imported when it is chosen. Requests, shots, limits and
standard errors are those of any other task of lm-evaluation-harness.
"""

import typing

from gptjax.errors import UserError, imported

TASKS: dict[str, str | type] = {
    "two_digit_addition": "gptjax.tasks.arithmetic:TwoDigitAddition",
    "humaneval": "gptjax.tasks.humaneval:HumanEval",
}


class Sampled(typing.NamedTuple):
    """How many answers are drawn to each document, and at which temperature."""

    samples: int
    temperature: float


class TaskFailed(UserError):
    """No numbers can be made of what a model said: of its answers, or by a mistake in a task or in lm-eval."""


class Task:
    """What is asked, and how answers are scored. A document is a dict of plain values, all with the same keys.

    kind is what the model has to do with the question, and decides what `scores` is given as the answer:

        multiple_choice         choose among `choices`       nats of each, a list
        generate_until          go on with it                the text, up to the first of `stop`
        loglikelihood           expect `answer`              (its nats, whether it is what greedy decoding gives)
        loglikelihood_rolling   expect `answer`, no question    nats of the whole text
    """

    kind = "multiple_choice"
    metrics: dict[str, bool] = {"acc": True}  # name -> whether higher is better; each is a mean over documents
    stop: tuple[str, ...] = ("\n",)  # where generated text ends
    max_tokens = 32  # of generated text
    takes_samples = False  # whether `scores` takes a list of several answers to one document, drawn as `sampled` says
    sampled: Sampled | None = None  # set where such are asked for
    needs_network = False  # whether `documents` or `examples` are fetched from Hugging Face's hub

    def documents(self) -> list[dict]:
        """All that is asked, in the same order every time."""
        raise NotImplementedError

    def examples(self) -> list[dict]:
        """Documents to draw shots from, none of which is asked. Without any, the task is asked without shots."""
        return []

    def question(self, document: dict) -> str:
        """What stands before the answer. A space is put between the two, but for loglikelihood, whose answers bring theirs."""
        return ""

    def choices(self, document: dict) -> list[str]:
        """Of multiple_choice."""
        raise NotImplementedError

    def answer(self, document: dict) -> str | int:
        """The right text; of multiple_choice the index of the right choice."""
        raise NotImplementedError

    def scores(self, document: dict, answer) -> dict[str, float]:
        """A value for each of `metrics`."""
        raise NotImplementedError


def of(name: str) -> Task:
    """The task of a name that TASKS has. Raises UserError: its entry leads nowhere."""
    entry = TASKS[name]
    return (imported(entry, f"--tasks={name}") if isinstance(entry, str) else entry)()


def for_lm_eval(name: str, sampled: Sampled | None = None):
    """The task of a name as lm-eval takes it, with its documents. Raises UserError; and whatever the task's code does wrong."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    task = of(name)
    if sampled is not None:
        if not task.takes_samples:
            raise UserError(f"the task {name!r} scores one answer to a document; leave out --samples.")
        task.sampled = sampled
    asked, examples = task.documents(), task.examples()
    if not asked:
        raise UserError(f"the task {name!r} has no documents; its `documents` should give at least one.")

    class Adapted(ConfigurableTask):
        def download(self, *args, **kwargs):
            parts = {"asked": asked, "examples": examples}
            self.dataset = {part: datasets.Dataset.from_list(rows) for part, rows in parts.items() if rows}

        def process_results(self, doc, results):
            return _scores(name, task, doc, results)

        def dump_config(self) -> dict:
            return {"task": name, "num_fewshot": self.config.num_fewshot}

    return Adapted(config=_config(name, task, bool(examples)))


def _config(name: str, task: Task, has_examples: bool) -> dict:
    """The fields of an lm-eval task."""
    fields: dict[str, typing.Any] = {
        "task": name,
        "output_type": task.kind,
        "test_split": "asked",
        "doc_to_text": task.question,
        "doc_to_target": task.answer,
        "target_delimiter": "" if task.kind == "loglikelihood" else " ",
        "process_results": task.scores,  # so that lm-eval looks for no metric of its own by these names
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": higher}
            for metric, higher in task.metrics.items()
        ],
    }
    if task.kind == "multiple_choice":
        fields["doc_to_choice"] = task.choices
    if task.kind == "generate_until":
        fields["generation_kwargs"] = {"until": list(task.stop), "max_gen_toks": task.max_tokens, "do_sample": False}
    if task.sampled is not None:
        fields["generation_kwargs"] |= {"do_sample": True, "temperature": task.sampled.temperature}
        fields["repeats"] = task.sampled.samples
        keep_all = {"function": "take_first_k", "k": task.sampled.samples}
        fields["filter_list"] = [{"name": "none", "filter": [keep_all]}]
    return fields | ({"fewshot_split": "examples"} if has_examples else {"num_fewshot": 0})


def _scores(name: str, task: Task, document: dict, results: list) -> dict[str, float]:
    """Of one document, from lm-eval's answers to its requests. Raises TaskFailed: the task makes no such numbers of them."""
    answer = [nats for nats, _ in results] if task.kind == "multiple_choice" else results[0]
    try:
        found = task.scores(document, answer)
    except Exception as error:
        raise TaskFailed(f"the task {name!r} cannot score {answer!r}: {type(error).__name__}: {error}") from error
    if set(found) != set(task.metrics):
        raise TaskFailed(
            f"the task {name!r} scores {', '.join(found) or 'nothing'}; its `metrics` are {', '.join(task.metrics)}."
        )
    return found
