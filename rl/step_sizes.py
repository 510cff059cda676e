"""Step sizes: how far the k-th update of a stochastic approximation goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constant", "Power", "StepSize", "check_size", "evaluate_steps"]

StepSize: TypeAlias = Callable[[int], float]
"""The step size a_k of update k, counted from 1: a `Power`, a `Constant`, or any function of k."""


@dataclass(frozen=True, slots=True)
class Power:
    r"""Step sizes that fall with a power of k: ``a_k = scale / k**exponent``, k from 1.

    Called with a count or with an integer array of counts.

    Raises:
        ValueError: The scale is not a positive number, or the exponent is negative or no number.

    >>> Power()(4), Power(scale=3.0, exponent=0.5)(4)
    (0.25, 1.5)
    """

    scale: float = 1.0
    """The first step size, a_1."""
    exponent: float = 1.0
    """0 keeps the step size constant; 1 with scale 1 turns a recursion of means into the mean."""

    def __post_init__(self) -> None:
        check_size("scale", self.scale)
        if not 0 <= self.exponent < math.inf:
            raise ValueError(
                f"exponent={self.exponent}: a step size must not grow with k, "
                "so use a finite exponent of 0 or more"
            )

    @property
    def satisfies_robbins_monro(self) -> bool:
        r"""Whether :math:`\sum a_k = \infty` and :math:`\sum a_k^2 < \infty`: 1/2 < exponent <= 1.

        The conditions of Robbins & Monro 1951, as in Zhao 2025, theorem 6.1: the steps
        reach any distance, and their noise dies out.
        """
        return 0.5 < self.exponent <= 1

    @overload
    def __call__(self, k: int) -> float: ...
    @overload
    def __call__(self, k: NDArray[np.int64]) -> NDArray[np.float64]: ...
    def __call__(self, k: int | NDArray[np.int64]) -> float | NDArray[np.float64]:
        """Return ``a_k``, float64, of the shape of ``k``."""
        if isinstance(k, np.ndarray):
            with np.errstate(over="ignore"):
                return self.scale / k.astype(np.float64) ** self.exponent
        try:
            return float(self.scale / float(k) ** self.exponent)
        except OverflowError:  # a power beyond float64 leaves nothing of the step
            return 0.0


@dataclass(frozen=True, slots=True)
class Constant:
    """The same step size for every k. It follows a moving target, and never settles on a fixed one.

    Called with a count or with an integer array of counts.

    Raises:
        ValueError: The value is not a positive number.

    >>> Constant(0.1)(7)
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        check_size("value", self.value)

    @property
    def satisfies_robbins_monro(self) -> bool:
        """False: the squares of the step sizes have no finite sum."""
        return False

    @overload
    def __call__(self, k: int) -> float: ...
    @overload
    def __call__(self, k: NDArray[np.int64]) -> NDArray[np.float64]: ...
    def __call__(self, k: int | NDArray[np.int64]) -> float | NDArray[np.float64]:
        """Return the value, float64, in the shape of ``k``."""
        return np.full(k.shape, float(self.value)) if isinstance(k, np.ndarray) else self.value


def evaluate_steps(step_size: StepSize | float, steps: int, *, name: str) -> list[float]:
    """Return ``[a_1, ..., a_steps]``, each of them checked.

    Args:
        step_size: A function of k, or a number, which stands for `Constant`.
        steps: How many, at least 1.
        name: What an error calls the step size.

    Raises:
        ValueError: There are no steps, or one of them is not a positive number.
    """
    if not steps >= 1:
        raise ValueError(f"steps={steps}: use at least 1")
    if not callable(step_size):
        check_size(name, step_size)
        return [float(step_size)] * steps
    sizes = [float(step_size(k)) for k in range(1, steps + 1)]
    for k, size in enumerate(sizes, 1):
        check_size(f"{name}({k})", size)
    return sizes


def check_size(name: str, size: float) -> None:
    """Refuse a step size that is not a finite number greater than 0.

    Raises:
        TypeError: It is no real number.
        ValueError: It is not positive, infinite or NaN.
    """
    if not isinstance(size, Real):
        raise TypeError(f"{name}={size!r}: a step size is a number, not a {type(size).__name__}")
    if not 0 < size < math.inf:
        raise ValueError(f"{name}={size}: a step size is a finite number greater than 0")
