"""What PPO, A2C and REINFORCE share: an actor-critic in its environments, and one way to update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from launch.backends import Routed
from launch.checkpoint import Stateful
from launch.errors import UsageError
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import OptimizerConfig
from launch.runtime import Runtime
from rl import estimators
from rl.action_laws import is_box
from rl.actor_critic import ActorCritic, SeparateTrunks, SharedTrunk
from rl.agent import (
    AgentConfig,
    AllRewards,
    Course,
    Progress,
    episode_figures,
    iterations,
    leave_policy,
    own_envs,
)
from rl.encoders import is_pixels
from rl.envs import make_env
from rl.normalisation import ObservationNormaliser, RewardNormaliser
from rl.policies import Policy
from rl.rollouts import Player, Rollout, Steps, evaluate_actions
from rl.sampled_actions import action_law
from rl.spaces import Space

__all__ = [
    "Learner",
    "ObservationScaling",
    "RewardScaling",
    "check_numbers",
    "check_spaces",
    "explained_variance",
    "policy_gradient_figures",
    "policy_gradient_step",
]


P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservationScaling:
    """Observations with mean 0 and variance 1, by running moments."""

    clip: float = 10.0
    """In standard deviations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScaling:
    """Rewards in running standard deviations of the discounted return."""

    clip: float = 10.0
    """In standard deviations."""


class Learner:
    """An actor-critic with its optimizer, its environments and the best policy so far.

    Args:
        cfg: What all agents have.
        run: Trains, logs and saves.
        network: Actor and critic.
        optimizer: Of both.
        discount: gamma, for the scale of rewards.
        observations: How observations are scaled, if at all.
        rewards: How rewards are scaled, if at all.
        quota: Episodes after which an environment rests.

    Raises:
        UsageError: No such environment; an action space that is neither Discrete nor Box.
    """

    def __init__(
        self,
        cfg: AgentConfig,
        run: Runtime,
        *,
        network: SeparateTrunks | SharedTrunk,
        optimizer: OptimizerConfig,
        discount: float,
        observations: ObservationScaling | None,
        rewards: RewardScaling | None,
        quota: int | None = None,
    ) -> None:
        self.cfg, self.run = cfg, run
        self.envs = own_envs(cfg, run, quota=quota)
        self.mine = run.share(cfg.envs)
        spaces = self.envs.envs.observation_space, self.envs.envs.action_space
        self.law = action_law(spaces[1])
        self.network = network.build(*spaces, run.stream("network"))
        self.model, self.optimizer = run.prepare(self.network, optimizer.build(self.network))
        self.progress = Progress()
        self.state: dict[str, Stateful] = {
            "network": self.network,
            "optimizer": self.optimizer,
            "envs": self.envs,
            "progress": self.progress,
        }
        self._observations = self._rewards = None
        if observations is not None:
            _check_scalable(spaces[0])
            self._observations = ObservationNormaliser(spaces[0].shape, clip=observations.clip)
            self.state["observations"] = self._observations
        if rewards is not None:
            self._rewards = RewardNormaliser(
                len(self.mine), discount=discount, first=self.mine.start, clip=rewards.clip
            )
            self.state["rewards"] = AllRewards(self._rewards, run)
        most = -(-cfg.envs // run.world_size)
        self._player = Player(self.envs, self.model, self.law, self._observations, most=most)
        self.policy: Policy = self.law.policy(
            self.network.actor,
            *spaces,
            normaliser=self._observations,
            env_id=self.envs.name,
            seed=run.seed,
        )

    def iterations(self, total: int, save_every: int) -> Iterator[int]:
        """Yield 1 ... ``total``, or until the run has stopped early."""
        return iterations(
            self.run, total, state=self.state, progress=self.progress, save_every=save_every
        )

    def rollout(self, length: int, step: int, index: int = 0, *, whole: bool = False) -> Rollout:
        """Act for ``length`` steps of each environment; what is drawn is keyed by the numbers.

        Rewards come scaled, if they are to be. Running moments take in what was seen afterwards.
        """
        draws = self.law.draws((length, self.cfg.envs), self.run.stream("actions", step, index))
        with self.run.phase("rollout"), self.run.gathered(self.model):
            seen = self._player.play(draws[:, self.mine.start : self.mine.stop], whole=whole)
            if self._rewards is not None:
                ended = (seen.terminated | seen.truncated).numpy()
                scaled = self._rewards(
                    seen.rewards.numpy(), ended, seen.valid.numpy(), total=self.run.sum
                )
                seen = replace(seen, rewards=torch.from_numpy(scaled))
            if self._observations is not None:
                raw = np.asarray(seen.raw)[seen.rows.numpy()]
                self._observations.update(raw, total=self.run.sum)
        return seen

    def evaluate(self, rollout: Rollout, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probs, entropies and values of some rows of a rollout, each ``(B,)``."""
        return evaluate_actions(self.model, self.law, rollout, index)

    def call(
        self, function: Callable[Concatenate[ActorCritic, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return ``function(network, ...)``, run where the strategy sees it."""
        if isinstance(self.model, Routed):
            return self.model.call(function, *args, **kwargs)
        return function(self.network, *args, **kwargs)

    def log(
        self,
        step: int,
        figures: dict[str, Metric],
        *,
        env_steps: int,
        taken: int,
        evaluates: bool,
    ) -> None:
        """Write a record, with an evaluation if one is due.

        Args:
            step: Of the loop.
            figures: Of the updates.
            env_steps: Done in all.
            taken: By this process since the last record.
            evaluates: Whether an evaluation is due.
        """
        figures = {"env_steps": env_steps, **figures, **episode_figures(self.envs.envs, self.run)}
        if evaluates:
            with self.run.gathered(self.model):
                figures |= self.progress.evaluate(self.cfg, self.policy, self.run)
        self.run.log(step, figures | {"speed/env_steps": Rate(taken)})

    def log_iteration(self, step: int, figures: dict[str, Metric], course: Course) -> None:
        """Write the record of an iteration of a course."""
        taken = course.steps(step) * len(self.mine)
        done, evaluates = course.env_steps(step), course.evaluates(step)
        self.log(step, figures, env_steps=done, taken=taken, evaluates=evaluates)

    def finish(self) -> Policy:
        """Return the best policy, and leave it in the run folder."""
        return leave_policy(self.policy, self.progress, self.run)


def policy_gradient_step(
    learner: Learner,
    rollout: Rollout,
    steps: Steps,
    *,
    value_weight: float,
    entropy_weight: float,
    max_grad_norm: float | None,
    micro_batch: int | None,
) -> Tensor:
    r"""Make one update with the policy gradient and a critic fitted to the targets.

        loss = 1/N \sum -log pi(a|s) A + value_weight (V(s) - target)^2 / 2 - entropy_weight H

    Args:
        learner: Its network is updated.
        rollout: Of the current policy.
        steps: All rows of the rollout.
        value_weight: Of half the squared error.
        entropy_weight: Of the entropy.
        max_grad_norm: Limit of the gradient's norm.
        micro_batch: Rows of a forward pass on one process; None takes all.

    Returns:
        ``(5,)``: this process's sums of policy loss, value loss and entropy, its rows, and the
        norm of the gradient.
    """
    run, chosen = learner.run, steps.take(rollout.rows).to(learner.run.device)
    count, sums = run.sum(len(chosen)).clamp(min=1), torch.zeros(3)
    for part in run.micro_batches(chosen, micro_batch or max(1, len(chosen))):
        log_probs, entropies, values = learner.evaluate(rollout, part.index)
        policy_loss = -(log_probs * part.advantages).sum()
        value_loss = 0.5 * (values - part.targets).square().sum()
        entropy = entropies.sum()
        loss = policy_loss + value_weight * value_loss - entropy_weight * entropy
        run.backward(loss / count)
        sums += torch.stack([policy_loss, value_loss, entropy]).detach().cpu()
    norm = run.step(learner.optimizer, max_grad_norm).cpu()
    return torch.stack([*sums, torch.tensor(float(len(chosen))), norm])


def policy_gradient_figures(sums: Tensor, updates: int, run: Runtime) -> dict[str, Metric]:
    """Return the figures of so many steps, whose returns are summed in ``sums``."""
    policy_loss, value_loss, entropy, rows, norms = sums.tolist()
    return {
        "loss": run.loss,
        "loss/policy": Mean(policy_loss, rows),
        "loss/value": Mean(value_loss, rows),
        "entropy": Mean(entropy, rows),
        "grad_norm": norms / updates,
        "updates": updates,
    }


def explained_variance(steps: Steps, run: Runtime) -> Tensor:
    """Return the share of the targets' variance that the values explain, over all processes."""
    return estimators.explained_variance(
        run.sum(estimators.variance_sums(steps.targets, steps.values))
    )


def check_numbers(
    *, counts: dict[str, int], shares: dict[str, float], max_grad_norm: float | None
) -> None:
    """Raise ValueError for a count below 1, a share outside [0, 1], or a norm of 0 or less."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: give at least 1")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: it lies between 0 and 1")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm={max_grad_norm}: nothing would be learned; give more than 0, or null "
            "for no limit"
        )


def check_spaces(cfg: AgentConfig) -> None:
    """Raise UsageError if the environment cannot be had, or not be acted in."""
    cfg.check_env()
    made = make_env(cfg.env)
    made.close()
    action_law(made.action_space)
    if getattr(cfg, "observations", None) is not None:
        _check_scalable(made.observation_space)


def _check_scalable(space: Space) -> None:
    """Raise UsageError where moments of observations mean nothing, or would be taken twice."""
    if not is_box(space) or is_pixels(space):
        raise UsageError(
            f"observations are scaled by their moments, and the environment's are {space}: that is "
            "for a Box of numbers; pictures are divided by 255 and all else is taken as it is, so "
            "leave the setting observations out"
        )
