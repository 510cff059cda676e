"""Networks of more than one part: an actor beside a critic, and two critics of chosen actions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from rl.action_laws import action_count, action_size, is_box
from rl.encoders import Encoder, build_encoder
from rl.layers import Activation, Initialisation, Orthogonal, UniformFanIn, build_linear
from rl.networks import (
    GaussianMLPConfig,
    MLPConfig,
    Network,
    QNetworkConfig,
    build_body,
    check_hidden,
)
from rl.observations import TensorObservations
from rl.spaces import Space

__all__ = ["ActionValue", "ActorCritic", "SeparateTrunks", "SharedTrunk", "TwinQ", "TwinQConfig"]


class ActorCritic(nn.Module):
    """A policy's network beside a network of values; they may share encoder and body.

    ``actor`` is what a policy is made of: logits for Discrete actions; means, with a ``log_std``,
    for a Box.
    """

    def __init__(self, actor: Network, critic: Network) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

    @property
    def log_std(self) -> nn.Parameter | None:
        """Logarithm of a Gaussian policy's deviation, ``(D,)``; None for Discrete actions."""
        return self.actor.log_std

    def values(self, observations: TensorObservations) -> Tensor:
        """Return the critic's values, ``(B,)``."""
        return self.critic(observations).squeeze(-1)

    def forward(self, observations: TensorObservations) -> tuple[Tensor, Tensor]:
        """Return the actor's outputs, ``(B, A)`` or ``(B, D)``, and the values, ``(B,)``."""
        features = self.actor.features(observations)
        shared = self.actor.body is self.critic.body
        values = self.critic.head(features if shared else self.critic.features(observations))
        return self.actor.head(features), values.squeeze(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeparateTrunks:
    """Actor and critic with layers of their own, equal in size (as CleanRL has it)."""

    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    actor: Initialisation = field(default_factory=Orthogonal)
    critic: Initialisation = field(default_factory=lambda: Orthogonal(last_gain=1.0))
    log_std: float = 0.0
    """Of a Gaussian policy at the start."""

    def __post_init__(self) -> None:
        check_hidden(self.hidden, self.activation)

    def build(
        self,
        observation_space: Space,
        action_space: Space,
        generator: torch.Generator,
    ) -> ActorCritic:
        """Return the networks for these spaces; the actor's numbers are drawn first."""
        layers = MLPConfig(
            hidden=self.hidden, activation=self.activation, initialisation=self.actor
        )
        actor = _build_actor(layers, self.log_std, observation_space, action_space, generator)
        critic = replace(layers, initialisation=self.critic).build(observation_space, 1, generator)
        return ActorCritic(actor, critic)


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedTrunk:
    """One encoder and body under two heads: what images want."""

    hidden: tuple[int, ...] = ()
    activation: Activation = "relu"
    initialisation: Initialisation = field(default_factory=Orthogonal)
    value_gain: float = 1.0
    """Of the orthogonal weights of the critic's head."""
    log_std: float = 0.0
    """Of a Gaussian policy at the start."""

    def __post_init__(self) -> None:
        check_hidden(self.hidden, self.activation)

    def build(
        self,
        observation_space: Space,
        action_space: Space,
        generator: torch.Generator,
    ) -> ActorCritic:
        """Return the networks for these spaces."""
        layers = MLPConfig(
            hidden=self.hidden, activation=self.activation, initialisation=self.initialisation
        )
        actor = _build_actor(layers, self.log_std, observation_space, action_space, generator)
        width = self.hidden[-1] if self.hidden else actor.encoder.features
        law = Orthogonal(last_gain=self.value_gain)
        head = build_linear(width, 1, law, generator, last=True)
        return ActorCritic(actor, Network(actor.encoder, actor.body, head, layers))


def _build_actor(
    layers: MLPConfig,
    log_std: float,
    observation_space: Space,
    action_space: Space,
    generator: torch.Generator,
) -> Network:
    if is_box(action_space):
        config = GaussianMLPConfig(mean=layers, log_std=log_std)
        return config.build(observation_space, action_size(action_space), generator)
    return layers.build(observation_space, action_count(action_space), generator)


class ActionValue(nn.Module):
    """Q(s, a) of an action that is a vector: both are read side by side."""

    def __init__(self, encoder: Encoder, layers: nn.Sequential) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers

    def forward(self, observations: TensorObservations, actions: Tensor) -> Tensor:
        """Return ``(B,)`` for actions ``(B, D)``."""
        features = torch.cat([self.encoder(observations), actions], dim=1)
        return self.layers(features).squeeze(-1)


class TwinQ(nn.Module):
    """Two critics of different beginnings (van Hasselt 2010; Fujimoto et al. 2018).

    The smaller of both is the clipped double Q-learning of arXiv:1802.09477, eq. 10.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(
        self, observations: TensorObservations, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return both critics' values.

        For a Box: ``(B,)`` each, of ``actions`` ``(B, D)``. For Discrete actions: ``(B, A)`` each,
        of every action, and ``actions`` is None.
        """
        given = () if actions is None else (actions,)
        return self.first(observations, *given), self.second(observations, *given)


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinQConfig:
    """Two critics of equal size."""

    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    initialisation: Initialisation = field(default_factory=UniformFanIn)

    def __post_init__(self) -> None:
        check_hidden(self.hidden, self.activation)

    def build(
        self,
        observation_space: Space,
        action_space: Space,
        generator: torch.Generator,
    ) -> TwinQ:
        """Return critics of chosen actions for a Box, of every action for Discrete."""
        if is_box(action_space):
            size = action_size(action_space)
            return TwinQ(*(self._of_action(observation_space, size, generator) for _ in range(2)))
        count = action_count(action_space)
        config = QNetworkConfig(
            hidden=self.hidden, activation=self.activation, initialisation=self.initialisation
        )
        return TwinQ(*(config.build(observation_space, count, generator) for _ in range(2)))

    def _of_action(
        self, observation_space: Space, size: int, generator: torch.Generator
    ) -> ActionValue:
        encoder = build_encoder(observation_space, self.initialisation, generator)
        inputs = encoder.features + size
        body, width = build_body(
            inputs, self.hidden, self.activation, self.initialisation, generator
        )
        head = build_linear(width, 1, self.initialisation, generator, last=True)
        return ActionValue(encoder, nn.Sequential(*body, head))
