"""What an objective is: a ratio of two sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = [
    "Masked",
    "Objective",
    "check_clip",
    "clip_limits",
    "count_rows",
    "counted",
    "needs_reference",
]


class Masked(Protocol):
    """Any batch that says which of its tokens count."""

    @property
    def mask(self) -> Tensor:
        """``(B, T)`` bool, True = counts."""
        ...


class Objective(Protocol):
    """The loss of a policy, as a sum and the number that it is divided by.

    The trainer divides the sum of a micro-batch by the denominator summed over all micro-batches
    and processes. So neither how a batch is split, nor padding, nor the number of processes
    changes the gradient; and the denominator is known before the first forward pass.

    A new objective is one file with a frozen dataclass of these two methods, and its line in
    ``tests/laws/test_objectives.py``, which holds it to this contract.
    """

    def denominator(self, batch: RolloutBatch, /) -> Tensor:
        """Return what the sum is divided by, a scalar that follows from the mask alone.

        Sums over parts of a batch add up to the whole batch's. A row without a counted token
        adds 0.
        """
        ...

    def __call__(self, log_probs: Tensor, batch: RolloutBatch, /) -> Tensor:
        """Return the sum to be minimised, a scalar; ``log_probs`` is ``(B, T)`` in nats.

        Where ``batch.mask`` is False no field counts, whatever stands there, and the gradient
        is exactly 0.
        """
        ...


def counted(values: Tensor, mask: Tensor) -> Tensor:
    """Return ``values`` with 0 wherever the mask is False, before anything is computed of them.

    Args:
        values: ``(B, T)``; where the mask is False it may hold anything, NaN included.
        mask: ``(B, T)`` bool, True = counts.
    """
    if values.shape != mask.shape:
        raise ValueError(
            f"got values of shape {tuple(values.shape)} for a mask of shape {tuple(mask.shape)}: "
            "an objective takes one log-probability for each token of the batch, (B, T)"
        )
    return torch.where(mask, values, 0.0)


def count_rows(mask: Tensor) -> Tensor:
    """Return how many rows have a counted token, a scalar; padding rows have none.

    >>> count_rows(torch.tensor([[False, True, True], [False, False, False]]))
    tensor(1)
    """
    return mask.any(-1).sum()


def check_clip(clip_low: float, clip_high: float) -> None:
    """Refuse limits of the ratio that do not lie around 1."""
    for name, limit in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not limit >= 0:
            raise ValueError(
                f"{name}={limit}: the ratio is cut off at 1 - clip_low and 1 + clip_high, so use "
                "0 or more; infinity never cuts"
            )


def needs_reference(objective: Objective) -> bool:
    """Return whether the objective reads ``ref_log_probs``: it has a ``kl_weight`` above 0."""
    return bool(getattr(objective, "kl_weight", 0.0) > 0)


def clip_limits(objective: Objective) -> tuple[float, float]:
    """Return ``(clip_low, clip_high)`` for the log; an objective without them clips nowhere."""
    limits = (getattr(objective, name, float("inf")) for name in ("clip_low", "clip_high"))
    low, high = (float("inf") if limit is None else float(limit) for limit in limits)
    return low, high
