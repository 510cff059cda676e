"""What an objective is: a ratio of two sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = [
    "Chooser",
    "Masked",
    "Objective",
    "check_clip",
    "clip_limits",
    "clips_sequences",
    "count_rows",
    "counted",
    "needs_reference",
    "with_chosen",
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


@runtime_checkable
class Chooser(Protocol):
    """An objective that singles tokens out by statistics of the whole batch.

    A micro-batch cannot know them. So the trainer calls ``choose`` once on all counted tokens of
    all processes, and what it returns goes with the batch as the field ``chosen``.
    """

    def choose(
        self, log_probs: Tensor, advantages: Tensor, generator: torch.Generator, /
    ) -> Tensor:
        """Return ``(N,)`` bool of ``(N,)`` log-probs in nats and advantages, in order of rows.

        ``generator`` is the same on every process.
        """
        ...


def with_chosen(
    objective: object,
    batch: RolloutBatch,
    generator: torch.Generator | None = None,
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
) -> RolloutBatch:
    """Return ``batch`` with the tokens that the objective singles out; as it is, if it does not.

    The tokens are chosen by ``old_log_probs`` and ``advantages``, of the whole batch. Padding and
    the number of processes do not change which.

    Args:
        objective: Any; one that is a ``Chooser`` is asked.
        batch: This process's rows, not yet split.
        generator: The same on every process; None starts one at 0.
        gather: Returns the rows of every process in order of rank; None: there is but this one.
        rank: Of this process.
    """
    if not isinstance(objective, Chooser):
        return batch
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    log_probs, advantages = (x[batch.mask] for x in (batch.old_log_probs, batch.advantages))
    mine, first = len(log_probs), 0
    if gather is not None:
        first = int(gather(torch.tensor([mine]))[:rank].sum())
        log_probs, advantages = gather(log_probs), gather(advantages)
    chosen = objective.choose(log_probs.detach(), advantages.detach(), generator)
    spread = torch.zeros_like(batch.mask)
    spread[batch.mask] = chosen[first : first + mine]
    return replace(batch, chosen=spread)


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


def needs_reference(objective: object) -> bool:
    """Return whether the objective reads ``ref_log_probs``.

    It says so itself with ``needs_reference``, or it has a ``kl_weight`` above 0.
    """
    weighs = getattr(objective, "kl_weight", 0.0) > 0
    return bool(getattr(objective, "needs_reference", False) or weighs)


def clip_limits(objective: Objective) -> tuple[float, float]:
    """Return ``(clip_low, clip_high)`` for the log; an objective without them clips nowhere.

    One that clips something else than a ratio says with ``ratio_limits`` what it amounts to.
    """
    limits = getattr(objective, "ratio_limits", None)
    if limits is not None:
        return limits
    limits = (getattr(objective, name, float("inf")) for name in ("clip_low", "clip_high"))
    low, high = (float("inf") if limit is None else float(limit) for limit in limits)
    return low, high


def clips_sequences(objective: Objective) -> bool:
    """Return whether the limits are of a sequence's ratio rather than of a token's."""
    return bool(getattr(objective, "clips_sequences", False))
