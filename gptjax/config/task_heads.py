"""Which heads a model can have beside that of the language model, as a config writes them: model.task_head="classes(n=3)".

A head is one linear map of final activations. Its parameters say how many outputs it has, whether it has a bias, and the
dropout of what it reads (GPT-1: 0.1); its class says what the outputs are of, and which loss trains it. No JAX: models/heads.py
holds the arrays, models/labelled.py what is made of the outputs.

To add a head, write its class here, name it in HEADS, and give its loss to models/labelled.py and training/task_losses.py.
"""

import dataclasses
import math
import typing

from gptjax.errors import UserError, make_chosen, shorten


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskHead:
    """bias: whether there is one. dropout: share of the entries of the activations it reads that dropout zeroes."""

    bias: bool = True
    dropout: float = 0.1
    loss: typing.ClassVar[str]  # the name in training.losses.LOSSES
    least: typing.ClassVar[int] = 1  # outputs that it needs: one class alone leaves nothing to learn
    reads_tokens: typing.ClassVar[bool] = False  # the activation of every token, instead of a sequence's last
    absent: typing.ClassVar[float | None] = (
        None  # output of a sequence that is not there; None: all of an example are added
    )
    data: typing.ClassVar[str] = "task"  # the field of DataConfig that gives what it learns from

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout} is not in [0, 1).")
        if self.outputs < self.least:
            raise UserError(f"n={self.outputs} is too small; use at least {self.least}.")

    @property
    def outputs(self) -> int:
        """Numbers that it gives for an activation."""
        raise NotImplementedError

    def parameters(self, width: int) -> int:
        """Entries of its matrix and bias."""
        return self.outputs * (width + self.bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(TaskHead):
    n: int

    @property
    def outputs(self) -> int:
        return self.n


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes(Counted):
    """One of n classes for an example, as in Radford et al. 2018, section 3.2."""

    loss = "classify"
    least = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Counted):
    """n real numbers for an example."""

    n: int = 1
    loss = "regress"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClasses(Counted):
    """One of n classes for each token that has a label."""

    loss = "tag"
    reads_tokens = True
    least = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(TaskHead):
    """A score for each sequence of an example, one of which is right (Radford et al. 2018, section 3.3)."""

    loss = "choice"
    outputs = 1
    absent = -math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span(TaskHead):
    """For each token how likely an answer begins and ends there (Devlin et al. 2018, section 4.2)."""

    loss = "span"
    outputs = 2
    reads_tokens = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(TaskHead):
    """How good an answer is, read at its last token: a reward model (Ouyang et al. 2022, section 3.5)."""

    dropout: float = 0.0
    loss = "reward"
    outputs = 1
    absent = 0.0
    data = "preferences"


HEADS = {
    "classes": Classes,
    "choice": Choice,
    "token_classes": TokenClasses,
    "span": Span,
    "regression": Regression,
    "score": Score,
}


def of(model) -> TaskHead | None:
    """The head that a ModelConfig has; None: that of the language model alone. Raises UserError: there is no such head."""
    return None if model.task_head is None else make_chosen(model.task_head, HEADS, "model.task_head")


def scores_answers(model) -> bool:
    """Whether a ModelConfig is that of a reward model."""
    head = of(model)
    return head is not None and head.loss == Score.loss


def parameters(model) -> int:
    """Entries of the head of a ModelConfig that has one."""
    return of(model).parameters(model.d_model)


def check(config) -> None:
    """Raises UserError: head, task and loss of a Config do not go together, or with the rest of it."""
    head, data, train = of(config.model), config.data, config.train
    if head is None:
        raise UserError(
            f"data.task={_shown(data.task)} gives labelled examples, and the model has no head for them; set model.task_head, such"
            " as 'classes(n=2)'."
        )
    if getattr(data, head.data) is None:
        from_what = {"task": "labelled examples; set data.task, such as 'classify'"}
        from_what["preferences"] = "preferences; set data.preferences='compared'"
        raise UserError(f"model.task_head={_shown(config.model.task_head)} learns from {from_what[head.data]}.")
    if train.loss.partition("(")[0].strip() != head.loss:
        raise UserError(
            f"train.loss={_shown(train.loss)} does not train model.task_head={_shown(config.model.task_head)}; set train.loss={head.loss!r}."
        )
    if train.lm_coef < 0:
        raise UserError(f"train.lm_coef={train.lm_coef} is negative; use 0 for no loss of the language model.")
    for field in _WITHOUT_MEANING if head.data == "task" else ():
        section, name = field.split(".")
        value, default = (getattr(one, name) for one in (getattr(config, section), type(getattr(config, section))))
        if value != default:
            raise UserError(
                f"{field}={_shown(value)} is of running text, and data.task={_shown(data.task)} gives labelled examples; leave it out."
            )


def check_needed(loss: str) -> None:
    """Raises UserError: a train.loss of a model without a head trains one."""
    name = loss.partition("(")[0].strip()
    kinds = [kind for kind, head in HEADS.items() if head.loss == name]
    if kinds:
        raise UserError(
            f"train.loss={_shown(loss)} trains a head, and model.task_head is None; set model.task_head={kinds[0]!r}."
        )


_WITHOUT_MEANING = (
    *("data.mixture", "data.packing", "data.mask_documents", "data.objective"),
    *("data.chat", "train.z_loss", "train.log_activations", "train.label_smoothing", "train.neftune_alpha"),
)


def _shown(value) -> str:
    """As it was typed, however long that is."""
    return shorten(repr(value), 80)
