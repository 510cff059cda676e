"""REINFORCE (Williams 1992, doi:10.1007/BF00992696), with a learned baseline or without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Constant, Schedule, set_learning_rate
from launch.streams import key
from rl.actor_critic import SeparateTrunks, SharedTrunk
from rl.agent import AgentConfig, run_seeds
from rl.evaluation import STEP_LIMIT
from rl.on_policy import (
    Learner,
    ObservationScaling,
    RewardScaling,
    check_numbers,
    check_spaces,
    policy_gradient_figures,
    policy_gradient_step,
)
from rl.policies import Policy
from rl.rollouts import Rollout
from rl.vector_env import VectorEnv

__all__ = ["LearnedBaseline", "REINFORCEConfig", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedBaseline:
    """The critic's value of a state is subtracted from the return that followed.

    An episode that was cut off goes on with the value of its last observation (Sutton and Barto
    2018, section 13.4, except for that).
    """

    weight: float = 0.5
    """Of half the squared error of the values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class REINFORCEConfig(AgentConfig):
    """REINFORCE: an update after one whole episode of each environment."""

    network: SeparateTrunks | SharedTrunk = field(default_factory=SeparateTrunks)
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-3))
    schedule: Schedule = field(default_factory=Constant)
    """Of the learning rate, over env steps."""
    baseline: LearnedBaseline | None = field(default_factory=LearnedBaseline)
    """None subtracts nothing; an episode that was cut off then counts as if it had ended."""
    micro_batch: int | None = None
    """Rows a forward pass on one process; memory only, never the result. None takes all."""
    discount: float = 0.99
    entropy_weight: float = 0.0
    max_grad_norm: float | None = 0.5
    observations: ObservationScaling | None = None
    rewards: RewardScaling | None = None

    def __post_init__(self) -> None:
        AgentConfig.__post_init__(self)
        check_numbers(
            counts={} if self.micro_batch is None else {"micro_batch": self.micro_batch},
            shares={"discount": self.discount},
            max_grad_norm=self.max_grad_norm,
        )

    def check(self) -> None:
        """Raise UsageError if the environment cannot be had, or not be acted in."""
        check_spaces(self)

    def run(self, run: Runtime) -> None:
        """Train, and leave the best policy in the run folder."""
        run_seeds(self, run, train)


def train(cfg: REINFORCEConfig, run: Runtime) -> Policy:
    r"""Train a policy on ``cfg.env``; return the best that was evaluated.

        theta = theta + rate \sum_t (G_t - b(s_t)) grad log pi(a_t|s_t)

    over one episode of each environment, begun under the policy that is updated. Unlike Sutton and
    Barto 2018, section 13.3, the sum is divided by the number of steps and has no factor gamma^t.

    Raises:
        UsageError: No such environment; an action space that is neither Discrete nor Box; NaN.
    """
    learner = Learner(
        cfg,
        run,
        network=cfg.network,
        optimizer=cfg.optimizer,
        discount=cfg.discount,
        observations=cfg.observations,
        rewards=cfg.rewards,
        quota=1,
    )
    del learner.state["envs"]  # every update begins with new episodes
    budget = _Budget(cfg)
    learner.state["budget"] = budget
    for step in learner.iterations(budget.iterations, save_every=0):
        if budget.spent:  # the run that is resumed had come to its end
            break
        rate = set_learning_rate(learner.optimizer, cfg.schedule(budget.done, cfg.env_steps))
        rollout = _episodes(learner, step, budget.each)
        with run.phase("update"):
            sums = _update(cfg, learner, rollout)
        figures = policy_gradient_figures(sums, 1, run) | {"learning_rate": rate}
        taken, before = int(rollout.valid.sum()), budget.done
        budget.done += int(run.sum(taken))
        evaluates = budget.spent or budget.passes(cfg.eval_every or cfg.env_steps / 20, before)
        learner.log(step, figures, env_steps=budget.done, taken=taken, evaluates=evaluates)
        if budget.spent or budget.passes(cfg.save_every, before):
            run.save(step, learner.state)
        if budget.spent:
            break
    return learner.finish()


class _Budget:
    """The env steps done, part of a checkpoint, and what is left of those in all."""

    def __init__(self, cfg: REINFORCEConfig) -> None:
        self.total, self.envs, self.done = cfg.env_steps, cfg.envs, 0
        self.iterations = self.total // self.envs
        """At most: an episode has at least one step."""

    @property
    def each(self) -> int:
        """Steps that each environment may still take."""
        return (self.total - self.done) // self.envs

    @property
    def spent(self) -> bool:
        """Whether less than a twentieth is left; episodes would be cut shorter and shorter."""
        return self.each < 1 or self.total - self.done < self.total / 20

    def passes(self, every: float, before: int) -> bool:
        """Return whether a multiple of ``every`` has been reached since ``before``."""
        return every > 0 and self.done // every > before // every

    def state_dict(self) -> dict[str, Any]:
        """Return the env steps done."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take what ``state_dict`` returned."""
        self.done = int(state_dict["done"])


class _Seeded(VectorEnv, Protocol):
    seed: int


def _episodes(learner: Learner, step: int, most: int) -> Rollout:
    """Return a new episode of each environment, cut off after ``most`` steps."""
    envs = cast(_Seeded, learner.envs.envs)
    envs.seed = key(learner.run.seed, "episodes", step)
    learner.envs.observations = envs.reset()
    return learner.rollout(min(most, envs.time_limit or STEP_LIMIT), step, whole=True)


def _update(cfg: REINFORCEConfig, learner: Learner, rollout: Rollout) -> Tensor:
    if cfg.baseline is None:
        zeros = torch.zeros_like(rollout.values)
        rollout = replace(rollout, values=zeros, next_values=zeros)
    return policy_gradient_step(
        learner,
        rollout,
        rollout.steps(cfg.discount, trace=1.0),
        value_weight=0.0 if cfg.baseline is None else cfg.baseline.weight,
        entropy_weight=cfg.entropy_weight,
        max_grad_norm=cfg.max_grad_norm,
        micro_batch=cfg.micro_batch,
    )
