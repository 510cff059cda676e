"""Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783), synchronous.

Where the paper's actors update one network each at its own time (algorithm S3), all environments
step together here and make one update, as in Stable-Baselines3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from launch.optimizers import OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Constant, Schedule, set_learning_rate
from rl.actor_critic import SeparateTrunks, SharedTrunk
from rl.agent import AgentConfig, Course, run_seeds
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

__all__ = ["A2CConfig", "RMSprop", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RMSprop:
    """Steps divided by a running root mean square of the gradient (Tieleman and Hinton 2012).

        g = alpha g + (1 - alpha) grad^2,    theta = theta - rate grad / (sqrt(g) + eps)

    Unlike arXiv:1602.01783, eq. S2, eps is added outside the root, as torch does it.
    """

    learning_rate: float = 7e-4
    """Peak rate; the schedule multiplies it."""
    alpha: float = 0.99
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"learning_rate={self.learning_rate}: a learning rate is a finite number above 0"
            )

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return ``torch.optim.RMSprop`` over the parameters that require gradients."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.RMSprop(
            trained, lr=self.learning_rate, alpha=self.alpha, eps=self.eps, foreach=True
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class A2CConfig(AgentConfig):
    """A2C; the defaults are Stable-Baselines3's, with 8 environments."""

    network: SeparateTrunks | SharedTrunk = field(default_factory=SeparateTrunks)
    optimizer: OptimizerConfig = field(default_factory=RMSprop)
    schedule: Schedule = field(default_factory=Constant)
    """Of the learning rate, over iterations."""
    rollout_steps: int = 5
    """T, steps of each environment before an update."""
    updates: int = 10
    """Rollouts, each with its update, in an iteration, and so in a record."""
    micro_batch: int | None = None
    """Rows a forward pass on one process; memory only, never the result. None takes all."""
    discount: float = 0.99
    trace: float = 1.0
    """Lambda of the generalised advantages; 1 makes them the paper's n-step returns."""
    value_weight: float = 1.0
    """Of half the squared error; Stable-Baselines3 weighs the whole by .5."""
    entropy_weight: float = 0.0
    max_grad_norm: float | None = 0.5
    observations: ObservationScaling | None = None
    rewards: RewardScaling | None = None

    def __post_init__(self) -> None:
        AgentConfig.__post_init__(self)
        counts = {"rollout_steps": self.rollout_steps, "updates": self.updates}
        if self.micro_batch is not None:
            counts["micro_batch"] = self.micro_batch
        check_numbers(
            counts=counts,
            shares={"discount": self.discount, "trace": self.trace},
            max_grad_norm=self.max_grad_norm,
        )

    def check(self) -> None:
        """Raise UsageError if the environment cannot be had, or not be acted in."""
        check_spaces(self)

    def run(self, run: Runtime) -> None:
        """Train, and leave the best policy in the run folder."""
        run_seeds(self, run, train)


def train(cfg: A2CConfig, run: Runtime) -> Policy:
    """Train a policy on ``cfg.env``; return the best that was evaluated.

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
    )
    course = Course(cfg, cfg.rollout_steps * cfg.updates)
    for step in learner.iterations(course.iterations, course.save_every):
        factor = cfg.schedule(step - 1, course.iterations + 1)
        rate = set_learning_rate(learner.optimizer, factor)
        sums, starts = torch.zeros(5), range(0, course.steps(step), cfg.rollout_steps)
        for index, start in enumerate(starts):
            length = min(cfg.rollout_steps, course.steps(step) - start)
            rollout = learner.rollout(length, step, index)
            with run.phase("update"):
                sums += policy_gradient_step(
                    learner,
                    rollout,
                    rollout.steps(cfg.discount, cfg.trace),
                    value_weight=cfg.value_weight,
                    entropy_weight=cfg.entropy_weight,
                    max_grad_norm=cfg.max_grad_norm,
                    micro_batch=cfg.micro_batch,
                )
        figures = policy_gradient_figures(sums, len(starts), run) | {"learning_rate": rate}
        learner.log_iteration(step, figures, course)
    return learner.finish()
