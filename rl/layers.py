"""Layers, and how they begin: every number comes from the generator that is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Activation",
    "DuelingHead",
    "Initialisation",
    "NoisyLinear",
    "Orthogonal",
    "UniformFanIn",
    "build_activation",
    "build_conv",
    "build_linear",
]

Activation: TypeAlias = Literal["tanh", "relu"]


class Initialisation(Protocol):
    """Sets a layer's weights and biases."""

    def __call__(
        self, layer: nn.Linear | nn.Conv2d, generator: torch.Generator, *, last: bool = False
    ) -> None:
        """Fill ``layer`` in place; ``last``: it gives the network's outputs."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Orthogonal:
    """Orthogonal weights (Saxe et al. 2014, arXiv:1312.6120) times a gain; biases of 0."""

    gain: float = math.sqrt(2)
    last_gain: float = 0.01
    """Of the layer that gives the outputs: .01 makes a policy begin almost uniform."""

    def __call__(
        self, layer: nn.Linear | nn.Conv2d, generator: torch.Generator, *, last: bool = False
    ) -> None:
        """Fill ``layer`` in place."""
        gain = self.last_gain if last else self.gain
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformFanIn:
    """Weights and biases from U(-1/sqrt(inputs), 1/sqrt(inputs)), as torch's own default."""

    def __call__(
        self, layer: nn.Linear | nn.Conv2d, generator: torch.Generator, *, last: bool = False
    ) -> None:
        """Fill ``layer`` in place."""
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        if layer.bias is not None:
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def build_linear(
    inputs: int,
    outputs: int,
    initialisation: Initialisation,
    generator: torch.Generator,
    *,
    last: bool = False,
) -> nn.Linear:
    """Return a linear layer that drew nothing from the global stream."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    initialisation(layer, generator, last=last)
    return layer


def build_conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    initialisation: Initialisation,
    generator: torch.Generator,
) -> nn.Conv2d:
    """Return a convolution that drew nothing from the global stream."""
    layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, size, stride)
    initialisation(layer, generator)
    return layer


def build_activation(name: Activation) -> nn.Module:
    """Return the module of this name.

    >>> build_activation("relu")
    ReLU()
    """
    if name == "tanh":
        return nn.Tanh()
    if name == "relu":
        return nn.ReLU()
    raise ValueError(f"activation={name!r} is unknown: it is 'tanh' or 'relu'")


class NoisyLinear(nn.Module):
    r"""A linear layer with learned, factorised noise (Fortunato et al. 2018, arXiv:1706.10295).

        y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b          (eq. 9)
        eps_w = f(eps_out) f(eps_in)^T,  eps_b = f(eps_out)              (eq. 10, 11)
        f(x) = sgn(x) sqrt|x|

    mu from U(-1/sqrt(p), 1/sqrt(p)) and sigma = ``sigma`` / sqrt(p) for p inputs (section 3.2).
    The noise is one draw for the whole batch, redrawn by ``sample_noise``; before the first draw
    it is 0. In ``eval`` mode, and wherever a policy acts, the layer is ``mu`` alone.
    """

    noise_in: Tensor
    noise_out: Tensor

    def __init__(
        self, inputs: int, outputs: int, generator: torch.Generator, *, sigma: float = 0.5
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), sigma * bound))
        # Saved with the weights, so that a resumed run goes on with the draw it had.
        self.register_buffer("noise_in", torch.zeros(inputs))
        self.register_buffer("noise_out", torch.zeros(outputs))

    def sample_noise(self, generator: torch.Generator) -> None:
        """Draw the noise anew, on the generator's device."""
        for noise in (self.noise_in, self.noise_out):
            draw = torch.randn(noise.shape, generator=generator, device=generator.device)
            noise.copy_(draw.sign() * draw.abs().sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, outputs)`` for ``x`` of shape ``(B, inputs)``."""
        if not self.training:
            return functional.linear(x, self.weight, self.bias)
        weight = self.weight + self.weight_sigma * self.noise_out.outer(self.noise_in)
        return functional.linear(x, weight, self.bias + self.bias_sigma * self.noise_out)


class DuelingHead(nn.Module):
    r"""Value and advantage streams (Wang et al. 2016, arXiv:1511.06581, eq. 9).

        Q(s, a) = V(s) + A(s, a) - 1/|A| \sum_b A(s, b)

    With ``atoms`` > 1 it holds atom by atom (Hessel et al. 2018, arXiv:1710.02298).

    Args:
        value: Gives ``(B, atoms)``.
        advantage: Gives ``(B, actions * atoms)``.
        actions: A.
    """

    def __init__(self, value: nn.Module, advantage: nn.Module, actions: int) -> None:
        super().__init__()
        self.value, self.advantage, self.actions = value, advantage, actions

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(B, actions * atoms)``."""
        value = self.value(features)[:, None]
        advantage = self.advantage(features).unflatten(1, (self.actions, -1))
        return (value + advantage - advantage.mean(1, keepdim=True)).flatten(1)
