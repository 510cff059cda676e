"""How SAC acts and values, in a Box and among Discrete actions."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rl.action_laws import (
    ActionBounds,
    action_count,
    action_size,
    categorical_sample,
    gaussian_sample,
    is_box,
    mask_logits,
    split_mean_log_std,
)
from rl.actor_critic import TwinQ
from rl.estimators import entropy, squashed_gaussian_log_prob
from rl.memory import Masks
from rl.observations import TensorObservations
from rl.off_policy import uniform_actions
from rl.policies import CategoricalPolicy, Policy, SquashedGaussianPolicy
from rl.q_losses import of_actions
from rl.spaces import Space

__all__ = ["SoftCategorical", "SoftLaw", "SquashedGaussian", "soft_law"]


class SoftLaw(Protocol):
    """What follows from an actor's outputs."""

    policy: type[Policy]
    outputs: int
    """Of the actor."""
    actions: Space
    """Of actions as they are kept."""
    entropy: float
    """That the temperature aims at, nats."""

    def draws(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return the random numbers of ``shape`` actions, ``(*shape, ...)``."""
        ...

    def act(
        self, outputs: np.ndarray, draws: np.ndarray, masks: Masks, *, anything: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return actions as they are kept, and as the environments take them.

        Args:
            outputs: Of the actor, for B observations.
            draws: ``(B, ...)``.
            masks: ``(B, A)``, True where an action may be taken.
            anything: Take any action, whatever the outputs.
        """
        ...

    def q_values(
        self, critic: TwinQ, observations: TensorObservations, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what both critics say of actions as they are kept, ``(B,)`` each."""
        ...

    def value(
        self,
        outputs: Tensor,
        critic: TwinQ,
        observations: TensorObservations,
        temperature: Tensor,
        draws: Tensor,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the soft value of each observation, and the entropy there, ``(B,)`` each.

        The smaller critic's Q plus the temperature times the entropy, expected or of one draw.
        """
        ...


class SquashedGaussian:
    """Tanh of a normal (Haarnoja et al. 2018, arXiv:1812.05905); all that is kept is in [-1, 1].

    Entropies are of the action before it is scaled to the Box, as the aim of -D nats has it.
    """

    policy: type[Policy] = SquashedGaussianPolicy

    def __init__(self, space: Space) -> None:
        from gymnasium import spaces

        self.bounds, self.size = ActionBounds(space), action_size(space)
        self.actions = spaces.Box(-1.0, 1.0, (self.size,), np.float32)
        self.outputs, self.entropy = 2 * self.size, -float(self.size)

    def draws(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return standard normals ``(*shape, D)``."""
        return torch.randn((*shape, self.size), generator=generator)

    def act(
        self, outputs: np.ndarray, draws: np.ndarray, masks: Masks, *, anything: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return actions ``(B, D)`` in [-1, 1], and in the Box."""
        mean, log_std = split_mean_log_std(outputs)
        unit = np.tanh(gaussian_sample(mean, log_std, draws))
        if anything:
            unit = uniform_actions(draws)
        return unit, self.bounds.from_unit(unit)

    def q_values(
        self, critic: TwinQ, observations: TensorObservations, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return Q of ``actions`` ``(B, D)``."""
        return critic(observations, actions)

    def value(
        self,
        outputs: Tensor,
        critic: TwinQ,
        observations: TensorObservations,
        temperature: Tensor,
        draws: Tensor,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return both for the action that ``draws`` ``(B, D)`` lead to (eq. 3 and 11)."""
        mean, log_std = split_mean_log_std(outputs)
        pre_tanh = gaussian_sample(mean, log_std, draws)
        entropies = -squashed_gaussian_log_prob(pre_tanh, mean, log_std)
        q_values = torch.minimum(*critic(observations, pre_tanh.tanh()))
        return q_values + temperature * entropies, entropies


class SoftCategorical:
    """Softmax over A actions (Christodoulou 2019, arXiv:1910.07207): expectations are exact."""

    policy: type[Policy] = CategoricalPolicy

    def __init__(self, space: Space) -> None:
        self.actions, self.start = space, int(space.start)
        self.outputs = action_count(space)
        self.entropy = 0.98 * float(np.log(self.outputs))  # of the author's code

    def draws(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return uniforms of ``shape``."""
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    def act(
        self, outputs: np.ndarray, draws: np.ndarray, masks: Masks, *, anything: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return actions counted from 0, and from the space's start."""
        logits = np.zeros_like(outputs) if anything else outputs
        if masks is not None:
            logits = mask_logits(logits, masks)
        actions = categorical_sample(logits, draws)
        return actions, actions + self.start

    def q_values(
        self, critic: TwinQ, observations: TensorObservations, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return Q of ``actions`` ``(B,)``."""
        first, second = critic(observations)
        return of_actions(first, actions), of_actions(second, actions)

    def value(
        self,
        outputs: Tensor,
        critic: TwinQ,
        observations: TensorObservations,
        temperature: Tensor,
        draws: Tensor,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the expectations over all actions (eq. 10 and 12)."""
        logits = outputs if masks is None else mask_logits(outputs, masks)
        entropies = entropy(logits)
        q_values = (logits.softmax(-1) * torch.minimum(*critic(observations))).sum(-1)
        return q_values + temperature * entropies, entropies


def soft_law(space: Space) -> SoftLaw:
    """Return the law for an action space."""
    return SquashedGaussian(space) if is_box(space) else SoftCategorical(space)
