"""Label smoothing: cross-entropy against a target that is not quite sure."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["smoothed_cross_entropy"]


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    r"""Return the cross-entropy against labels mixed with the uniform distribution.

        loss = -(1 - eps) log p(label) - eps / V sum_v log p(v)

    Szegedy et al. 2016, arXiv:1512.00567, section 7; used by Vaswani et al. 2017 with eps = 0.1.
    Its least value is not 0 but the entropy of the smoothed target.

    Args:
        logits: ``(..., V)``.
        labels: ``(...)`` int64, from 0 to V - 1.
        smoothing: eps, from 0 (plain cross-entropy) to 1.

    Returns:
        ``(...)`` nats, a loss for each label.

    Raises:
        ValueError: ``smoothing`` is outside 0 to 1, or the shapes do not go together.

    >>> smoothed_cross_entropy(torch.zeros(1, 4), torch.tensor([2]), smoothing=0.1)
    tensor([1.3863])
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(
            f"smoothing={smoothing}: it is the share of the target that is spread evenly, "
            "from 0 to 1"
        )
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}: "
            "expected one label for each row of logits, (..., V) and (...)"
        )
    log_probs = torch.log_softmax(logits, -1)
    chosen = log_probs.gather(-1, labels[..., None]).squeeze(-1)
    return -(1 - smoothing) * chosen - smoothing * log_probs.mean(-1)
