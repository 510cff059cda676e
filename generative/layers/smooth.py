r"""Smooth metrics: argmax, accuracy and F1 of probabilities instead of decisions, as losses.

Each takes p = softmax(logits / temperature) for the decision. As the temperature falls to 0, p
becomes the argmax and the metric the ordinary one; as it rises, gradients reach more rows. Classes
that tie for the largest logit share the decision equally at every temperature.

Half-precision logits are computed with, and answered, in float32. Rows that do not count, such as
padding, are left out beforehand: ``smooth_f1(logits[mask], labels[mask], temperature=0.1)``.
Labels are checked, for which the CPU waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["smooth_accuracy", "smooth_f1", "soft_argmax"]


def soft_argmax(logits: Tensor, *, temperature: float) -> Tensor:
    r"""Return the expected index, sum_i i p_i, over the last axis.

    Levine et al. 2015, arXiv:1504.00702, have it in two dimensions, with the spatial softmax.
    It is an index only where the order of the classes means something: between 0 and 2 lies 1.

    Args:
        logits: ``(..., C)`` floats.
        temperature: > 0. As it falls to 0, the result becomes ``logits.argmax(-1)``, or the mean of
            the indices that tie.

    Returns:
        ``(...)``, from 0 to C - 1.

    Raises:
        ValueError: ``temperature`` is not above 0, or ``logits`` has no class.
        TypeError: ``logits`` are no floats.

    >>> soft_argmax(torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 5.0]]), temperature=0.01)
    tensor([1., 1.])
    """
    p = _probabilities(logits, temperature)
    return p @ torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)


def smooth_accuracy(logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    r"""Return the mean probability of the label, mean_i p_i[y_i].

    It is the expected accuracy of a classifier that draws its answer from p. 1 minus it is half of
    the mean absolute error of Ghosh et al. 2017, arXiv:1712.09482, which tolerates wrong labels:
    no row weighs more than another, however wrong it is.

    Args:
        logits: ``(..., C)`` floats.
        labels: ``(...)`` integers from 0 to C - 1.
        temperature: > 0. As it falls to 0, the result becomes the accuracy of the argmax, where a
            label that ties with n - 1 others counts 1/n.

    Returns:
        A scalar from 0 to 1.

    Raises:
        ValueError: ``temperature`` is not above 0; shapes that do not fit; a label that is no
            class; no row at all.
        TypeError: ``logits`` are no floats, or ``labels`` no integers.

    >>> logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    >>> smooth_accuracy(logits, torch.tensor([0, 1]), temperature=0.01)
    tensor(0.7500)
    """
    p, labels = _rows(logits, labels, temperature)
    return p.gather(-1, labels[:, None]).mean()


def smooth_f1(logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    r"""Return the macro F1 of soft counts, a mean over classes.

        F1_c = 2 tp_c / (2 tp_c + fp_c + fn_c),
        tp_c = \sum_{i: y_i = c} p_ic,  fp_c = \sum_{i: y_i != c} p_ic,
        fn_c = \sum_{i: y_i = c} (1 - p_ic).

    Soft counts as in Benedict et al. 2021, arXiv:2108.10566 (there of sigmoids, for many labels).

    The mean is over the classes c that are present (the label of a row) or predicted (the largest
    logit of a row, the first of a tie); the others are left out. "Predicted" is that decision
    at every temperature: all soft counts are above 0, so they cannot tell, and with the decision no
    denominator falls below 1/C. A class that is predicted but not present has F1 0, so where one
    comes or goes the mean jumps, as macro F1 does, and its gradient is scaled, not turned. Such a
    class is still unlearnt, since its probability is missing from the right ones.

    F1 is no mean over rows: that of a batch is not the mean of those of its parts. As a loss,
    ``1 - smooth_f1(...)``, it needs batches in which every class occurs.

    Args:
        logits: ``(..., C)`` floats.
        labels: ``(...)`` integers from 0 to C - 1.
        temperature: > 0. As it falls to 0, the result becomes the macro F1 of the argmax over the
            classes present or predicted, scikit-learn's ``f1_score(..., average="macro")``, where
            no row ties.

    Returns:
        A scalar from 0 to 1.

    Raises:
        ValueError: As ``smooth_accuracy``.
        TypeError: As ``smooth_accuracy``.

    >>> logits = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    >>> smooth_f1(logits, torch.tensor([0, 1, 1]), temperature=0.01)  # class 2 is left out
    tensor(0.6667)
    """
    p, labels = _rows(logits, labels, temperature)
    classes = p.shape[-1]
    of_label = F.one_hot(labels, classes)
    present = of_label.sum(0)
    predicted = F.one_hot(logits.reshape(-1, classes).argmax(-1), classes).sum(0)
    counted = (present > 0) | (predicted > 0)
    # 2 tp + fp + fn is all that is predicted and all that is present.
    f1 = 2 * (p * of_label).sum(0) / torch.where(counted, p.sum(0) + present, 1)
    return torch.where(counted, f1, 0).sum() / counted.sum()


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / temperature) in float32 or float64, whatever the temperature."""
    if not logits.is_floating_point():
        raise TypeError(f"logits are {logits.dtype}, expected floats: unnormalised log-odds")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}, expected (..., C) with C >= 1")
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    least = torch.finfo(exact.dtype).tiny
    if not (least <= temperature < math.inf):
        raise ValueError(
            f"temperature={temperature}: expected a number from {least:.0e} up, which divides the "
            "logits. For the limit at 0 take logits.argmax(-1), which has no gradient."
        )
    # Subtracting the largest first keeps the quotient from overflowing upwards.
    gaps = exact - exact.detach().amax(-1, keepdim=True)
    return (gaps / temperature).softmax(-1)


def _rows(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Check ``labels`` against ``logits``; return ``(N, C)`` probabilities and ``(N,)`` int64."""
    p = _probabilities(logits, temperature)
    classes = p.shape[-1]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}, expected integers: the class of each row")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, expected {tuple(logits.shape[:-1])}: one for "
            f"each row of logits, whose shape is {tuple(logits.shape)}"
        )
    if labels.numel() == 0:
        raise ValueError("labels is empty: a metric of no rows is not defined, leave the batch out")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"labels go from {least} to {most}, expected 0 to {classes - 1}, the classes of "
            "logits. Leave out rows that do not count: logits[mask], labels[mask]."
        )
    return p.reshape(-1, classes), labels.reshape(-1).long()
