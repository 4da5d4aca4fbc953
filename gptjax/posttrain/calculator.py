"""Arithmetic by a walk over the syntax tree: numbers, + - * / // % ** and parentheses, and nothing else. Exact, but for
powers with broken exponents."""

import ast
import fractions
import math
import operator

from gptjax.errors import UserError, shorten

MAX_LENGTH = 500  # characters of an expression
MAX_BITS = 2048  # of a number on the way
DIGITS = 12  # significant ones of a result that is no whole number
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(expression: str) -> str:
    """The value as people write it, "36" or "0.75". Raises UserError: what is no arithmetic, has no value, or one too
    large."""
    if len(expression) > MAX_LENGTH:
        raise UserError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH} are taken")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UserError(f"{shorten(repr(expression), 60)} is no arithmetic expression") from None
    try:
        return _written(_value(tree.body))
    except ZeroDivisionError:
        raise UserError("division by zero") from None
    except (OverflowError, RecursionError):
        raise UserError("the value is too large") from None


def _value(node: ast.AST) -> fractions.Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        if node.value == math.inf:
            raise OverflowError
        return _bounded(fractions.Fraction(repr(node.value) if type(node.value) is float else node.value))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left), _value(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(fractions.Fraction(_BINARY[type(node.op)](_value(node.left), _value(node.right))))
    raise UserError("only numbers, + - * / // % ** and parentheses are known")


def _power(base: fractions.Fraction, exponent: fractions.Fraction) -> fractions.Fraction:
    if exponent.denominator == 1:
        if abs(exponent) * _bits(base) > MAX_BITS:
            raise OverflowError
        return base**exponent.numerator
    if base < 0:
        raise UserError("a broken power of a negative number is no real number")
    return _bounded(fractions.Fraction(float(base) ** float(exponent)))


def _bits(number: fractions.Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _bounded(number: fractions.Fraction) -> fractions.Fraction:
    if _bits(number) > MAX_BITS:
        raise OverflowError
    return number


def _written(number: fractions.Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else f"{float(number):.{DIGITS}g}"
