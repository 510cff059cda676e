"""Learning-rate schedules: the share of the peak rate, as a function of work done.

``done`` and ``total`` count optimizer updates or samples, whichever the loop counts; never
process-local iterations, so the number of processes changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Constant", "Cosine", "Linear", "Schedule", "set_learning_rate"]


class Schedule(Protocol):
    """A learning-rate factor."""

    def __call__(self, done: float, total: float) -> float:
        """Return the factor of the peak rate for the update after ``done`` of ``total``."""
        ...


def _check(warmup: float, final: float) -> None:
    if warmup < 0:
        raise ValueError(f"warmup={warmup}: the warm-up lasts 0 or more updates (or samples)")
    if not 0 <= final <= 1:
        raise ValueError(f"final={final}: the last rate is a share of the peak, between 0 and 1")


def _warm(done: float, warmup: float) -> float:
    """Rise linearly; the first update already moves (factor 1 / (warmup + 1))."""
    return min(1.0, (done + 1) / (warmup + 1))


def _progress(done: float, total: float, warmup: float) -> float:
    return min(1.0, max(0.0, (done - warmup) / max(1.0, total - 1 - warmup)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """A linear warm-up, then the peak rate.

    >>> [Constant(warmup=3)(done, 10) for done in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    warmup: float = 0.0
    """Updates (or samples) until the peak."""

    def __post_init__(self) -> None:
        _check(self.warmup, 1.0)

    def __call__(self, done: float, total: float) -> float:
        """Return the factor of the peak rate."""
        return _warm(done, self.warmup)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A linear warm-up, then a straight line to ``final`` at the last update.

    >>> [Linear()(done, 5) for done in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    warmup: float = 0.0
    """Updates (or samples) until the peak."""
    final: float = 0.0
    """Share of the peak rate at the last update."""

    def __post_init__(self) -> None:
        _check(self.warmup, self.final)

    def __call__(self, done: float, total: float) -> float:
        """Return the factor of the peak rate."""
        fall = 1 - (1 - self.final) * _progress(done, total, self.warmup)
        return _warm(done, self.warmup) * fall


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """A linear warm-up, then half a cosine to ``final`` at the last update.

    Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.

    >>> [round(Cosine(final=0.1)(done, 5), 4) for done in range(5)]
    [1.0, 0.8682, 0.55, 0.2318, 0.1]
    """

    warmup: float = 0.0
    """Updates (or samples) until the peak."""
    final: float = 0.0
    """Share of the peak rate at the last update."""

    def __post_init__(self) -> None:
        _check(self.warmup, self.final)

    def __call__(self, done: float, total: float) -> float:
        """Return the factor of the peak rate."""
        half = (1 + math.cos(math.pi * _progress(done, total, self.warmup))) / 2
        return _warm(done, self.warmup) * (self.final + (1 - self.final) * half)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's rate to ``factor`` times its peak and return that of the first group.

    The peak is the rate that a group had when this was first called; it is kept in the group, so
    it travels with the optimizer's state.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return float(optimizer.param_groups[0]["lr"])
