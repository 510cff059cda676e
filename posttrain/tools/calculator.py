"""A calculator: sums, products and quotients of numbers as exact rationals."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from posttrain.tools.base import ToolOutput

__all__ = ["Calculator", "evaluate"]

_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/()])")
_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_BINDS = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "negative": 3}
_MOST = 500  # characters: Python's int() and str() may refuse numbers of more than 640 digits


@dataclass(frozen=True, kw_only=True, slots=True)
class Calculator:
    """Evaluates ``+ - * /``, signs and parentheses; exact, and never by Python's ``eval``.

    Whole results are written as such, others as a fraction in lowest terms. There are no powers, so
    a result has hardly more digits than the expression, and the bound on its length bounds time
    and memory.

    >>> Calculator()("34 * (57 - 1/2)").text
    '1921'
    >>> Calculator()("0.1 + 0.2").text
    '3/10'
    >>> Calculator()("1 / (3 - 3)")
    ToolOutput(text='error: division by zero', failed=True)
    """

    max_characters: int = 200
    """Longest expression; longer ones are an error."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_characters <= _MOST:
            raise ValueError(
                f"max_characters={self.max_characters}: give 1 to {_MOST}, within which numbers "
                "stay small enough to be read and written"
            )

    def __call__(self, request: str, /) -> ToolOutput:
        """Return the value of an expression, or ``error:`` and what is wrong with it."""
        if len(request) > self.max_characters:
            return ToolOutput(f"error: more than {self.max_characters} characters", failed=True)
        try:
            return ToolOutput(str(evaluate(request)))
        except ZeroDivisionError:
            return ToolOutput("error: division by zero", failed=True)
        except ValueError as error:
            return ToolOutput(f"error: {error}", failed=True)


def evaluate(expression: str) -> Fraction:
    """Return the value of an expression of numbers, ``+ - * /``, signs and parentheses.

    Dijkstra's shunting yard, with stacks of its own: nesting costs no recursion. Time is quadratic
    in the length at worst, so bound it.

    >>> evaluate("-2 * (3 + 4) / 7")
    Fraction(-2, 1)

    Raises:
        ValueError: It is none; the message says where.
        ZeroDivisionError: A divisor is zero.
    """
    values: list[Fraction] = []
    waiting: list[str] = []  # operators and open parentheses
    operand = True  # whether a number, a sign or an open parenthesis must come
    for token in _tokens(expression):
        if operand and token in "+-":
            waiting += ["negative"] if token == "-" else []
        elif operand and token == "(":
            waiting.append(token)
        elif operand and token not in _BINDS and token != ")":
            values.append(Fraction(token))
            operand = False
        elif operand or token not in "+-*/)":
            raise ValueError(f"unexpected {token}")
        elif token == ")":
            _reduce(values, waiting, 1)
            if not waiting:
                raise ValueError("unexpected )")
            waiting.pop()
        else:
            _reduce(values, waiting, _BINDS[token])
            waiting.append(token)
            operand = True
    if operand:
        raise ValueError("incomplete" if values or waiting else "empty")
    _reduce(values, waiting, 1)
    if waiting:
        raise ValueError("missing )")
    return values.pop()


def _tokens(expression: str) -> list[str]:
    expression, tokens, place = expression.rstrip(), [], 0
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None:
            raise ValueError(f"unexpected {ascii(expression[place:].lstrip()[0])[1:-1]}")
        tokens.append(match[1])
        place = match.end()
    return tokens


def _reduce(values: list[Fraction], waiting: list[str], binds: int) -> None:
    """Apply the operators on top of the stack that bind at least so tightly."""
    while waiting and _BINDS[waiting[-1]] >= binds:
        name = waiting.pop()
        last = values.pop()
        values.append(-last if name == "negative" else _BINARY[name](values.pop(), last))
