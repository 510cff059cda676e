"""Soft actor-critic: off-policy, with a policy that is kept as random as it can afford to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from rl.actor_critic import TwinQConfig
from rl.agent import AgentConfig, own_envs, run_seeds
from rl.fast_networks import Forward
from rl.layers import UniformFanIn
from rl.memory import Masks, Memory, Uniform, split_masks
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
)
from rl.on_policy import check_numbers
from rl.policies import Policy
from rl.soft_policies import SoftLaw, soft_law
from rl.spaces import Observations, Space

__all__ = ["AutomaticTemperature", "FixedTemperature", "SACConfig", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AutomaticTemperature:
    """Moves until the policy has the entropy that is aimed at (Haarnoja et al. 2018, section 5)."""

    value: float = 1.0
    """At the start."""
    entropy: float | None = None
    """Nats; None is -D for a Box of D numbers, and .98 log A for A actions."""

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise ValueError(f"value={self.value}: a temperature that moves starts above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedTemperature:
    """Stays as it is."""

    value: float = 0.2
    """What a nat of entropy is worth, in units of reward."""

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf:
            raise ValueError(f"value={self.value}: a temperature is a finite number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class SACConfig(AgentConfig):
    """SAC (Haarnoja et al. 2018, arXiv:1812.05905); Discrete: Christodoulou 2019, 1910.07207."""

    envs: int = 1
    """Environments side by side, over all processes."""
    actor: MLPConfig = field(
        default_factory=lambda: MLPConfig(
            hidden=(256, 256), activation="relu", initialisation=UniformFanIn()
        )
    )
    critic: TwinQConfig = field(default_factory=TwinQConfig)
    temperature: AutomaticTemperature | FixedTemperature = field(
        default_factory=AutomaticTemperature
    )
    replay: Uniform = field(default_factory=lambda: Uniform(capacity=1_000_000))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamW(learning_rate=3e-4, beta2=0.999)
    )
    """Of the actor, of the critics and of the temperature, one each."""
    train_every: int = 1
    """Env steps, over all environments, between two rounds of updates."""
    updates_per_train: int = 1
    """Updates in a round."""
    batch_size: int = 256
    """Transitions of an update, over all processes."""
    learning_starts: int = 100
    """Env steps of random actions before the first update."""
    discount: float = 0.99
    follow: float = 0.005
    """Tau: how far the target critics go towards the critics after an update."""
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        AgentConfig.__post_init__(self)
        counts = ("train_every", "updates_per_train", "batch_size")
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

    def check(self) -> None:
        """Raise UsageError if the environment cannot be had, or not be acted in."""
        _check_actions(env_action_space(self))

    def run(self, run: Runtime) -> None:
        """Train, and leave the best policy in the run folder."""
        run_seeds(self, run, train)


def _check_actions(space: Space) -> None:
    check_action_space("SAC", space, ["Box", "Discrete"], "ppo or dqn")


class _Temperature(nn.Module):
    """Its logarithm is what is trained, so that it stays positive."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(value) if value else -math.inf))

    def forward(self) -> Tensor:
        return self.log


def train(cfg: SACConfig, run: Runtime) -> Policy:
    """Train a policy on ``cfg.env``; return the best that was evaluated.

    Raises:
        UsageError: No such environment; an action space that is neither Box nor Discrete; NaN.
    """
    check_whole("SAC", run)
    envs = own_envs(cfg, run)
    spaces = envs.envs.observation_space, envs.envs.action_space
    _check_actions(spaces[1])
    law = soft_law(spaces[1])
    memory = Memory(cfg.replay, envs, law.actions, run, discount=cfg.discount)
    learner = _Learner(cfg, run, law, memory, *spaces)
    policy = law.policy(learner.network, *spaces, env_id=envs.name, seed=run.seed)
    agent = Agent(cfg, run, envs, policy, memory, learner.state, train_every=cfg.train_every)
    actor = Forward(learner.network)
    for step in agent.iterations():
        sampler, draws = agent.sampler(step), run.stream("update", step)
        updates: list[Tensor] = []
        for block in agent.blocks(step, _acting(cfg, agent, law, actor, step)):
            if block.after >= cfg.learning_starts:
                with run.phase("update"):
                    updates += [learner(sampler, draws) for _ in range(cfg.updates_per_train)]
        figures = means(("loss", "loss/actor", "grad_norm", "q", "entropy"), updates)
        rate = learner.optimizers[0].param_groups[0]["lr"]
        temperature = learner.temperature.log.detach().exp()
        agent.log(step, figures | {"temperature": temperature, "learning_rate": rate})
    return agent.finish()


def _acting(cfg: SACConfig, agent: Agent, law: SoftLaw, actor: Forward, iteration: int) -> Act:
    """Return how this process's environments act in an iteration."""
    course, mine = agent.course, agent.mine
    shape, before = (course.steps(iteration), cfg.envs), course.env_steps(iteration - 1)
    draws = law.draws(shape, agent.run.stream("actions", iteration))
    own = draws.numpy()[:, mine.start : mine.stop]

    def act(observations: Observations, masks: Masks, t: int) -> tuple[np.ndarray, np.ndarray]:
        anything = before + t * cfg.envs < cfg.learning_starts
        return law.act(actor(observations), own[t], masks, anything=anything)

    return act


class _Learner:
    """Actor, critics and temperature, each with an optimizer; calling it makes an update."""

    def __init__(
        self,
        cfg: SACConfig,
        run: Runtime,
        law: SoftLaw,
        memory: Memory,
        observation_space: Space,
        action_space: Space,
    ) -> None:
        self.cfg, self.run, self.law, self.memory = cfg, run, law, memory
        self.network = cfg.actor.build(observation_space, law.outputs, run.stream("network"))
        self.critics = cfg.critic.build(observation_space, action_space, run.stream("critics"))
        self.temperature = _Temperature(cfg.temperature.value)
        networks = self.network, self.critics, self.temperature
        pairs = [run.prepare(x, cfg.optimizer.build(x)) for x in networks]
        self.models, self.optimizers = zip(*pairs, strict=True)
        self.target = TargetNetwork(self.critics)
        self.state: dict[str, Stateful] = {
            "network": self.network,
            "critics": self.critics,
            "target": self.target.network,
            "temperature": self.temperature,
        }
        names = "optimizer", "critics_optimizer", "temperature_optimizer"
        self.state |= dict(zip(names, self.optimizers, strict=True))
        aim = getattr(cfg.temperature, "entropy", None)
        self.aim: float = law.entropy if aim is None else aim

    def __call__(self, sampler: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Make an update.

        Returns:
            ``(5,)``: losses of critics and actor, the norm of the critics' gradient, mean Q and
            mean entropy.
        """
        cfg, run, law = self.cfg, self.run, self.law
        actor, critics, temperature = self.models
        rows, share = self.memory.sample(cfg.batch_size, sampler), run.share(cfg.batch_size)
        draws = law.draws((2, cfg.batch_size), generator)[:, share.start : share.stop]
        now, then = draws.to(run.device)
        seen, masks = split_masks(rows.observations, self.memory.masked)
        following, next_masks = split_masks(rows.next_observations, self.memory.masked)
        alpha = self.temperature.log.detach().exp()

        with torch.no_grad():
            value, _ = law.value(
                self.network(following), self.target.network, following, alpha, then, next_masks
            )
            targets = rows.rewards + rows.discounts * value
        first, second = law.q_values(critics, seen, rows.actions)
        errors = (first - targets).square() + (second - targets).square()
        run.backward(0.5 * errors.sum() / cfg.batch_size)
        norm = run.step(self.optimizers[1], cfg.max_grad_norm)
        critic_loss = run.loss

        with frozen(self.critics):
            value, entropies = law.value(actor(seen), self.critics, seen, alpha, now, masks)
        run.backward(-value.sum() / cfg.batch_size)
        run.step(self.optimizers[0], cfg.max_grad_norm)
        actor_loss, entropies = run.loss, entropies.detach()

        if isinstance(cfg.temperature, AutomaticTemperature):
            run.backward(temperature() * (entropies - self.aim).sum() / cfg.batch_size)
            run.step(self.optimizers[2], cfg.max_grad_norm)
        self.target.follow(cfg.follow)
        means = run.sum(torch.stack([first.detach().sum(), entropies.sum()])) / cfg.batch_size
        return torch.stack([critic_loss, actor_loss, norm, *means])
