"""metrics.jsonl as pandas has tables: all rows in one, and a table for each kind of row."""

import math

import pandas

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # as JSON has to write them


class Metrics(pandas.DataFrame):
    """All rows of a run's log, with `kind` and `step`. What is made of it is a plain DataFrame.

    Rows of different kinds have other numbers of the same name (`loss`, `tokens`): to plot, take one kind. Each has a row
    for each step that was logged, with the step as index too, and the columns that rows of this kind have.
    """

    _metadata = ["_rows"]

    def __init__(self, rows: list[dict]):
        rows = [{k: NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
        super().__init__(rows)
        self._rows = rows

    @property
    def _constructor(self):
        return pandas.DataFrame

    @property
    def train(self) -> pandas.DataFrame:
        """Training: loss, learning_rate, grad_norm, tokens_per_second ... of each logged step."""
        return pandas.DataFrame(*self._of("train"))

    @property
    def eval(self) -> "Evaluations":
        """Held-out text, preferences or prompts: loss, bits_per_byte, accuracy, reward, their standard errors ... of each."""
        frame = Evaluations(*self._of("eval"))
        frame._all = pandas.DataFrame(self)
        return frame

    @property
    def rollouts(self) -> pandas.DataFrame:
        """Answers of reinforcement learning: reward, kl, entropy, length, end_rate ... of each logged iteration."""
        return pandas.DataFrame(*self._of("rollout"))

    @property
    def tasks(self) -> pandas.DataFrame:
        """Tasks of lm-evaluation-harness and in Python, while training."""
        return pandas.DataFrame(*self._of("tasks"))

    @property
    def events(self) -> pandas.DataFrame:
        """What happened: resumed, rolled back, an update left out, a warning ..."""
        return pandas.DataFrame(*self._of("event"))

    def _of(self, kind: str) -> tuple[list[dict], list[int]]:
        rows = [{k: v for k, v in row.items() if k != "kind"} for row in self._rows if row["kind"] == kind]
        return rows, [row["step"] for row in rows]


class Evaluations(pandas.DataFrame):
    """Rows of evaluations. Called, it is DataFrame.eval of all rows, whose name it has: pandas needs that for `query`."""

    _metadata = ["_all"]

    @property
    def _constructor(self):
        return pandas.DataFrame

    def __call__(self, expr: str, **options):
        return self._all.eval(expr, **options | {"level": options.get("level", 0) + 1})
