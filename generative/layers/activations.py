r"""Activation functions, each with its formula and source.

All keep the shape of ``x``, except for the gated ones, which halve the last axis. All keep the
dtype and are differentiable in ``x`` (and in a slope or beta that is a tensor). Where torch has a
function, it is torch's. Values and derivatives are finite for large ``|x|`` and in half precision
too; what limits there are, a docstring states. The gated ones are products: of halves of 256 each,
all but ``glu`` leave the range of float16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "elu",
    "geglu",
    "gelu",
    "gelu_tanh",
    "glu",
    "leaky_relu",
    "mish",
    "prelu",
    "reglu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "squared_relu",
    "swiglu",
    "swish",
    "tanh",
    "threshold",
]


def threshold(x: Tensor) -> Tensor:
    """Return 1 where x > 0, else 0 (McCulloch and Pitts 1943; Rosenblatt 1958).

    Its derivative is 0, at 0 too, where there is none. So gradients pass through as zeros: layers
    above it learn, those below do not.

    >>> threshold(torch.tensor([-1.0, 0.0, 0.5]))
    tensor([0., 0., 1.])
    """
    return torch.sign(x).clamp(min=0)


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)), the logistic function (Verhulst 1845); derivative y (1 - y)."""
    return torch.sigmoid(x)


def tanh(x: Tensor) -> Tensor:
    """Return 2 sigmoid(2 x) - 1, as LeCun et al. 1998 (Efficient BackProp) advise over sigmoid."""
    return torch.tanh(x)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0) (Fukushima 1969; Nair and Hinton 2010); the derivative at 0 is 0."""
    return F.relu(x)


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """Return x where x > 0, else ``slope`` x (Maas et al. 2013); the derivative at 0 is ``slope``.

    >>> leaky_relu(torch.tensor([-2.0, 3.0]), 0.25)
    tensor([-0.5000,  3.0000])
    """
    return F.leaky_relu(x, slope)


def prelu(x: Tensor, slope: Tensor | float) -> Tensor:
    """Return x where x > 0, else ``slope`` x, with a learnt slope (He et al. 2015).

    arXiv:1502.01852, eq. 1.

    Args:
        x: ``(B, C, ...)`` when there is a slope for each channel, else any shape.
        slope: A number; a tensor of one element; or ``(C,)``. Channels are axis 1, as in torch: in
            (B, T, D) features that is T. Move the features there first, or share one slope.

    Raises:
        ValueError: ``slope`` is neither of one element nor ``(x.shape[1],)``.

    >>> prelu(torch.tensor([[-2.0, -2.0]]), torch.tensor([0.25, 0.5]))
    tensor([[-0.5000, -1.0000]])
    """
    if not isinstance(slope, Tensor):
        return F.leaky_relu(x, slope)
    slope = slope.to(x.dtype)
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    if x.dim() < 2 or slope.shape != x.shape[1:2]:
        raise ValueError(
            f"slope has shape {tuple(slope.shape)} and x {tuple(x.shape)}: expected one element, "
            "or one for each channel, which is axis 1 of x. "
            "Move the channels of x to axis 1, or give a slope of one element."
        )
    return F.prelu(x, slope)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Return x where x > 0, else ``alpha`` (exp(x) - 1) (Clevert et al. 2015, arXiv:1511.07289)."""
    return F.elu(x, alpha)


def selu(x: Tensor) -> Tensor:
    """Return 1.0507 elu(x, 1.6733) (Klambauer et al. 2017, arXiv:1706.02515).

    The constants make mean 0 and variance 1 a fixed point of wide layers whose weights have mean 0
    and variance 1 / inputs.
    """
    return F.selu(x)


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016).

    arXiv:1606.08415. Phi(x) = (1 + erf(x / sqrt(2))) / 2.
    """
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), within 5e-4 of ``gelu``.

    The approximation of Hendrycks and Gimpel 2016, arXiv:1606.08415, which GPT-2 uses.
    Its derivative is NaN where x^2 leaves the range of float32, from 1.8e19 on.
    """
    return F.gelu(x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """Return x sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""
    return F.silu(x)


def swish(x: Tensor, beta: Tensor | float = 1.0) -> Tensor:
    """Return x sigmoid(beta x) (Ramachandran et al. 2017, arXiv:1710.05941).

    From x / 2 at beta = 0 over ``silu`` at 1 to ``relu`` as beta grows.

    Args:
        x: Any shape.
        beta: A number, or a tensor that broadcasts against x and may be learnt.
    """
    if isinstance(beta, Tensor):
        beta = beta.to(x.dtype)
    return x * torch.sigmoid(beta * x)


def mish(x: Tensor) -> Tensor:
    """Return x tanh(softplus(x)) (Misra 2019, arXiv:1908.08681)."""
    return F.mish(x)


def squared_relu(x: Tensor) -> Tensor:
    """Return max(x, 0)^2 (So et al. 2021, Primer, arXiv:2109.08668).

    It leaves the range of float16 from x = 256 on; bfloat16 has the range of float32.
    """
    return F.relu(x).square()


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)) (Dugas et al. 2001); derivative sigmoid(x).

    It is x itself from x = 40 on, where the two are the same number in float64. torch does so from
    20 on, by default, and is off by up to 2.1e-9.
    """
    return F.softplus(x, threshold=40.0)


def glu(x: Tensor) -> Tensor:
    """Return a sigmoid(b) for x = (a, b), halves of the last axis (Dauphin et al. 2016).

    arXiv:1612.08083, eq. 1.

    Args:
        x: ``(..., 2 D)``.

    Returns:
        ``(..., D)``.

    Raises:
        ValueError: The last axis of ``x`` is odd; so for all gated activations.

    >>> glu(torch.tensor([3.0, 0.0]))
    tensor([1.5000])
    """
    a, b = _halves(x)
    return a * torch.sigmoid(b)


def reglu(x: Tensor) -> Tensor:
    """Return a relu(b) for x = (a, b), ``(..., 2 D)`` -> ``(..., D)`` (Shazeer 2020).

    arXiv:2002.05202, eq. 5, which has the activation on the first half.
    """
    a, b = _halves(x)
    return a * F.relu(b)


def geglu(x: Tensor) -> Tensor:
    """Return a gelu(b) for x = (a, b), ``(..., 2 D)`` -> ``(..., D)`` (Shazeer 2020).

    arXiv:2002.05202, eq. 5, which has the activation on the first half.
    """
    a, b = _halves(x)
    return a * F.gelu(b)


def swiglu(x: Tensor) -> Tensor:
    """Return a silu(b) for x = (a, b), ``(..., 2 D)`` -> ``(..., D)`` (Shazeer 2020).

    arXiv:2002.05202, eq. 5, which has the activation on the first half, as do Llama's checkpoints:
    there, gate and up projection are b and a.
    """
    a, b = _halves(x)
    return a * F.silu(b)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: expected an even last axis, whose second half gates "
            "the first. Make the layer before it twice as wide as what should come out."
        )
    first, second = x.chunk(2, dim=-1)
    return first, second
