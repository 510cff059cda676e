r"""Softmax losses over directions, with a margin between the right class and the others.

Rows and classes are unit vectors, so a logit is ``s cos(theta_j)``. The right class's logit is
lowered, and must be the greatest all the same. With many classes (faces, entities, products) the
cosines are an ``(N, V)`` tensor; here they exist for some rows at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from generative.attention.kernels.cross_entropy import check_rows, chunked_losses
from generative.attention.kernels.margins import Margin

__all__ = ["angular_margin_softmax", "cosine_margin_softmax", "margin_softmax"]


def cosine_margin_softmax(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: float = 64.0,
    margin: float = 0.35,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""Return CosFace's loss (Wang et al. 2018, arXiv:1801.09414, eq. 4).

        -log e^{s (cos theta_y - m)} / (e^{s (cos theta_y - m)} + sum_{j != y} e^{s cos theta_j})

    ``margin_softmax`` with ``cosine=margin``; the default margin is the paper's for faces.

    >>> hidden, weight = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> cosine_margin_softmax(hidden, weight, torch.tensor([0]), scale=1.0, margin=1.0)
    tensor([0.6931])
    """
    return margin_softmax(
        hidden, weight, labels, scale=scale, cosine=margin, mask=mask, chunk=chunk
    )


def angular_margin_softmax(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: float = 64.0,
    margin: float = 0.5,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""Return ArcFace's loss (Deng et al. 2019, arXiv:1801.07698, eq. 3).

        -log e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} + sum_{j != y} e^{s cos theta_j})

    ``margin_softmax`` with ``angle=margin``; the default margin is the paper's, in radians.

    >>> hidden, weight = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> angular_margin_softmax(hidden, weight, torch.tensor([0]), scale=1.0, margin=math.pi / 2)
    tensor([0.6931])
    """
    return margin_softmax(hidden, weight, labels, scale=scale, angle=margin, mask=mask, chunk=chunk)


def margin_softmax(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    scale: float = 64.0,
    angle: float = 0.0,
    cosine: float = 0.0,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""Return the cross-entropy of cosines with margins (Deng et al. 2019, eq. 4, ``m_1 = 1``).

        z_j = s cos theta_j,   z_y = s (cos(theta_y + angle) - cosine),
        loss = log sum_j e^{z_j} - z_y

    theta_j is the angle between a row of ``hidden`` and ``weight[j]``; their lengths do not matter.
    Where ``theta_y + angle`` passes pi, see ``Margin``.

    Args:
        hidden: ``(N, D)``, at least float32 if the margin shall be finer than bfloat16's 1/256.
        weight: ``(V, D)``, of the same dtype, a direction for each class.
        labels: ``(N,)`` int64, in ``[0, V)``.
        scale: s, positive.
        angle: Radians, at least 0 and less than pi.
        cosine: At least 0.
        mask: ``(N,)`` bool, the rows that count; None counts all.
        chunk: Rows at a time; None takes what suits the device. It changes rounding alone.

    Returns:
        ``(N,)`` nats, at least float32; exactly 0, with gradient 0, where ``mask`` is False.

    Raises:
        TypeError: As ``linear_cross_entropy``.
        ValueError: As there, or a scale or margin outside its range.
    """
    check_rows(hidden, weight, labels, mask, chunk)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}, expected a positive number, such as the paper's 64")
    if not 0 <= angle < math.pi:
        raise ValueError(f"angle is {angle}, expected radians from 0 to pi, such as 0.5")
    if not 0 <= cosine < math.inf:
        raise ValueError(f"cosine is {cosine}, expected a number from 0, such as 0.35")
    if mask is not None:
        hidden = hidden.masked_fill(~mask[:, None], 0.0)
    margin = Margin(scale=scale, angle=angle, cosine=cosine)
    losses, _ = chunked_losses(
        _directions(hidden),
        _directions(weight),
        labels,
        bias=None,
        mask=mask,
        margin=margin,
        chunk=chunk,
    )
    return losses


def _directions(x: Tensor) -> Tensor:
    """Return rows of length 1; a row of zeros stays one, with gradient 0."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    squares = (exact * exact).sum(-1, keepdim=True)
    lengths = torch.where(squares > 0, squares, 1.0).rsqrt()
    return (exact * lengths).to(x.dtype)
