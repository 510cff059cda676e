"""The learning-rate schedule of the Transformer of 2017."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InverseRoot"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseRoot:
    r"""A linear warm-up, then a fall with the root of the updates (arXiv:1706.03762, eq. 3).

        rate(n) = D^(-1/2) min(n^(-1/2), n w^(-3/2)),    n = 1, 2, ...

    It returns the rate itself, so the optimizer's own learning rate is a factor before it: 1 is
    the paper's. The greatest rate, at ``n = w``, is ``(D w)^(-1/2)``. ``total`` plays no part.

    >>> InverseRoot(width=4, warmup=4)(3, 0)
    0.25
    """

    width: int = 512
    """D, of the model."""
    warmup: int = 4_000
    """w, updates until the greatest rate."""

    def __post_init__(self) -> None:
        for name in ("width", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")

    def __call__(self, done: float, total: float) -> float:
        """Return the factor of the optimizer's learning rate, after ``done`` updates."""
        n = done + 1
        return float(self.width**-0.5 * min(n**-0.5, n * self.warmup**-1.5))
