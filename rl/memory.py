"""One memory for all processes: what each one's environments saw, drawn from by all alike.

What the environments of each process saw is exchanged before anyone learns from it, so that every
process keeps the whole memory. All draw the same batch, and each learns from its share of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from launch.runtime import Runtime
from rl.action_laws import action_count
from rl.agent import AllEnvs
from rl.exploration import Linear, Schedule
from rl.observations import TensorObservations
from rl.replay import PrioritizedReplay, Replay, Transitions
from rl.spaces import Observations, Space, copy_rows
from rl.vector_env import EnvStep

__all__ = ["Masks", "Memory", "Prioritized", "ReplayConfig", "Uniform", "split_masks"]

Masks: TypeAlias = NDArray[np.bool_] | None
"""``(B, A)``, True where an action may be taken; None where all always may."""


class ReplayConfig(Protocol):
    """Which memory, and how it is drawn from."""

    @property
    def capacity(self) -> int:
        """Transitions that are kept."""
        ...

    def build(
        self, observation_space: Space, action_space: Space, *, n_step: int, discount: float
    ) -> Replay:
        """Return the memory, empty."""
        ...

    def anneal(self, replay: Replay, env_steps: int) -> None:
        """Set what changes with the number of env steps done."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """Every transition is as likely as any other."""

    capacity: int = 100_000
    """Transitions that are kept."""

    def build(
        self, observation_space: Space, action_space: Space, *, n_step: int, discount: float
    ) -> Replay:
        """Return the memory, empty."""
        return Replay(
            self.capacity, observation_space, action_space, n_step=n_step, discount=discount
        )

    def anneal(self, replay: Replay, env_steps: int) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prioritized:
    """By the last error (Schaul et al. 2016, arXiv:1511.05952; numbers of Hessel et al. 2018)."""

    capacity: int = 100_000
    """Transitions that are kept."""
    alpha: float = 0.5
    """0 draws evenly, 1 in proportion to the error."""
    beta: Schedule = field(default_factory=lambda: Linear(0.4, 1.0, 100_000))
    """How far weights undo the bias, over env steps; 1 undoes it in full."""
    epsilon: float = 1e-6
    """Added to each error."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: it lies between 0 and 1")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon={self.epsilon}: use more than 0, or some are never drawn")

    def build(
        self, observation_space: Space, action_space: Space, *, n_step: int, discount: float
    ) -> Replay:
        """Return the memory, empty."""
        return PrioritizedReplay(
            self.capacity,
            observation_space,
            action_space,
            n_step=n_step,
            discount=discount,
            alpha=self.alpha,
            beta=self.beta(0),
            epsilon=self.epsilon,
        )

    def anneal(self, replay: Replay, env_steps: int) -> None:
        """Set beta."""
        if isinstance(replay, PrioritizedReplay):
            replay.beta = self.beta(env_steps)


class Memory:
    """The replay memory of a run: the same on every process.

    Where the environments have action masks, an observation is kept with its mask beside it, see
    ``split_masks``.

    Args:
        config: Which memory.
        envs: Whose steps it keeps.
        action_space: Of the actions as they are kept.
        run: Exchanges them.
        n_step: Steps that a transition spans.
        discount: gamma.
    """

    def __init__(
        self,
        config: ReplayConfig,
        envs: AllEnvs,
        action_space: Space,
        run: Runtime,
        *,
        discount: float,
        n_step: int = 1,
    ) -> None:
        from gymnasium import spaces

        self.run = run
        self.masked = envs.envs.action_masks() is not None
        kept = envs.envs.observation_space
        if self.masked:
            masks = spaces.Box(0, 1, (action_count(action_space),), np.uint8)
            kept = spaces.Tuple((kept, masks))
        self.replay = config.build(kept, action_space, n_step=n_step, discount=discount)
        self._held: list[tuple[Any, ...]] = []
        self._drawn = torch.zeros(0, dtype=torch.int64)

    def add(
        self,
        observations: Observations,
        masks: Masks,
        actions: np.ndarray,
        step: EnvStep,
        next_masks: Masks,
    ) -> None:
        """Keep a step of this process's environments; ``exchange`` has to follow."""
        after = step.next_observations
        if masks is not None and next_masks is not None:
            # Masks are of what is acted on next. Of a final observation none is known: all may be.
            ended = step.terminated | step.truncated
            observations, after = (observations, masks), (after, next_masks | ended[:, None])
        flags = step.terminated, step.truncated
        rows = observations, actions, step.rewards, *flags, after, step.valid
        if self.run.world_size == 1:
            self.replay.add(*rows)
        else:  # a copy, because the environments may write into the same arrays again
            self._held.append(tuple(copy_rows(part) for part in rows))

    def exchange(self) -> None:
        """Put what every process has held into the memory of each, in the environments' order."""
        if self.run.world_size == 1:
            return
        held, self._held = self.run.gather_objects([self._held]), []
        for parts in zip(*held, strict=True):
            self.replay.add(*(_joined(column) for column in zip(*parts, strict=True)))

    def sample(self, batch: int, sampler: np.random.Generator, batches: int = 1) -> Transitions:
        """Draw batches, on every process the same; return this one's share of each.

        Args:
            batch: Rows of a batch, over all processes.
            sampler: What draws; alike on every process.
            batches: How many at once. The shares come one after another, equally large.
        """
        drawn, share = self.replay.sample(batch * batches, sampler), self.run.share(batch)
        self._drawn = drawn.indices
        if len(share) < batch:
            rows = torch.arange(batches)[:, None] * batch + torch.arange(share.start, share.stop)
            drawn = drawn.map(lambda x: x[rows.flatten()])
        return drawn.to(self.run.device)

    @property
    def prioritized(self) -> bool:
        """Whether ``note_errors`` changes what is drawn."""
        return isinstance(self.replay, PrioritizedReplay)

    def note_errors(self, errors: Tensor) -> None:
        """Take to heart the errors of the batch that was drawn last, ``(B,)`` of this share."""
        self.replay.update_priorities(self._drawn, self.run.gather(errors))


def split_masks(
    observations: TensorObservations, masked: bool
) -> tuple[TensorObservations, Tensor | None]:
    """Return observations as the environment gave them, and their action masks if there are any."""
    if not masked:
        return observations, None
    bare, masks = cast("tuple[TensorObservations, Tensor]", observations)
    return bare, masks.bool()


def _joined(parts: Sequence[Any]) -> Any:  # noqa: ANN401 an array, or a dict or tuple of such
    """Return rows of several processes one after another."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(map(_joined, zip(*parts, strict=True)))
    return np.concatenate(parts)
