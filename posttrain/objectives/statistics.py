"""What to watch while a policy is trained, as sums that add up over parts of a batch.

GRPO's loss is near zero by construction. How far the policy moved is seen in these figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.objectives.base import counted
from posttrain.objectives.sequence import row_means
from rl.estimators.kl import k3

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["policy_metrics", "policy_statistics"]

_BIN = 1e-3  # width in nats: a quantile of the ratio is right to half a thousandth of itself
_BINS_EACH_WAY = 2_000  # ratios beyond e^-2 and e^2 are counted in the outermost bins
_QUANTILES = {"ratio/p01": 0.01, "ratio/p50": 0.5, "ratio/p99": 0.99}


@torch.no_grad()
def policy_statistics(
    log_probs: Tensor,
    batch: RolloutBatch,
    clip_low: float,
    clip_high: float,
    *,
    sequences: bool = False,
) -> dict[str, Tensor]:
    """Return sums over the counted tokens; add them over micro-batches and processes.

    Args:
        log_probs: ``(B, T)`` nats, current policy.
        batch: The rollouts; ``ref_log_probs`` is read if it is there.
        clip_low: The objective's lower limit of the ratio, as a distance from 1.
        clip_high: The objective's upper limit of the ratio, as a distance from 1.
        sequences: The limits are of a sequence's ratio, the geometric mean of its tokens'.

    Returns:
        Tensors without gradient; all scalars but ``ratio_counts``, a histogram of the log-ratio:

        - ``tokens``: how many count;
        - ``ratio``: sum of the ratios w = policy / old policy;
        - ``clipped_low``, ``clipped_high``: tokens that the limits concern, because A < 0 and
          w < 1 - clip_low, or A > 0 and w > 1 + clip_high;
        - ``kl_old``: sum of estimates of KL(old policy || policy) in nats, by k3;
        - ``kl_ref``: the same of KL(policy || reference), if the batch has a reference.
    """
    mask = batch.mask
    current = counted(log_probs, mask)
    old = counted(batch.old_log_probs, mask)
    advantages = counted(batch.advantages, mask)
    log_ratio = current - old
    ratio = log_ratio.exp()
    limited = row_means(log_ratio, mask).exp()[:, None] if sequences else ratio
    bins = (log_ratio / _BIN).round().clamp(-_BINS_EACH_WAY, _BINS_EACH_WAY).nan_to_num()
    counts = torch.zeros(2 * _BINS_EACH_WAY + 1, dtype=torch.int64, device=mask.device)
    counts.scatter_add_(0, bins.long().flatten() + _BINS_EACH_WAY, mask.long().flatten())
    sums = {
        "tokens": mask.sum(),
        "ratio": counted(ratio, mask).sum(),
        "ratio_counts": counts,
        "clipped_low": ((advantages < 0) & (limited < 1 - clip_low)).sum(),
        "clipped_high": ((advantages > 0) & (limited > 1 + clip_high)).sum(),
        "kl_old": k3(old, current).sum(),
    }
    if batch.ref_log_probs is not None:
        sums["kl_ref"] = k3(current, counted(batch.ref_log_probs, mask)).sum()
    return sums


def policy_metrics(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is logged of sums that ``policy_statistics`` gave; zeros where nothing counted.

    Args:
        sums: Of one batch, or added up entry by entry over any parts of it.

    Returns:
        Scalars: means ``ratio/mean``, ``clip_fraction`` (with its parts ``clip_fraction/low`` and
        ``clip_fraction/high``), ``kl/old`` and perhaps ``kl/ref`` in nats per token; and the
        ratio's quantiles ``ratio/p01``, ``ratio/p50``, ``ratio/p99``.

    >>> from posttrain.rollout.batch import RolloutBatch
    >>> zeros = torch.zeros(1, 4)
    >>> batch = RolloutBatch(tokens=zeros.long(), mask=zeros == 0, old_log_probs=zeros,
    ...                      advantages=zeros + 1)
    >>> sums = policy_statistics(torch.tensor([[1.0, 1.0, 1.0, 2.0]]).log(), batch, 0.2, 0.2)
    >>> metrics = policy_metrics(sums)
    >>> metrics["clip_fraction"], metrics["ratio/mean"], metrics["ratio/p50"]
    (tensor(0.2500), tensor(1.2500), tensor(1.))
    """
    tokens = sums["tokens"].clamp(min=1)
    metrics = {
        "ratio/mean": sums["ratio"] / tokens,
        "clip_fraction": (sums["clipped_low"] + sums["clipped_high"]) / tokens,
        "clip_fraction/low": sums["clipped_low"] / tokens,
        "clip_fraction/high": sums["clipped_high"] / tokens,
        "kl/old": sums["kl_old"] / tokens,
    }
    if "kl_ref" in sums:
        metrics["kl/ref"] = sums["kl_ref"] / tokens
    up_to = sums["ratio_counts"].cumsum(0)
    for name, q in _QUANTILES.items():
        rank = (q * sums["tokens"]).ceil().clamp(min=1)
        found = torch.searchsorted(up_to, rank.long()).clamp(max=len(up_to) - 1)
        ratio = ((found - _BINS_EACH_WAY) * _BIN).exp()
        metrics[name] = torch.where(sums["tokens"] > 0, ratio, 0.0)
    return metrics
