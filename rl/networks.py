"""Networks: a frozen config of plain values builds each, so that a file can describe it.

A ``Network`` is an encoder, a body of hidden layers and a head. It knows no loss and no policy.
Building draws from the generator that is passed in and from nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from rl.encoders import Encoder, build_encoder
from rl.layers import (
    Activation,
    DuelingHead,
    Initialisation,
    NoisyLinear,
    Orthogonal,
    UniformFanIn,
    build_activation,
    build_linear,
)
from rl.observations import TensorObservations
from rl.spaces import Space
from rl.value_laws import ExpectedValues, ValueLaw

__all__ = [
    "Dueling",
    "FactorisedNoise",
    "GaussianMLPConfig",
    "MLPConfig",
    "Network",
    "NetworkConfig",
    "QNetworkConfig",
    "build_body",
    "sample_noise",
]


class NetworkConfig(Protocol):
    """Plain values that describe a network; a frozen dataclass."""

    def build(self, observation_space: Space, outputs: int, generator: torch.Generator) -> Network:
        """Return the network for these observations and so many outputs (or actions)."""
        ...


class Network(nn.Module):
    """An encoder, a body and a head, one after the other.

    Args:
        encoder: Observations to ``(B, F)``.
        body: Hidden layers, ``(B, F)`` to ``(B, H)``.
        head: ``(B, H)`` to the outputs.
        config: What built it, and can build it again; policies save it.
        log_std: Of a Gaussian policy whose deviation does not depend on the observation.
    """

    def __init__(
        self,
        encoder: Encoder,
        body: nn.Sequential,
        head: nn.Module,
        config: NetworkConfig,
        log_std: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.body, self.head, self.config = encoder, body, head, config
        self.log_std = log_std

    def features(self, observations: TensorObservations) -> Tensor:
        """Return what the head reads, ``(B, H)``."""
        return self.body(self.encoder(observations))

    def forward(self, observations: TensorObservations) -> Tensor:
        """Return the outputs, ``(B, outputs)``, or ``(B, A, atoms)`` of a distribution."""
        return self.head(self.features(observations))


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig:
    """Hidden layers of equal activation, and a linear head. Images pass convolutions before."""

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer; none leaves the encoder and the head."""
    activation: Activation = "tanh"
    initialisation: Initialisation = field(default_factory=Orthogonal)

    def __post_init__(self) -> None:
        check_hidden(self.hidden, self.activation)

    def build(self, observation_space: Space, outputs: int, generator: torch.Generator) -> Network:
        """Return the network; its outputs are ``(B, outputs)``."""
        encoder = build_encoder(observation_space, self.initialisation, generator)
        body, width = build_body(
            encoder.features, self.hidden, self.activation, self.initialisation, generator
        )
        head = build_linear(width, outputs, self.initialisation, generator, last=True)
        return Network(encoder, body, head, self)


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianMLPConfig:
    """An ``MLPConfig`` for the mean, beside it a deviation that no observation changes."""

    mean: MLPConfig = field(default_factory=MLPConfig)
    log_std: float = 0.0
    """Logarithm of the deviation at the start, of every component."""

    def build(self, observation_space: Space, outputs: int, generator: torch.Generator) -> Network:
        """Return the network; its outputs are means ``(B, outputs)``."""
        mean = self.mean.build(observation_space, outputs, generator)
        log_std = nn.Parameter(torch.full((outputs,), self.log_std))
        return Network(mean.encoder, mean.body, mean.head, self, log_std)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dueling:
    """A value and an advantage stream in place of the last layers (see ``DuelingHead``)."""

    hidden: tuple[int, ...] = (64,)
    """Units of each stream's own hidden layers."""

    def __post_init__(self) -> None:
        check_hidden(self.hidden, "relu")


@dataclass(frozen=True, kw_only=True, slots=True)
class FactorisedNoise:
    """Every linear layer after the encoder is a ``NoisyLinear``."""

    sigma: float = 0.5
    """Deviation at the start, times the square root of a layer's inputs."""

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < float("inf"):
            raise ValueError(f"sigma={self.sigma}: a deviation is a finite number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class QNetworkConfig:
    """A network of Q values, whose parts are objects to be chosen."""

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer that the streams share."""
    activation: Activation = "relu"
    initialisation: Initialisation = field(default_factory=UniformFanIn)
    values: ValueLaw = field(default_factory=ExpectedValues)
    """The mean return, or its distribution as atoms or quantiles."""
    dueling: Dueling | None = None
    noise: FactorisedNoise | None = None

    def __post_init__(self) -> None:
        check_hidden(self.hidden, self.activation)

    def build(self, observation_space: Space, outputs: int, generator: torch.Generator) -> Network:
        """Return the network of ``outputs`` actions.

        Its outputs are ``(B, A)``, or ``(B, A, atoms)`` where ``values`` is a distribution;
        ``values.mean`` makes Q values ``(B, A)`` of them.
        """
        encoder = build_encoder(observation_space, self.initialisation, generator)

        def layers(inputs: int, hidden: tuple[int, ...]) -> tuple[nn.Sequential, int]:
            return build_body(
                inputs, hidden, self.activation, self.initialisation, generator, self.noise
            )

        def stream(inputs: int, hidden: tuple[int, ...], count: int) -> nn.Sequential:
            body, width = layers(inputs, hidden)
            return nn.Sequential(*body, self._linear(width, count, generator))

        body, width = layers(encoder.features, self.hidden)
        atoms, head = self.values.atoms, nn.Sequential()
        if self.dueling is None:
            head.append(self._linear(width, outputs * atoms, generator))
        else:
            value = stream(width, self.dueling.hidden, atoms)
            advantage = stream(width, self.dueling.hidden, outputs * atoms)
            head.append(DuelingHead(value, advantage, outputs))
        if not isinstance(self.values, ExpectedValues):
            head.append(nn.Unflatten(1, (outputs, atoms)))
        return Network(encoder, body, head, self)

    def _linear(self, inputs: int, outputs: int, generator: torch.Generator) -> nn.Module:
        if self.noise is not None:
            return NoisyLinear(inputs, outputs, generator, sigma=self.noise.sigma)
        return build_linear(inputs, outputs, self.initialisation, generator, last=True)


def build_body(
    inputs: int,
    hidden: tuple[int, ...],
    activation: Activation,
    initialisation: Initialisation,
    generator: torch.Generator,
    noise: FactorisedNoise | None = None,
) -> tuple[nn.Sequential, int]:
    """Return hidden layers with their activations, and the width of what comes out."""
    body = nn.Sequential()
    for width in hidden:
        if noise is None:
            body.append(build_linear(inputs, width, initialisation, generator))
        else:
            body.append(NoisyLinear(inputs, width, generator, sigma=noise.sigma))
        body.append(build_activation(activation))
        inputs = width
    return body, inputs


def sample_noise(network: nn.Module, generator: torch.Generator) -> None:
    """Redraw the noise of every ``NoisyLinear`` inside, in their order."""
    for module in network.modules():
        if isinstance(module, NoisyLinear):
            module.sample_noise(generator)


def check_hidden(hidden: tuple[int, ...], activation: Activation) -> None:
    """Raise where a width is not positive or the activation has no such name."""
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden={hidden}: every hidden layer needs at least one unit")
    build_activation(activation)
