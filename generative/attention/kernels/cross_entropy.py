r"""Cross-entropy over large vocabularies: the logits exist for some rows at a time.

    z_j = scale (x . w_j + b_j),   loss = log sum_j exp(z_j) - z_y

An ``(N, V)`` tensor of logits is most of the memory of a step with a large vocabulary. Here a chunk
of rows goes through the head, its softmax is taken, and two numbers of each row are kept; the
backward pass computes the chunk's logits again, turns them into their gradient in place and
multiplies it into the gradients of ``hidden`` and ``weight``. That is one product more, of four in
all. Wijmans et al. 2024 (arXiv:2411.09009) and Hsu et al. 2024 (arXiv:2410.10989) do the same.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative.attention.kernels.dispatch import on_kernels
from generative.attention.kernels.margins import Margin

__all__ = [
    "chunked_losses",
    "linear_cross_entropy",
    "linear_cross_entropy_and_normaliser",
]

Context: TypeAlias = Any  # torch's, which takes any attribute

_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits at a time: on a CPU, what stays in a core's cache."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    r"""Return ``-log softmax(scale (hidden @ weight.T + bias))[label]`` of each row.

    Args:
        hidden: ``(N, D)``.
        weight: ``(V, D)``, of the same dtype.
        labels: ``(N,)`` int64, in ``[0, V)``.
        bias: ``(V,)`` or None.
        mask: ``(N,)`` bool, the rows that count; None counts all. What stands in other rows of
            ``hidden`` and ``labels`` is not looked at and may be anything.
        scale: Factor of the logits, the reciprocal of a temperature.
        chunk: Rows at a time; None takes what suits the device. It changes rounding alone.

    Returns:
        ``(N,)`` nats, at least float32; exactly 0, with gradient 0, where ``mask`` is False.

    In half precision the logits are rounded to ``hidden``'s dtype, as those of a linear layer are;
    all that follows is float32.

    Raises:
        TypeError: Labels are no integers, or the mask is not bool, or dtypes differ.
        ValueError: Shapes do not fit, or a label that counts is outside the vocabulary. On a CUDA
            device the latter is an assertion there, so that nothing waits for it.

    >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0], [0.0, 7.0]])
    >>> linear_cross_entropy(hidden, weight, torch.tensor([1]))  # two logits of 0: log 2
    tensor([0.6931])
    """
    return linear_cross_entropy_and_normaliser(
        hidden, weight, labels, bias=bias, mask=mask, scale=scale, chunk=chunk
    )[0]


def linear_cross_entropy_and_normaliser(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``linear_cross_entropy`` and ``log sum_j exp(z_j)``, each ``(N,)`` with gradient.

    The square of the latter is the z-loss (Chowdhery et al. 2022, arXiv:2204.02311, section 5),
    which keeps logits from drifting. Arguments and errors are those of ``linear_cross_entropy``.
    """
    _check(hidden, weight, labels, bias, mask, chunk)
    return chunked_losses(
        hidden, weight, labels, bias=bias, mask=mask, margin=Margin(scale=scale), chunk=chunk
    )


def chunked_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None,
    mask: Tensor | None,
    margin: Margin,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """Return losses and normalisers of rows whose arguments have been checked.

    The label's logit is ``margin.own(x . w_y + b_y)``, the others are ``scale (x . w_j + b_j)``.
    """
    if mask is not None:
        hidden = hidden.masked_fill(~mask[:, None], 0.0)
        labels = labels.masked_fill(~mask, 0)
    found: tuple[Tensor, Tensor] = _ChunkedLosses.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, margin, chunk
    )
    if mask is None:
        return found
    losses, normalisers = (x.masked_fill(~mask, 0.0) for x in found)
    return losses, normalisers


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        margin: Margin,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.margin = margin
        ctx.rows = _rows(hidden, weight, chunk)
        kind = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=kind, device=hidden.device)
        normalisers = torch.empty_like(losses)
        for rows in ctx.rows:
            logits = hidden[rows] @ weight.t()
            own = margin.own(_at(logits, bias, labels[rows]))
            normalisers[rows] = _normalisers(logits, bias, labels[rows], own, margin.scale)
            losses[rows] = normalisers[rows] - own
        ctx.save_for_backward(hidden, weight, bias, labels, normalisers)
        return losses, normalisers

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Context, of_losses: Tensor, of_normalisers: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, normalisers = ctx.saved_tensors
        margin: Margin = ctx.margin
        exact = normalisers.dtype
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if for_bias else None
        both = of_losses + of_normalisers
        for rows in ctx.rows:
            logits = hidden[rows] @ weight.t()
            raw = _at(logits, bias, labels[rows])
            share = (margin.own(raw) - normalisers[rows]).exp()
            at_label = margin.slope(raw) * (share * both[rows] - of_losses[rows])
            into = _gradients(
                logits,
                bias,
                labels[rows],
                normalisers[rows],
                margin.scale * both[rows],
                at_label,
                margin.scale,
            )
            if grad_hidden is not None:
                grad_hidden[rows] = into @ weight
            if grad_weight is not None:
                grad_weight += into.t() @ hidden[rows]
            if grad_bias is not None:
                grad_bias += into.sum(0, dtype=exact)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _rows(hidden: Tensor, weight: Tensor, chunk: int | None) -> list[slice]:
    """Divide the rows into parts that are computed at a time."""
    count = len(hidden)
    if chunk is None:
        chunk = max(64, _CHUNK.get(hidden.device.type, 1 << 24) // len(weight))
    return [slice(i, min(i + chunk, count)) for i in range(0, count, chunk)]


def _at(logits: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return the entries at the labels, ``(n,)``, at least float32."""
    found = logits.gather(1, labels[:, None])[:, 0]
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return found if bias is None else found + bias[labels]


def _scaled(logits: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return a copy, at least float32, of ``scale (logits + bias)``."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        z = z + bias
    return z * scale


def _normalisers(
    logits: Tensor, bias: Tensor | None, labels: Tensor, own: Tensor, scale: float
) -> Tensor:
    """Return log-sum-exp of each row, ``(n,)``, whose entry at the label is ``own``."""
    if on_kernels(logits):
        from generative.attention.kernels import _triton_cross_entropy as kernels

        return kernels.normalisers(logits, bias, labels, own, scale)
    return _scaled(logits, bias, scale).scatter_(1, labels[:, None], own[:, None]).logsumexp(1)


def _gradients(
    logits: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    found: Tensor,
    weights: Tensor,
    at_label: Tensor,
    scale: float,
) -> Tensor:
    """Return ``weights exp(z - found)``, ``at_label`` at the label; ``logits`` may be lost."""
    if on_kernels(logits):
        from generative.attention.kernels import _triton_cross_entropy as kernels

        kernels.replace_by_gradients(logits, bias, labels, found, weights, at_label, scale)
        return logits
    into = _scaled(logits, bias, scale).sub_(found[:, None]).exp_().mul_(weights[:, None])
    return into.scatter_(1, labels[:, None], at_label[:, None]).to(logits.dtype)


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    chunk: int | None,
) -> None:
    check_rows(hidden, weight, labels, mask, chunk)
    if bias is not None and bias.dtype != hidden.dtype:
        raise TypeError(f"bias is {bias.dtype}, but hidden is {hidden.dtype}; convert one of them")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, expected (V,) = ({len(weight)},), one number "
            "for each row of weight"
        )


def check_rows(
    hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor | None, chunk: int | None
) -> None:
    """Raise where the arguments of ``linear_cross_entropy`` do not fit together."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}, expected "
            "(N, D) and (V, D); flatten rows and columns of tokens into N"
        )
    if not hidden.is_floating_point() or weight.dtype != hidden.dtype:
        raise TypeError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}, expected one floating dtype"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels are {labels.dtype}, expected int64, a column of weight's rows")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}, expected bool, where True means that a row counts")
    for name, x in (("labels", labels), ("mask", mask)):
        if x is not None and x.shape != hidden.shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected (N,) = ({len(hidden)},), one entry "
                "for each row of hidden"
            )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1 row at a time, or None")
    right = (labels >= 0) & (labels < len(weight))
    if mask is not None:
        right = right | ~mask
    if right.is_cuda:
        torch._assert_async(right.all(), "a label that counts is outside the vocabulary")
    elif not bool(right.all()):
        n = int((~right).nonzero()[0, 0])
        raise ValueError(
            f"labels[{n}] is {int(labels[n])}, expected 0 to {len(weight) - 1}, a row of weight; "
            "rows that shall not count are left out by mask, not by a label such as -100"
        )
