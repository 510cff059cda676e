"""Step sizes and exploration rates of tabular learning: numbers, or functions of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rl.step_sizes import Constant, Power
from rl.tabular_updates import shared

__all__ = [
    "Linear",
    "Schedule",
    "epsilon_schedule",
    "scheduled",
    "step_size_schedule",
    "table_schedule",
]

Schedule: TypeAlias = "float | Power | Constant | Linear | Callable[[int, int], float]"
"""A number, or what it is at ``(step, visits)``.

``step`` counts the environment's steps taken before, from 0. ``visits`` counts from 1: for a step
size the updates of the entry that is being updated, for an exploration rate the choices made in the
state, this one included. `Power` and `Constant` are functions of the visits; `Linear` is one of the
step. Of these the compiled loop takes care; any other function brings the readable loop.
"""
CONSTANT, POWER, LINEAR = 0.0, 1.0, 2.0
Row: TypeAlias = tuple[float, float, float, float]
"""Kind and three parameters: a schedule that can be compiled."""


@dataclass(frozen=True, slots=True)
class Linear:
    """From ``first`` at step 0 straight to ``last`` at ``steps``, and ``last`` from there on.

    >>> Linear(1.0, 0.5, steps=10)(5, 1)
    0.75
    """

    first: float
    last: float
    steps: int
    """Environment steps that the way takes."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: the way from first to last takes at least 1")

    def __call__(self, step: int, visits: int) -> float:
        """Return the value at ``step``; visits do not matter."""
        return table_schedule((LINEAR, self.first, self.last, float(self.steps)), step, visits)


@shared
def table_schedule(schedule: Row, step: int, visits: int) -> float:
    """Evaluate a schedule that can be compiled."""
    kind, first, second, third = schedule
    if kind == CONSTANT:
        return first
    if kind == POWER:
        return first / float(visits) ** second
    return first + (second - first) * min(step / third, 1.0)


def scheduled(schedule: Row | Callable[[int, int], float], step: int, visits: int) -> float:
    """Evaluate a schedule; what the compiled loop makes of it is ``table_schedule``."""
    if callable(schedule):
        return schedule(step, visits)
    return table_schedule(schedule, step, visits)


def step_size_schedule(value: Schedule) -> Row | Callable[[int, int], float]:
    """Check a step size, greater than 0, and bring it into the form that the loops take."""
    return _schedule(value, "step_size", "greater than 0", lambda size: 0 < size < math.inf)


def epsilon_schedule(value: Schedule) -> Row | Callable[[int, int], float]:
    """Check an exploration rate, a probability, and bring it into the form the loops take."""
    return _schedule(value, "epsilon", "a probability in [0, 1]", lambda rate: 0 <= rate <= 1)


def _schedule(
    value: Schedule, name: str, expected: str, fits: Callable[[float], bool]
) -> Row | Callable[[int, int], float]:
    if isinstance(value, Power):
        ends, row = [value.scale], (POWER, float(value.scale), float(value.exponent), 0.0)
    elif isinstance(value, Linear):
        ends = [value.first, value.last]
        row = (LINEAR, float(value.first), float(value.last), float(value.steps))
    elif isinstance(value, Constant) or not callable(value):
        number = value.value if isinstance(value, Constant) else value
        if not _is_number(number):
            raise TypeError(
                f"{name}={number!r} is neither a number nor a function of (step, visits)"
            )
        ends, row = [number], (CONSTANT, float(number), 0.0, 0.0)
    else:
        checked = _checked(value, name, expected, fits)
        checked(0, 1)  # before the work
        return checked
    for end in ends:
        if not fits(end):
            raise ValueError(f"{name}={value!r}: it must be {expected}")
    return row


def _checked(
    function: Callable[[int, int], float], name: str, expected: str, fits: Callable[[float], bool]
) -> Callable[[int, int], float]:
    def checked(step: int, visits: int) -> float:
        found = function(step, visits)
        if not _is_number(found) or not fits(found):
            raise ValueError(f"{name}({step}, {visits}) is {found!r}: it must be {expected}")
        return float(found)

    return checked


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
