"""How texts are made: the settings of a row, and the table of the options that choose its tokens.

An option is one entry of OPTIONS. From the table come a flag of `gptjax sample`, a keyword of `Settings` and of
`Run.generate`, an argument that a task may give, and an array with a value for each row of the engine. Nothing here loads
JAX: rules are named by address, and imported when a program is traced.
"""

import dataclasses
import pkgutil
import typing

from gptjax.config import bounds, values
from gptjax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to choose tokens. It has a rule, or a cut; each may be a function or its address, "module:function".

    rule(logit_BV, value_B1, counts) returns the logits [B, V], float32, that it makes of those before it; -inf is never
    chosen. counts: sampling.Counts, or None for an option of `drawing`.
    cut(sorted_BV, value_B1) returns the smallest logit that may be drawn, [B, 1]. sorted_BV: largest first, with -inf for
    those that earlier cuts left out. Neighbouring cuts share a sort, which is what they cost.

    Both leave the logits of a row as they are, bit for bit, where its value is `off`, whatever other rows have.
    """

    help: str  # of the flag
    off: float
    rule: typing.Callable | str | None = None
    cut: typing.Callable | str | None = None
    kind: type = float  # or int: of a value, which the devices have as float32 or int32
    default: float | None = None  # None: off
    valid: typing.Callable = lambda value: True
    expected: str = ""  # the end of the line "--name=VALUE ..." for a value that is not valid
    drawing: bool = False  # it shapes only what is drawn, after all others: the likeliest token and beams don't know it
    in_tasks: bool = True  # lm-evaluation-harness's tasks have a setting of this name

    def __post_init__(self):
        assert (self.rule is None) != (self.cut is None), "an option has either a rule or a cut"
        assert self.cut is None or self.drawing, "a cut needs drawing=True"

    @property
    def function(self) -> typing.Callable:
        """Its rule or cut."""
        function = self.rule or self.cut
        return pkgutil.resolve_name(function) if isinstance(function, str) else function

    def in_use(self, value: float | None) -> bool:
        return value is not None and value != self.off


SAMPLING = "gptjax.generation.sampling"
OPTIONS: dict[str, Option] = {  # those of `drawing` apply after the others, both in the order of the table
    "temperature": Option(
        "divide the logits by this; 0: always take the likeliest token (default: 1)",
        rule=f"{SAMPLING}:temperature",
        off=1.0,
        default=1.0,
        valid=lambda value: value >= 0,
        expected="is negative; use 0 for the likeliest token, 1 for the model's own distribution.",
        drawing=True,
    ),
    "top_k": Option(
        "sample from the k likeliest tokens only",
        cut=f"{SAMPLING}:top_k",
        off=bounds.INT32,
        kind=int,
        valid=lambda value: value >= 1,
        expected="is too small; use at least 1.",
        drawing=True,
    ),
    "top_p": Option(
        "sample from the likeliest tokens, up to a total probability of p",
        cut=f"{SAMPLING}:top_p",
        off=2.0,
        valid=lambda value: 0 < value <= 1,
        expected="is not in (0, 1].",
        drawing=True,
    ),
    "min_p": Option(
        "sample from tokens at least p times as likely as the likeliest",
        cut=f"{SAMPLING}:min_p",
        off=0.0,
        valid=lambda value: 0 <= value <= 1,
        expected="is not in [0, 1].",
        drawing=True,
    ),
    "repetition_penalty": Option(
        "lower the logits of tokens already in the text, by this factor (default: 1, off)",
        rule=f"{SAMPLING}:repetition_penalty",
        off=1.0,
        default=1.0,
        valid=lambda value: value > 0,
        expected="must be positive; 1 is none, 1.2 is usual.",
    ),
    "frequency_penalty": Option(
        "lower a token's logit by this for each time it is in the text (default: 0)",
        rule=f"{SAMPLING}:frequency_penalty",
        off=0.0,
        default=0.0,
        in_tasks=False,
    ),
    "presence_penalty": Option(
        "lower the logits of all tokens in the text by this (default: 0)",
        rule=f"{SAMPLING}:presence_penalty",
        off=0.0,
        default=0.0,
        in_tasks=False,
    ),
}


@dataclasses.dataclass(frozen=True, init=False)
class Settings:
    """How texts are made: the fields below, and a keyword and attribute for each of OPTIONS. None: off.

    Raises UserError: a value out of range, a name that is none, some that don't go together.
    """

    max_tokens: int = 200  # new ones
    stop: tuple[str, ...] = ()  # strings that end a text, and are no part of it
    num_return_sequences: int = 1  # texts for each prompt
    num_beams: int = 1  # more than 1: beam search, in which nothing is drawn
    length_penalty: float = 1.0  # beam search: a text's log-probability is divided by its length to this power
    seed: int | tuple[int, ...] = 0  # of the first sequence, the next ones' follow; or one for each
    logprobs: bool = False  # log-probabilities of prompt and text, as the model gives them: before any setting
    options: dict = dataclasses.field(hash=False)  # {name of an option: its value}

    def __init__(self, **given):
        plain = {field.name: field.default for field in dataclasses.fields(self) if field.name != "options"}
        options = {name: option.default for name, option in OPTIONS.items()}
        for name in given:
            if name not in plain | options:
                near = did_you_mean(name, plain | options)
                raise UserError(f"{name!r} is not a setting{near}; the settings are: {', '.join(plain | options)}.")
        if "stop" in given:
            given["stop"] = (given["stop"],) if isinstance(given["stop"], str) else given["stop"] or ()
        given = {name: _typed(name, value) for name, value in given.items()}
        plain |= {name: value for name, value in given.items() if name in plain}
        options |= {name: value for name, value in given.items() if name in options}
        for name, value in (plain | {"options": options}).items():
            object.__setattr__(self, name, value)
        bounds.check_flags(plain | options)
        self._check()

    def __getattr__(self, name: str):
        """An option's value."""
        options = self.__dict__.get("options", {})
        if name in options:
            return options[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}.")

    def _check(self) -> None:
        for name in ("max_tokens", "num_return_sequences", "num_beams"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name}={value} is too small; use at least 1.")
        for name, value in self.options.items():
            option = OPTIONS[name]
            _require(value is None or option.valid(value), f"--{name}={value} {option.expected}")
        _require("" not in self.stop, "--stop is an empty string, which every text contains; leave it out.")
        _require(
            self.num_beams == 1 or self.num_return_sequences <= self.num_beams,
            f"--num_return_sequences={self.num_return_sequences} of --num_beams={self.num_beams}: each beam gives one text;"
            " use more beams.",
        )

    @property
    def penalties(self) -> list[str]:
        """The options in use that may change which token is the likeliest."""
        in_use = [name for name, value in self.options.items() if OPTIONS[name].in_use(value)]
        return [name for name in in_use if not OPTIONS[name].drawing]


def names() -> list[str]:
    """Of all settings."""
    return [*(field.name for field in dataclasses.fields(Settings) if field.name != "options"), *OPTIONS]


def _typed(name: str, value):
    """A setting in its type; NumPy's numbers and arrays are taken too. Raises UserError: it is of another type."""
    kind = OPTIONS[name].kind | None if name in OPTIONS else typing.get_type_hints(Settings)[name]
    return values.typed(kind, value.tolist() if hasattr(value, "tolist") else value, f"--{name}")


def _require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)
