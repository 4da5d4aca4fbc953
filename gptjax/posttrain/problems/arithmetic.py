"""Arithmetic on whole numbers."""

import dataclasses
import operator
import random

from gptjax.errors import UserError
from gptjax.posttrain.problems.problem import Drawn, Generator

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclasses.dataclass(frozen=True)
class Arithmetic(Generator):
    """terms numbers of up to `digits` digits, each length as likely, with operators drawn from a text such as "+-*".

    template: the prompt, in which {} stands for the expression."""

    reward = "numeric"
    digits: int = 2
    terms: int = 2
    operators: str = "+"
    template: str = "{}="

    def __post_init__(self):
        _check_digits(self.digits)
        if not 2 <= self.terms <= 20:
            raise UserError(f"terms={self.terms}; expected 2 to 20.")
        if not self.operators or set(self.operators) - set(OPERATORS):
            raise UserError(f"operators={self.operators!r}; expected some of: {' '.join(OPERATORS)}.")
        if "{}" not in self.template:
            raise UserError(f"template={self.template!r} has no {{}}, where the expression goes; write it there.")

    def draw(self, random: random.Random) -> Drawn:
        numbers = [_number(random, self.digits) for _ in range(self.terms)]
        symbols = [random.choice(self.operators) for _ in range(self.terms - 1)]
        expression = str(numbers[0]) + "".join(f"{symbol}{number}" for symbol, number in zip(symbols, numbers[1:]))
        return Drawn(self.template.replace("{}", expression), str(_value(numbers, symbols)))


def _value(numbers: list[int], symbols: list[str]) -> int:
    """Products first, then from left to right."""
    sums, pending = [numbers[0]], []
    for symbol, number in zip(symbols, numbers[1:]):
        if symbol == "*":
            sums[-1] *= number
        else:
            pending.append(symbol)
            sums.append(number)
    total = sums[0]
    for symbol, number in zip(pending, sums[1:]):
        total = OPERATORS[symbol](total, number)
    return total


@dataclasses.dataclass(frozen=True)
class Comparison(Generator):
    """Which of two different numbers is larger."""

    reward = "numeric"
    digits: int = 2
    template: str = "larger of {}:"

    def __post_init__(self):
        _check_digits(self.digits)
        if "{}" not in self.template:
            raise UserError(f"template={self.template!r} has no {{}}, where the numbers go; write it there.")

    def draw(self, random: random.Random) -> Drawn:
        first, second = _number(random, self.digits), _number(random, self.digits)
        second += first == second
        pair = [first, second] if random.random() < 0.5 else [second, first]
        return Drawn(self.template.replace("{}", f"{pair[0]} {pair[1]}"), str(max(pair)))


def _number(random: random.Random, digits: int) -> int:
    length = random.randint(1, digits)
    return random.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)


def _check_digits(digits: int) -> None:
    if not 1 <= digits <= 100:
        raise UserError(f"digits={digits}; expected 1 to 100.")
