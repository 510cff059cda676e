"""The model's head and its softmax, some rows at a time, computed again in the backward pass."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.decoder_kernels import outer, product

__all__ = ["chunks", "head_log_probs", "head_logits"]

Context: TypeAlias = Any  # torch's, which takes any attribute

_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits at a time: on a CPU, what stays in a core's cache."""


def head_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    *,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Return ``(M,)`` float32 log-probs of ``targets`` and entropies of ``hidden @ weight.T``."""
    return _HeadLogProbs.apply(  # type: ignore[no-untyped-call]  # torch's
        hidden, weight, bias, targets, temperature, with_entropy
    )


def chunks(rows: int, vocabulary: int, device: str) -> list[slice]:
    """Divide rows of so many logits each into parts that are computed at a time."""
    size = max(64, _CHUNK.get(device, 1 << 24) // vocabulary // 64 * 64)
    size = max(1, min(size, -(-rows // 4)))  # never all logits at once, however few
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Return ``(N, V)`` logits of ``(N, D)`` hidden states, in at least float32, no gradient."""
    logits = product(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.mul_(1.0 / temperature)


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature = temperature
        kind = torch.promote_types(hidden.dtype, torch.float32)
        figures = torch.empty(len(hidden), dtype=kind, device=hidden.device)
        entropies = torch.empty_like(figures)
        for rows in chunks(len(hidden), len(weight), hidden.device.type):
            logits = head_logits(hidden[rows], weight, bias, temperature)
            log_probs = torch.log_softmax(logits, -1)
            figures[rows] = log_probs.gather(1, targets[rows, None]).squeeze(1)
            if with_entropy:
                entropies[rows] = -torch.softmax(logits, -1).mul_(log_probs).sum(-1)
        ctx.mark_non_differentiable(entropies)
        return figures, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        grad_bias = torch.zeros_like(bias) if for_bias and bias is not None else None
        for rows in chunks(len(hidden), len(weight), hidden.device.type):
            logits = head_logits(hidden[rows], weight, bias, ctx.temperature)
            scale = grad[rows, None] / ctx.temperature
            into = torch.softmax(logits, -1).mul_(-scale)
            into.scatter_add_(1, targets[rows, None], scale)
            into = into.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = product(into, weight.t())
            if grad_weight is not None:
                grad_weight += outer(into, hidden[rows])
            if grad_bias is not None:
                grad_bias += into.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None
