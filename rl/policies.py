"""Policies: a network, spaces and a law that makes actions of outputs.

They act on numpy arrays of B raw observations and leave the global random streams alone. Each can
be saved as a folder of text and safetensors and loaded without knowing which it was
(``load_policy``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np

from rl.action_laws import (
    ActionBounds,
    action_count,
    action_size,
    categorical_sample,
    check_action_masks,
    gaussian_sample,
    mask_logits,
    split_mean_log_std,
)
from rl.exploration import epsilon_greedy
from rl.fast_networks import Forward
from rl.networks import Network
from rl.normalisation import ObservationNormaliser
from rl.observations import check_observations
from rl.policy_files import load_policy, save_policy
from rl.spaces import Observations, Space, empty_rows
from rl.value_laws import ExpectedValues, ValueLaw

__all__ = [
    "CategoricalPolicy",
    "DeterministicPolicy",
    "GaussianPolicy",
    "GreedyPolicy",
    "Policy",
    "SquashedGaussianPolicy",
    "load_policy",
]


class Policy(ABC):
    """What all policies share: checked observations in, actions of the action space out.

    Args:
        network: Gives the law's outputs; its weights are used where they are, not copied.
        observation_space: Of one environment.
        action_space: Of one environment.
        normaliser: Applied to the observations first.
        env_id: What it was trained on; kept beside the weights.
        seed: Of the draws of ``act(..., deterministic=False)`` without a generator.
        exploration: How much ``GreedyPolicy`` and ``DeterministicPolicy`` deviate when they are not
            to be deterministic; the others ignore it.

    Raises:
        ValueError: The law cannot act in this action space.
    """

    def __init__(
        self,
        network: Network,
        observation_space: Space,
        action_space: Space,
        *,
        normaliser: ObservationNormaliser | None = None,
        env_id: str | None = None,
        seed: int = 0,
        exploration: float = 0.0,
    ) -> None:
        self.outputs_of(action_space)
        if normaliser is not None and normaliser.moments.shape != observation_space.shape:
            raise ValueError(
                f"got a normaliser of observations of shape {normaliser.moments.shape}, and "
                f"the space {observation_space}: they have to be of one shape, and no dict"
            )
        self.network, self.normaliser = network, normaliser
        self.observation_space, self.action_space = observation_space, action_space
        self.env_id, self.seed, self.exploration = env_id, seed, exploration
        self._generator = np.random.default_rng(seed)
        self._forward = Forward(network)
        self._rows = empty_rows(observation_space, 0)

    @cached_property
    def bounds(self) -> ActionBounds:
        """Of a Box."""
        return ActionBounds(self.action_space)

    @staticmethod
    @abstractmethod
    def outputs_of(action_space: Space) -> int:
        """Return how many outputs (for Q values: actions) the network has."""

    @abstractmethod
    def choose(
        self,
        outputs: np.ndarray,
        generator: np.random.Generator | None,
        action_masks: np.ndarray | None,
    ) -> np.ndarray:
        """Return actions for the network's outputs; drawn if there is a generator."""

    def act(
        self,
        observations: Observations,
        deterministic: bool = True,
        *,
        generator: np.random.Generator | None = None,
        action_masks: np.ndarray | None = None,
    ) -> np.ndarray:
        """Choose an action for each of B observations.

        Args:
            observations: ``(B, *shape)``, or a dict or tuple of such, as environments give them.
            deterministic: The likeliest (or best) action; else one is drawn.
            generator: What draws; None takes the policy's own.
            action_masks: ``(B, A)``, True where an action may be taken; Discrete actions only.

        Returns:
            ``(B,)`` integers for Discrete actions, ``(B, *shape)`` float32 within the bounds for
            a Box.

        Raises:
            ValueError: Another shape than the observation space's (names both), a mask that
                allows nothing, or outputs that are not finite.
        """
        inputs = check_observations(self.observation_space, self._rows, observations)
        if self.normaliser is not None and isinstance(inputs, np.ndarray):
            inputs = self.normaliser(inputs)
        outputs = self._forward(inputs)
        if not np.isfinite(outputs).all():
            finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
            raise ValueError(
                f"the network's outputs for row {int(finite.argmin())} are not finite: look for "
                "NaN or infinity in its observations and in the weights"
            )
        draws = None if deterministic else (self._generator if generator is None else generator)
        if action_masks is not None:
            actions = action_count(self.action_space)
            action_masks = check_action_masks(action_masks, len(outputs), actions)
        return self.choose(outputs, draws, action_masks)

    def save(self, folder: str | Path) -> None:
        """Write ``policy.json`` and ``model.safetensors``, complete or not at all.

        An older policy in this folder is replaced.

        Raises:
            UsageError: Another kind of folder or a file stands there; names it.
        """
        save_policy(self, Path(folder))


class CategoricalPolicy(Policy):
    """Draws from the softmax of logits ``(B, A)``, or takes the largest."""

    @staticmethod
    def outputs_of(action_space: Space) -> int:
        """Return A."""
        return action_count(action_space)

    def choose(
        self,
        outputs: np.ndarray,
        generator: np.random.Generator | None,
        action_masks: np.ndarray | None,
    ) -> np.ndarray:
        """Return ``(B,)`` integers, counted from the space's start."""
        logits = outputs if action_masks is None else mask_logits(outputs, action_masks)
        if generator is None:
            chosen = logits.argmax(axis=1)
        else:
            chosen = categorical_sample(logits, generator.random(len(logits)))
        return chosen + self.action_space.start


class GreedyPolicy(Policy):
    """Takes the action of the largest Q value.

    Not deterministic, it takes any action with a probability of ``exploration``. The network's
    config says whether its outputs are Q values, atoms or quantiles (``QNetworkConfig.values``).
    """

    @staticmethod
    def outputs_of(action_space: Space) -> int:
        """Return A."""
        return action_count(action_space)

    def q_values(self, outputs: np.ndarray) -> np.ndarray:
        """Return Q values ``(B, A)`` of the network's outputs."""
        law: ValueLaw = getattr(self.network.config, "values", ExpectedValues())
        return law.mean(outputs)

    def choose(
        self,
        outputs: np.ndarray,
        generator: np.random.Generator | None,
        action_masks: np.ndarray | None,
    ) -> np.ndarray:
        """Return ``(B,)`` integers, counted from the space's start."""
        uniforms = np.ones(len(outputs)) if generator is None else generator.random(len(outputs))
        epsilon = 0.0 if generator is None else self.exploration
        chosen = epsilon_greedy(self.q_values(outputs), epsilon, uniforms, action_masks)
        return chosen + self.action_space.start


class GaussianPolicy(Policy):
    """Draws around means ``(B, D)`` with a deviation of its own, ``network.log_std``, then clips.

    Clipping to the Box is the environment's side of the action: log-probs are of what was drawn.
    """

    @staticmethod
    def outputs_of(action_space: Space) -> int:
        """Return D."""
        return action_size(action_space)

    def choose(
        self,
        outputs: np.ndarray,
        generator: np.random.Generator | None,
        action_masks: np.ndarray | None,
    ) -> np.ndarray:
        """Return ``(B, *shape)`` float32."""
        if generator is not None:
            if self.network.log_std is None:
                raise ValueError(
                    "the network has no log_std to draw with: build it with GaussianMLPConfig, or "
                    "act with deterministic=True"
                )
            log_std = self.network.log_std.detach().cpu().numpy()
            outputs = gaussian_sample(outputs, log_std, _normals(generator, outputs.shape))
        return self.bounds.clip(outputs)


class SquashedGaussianPolicy(Policy):
    """Draws u from a normal and takes tanh(u), scaled to the Box (Haarnoja et al. 2018).

    arXiv:1801.01290, appendix C. Outputs are ``(B, 2 D)``: means, then log deviations (see
    ``split_mean_log_std``). Deterministic, it takes tanh of the mean.
    """

    @staticmethod
    def outputs_of(action_space: Space) -> int:
        """Return 2 D; the bounds have to be finite."""
        ActionBounds(action_space).require_finite()
        return 2 * action_size(action_space)

    def choose(
        self,
        outputs: np.ndarray,
        generator: np.random.Generator | None,
        action_masks: np.ndarray | None,
    ) -> np.ndarray:
        """Return ``(B, *shape)`` float32."""
        draws, log_std = split_mean_log_std(outputs)
        if generator is not None:
            draws = gaussian_sample(draws, log_std, _normals(generator, draws.shape))
        return self.bounds.from_unit(np.tanh(draws))


class DeterministicPolicy(Policy):
    """Takes tanh of the outputs ``(B, D)``, scaled to the Box (TD3, Fujimoto et al. 2018).

    Not deterministic, it adds noise of deviation ``exploration``, in units of half the Box, after
    the tanh (arXiv:1802.09477, algorithm 1), and clips.
    """

    @staticmethod
    def outputs_of(action_space: Space) -> int:
        """Return D; the bounds have to be finite."""
        ActionBounds(action_space).require_finite()
        return action_size(action_space)

    def choose(
        self,
        outputs: np.ndarray,
        generator: np.random.Generator | None,
        action_masks: np.ndarray | None,
    ) -> np.ndarray:
        """Return ``(B, *shape)`` float32."""
        unit = np.tanh(outputs)
        if generator is not None:
            unit = unit + self.exploration * _normals(generator, unit.shape)
        return self.bounds.from_unit(unit)


def _normals(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_normal(shape, dtype=np.float32)
