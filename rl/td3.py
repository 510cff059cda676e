"""Twin delayed deep deterministic policy gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from launch.checkpoint import Stateful
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from rl.action_laws import ActionBounds, action_size
from rl.actor_critic import TwinQConfig
from rl.agent import AgentConfig, own_envs, run_seeds
from rl.fast_networks import Forward
from rl.layers import UniformFanIn
from rl.memory import Masks, Memory, Uniform
from rl.networks import MLPConfig
from rl.off_policy import (
    Act,
    Agent,
    TargetNetwork,
    check_action_space,
    check_learning,
    check_whole,
    env_action_space,
    frozen,
    means,
    uniform_actions,
)
from rl.on_policy import check_numbers
from rl.policies import DeterministicPolicy, Policy
from rl.spaces import Observations, Space
from rl.transitions import Transitions

__all__ = ["TD3Config", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TD3Config(AgentConfig):
    """TD3 (Fujimoto et al. 2018, arXiv:1802.09477); noise is in units of half the Box."""

    envs: int = 1
    """Environments side by side, over all processes."""
    actor: MLPConfig = field(
        default_factory=lambda: MLPConfig(
            hidden=(400, 300), activation="relu", initialisation=UniformFanIn()
        )
    )
    critic: TwinQConfig = field(default_factory=lambda: TwinQConfig(hidden=(400, 300)))
    replay: Uniform = field(default_factory=lambda: Uniform(capacity=1_000_000))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamW(learning_rate=1e-3, beta2=0.999)
    )
    """Of the actor and of the critics, one each."""
    train_every: int = 1
    """Env steps, over all environments, between two rounds of updates."""
    updates_per_train: int = 1
    """Updates in a round."""
    batch_size: int = 256
    """Transitions of an update, over all processes."""
    learning_starts: int = 1_000
    """Env steps of random actions before the first update."""
    discount: float = 0.99
    follow: float = 0.005
    """Tau: how far the target networks go towards the networks."""
    exploration: float = 0.1
    """Deviation of the noise that is added to actions while training."""
    smoothing: float = 0.2
    """Deviation of the noise that is added to the target policy's actions (section 5.3)."""
    smoothing_clip: float = 0.5
    """Limit of that noise."""
    policy_delay: int = 2
    """Updates of the critics for each of the actor and of the targets (section 5.2)."""
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        AgentConfig.__post_init__(self)
        counts = ("train_every", "updates_per_train", "batch_size", "policy_delay")
        check_numbers(
            counts={name: getattr(self, name) for name in counts},
            shares={"discount": self.discount, "follow": self.follow},
            max_grad_norm=self.max_grad_norm,
        )
        check_learning(
            envs=self.envs,
            train_every=self.train_every,
            learning_starts=self.learning_starts,
            batch_size=self.batch_size,
            capacity=self.replay.capacity,
        )
        for name in ("exploration", "smoothing", "smoothing_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: give 0 or a share of half the Box")

    def check(self) -> None:
        """Raise UsageError if the environment cannot be had, or its actions are no Box."""
        _check_actions(env_action_space(self))

    def run(self, run: Runtime) -> None:
        """Train, and leave the best policy in the run folder."""
        run_seeds(self, run, train)


def _check_actions(space: Space) -> None:
    check_action_space("TD3", space, ["Box"], "dqn, ppo or sac")


def train(cfg: TD3Config, run: Runtime) -> Policy:
    """Train a policy on ``cfg.env``; return the best that was evaluated.

    Raises:
        UsageError: No such environment; an action space that is no Box; NaN.
    """
    from gymnasium import spaces

    check_whole("TD3", run)
    envs = own_envs(cfg, run)
    observation_space, action_space = envs.envs.observation_space, envs.envs.action_space
    _check_actions(action_space)
    kept = spaces.Box(-1.0, 1.0, (action_size(action_space),), np.float32)
    memory = Memory(cfg.replay, envs, kept, run, discount=cfg.discount)
    learner = _Learner(cfg, run, memory, observation_space, action_space)
    policy = DeterministicPolicy(
        learner.network,
        observation_space,
        action_space,
        env_id=envs.name,
        seed=run.seed,
        exploration=cfg.exploration,
    )
    agent = Agent(cfg, run, envs, policy, memory, learner.state, train_every=cfg.train_every)
    actor = Forward(learner.network)
    for step in agent.iterations():
        sampler, noise = agent.sampler(step), run.stream("smoothing", step)
        critic_updates: list[Tensor] = []
        actor_updates: list[Tensor] = []
        for block in agent.blocks(step, _acting(cfg, agent, actor, step)):
            if block.after < cfg.learning_starts:
                continue
            with run.phase("update"):
                for k in range(cfg.updates_per_train):
                    rows = memory.sample(cfg.batch_size, sampler)
                    critic_updates.append(learner.update_critics(rows, noise))
                    if (block.number * cfg.updates_per_train + k + 1) % cfg.policy_delay == 0:
                        actor_updates.append(learner.update_actor(rows))
        figures = means(("loss", "grad_norm", "q"), critic_updates)
        rate = learner.actor_optimizer.param_groups[0]["lr"]
        figures |= means(("loss/actor",), actor_updates) | {"learning_rate": rate}
        agent.log(step, figures)
    return agent.finish()


def _acting(cfg: TD3Config, agent: Agent, actor: Forward, iteration: int) -> Act:
    """Return how this process's environments act in an iteration."""
    course, mine, bounds = agent.course, agent.mine, ActionBounds(agent.policy.action_space)
    shape = course.steps(iteration), cfg.envs, len(bounds.low)
    before = course.env_steps(iteration - 1)
    normals = torch.randn(shape, generator=agent.run.stream("actions", iteration))
    own = normals.numpy()[:, mine.start : mine.stop]

    def act(observations: Observations, masks: Masks, t: int) -> tuple[np.ndarray, np.ndarray]:
        if before + t * cfg.envs < cfg.learning_starts:
            unit = uniform_actions(own[t])
        else:
            unit = np.tanh(actor(observations)) + np.float32(cfg.exploration) * own[t]
            unit = unit.clip(-1.0, 1.0)
        return unit, bounds.from_unit(unit)

    return act


class _Learner:
    """Actor and critics, each with an optimizer and a copy that follows."""

    def __init__(
        self,
        cfg: TD3Config,
        run: Runtime,
        memory: Memory,
        observation_space: Space,
        action_space: Space,
    ) -> None:
        self.cfg, self.run, self.memory = cfg, run, memory
        size = action_size(action_space)
        self.network = cfg.actor.build(observation_space, size, run.stream("network"))
        self.critics = cfg.critic.build(observation_space, action_space, run.stream("critics"))
        self.actor, self.actor_optimizer = run.prepare(
            self.network, cfg.optimizer.build(self.network)
        )
        self.model, self.critics_optimizer = run.prepare(
            self.critics, cfg.optimizer.build(self.critics)
        )
        self.target, self.target_critics = TargetNetwork(self.network), TargetNetwork(self.critics)
        self.state: dict[str, Stateful] = {
            "network": self.network,
            "critics": self.critics,
            "target": self.target.network,
            "target_critics": self.target_critics.network,
            "optimizer": self.actor_optimizer,
            "critics_optimizer": self.critics_optimizer,
        }

    def update_critics(self, rows: Transitions, noise: torch.Generator) -> Tensor:
        """Make an update of the critics; return loss, norm of the gradient and mean Q, ``(3,)``.

        a' = clip(pi_target(s') + clip(noise, -c, c), -1, 1)
        y = r + discount min(Q1_target(s', a'), Q2_target(s', a'))
        """
        cfg, run, share = self.cfg, self.run, self.run.share(self.cfg.batch_size)
        draws = torch.randn((cfg.batch_size, *rows.actions.shape[1:]), generator=noise)
        jitter = (draws * cfg.smoothing).clamp(-cfg.smoothing_clip, cfg.smoothing_clip)
        jitter = jitter[share.start : share.stop].to(run.device)
        with torch.no_grad():
            following = self.target.network(rows.next_observations).tanh() + jitter
            value = torch.minimum(
                *self.target_critics.network(rows.next_observations, following.clamp(-1, 1))
            )
            targets = rows.rewards + rows.discounts * value
        first, second = self.model(rows.observations, rows.actions)
        errors = (first - targets).square() + (second - targets).square()
        run.backward(errors.sum() / cfg.batch_size)
        norm = run.step(self.critics_optimizer, cfg.max_grad_norm)
        return torch.stack([run.loss, norm, run.sum(first.detach().sum()) / cfg.batch_size])

    def update_actor(self, rows: Transitions) -> Tensor:
        """Make an update of the actor, then move the targets; return the loss, ``(1,)``."""
        cfg, run = self.cfg, self.run
        with frozen(self.critics):
            actions = self.actor(rows.observations).tanh()
            loss = -self.critics.first(rows.observations, actions).sum()
        run.backward(loss / cfg.batch_size)
        run.step(self.actor_optimizer, cfg.max_grad_norm)
        self.target.follow(cfg.follow)
        self.target_critics.follow(cfg.follow)
        return run.loss[None]
