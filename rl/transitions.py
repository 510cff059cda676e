"""A batch of transitions, as learners take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.observations import TensorObservations, map_tensors

__all__ = ["Transitions"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Transitions:
    """B transitions. The target of a value is ``rewards + discounts * V(next_observations)``."""

    observations: TensorObservations
    """``(B, ...)``, or a dict or tuple of such."""
    actions: Tensor
    """``(B,)`` or ``(B, D)``, as they were added."""
    rewards: Tensor
    """``(B,)`` float32, summed over n steps."""
    discounts: Tensor
    """``(B,)`` float32: gamma to the number of steps, or 0 where the episode terminated."""
    next_observations: TensorObservations
    weights: Tensor
    """``(B,)`` float32, at most 1: of the losses, against the bias of prioritized draws."""
    indices: Tensor
    """``(B,)`` int64: the rows that were drawn."""

    def __len__(self) -> int:
        return len(self.rewards)

    def map(self, function: Callable[[Tensor], Tensor]) -> Transitions:
        """Return the same with ``function`` applied to every tensor."""
        return Transitions(
            observations=map_tensors(function, self.observations),
            actions=function(self.actions),
            rewards=function(self.rewards),
            discounts=function(self.discounts),
            next_observations=map_tensors(function, self.next_observations),
            weights=function(self.weights),
            indices=function(self.indices),
        )

    def rows(self, start: int, stop: int) -> Transitions:
        """Return those from ``start`` to ``stop`` (exclusive), without a copy."""
        return self.map(lambda x: x[start:stop])

    def split(self, size: int) -> Iterator[Transitions]:
        """Yield parts of at most ``size``, in order."""
        if size < 1:
            raise ValueError(f"got a micro-batch of {size} rows: it needs at least one")
        for start in range(0, len(self), size):
            yield self.rows(start, start + size)

    def empty(self) -> Transitions:
        """Return the same with no rows in it."""
        return self.rows(0, 0)

    def to(self, device: torch.device | str) -> Transitions:
        """Return them on a device."""
        return self.map(lambda x: x.to(device))
