"""Actions that are drawn and whose log-probs are trained: categorical and Gaussian."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from launch.errors import UsageError
from rl.action_laws import (
    ActionBounds,
    action_size,
    categorical_sample,
    gaussian_log_probs,
    gaussian_sample,
    is_box,
)
from rl.actor_critic import ActorCritic
from rl.policies import CategoricalPolicy, GaussianPolicy, Policy
from rl.spaces import Space

__all__ = ["Categorical", "Gaussian", "Law", "action_law"]


class Law(Protocol):
    """How actions follow from an actor's outputs."""

    policy: type[Policy]

    def draws(self, shape: tuple[int, int], generator: torch.Generator) -> np.ndarray:
        """Return the random numbers of T steps of all N environments, ``(T, N, ...)``."""
        ...

    def sample(
        self, network: ActorCritic, outputs: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(B,)`` or ``(B, D)`` actions as drawn, and as the environment takes them."""
        ...

    def log_probs(
        self, network: ActorCritic, outputs: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs of ``actions`` and the entropy of each row, both ``(B,)`` nats."""
        ...


class Categorical:
    """Discrete actions from a softmax; an output of -inf is an action that is ruled out."""

    policy: type[Policy] = CategoricalPolicy

    def __init__(self, space: Space) -> None:
        self.start = int(space.start)

    def draws(self, shape: tuple[int, int], generator: torch.Generator) -> np.ndarray:
        """Return uniforms ``(T, N)``."""
        return torch.rand(shape, dtype=torch.float64, generator=generator).numpy()

    def sample(
        self, network: ActorCritic, outputs: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return actions counted from 0, and from the space's start."""
        actions = categorical_sample(outputs, draws)
        return actions, actions + self.start if self.start else actions

    def log_probs(
        self, network: ActorCritic, outputs: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs and Shannon entropies, ``(B,)`` nats."""
        each = outputs.log_softmax(-1)
        # Not -inf: times a probability of 0 that would be NaN, and so would be its gradient.
        finite = each.clamp(min=torch.finfo(each.dtype).min)
        chosen = each.gather(-1, actions[:, None]).squeeze(-1)
        return chosen, -(each.exp() * finite).sum(-1)


class Gaussian:
    """Box actions around a mean; clipped only on their way into the environment."""

    policy: type[Policy] = GaussianPolicy

    def __init__(self, space: Space) -> None:
        self.bounds, self.size = ActionBounds(space), action_size(space)

    def draws(self, shape: tuple[int, int], generator: torch.Generator) -> np.ndarray:
        """Return standard normals ``(T, N, D)``."""
        return torch.randn((*shape, self.size), generator=generator).numpy()

    def sample(
        self, network: ActorCritic, outputs: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return actions ``(B, D)``, and the same within the bounds."""
        actions = gaussian_sample(outputs, _log_std(network).detach().cpu().numpy(), draws)
        return actions, self.bounds.clip(actions)

    def log_probs(
        self, network: ActorCritic, outputs: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log-densities and differential entropies, ``(B,)`` nats."""
        log_std = _log_std(network)
        each = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return gaussian_log_probs(actions, outputs, log_std), each.expand(len(outputs))


def _log_std(network: ActorCritic) -> Tensor:
    if network.log_std is None:
        raise ValueError("the network has no log_std, so no Gaussian can be drawn from it")
    return network.log_std


def action_law(space: Space) -> Law:
    """Return the law of an action space: Gaussian for a Box, categorical for Discrete.

    Raises:
        UsageError: Another space.
    """
    from gymnasium import spaces

    if is_box(space):
        return Gaussian(space)
    if isinstance(space, spaces.Discrete):
        return Categorical(space)
    raise UsageError(
        f"the action space is {space}, and PPO, A2C and REINFORCE act in Discrete and Box: "
        "wrap the environment, such as MultiDiscrete into one Discrete of all combinations"
    )
