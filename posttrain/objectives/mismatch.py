"""Weights against the mismatch between the engine that sampled and the policy that is trained.

Engine and trainer compute the same log-probability in different ways, so what was sampled is not
quite the old policy's own. The importance ratio corrects for it,

    ratio = exp(old_log_probs - engine_log_probs),

and is kept within bounds, because it has no upper limit. It multiplies what a token contributes
to the objective, without a gradient: Yao et al. 2025, "Your efficient RL framework secretly brings
you off-policy RL training" (https://fengyao.notion.site/off-policy-rl).

The level says whose ratio it is: ``"token"``, each token's own; ``"sequence"``, the product over
the row's counted tokens; ``"geometric"``, the geometric mean over them. The latter two are the same
for all counted tokens of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from posttrain.objectives.base import counted

__all__ = ["IcePop", "Level", "MaskedImportance", "Mismatch", "TruncatedImportance"]

Level = Literal["token", "sequence", "geometric"]


class Mismatch(Protocol):
    """Turns the distance between engine and trainer into weights."""

    def __call__(self, old_log_probs: Tensor, engine_log_probs: Tensor, mask: Tensor, /) -> Tensor:
        """Return ``(B, T)`` weights without gradient, 0 where the mask is False.

        Args:
            old_log_probs: ``(B, T)`` nats, as the trainer computes them before the update.
            engine_log_probs: ``(B, T)`` nats, as the engine computed them while sampling.
            mask: ``(B, T)`` bool, True = counts.
        """
        ...


@dataclass(frozen=True, slots=True)
class TruncatedImportance:
    """The ratio, at most ``cap`` (truncated importance sampling, TIS)."""

    cap: float
    """The largest weight; above 1, usually 2."""
    level: Level = "token"
    """Whose ratio it is."""

    def __post_init__(self) -> None:
        _check(self.level, 0.0, self.cap)

    def __call__(self, old_log_probs: Tensor, engine_log_probs: Tensor, mask: Tensor, /) -> Tensor:
        """Return ``(B, T)`` weights ``min(ratio, cap)``."""
        ratios = _ratios(old_log_probs, engine_log_probs, mask, self.level)
        return counted(ratios.clamp(max=self.cap), mask)


@dataclass(frozen=True, slots=True)
class MaskedImportance:
    """The ratio, 0 beyond ``cap`` (masked importance sampling, MIS)."""

    cap: float
    """The largest ratio that counts; above 1."""
    level: Level = "token"
    """Whose ratio it is."""

    def __post_init__(self) -> None:
        _check(self.level, 0.0, self.cap)

    def __call__(self, old_log_probs: Tensor, engine_log_probs: Tensor, mask: Tensor, /) -> Tensor:
        """Return ``(B, T)`` weights: the ratio up to ``cap``, else 0."""
        ratios = _ratios(old_log_probs, engine_log_probs, mask, self.level)
        return torch.where(mask & (ratios <= self.cap), ratios, 0.0)


@dataclass(frozen=True, slots=True)
class IcePop:
    """The ratio, 0 outside ``low`` to ``high`` (Ling Team 2025, arXiv:2510.18855).

    A token whose probability fell is left out as well: both sides of the mismatch grow together.
    The paper takes 0.5 and 5 at the level of tokens.
    """

    low: float
    """The smallest ratio that counts; at most 1."""
    high: float
    """The largest ratio that counts; at least 1."""
    level: Level = "token"
    """Whose ratio it is."""

    def __post_init__(self) -> None:
        _check(self.level, self.low, self.high)

    def __call__(self, old_log_probs: Tensor, engine_log_probs: Tensor, mask: Tensor, /) -> Tensor:
        """Return ``(B, T)`` weights: the ratio from ``low`` to ``high``, else 0."""
        ratios = _ratios(old_log_probs, engine_log_probs, mask, self.level)
        return torch.where(mask & (ratios >= self.low) & (ratios <= self.high), ratios, 0.0)


@torch.no_grad()
def _ratios(old_log_probs: Tensor, engine_log_probs: Tensor, mask: Tensor, level: Level) -> Tensor:
    """Return ``(B, T)`` ratios of the level, some number where the mask is False."""
    gaps = counted(old_log_probs, mask) - counted(engine_log_probs, mask)
    if level != "token":
        gaps = gaps.sum(-1, keepdim=True).expand_as(gaps)
    if level == "geometric":
        gaps = gaps / mask.sum(-1, keepdim=True).clamp(min=1)
    return gaps.exp()


def _check(level: Level, low: float, high: float) -> None:
    if level not in ("token", "sequence", "geometric"):
        raise ValueError(
            f"level={level!r} is unknown: the ratio is a 'token' one, a 'sequence' one (product) "
            "or a 'geometric' one (geometric mean over the sequence)"
        )
    if not 0 <= low <= 1 <= high or math.isnan(high):
        raise ValueError(
            f"the ratio would be kept within {low} and {high}: the range has to hold 1, the ratio "
            "of an engine that agrees with the trainer"
        )
