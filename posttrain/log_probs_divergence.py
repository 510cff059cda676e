"""Two models' heads and the divergence of their softmaxes, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from posttrain.decoder_kernels import outer, product
from posttrain.log_probs_head import chunks, head_logits

__all__ = ["Between", "Compared", "compare_logits", "head_divergences"]

Context: TypeAlias = Any  # torch's, which takes any attribute
Between: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Takes ``(N, V)`` log-probabilities of student and teacher, returns ``(N,)`` divergences."""

_COPIES = 4
"""Tensors as large as the logits that a divergence keeps until its gradient is known."""


class Compared(NamedTuple):
    """How far the student is from the teacher at each token, in nats."""

    divergence: Tensor
    """What was asked for, with the student's gradient."""
    kl: Tensor
    """KL(student || teacher), without gradient."""
    entropy: Tensor
    """Of the student, without gradient."""


def compare_logits(logits: Tensor, teacher_logits: Tensor, between: Between) -> Compared:
    """Return what is known of ``(N, V)`` logits, ``(N,)`` each; ValueError if V differs."""
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the student gives logits of {logits.shape[-1]} tokens, the teacher of "
            f"{teacher_logits.shape[-1]}: distributions are compared over one vocabulary"
        )
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(teacher_logits, -1)
    divergence = between(log_p, log_q)
    with torch.no_grad():
        p = log_p.exp()
        return Compared(divergence, (p * (log_p - log_q)).sum(-1), -(p * log_p).sum(-1))


def head_divergences(
    hidden: Tensor,
    head: nn.Linear,
    teacher_hidden: Tensor,
    teacher_head: nn.Linear,
    between: Between,
    temperature: float,
) -> Compared:
    """Return ``(M,)`` each of ``(M, D)`` hidden states, whose widths may differ.

    Logits exist for some rows at a time, in the forward and in the backward pass.
    """
    found: tuple[Tensor, Tensor, Tensor] = _HeadDivergences.apply(  # type: ignore[no-untyped-call]  # torch's
        hidden,
        head.weight,
        head.bias,
        (teacher_hidden.detach(), teacher_head.weight.detach(), teacher_head.bias),
        between,
        temperature,
    )
    return Compared(*found)


class _HeadDivergences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: tuple[Tensor, Tensor, Tensor | None],
        between: Between,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, *teacher)
        ctx.between, ctx.temperature = between, temperature
        kind = torch.promote_types(hidden.dtype, torch.float32)
        found = [torch.empty(len(hidden), dtype=kind, device=hidden.device) for _ in range(3)]
        for rows in chunks(len(hidden), _COPIES * len(weight), hidden.device.type):
            logits = head_logits(hidden[rows], weight, bias, temperature)
            theirs = head_logits(teacher[0][rows], teacher[1], teacher[2], temperature)
            for values, into in zip(compare_logits(logits, theirs, between), found, strict=True):
                into[rows] = values
        ctx.mark_non_differentiable(*found[1:])
        return found[0], found[1], found[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *teacher = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        grad_bias = torch.zeros_like(bias) if for_bias and bias is not None else None
        for rows in chunks(len(hidden), _COPIES * len(weight), hidden.device.type):
            logits = head_logits(hidden[rows], weight, bias, ctx.temperature)
            theirs = head_logits(teacher[0][rows], teacher[1], teacher[2], ctx.temperature)
            into = _gradient(logits, theirs, ctx.between, grad[rows])
            into = into.mul_(1.0 / ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = product(into, weight.t())
            if grad_weight is not None:
                grad_weight += outer(into, hidden[rows])
            if grad_bias is not None:
                grad_bias += into.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None


@torch.enable_grad()
def _gradient(logits: Tensor, theirs: Tensor, between: Between, grad: Tensor) -> Tensor:
    """Return the gradient of ``(grad * between(...)).sum()`` for ``(N, V)`` logits."""
    logits = logits.detach().requires_grad_()
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(theirs, -1)
    (into,) = torch.autograd.grad(between(log_p, log_q), logits, grad)
    return into
