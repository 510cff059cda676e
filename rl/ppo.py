"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from launch.metrics import Mean, Metric
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Linear, Schedule, set_learning_rate
from rl.actor_critic import SeparateTrunks, SharedTrunk
from rl.agent import AgentConfig, Course, run_seeds
from rl.estimators import clipped_surrogate, k3
from rl.fused_loss import can_fuse, fused_loss
from rl.on_policy import (
    Learner,
    ObservationScaling,
    RewardScaling,
    check_numbers,
    check_spaces,
    explained_variance,
)
from rl.policies import Policy
from rl.rollouts import Rollout, Steps

__all__ = ["ObservationScaling", "PPOConfig", "RewardScaling", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig(AgentConfig):
    """PPO with clipping; the defaults are CleanRL's for classic control."""

    network: SeparateTrunks | SharedTrunk = field(default_factory=SeparateTrunks)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamW(learning_rate=2.5e-4, beta2=0.999, eps=1e-5)
    )
    schedule: Schedule = field(default_factory=Linear)
    """Of the learning rate, over iterations."""
    rollout_steps: int = 128
    """T, steps of each environment in an iteration."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Updates in a pass."""
    micro_batch: int | None = None
    """Rows a forward pass on one process; memory only, never the result. None takes all."""
    discount: float = 0.99
    trace: float = 0.95
    """Lambda of the generalised advantages."""
    clip: float = 0.2
    """How far a ratio may move from 1 and still be paid for it."""
    value_clip: float | None = 0.2
    """How far a value may move from the old one; None does not clip."""
    value_weight: float = 0.5
    """Of half the squared error."""
    entropy_weight: float = 0.01
    max_grad_norm: float | None = 0.5
    max_kl: float | None = None
    """Ends an iteration's passes early once the policy has moved so far, nats; None never does."""
    observations: ObservationScaling | None = None
    rewards: RewardScaling | None = None

    def __post_init__(self) -> None:
        AgentConfig.__post_init__(self)
        counts = ("rollout_steps", "epochs", "minibatches", "micro_batch")
        given = {name: getattr(self, name) for name in counts}
        check_numbers(
            counts={name: count for name, count in given.items() if count is not None},
            shares={"discount": self.discount, "trace": self.trace},
            max_grad_norm=self.max_grad_norm,
        )
        for name in ("clip", "value_clip", "max_kl"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit}: it is how far something may move, above 0")
        if self.minibatches > self.rollout_steps * self.envs:
            raise ValueError(
                f"minibatches={self.minibatches}, but a rollout has only rollout_steps * envs = "
                f"{self.rollout_steps * self.envs} rows: each minibatch needs at least one"
            )

    def check(self) -> None:
        """Raise UsageError if the environment cannot be had, or not be acted in."""
        check_spaces(self)

    def run(self, run: Runtime) -> None:
        """Train, and leave the best policy in the run folder."""
        run_seeds(self, run, train)


def train(cfg: PPOConfig, run: Runtime) -> Policy:
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
    course = Course(cfg, cfg.rollout_steps)
    for step in learner.iterations(course.iterations, course.save_every):
        # One more in the total, because the last iteration is to learn, too.
        factor = cfg.schedule(step - 1, course.iterations + 1)
        rate = set_learning_rate(learner.optimizer, factor)
        rollout = learner.rollout(course.steps(step), step)
        with run.phase("update"):
            figures = _update(cfg, learner, rollout, step)
        learner.log_iteration(step, figures | {"learning_rate": rate}, course)
    return learner.finish()


def _update(cfg: PPOConfig, learner: Learner, rollout: Rollout, step: int) -> dict[str, Metric]:
    """Pass over a rollout several times; return means over all rows of all passes."""
    run, steps = learner.run, rollout.steps(cfg.discount, cfg.trace)
    sums, norms, updates = torch.zeros(3), 0.0, 0
    log_ratios = torch.zeros(0)
    fused = can_fuse(learner.network) and run.config.precision == "fp32"
    summed = _fused_loss if fused else _loss
    for epoch in range(cfg.epochs):
        moved: list[Tensor] = []
        for rows, count in _minibatches(cfg, learner, rollout, steps, step, epoch):
            for part in run.micro_batches(rows, cfg.micro_batch or max(1, len(rows))):
                loss, figures, log_ratio = summed(cfg, learner, rollout, part)
                run.backward(loss / count)
                sums += figures
                moved.append(log_ratio)
            norms += run.step(learner.optimizer, cfg.max_grad_norm).item()
            updates += 1
        log_ratios = torch.cat([log_ratios, *moved])
        if (
            cfg.max_kl is not None
            and run.mean(_kl(torch.cat([log_ratios[:0], *moved]))) > cfg.max_kl
        ):
            break
    policy_loss, value_loss, entropy = sums.tolist()
    seen, clipped = len(log_ratios), (log_ratios.exp() - 1).abs() > cfg.clip
    return {
        "loss": run.loss,
        "loss/policy": Mean(policy_loss, seen),
        "loss/value": Mean(value_loss, seen),
        "entropy": Mean(entropy, seen),
        "kl/old": Mean(_kl(log_ratios).sum(), seen),
        "clip_fraction": Mean(clipped.sum(), seen),
        "explained_variance": explained_variance(steps.take(rollout.rows), run),
        "grad_norm": norms / max(1, updates),
        "updates": updates,
    }


def _loss(
    cfg: PPOConfig, learner: Learner, rollout: Rollout, rows: Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss summed over rows; sums of its three parts, ``(3,)``; and log-ratios."""
    log_probs, entropies, values = learner.evaluate(rollout, rows.index)
    gains = clipped_surrogate(log_probs, rows.log_probs, rows.advantages, cfg.clip, cfg.clip)
    errors = (values - rows.targets).square()
    if cfg.value_clip is not None:
        held = rows.values + (values - rows.values).clamp(-cfg.value_clip, cfg.value_clip)
        errors = torch.maximum(errors, (held - rows.targets).square())
    policy_loss, value_loss, entropy = -gains.sum(), 0.5 * errors.sum(), entropies.sum()
    loss = policy_loss + cfg.value_weight * value_loss - cfg.entropy_weight * entropy
    with torch.no_grad():
        parts = torch.stack([policy_loss, value_loss, entropy]).cpu()
        return loss, parts, (log_probs - rows.log_probs).cpu()


def _fused_loss(
    cfg: PPOConfig, learner: Learner, rollout: Rollout, rows: Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``_loss`` does, in less time."""
    return learner.call(fused_loss, cfg, rollout, rows)


def _minibatches(
    cfg: PPOConfig, learner: Learner, rollout: Rollout, steps: Steps, step: int, epoch: int
) -> list[tuple[Steps, float]]:
    """Return this process's rows of each minibatch, and how many rows all processes have of it.

    The split is over the rows of all processes, and so are mean and deviation of a minibatch's
    advantages, which are standardized here.
    """
    run, mine = learner.run, learner.mine
    size = rollout.values.shape[1] * cfg.envs
    order = torch.randperm(size, generator=run.stream("minibatches", step, epoch))
    parts = min(cfg.minibatches, size)
    number = torch.arange(size) * parts // size
    if len(mine) < cfg.envs:
        environment = order % cfg.envs
        own = (environment >= mine.start) & (environment < mine.stop)
        order = (order // cfg.envs * len(mine) + environment - mine.start)[own]
        number = number[own]
    if not rollout.valid.all():
        valid = rollout.valid.t().flatten()[order]
        order, number = order[valid], number[valid]

    x = steps.advantages[order].double()
    columns = torch.stack([torch.ones_like(x), x, x.square()], dim=1)
    sums = run.sum(x.new_zeros(parts, 3).index_add_(0, number, columns)).cpu()
    counts, means, squares = sums[:, 0], *(sums[:, 1:] / sums[:, :1].clamp(min=1)).unbind(1)
    deviations = (squares - means.square()).clamp(min=0).sqrt() + 1e-8
    standardized = ((x - means[number]) / deviations[number]).float()

    chosen = replace(steps.take(order), advantages=standardized).to(run.device)
    ends = torch.bincount(number, minlength=parts).cumsum(0).tolist()
    found = zip([0, *ends], ends, counts.tolist(), strict=False)
    return [(chosen.rows(start, end), count) for start, end, count in found if count]


def _kl(log_ratios: Tensor) -> Tensor:
    """Return an estimate of each row, in nats, of how far the policy has moved."""
    return k3(torch.zeros_like(log_ratios), log_ratios)
