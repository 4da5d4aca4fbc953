"""Problems and scorers of reasoning-gym (Stojanovski et al. 2025), an extra: pip install 'gptjax[reasoning]'."""

import dataclasses
import functools
import inspect
import random
import typing

from gptjax.config import extras
from gptjax.errors import UserError, choose, first_line
from gptjax.posttrain.problems.problem import Drawn, Generator
from gptjax.posttrain.rewards import extraction
from gptjax.posttrain.rewards.reward import Answer


@dataclasses.dataclass(frozen=True)
class ReasoningGym(Generator):
    """Problems of a dataset by name, such as "leg_counting", with its own settings as a JSON-like dict in a text:
    settings="{'max_animals': 3}"."""

    reward: typing.ClassVar[str] = "reasoning_gym"
    dataset: str
    settings: str = "{}"

    def __post_init__(self):
        _maker(self.dataset, self.settings)(seed=0, size=1)

    def draw(self, random: random.Random) -> Drawn:
        entry = _maker(self.dataset, self.settings)(seed=random.getrandbits(31), size=1)[0]
        return Drawn(entry["question"], str(entry["answer"]), {"dataset": self.dataset, "entry": entry})


@functools.lru_cache(maxsize=64)
def _maker(name: str, settings: str):
    """(seed, size) -> a dataset of reasoning-gym. Raises UserError: no such package, dataset or setting."""
    import ast

    factory = library()
    dataset_class, config_class = choose(factory.DATASETS, name, "dataset")
    try:
        options = ast.literal_eval(settings)
    except (ValueError, SyntaxError):
        options = None
    there_are = [each for each in inspect.signature(config_class).parameters if each not in ("seed", "size")]
    if not isinstance(options, dict) or not set(options) <= set(there_are):
        raise UserError(f"settings={settings!r}; expected a dict with some of: {', '.join(there_are)}.")

    def make(seed: int, size: int):
        try:
            config = config_class(seed=seed, size=size, **options)
            config.validate()
            return dataset_class(config)
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(
                f"reasoning-gym's {name} does not take settings={settings!r}: {first_line(error)}."
            ) from error

    return make


def library():
    """The module of reasoning-gym with its table of datasets. Raises UserError: it is not installed."""
    return extras.library("reasoning_gym", "the generator reasoning_gym").factory


@dataclasses.dataclass(frozen=True)
class Score:
    """What the dataset's own scorer says, 0 to 1, of the answer in a form: whole, last_line, answer, tag or boxed."""

    form: str = "whole"

    def __post_init__(self):
        extraction.extracted("", self.form)

    def __call__(self, answer: Answer) -> float:
        text = extraction.extracted(answer.text, self.form)
        return float(_scorer(answer.field("dataset"))(text, answer.field("entry")))


@functools.lru_cache(maxsize=256)
def _scorer(dataset: str):
    return library().get_score_answer_fn(dataset)
