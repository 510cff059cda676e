"""What DQN, SAC and TD3 share: acting and remembering block by block, between rounds of updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.errors import UsageError
from launch.metrics import Metric, Rate
from launch.runtime import Runtime
from rl.action_laws import ActionBounds, check_action_masks, is_box
from rl.agent import (
    AgentConfig,
    AllEnvs,
    Course,
    Progress,
    episode_figures,
    iterations,
    leave_policy,
)
from rl.envs import make_env
from rl.memory import Masks, Memory
from rl.policies import Policy
from rl.spaces import Observations, Space

__all__ = [
    "Act",
    "Agent",
    "Block",
    "TargetNetwork",
    "check_action_space",
    "check_learning",
    "check_whole",
    "collect",
    "env_action_space",
    "frozen",
    "means",
    "uniform_actions",
]

N = TypeVar("N", bound=nn.Module)

_RECORD = 200
"""Env steps that an iteration, and so a record, has at least."""


# -- acting --------------------------------------------------------------------------------------

Act: TypeAlias = Callable[[Observations, Masks, int], tuple[np.ndarray, np.ndarray]]
"""From B observations, their action masks and the step within the iteration to actions: as they
are kept, and as the environments take them."""


def collect(envs: AllEnvs, memory: Memory, act: Act, steps: range) -> None:
    """Act in every environment for these steps of an iteration, and remember them."""
    for t in steps:
        observations, masks = envs.observations, envs.envs.action_masks()
        if masks is not None:
            masks = check_action_masks(masks, *masks.shape)
        kept, taken = act(observations, masks, t)
        step = envs.envs.step(taken)
        envs.observations = step.observations
        memory.add(observations, masks, kept, step, envs.envs.action_masks())
    memory.exchange()


def uniform_actions(normals: np.ndarray) -> np.ndarray:
    """Return standard normals as numbers that are uniform in [-1, 1].

    >>> uniform_actions(np.array([[0.0, -9.0]], np.float32))
    array([[ 0., -1.]], dtype=float32)
    """
    return torch.erf(torch.from_numpy(normals) / math.sqrt(2)).numpy()


# -- the course of learning ----------------------------------------------------------------------


def check_learning(
    *, envs: int, train_every: int, learning_starts: int, batch_size: int, capacity: int
) -> None:
    """Raise ValueError where numbers do not fit each other."""
    if learning_starts < 0:
        raise ValueError(f"learning_starts={learning_starts}: give 0 or a number of env steps")
    if capacity < batch_size:
        raise ValueError(
            f"the replay memory has capacity={capacity}, and batch_size={batch_size}: it has to "
            "hold at least a batch"
        )
    if train_every % envs:
        raise ValueError(
            f"train_every={train_every} with envs={envs}: all environments step together, so "
            f"train_every has to be a multiple of envs, such as {-(-train_every // envs) * envs}"
        )


class Block(NamedTuple):
    """Steps in the environments that were taken, and after which a round of updates is due."""

    number: int
    """Of the round, counted from 0 over the whole run."""
    before: int
    """Env steps done before."""
    after: int
    """Env steps done now."""


class Agent:
    """What acts and remembers, and how its training goes on; what it learns is not known here.

    Args:
        cfg: What all agents have.
        run: Logs and saves.
        envs: This process's environments.
        policy: What is evaluated and left.
        memory: Of what was seen.
        learned: What is trained, for checkpoints.
        train_every: Env steps between two rounds of updates.
    """

    def __init__(
        self,
        cfg: AgentConfig,
        run: Runtime,
        envs: AllEnvs,
        policy: Policy,
        memory: Memory,
        learned: Mapping[str, Stateful],
        *,
        train_every: int,
    ) -> None:
        self.cfg, self.run, self.envs, self.policy, self.memory = cfg, run, envs, policy, memory
        self.mine, self.progress, self.train_every = run.share(cfg.envs), Progress(), train_every
        # Whole rounds of updates, and some 200 env steps, in an iteration and so in a record.
        self.course = Course(cfg, math.ceil(_RECORD / train_every) * (train_every // cfg.envs))
        self._state: dict[str, Stateful] = {
            **learned,
            "replay": memory.replay,
            "envs": envs,
            "progress": self.progress,
        }

    def iterations(self) -> Iterator[int]:
        """Yield 1 ... their number, or until the run has stopped early."""
        return iterations(
            self.run,
            self.course.iterations,
            state=self._state,
            progress=self.progress,
            save_every=self.course.save_every,
        )

    def blocks(self, iteration: int, act: Act) -> Iterator[Block]:
        """Act and remember, block by block; yield each for what is to be learned after it.

        The last block of a run may be shorter.
        """
        done, each = self.course.env_steps(iteration - 1), self.cfg.envs
        steps, size = self.course.steps(iteration), self.train_every // each
        for start in range(0, steps, size):
            part = range(start, min(start + size, steps))
            before, after = done + part.start * each, done + part.stop * each
            with self.run.phase("rollout"):
                collect(self.envs, self.memory, act, part)
            yield Block(before // self.train_every, before, after)

    def sampler(self, iteration: int) -> np.random.Generator:
        """Return what draws an iteration's batches, alike on every process."""
        return np.random.default_rng(self.run.seeds("replay", iteration, [0])[0])

    def log(self, iteration: int, figures: dict[str, Metric]) -> None:
        """Write the record of an iteration, with an evaluation if one is due."""
        figures = {
            "env_steps": self.course.env_steps(iteration),
            **figures,
            **episode_figures(self.envs.envs, self.run),
            "replay": len(self.memory.replay),
        }
        if self.course.evaluates(iteration):
            figures |= self.progress.evaluate(self.cfg, self.policy, self.run)
        steps = self.course.steps(iteration) * len(self.mine)
        self.run.log(iteration, figures | {"speed/env_steps": Rate(steps)})

    def finish(self) -> Policy:
        """Return the best policy, and leave it in the run folder."""
        return leave_policy(self.policy, self.progress, self.run)


def means(names: Sequence[str], updates: list[Tensor]) -> dict[str, Metric]:
    """Return the mean of each column of ``updates``, or 0 if there were none."""
    if not updates:
        return dict.fromkeys(names, 0.0)
    return dict(zip(names, torch.stack(updates).mean(0).tolist(), strict=True))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through what is computed inside, and leave none in ``network``."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


class TargetNetwork(Generic[N]):
    """A copy of a network that follows it and is not trained."""

    def __init__(self, network: N) -> None:
        self.network: N = copy.deepcopy(network).requires_grad_(False)
        self._own: list[Tensor] = list(self.network.parameters())
        self._followed: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def follow(self, share: float = 1.0) -> None:
        """Move the weights by a share of the way: tau of Lillicrap et al. 2016, or 1 to copy."""
        torch._foreach_lerp_(self._own, self._followed, share)


# -- spaces --------------------------------------------------------------------------------------


def check_whole(algorithm: str, run: Runtime) -> None:
    """Raise UsageError where a strategy would cut the networks."""
    if run.config.strategy in ("zero3", "fsdp"):
        raise UsageError(
            f"strategy={run.config.strategy} is not possible with {algorithm}: it reads the whole "
            "networks at every step, to act and for the copies that follow them; use ddp, zero1 or "
            "zero2"
        )


def check_action_space(algorithm: str, space: Space, kinds: Sequence[str], instead: str) -> None:
    """Raise UsageError where an algorithm cannot act in a space.

    Args:
        algorithm: Its name.
        space: What the environment has.
        kinds: Names of the classes of gymnasium that fit.
        instead: Recipes that fit better.
    """
    if type(space).__name__ not in kinds:
        raise UsageError(
            f"{algorithm} acts in a {' or '.join(kinds)} space, and the environment has {space}: "
            f"use {instead} for it, or wrap the environment"
        )
    if is_box(space):
        ActionBounds(space).require_finite()


def env_action_space(cfg: AgentConfig) -> Space:
    """Return the action space of a config's environment, which has to be there."""
    cfg.check_env()
    made = make_env(cfg.env)
    made.close()
    return made.action_space
