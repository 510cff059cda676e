"""The decoder's arithmetic with hand-written gradients: fewer passes over memory than eager code.

Each fast function stands beside a readable twin in ``tests/posttrain/test_decoder_kernels.py``,
which holds outputs and gradients equal. All of them work on ``(N, ...)`` rows of tokens, on any
device and floating type; only the matrix product has a path of its own for float32 on x86.
"""

from __future__ import annotations

import platform
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Affine", "linear", "outer", "product", "product_add", "rms_norm", "swiglu"]

Context: TypeAlias = Any  # torch's, which takes any attribute


class Affine(Protocol):
    """A linear layer: ``nn.Linear``, or what stands for one."""

    @property
    def weight(self) -> Tensor:
        """``(M, D)``."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """``(M,)`` or None."""
        ...


_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
_ONEDNN = _ONEDNN and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Below this many multiplications the fixed cost of a oneDNN call (10 us) outweighs its gain, on
# processors whose 512-bit units are two of 256 bits (AMD's Zen 4) as on those where it gains more.
_ONEDNN_FROM = 6_000_000


def _onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies faster than what torch would call.

    torch sends float32 products on x86 to MKL, which leaves AVX-512 unused on processors that
    are not Intel's; oneDNN, which torch carries too, uses it and is up to twice as fast there.
    """
    return (
        _ONEDNN
        and x.shape[0] * weight.numel() >= _ONEDNN_FROM
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``; both operands may be transposed views. No gradient.

    Args:
        x: ``(N, D)``.
        weight: ``(M, D)``.
        bias: ``(M,)`` or None.
    """
    if _onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def product_add(x: Tensor, other: Tensor, layer: Affine) -> Tensor:
    """Return ``x + layer(other)``, without gradient; one pass over memory where that is had."""
    weight, bias = layer.weight, layer.bias
    if bias is not None:
        return x + product(other, weight, bias)
    if _onednn(other, weight):
        return torch.ops.mkldnn._linear_pointwise(other, x, weight, None, "add")
    return torch.addmm(x, other, weight.t())


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left.T @ right``; oneDNN is faster with the narrower matrix first."""
    if left.shape[1] <= right.shape[1]:
        return product(left.t(), right.t())
    return product(right.t(), left.t()).t()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad  # a frozen layer needs no input
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if for_x else None,
            outer(grad, x) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``(N, D)`` rows, with gradients."""
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return product(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]  # torch's


def _normalized(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x / rms(x)`` and ``1 / rms(x)``, in at least float32."""
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = torch.addcmul(eps, scale, scale, value=1.0 / x.shape[-1]).rsqrt_()
    return x * scale, scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
        normalized, scale = _normalized(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return normalized.to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normalized = x * scale
        grad = grad.to(normalized.dtype)
        along = grad * normalized
        for_weight = along.flatten(0, -1 - weight.dim()).sum(0) if ctx.needs_input_grad[1] else None
        inner = along.mul_(weight).sum(-1, keepdim=True).mul_(-1.0 / x.shape[-1])
        grad_x = (grad * weight).addcmul_(normalized, inner).mul_(scale)
        return grad_x.to(x.dtype), for_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    r"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).

        y = weight * x / sqrt(mean(x^2) + eps)

    Args:
        x: ``(..., D)``.
        weight: ``(D,)``, or ``(H, D)`` for another weight per head of ``(..., H, D)``.
        eps: A scalar, added to the mean square; of the type that the mean has.
    """
    if not torch.is_grad_enabled():
        return _normalized(x, eps)[0].to(x.dtype).mul_(weight)
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]  # torch's


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        for_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), for_up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` (Shazeer 2020, arXiv:2002.05202, eq. 6); keeps only its inputs."""
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    return _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]  # torch's
