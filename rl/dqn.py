"""Deep Q-learning, and the parts that Rainbow puts together, each of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from rl.action_laws import action_count, mask_logits
from rl.agent import AgentConfig, own_envs, run_seeds
from rl.exploration import Linear, Schedule, epsilon_greedy
from rl.fast_networks import Forward
from rl.memory import Masks, Memory, Prioritized, Uniform, split_masks
from rl.networks import Network, QNetworkConfig, sample_noise
from rl.observations import map_tensors, to_tensors
from rl.off_policy import (
    Act,
    Agent,
    TargetNetwork,
    check_action_space,
    check_learning,
    check_whole,
    env_action_space,
    means,
)
from rl.on_policy import check_numbers
from rl.policies import GreedyPolicy, Policy
from rl.q_losses import of_actions, q_errors, q_losses, q_targets
from rl.q_update import QUpdate, can_write_out
from rl.spaces import Observations, Space
from rl.transitions import Transitions

__all__ = ["DQNConfig", "DoubleQLearning", "Prioritized", "QLearning", "Uniform", "train"]

_AT_ONCE = 1_024
"""Transitions whose targets are worked out together."""


class Selection(Protocol):
    """Which network selects the next action; the target network values it."""

    def __call__(self, online: Callable[[], Tensor], target: Tensor) -> Tensor:
        """Return the Q values ``(B, A)`` whose largest is followed."""
        ...


@dataclass(frozen=True, slots=True)
class QLearning:
    """The target network selects the next action too (Mnih et al. 2015)."""

    def __call__(self, online: Callable[[], Tensor], target: Tensor) -> Tensor:
        """Return the target network's Q values."""
        return target


@dataclass(frozen=True, slots=True)
class DoubleQLearning:
    """The trained network selects (van Hasselt et al. 2016, arXiv:1509.06461, eq. 4)."""

    def __call__(self, online: Callable[[], Tensor], target: Tensor) -> Tensor:
        """Return the trained network's Q values."""
        return online()


@dataclass(frozen=True, kw_only=True, slots=True)
class DQNConfig(AgentConfig):
    """DQN (Mnih et al. 2015, doi:10.1038/nature14236), or with its parts exchanged Rainbow.

    Rainbow (Hessel et al. 2018, arXiv:1710.02298) is ``targets=DoubleQLearning()``,
    ``replay=Prioritized()``, ``n_step=3`` and a network with ``dueling``, ``noise`` and
    ``values=CategoricalValues()``; quantiles are ``values=QuantileValues()``. Noisy layers are
    drawn anew for each step in the environments and each update, and then ``exploration`` may be
    ``Constant(0.0)``.
    """

    envs: int = 1
    """Environments side by side, over all processes."""
    network: QNetworkConfig = field(default_factory=lambda: QNetworkConfig(hidden=(256, 256)))
    targets: QLearning | DoubleQLearning = field(default_factory=QLearning)
    """Which network selects the next action."""
    replay: Uniform | Prioritized = field(default_factory=Uniform)
    n_step: int = 1
    """Steps of reward before the value of a state takes their place."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamW(learning_rate=1e-3, beta2=0.999)
    )
    exploration: Schedule = field(default_factory=lambda: Linear(1.0, 0.05, 10_000))
    """Probability of any action instead of the best one, over env steps."""
    train_every: int = 8
    """Env steps, over all environments, between two rounds of updates."""
    updates_per_train: int = 4
    """Updates in a round."""
    batch_size: int = 64
    """Transitions of an update, over all processes."""
    target_every: int = 500
    """Env steps between copies to the target network, made before the next round of updates."""
    learning_starts: int = 1_000
    """Env steps of random actions before the first update."""
    discount: float = 0.99
    max_grad_norm: float | None = 10.0

    def __post_init__(self) -> None:
        AgentConfig.__post_init__(self)
        counts = ("train_every", "updates_per_train", "batch_size", "n_step", "target_every")
        check_numbers(
            counts={name: getattr(self, name) for name in counts},
            shares={"discount": self.discount},
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
        """Raise UsageError if the environment cannot be had, or its actions are not Discrete."""
        _check_actions(env_action_space(self))

    def run(self, run: Runtime) -> None:
        """Train, and leave the best policy in the run folder."""
        run_seeds(self, run, train)


def _check_actions(space: Space) -> None:
    check_action_space("DQN", space, ["Discrete"], "ppo, sac or td3")


def train(cfg: DQNConfig, run: Runtime) -> Policy:
    """Train a policy on ``cfg.env``; return the best that was evaluated.

    Raises:
        UsageError: No such environment; an action space that is not Discrete; NaN.
    """
    check_whole("DQN", run)
    envs = own_envs(cfg, run)
    spaces = envs.envs.observation_space, envs.envs.action_space
    _check_actions(spaces[1])
    network = cfg.network.build(spaces[0], action_count(spaces[1]), run.stream("network"))
    model, optimizer = run.prepare(network, cfg.optimizer.build(network))
    target = TargetNetwork(network)
    memory = Memory(cfg.replay, envs, spaces[1], run, n_step=cfg.n_step, discount=cfg.discount)
    last = cfg.exploration(cfg.env_steps)
    policy = GreedyPolicy(network, *spaces, env_id=envs.name, seed=run.seed, exploration=last)
    learned: dict[str, Stateful] = {
        "network": network,
        "target": target.network,
        "optimizer": optimizer,
    }
    agent = Agent(cfg, run, envs, policy, memory, learned, train_every=cfg.train_every)
    written_out = None
    if model is network and can_write_out(network, optimizer):  # else the runtime has wrapped it
        written_out = QUpdate(network, optimizer, cfg.max_grad_norm)
    learner = _Learner(cfg, run, network, model, target, optimizer, memory, written_out)
    actor = Forward(network)
    for step in agent.iterations():
        noise, sampler = run.stream("noise", step), agent.sampler(step)
        updates: list[Tensor] = []
        for block in agent.blocks(step, _acting(cfg, agent, actor, step, noise)):
            if block.after // cfg.target_every > block.before // cfg.target_every:
                target.follow()
            if block.after < cfg.learning_starts or not len(memory.replay):
                continue
            cfg.replay.anneal(memory.replay, block.after)
            with run.phase("update"):
                updates += _learn(learner, sampler, noise)
        figures = means(("loss", "grad_norm", "q"), updates)
        epsilon, rate = _epsilon(cfg, agent.course.env_steps(step)), optimizer.param_groups[0]["lr"]
        agent.log(step, figures | {"epsilon": epsilon, "learning_rate": rate})
    return agent.finish()


# -- acting --------------------------------------------------------------------------------------


def _epsilon(cfg: DQNConfig, env_steps: int) -> float:
    return 1.0 if env_steps < cfg.learning_starts else cfg.exploration(env_steps)


def _acting(
    cfg: DQNConfig, agent: Agent, actor: Forward, iteration: int, noise: torch.Generator
) -> Act:
    """Return how this process's environments act in an iteration."""
    course, mine, run = agent.course, agent.mine, agent.run
    shape, before = (course.steps(iteration), cfg.envs), course.env_steps(iteration - 1)
    draws = torch.rand(shape, dtype=torch.float64, generator=run.stream("actions", iteration))
    uniforms = draws.numpy()[:, mine.start : mine.stop]
    start = int(agent.policy.action_space.start)

    def act(observations: Observations, masks: Masks, t: int) -> tuple[np.ndarray, np.ndarray]:
        if cfg.network.noise is None:
            outputs = actor(observations)
        else:
            sample_noise(actor.network, noise)
            outputs = _with_noise(actor.network, observations, run.device)
        epsilon = _epsilon(cfg, before + t * cfg.envs)
        q_values = cfg.network.values.mean(outputs)
        actions = epsilon_greedy(q_values, epsilon, uniforms[t], masks)
        return actions, actions + start

    return act


@torch.no_grad()
def _with_noise(network: nn.Module, observations: Observations, device: torch.device) -> np.ndarray:
    inputs = map_tensors(lambda x: x.to(device), to_tensors(observations))
    outputs: Tensor = network(inputs)
    return outputs.float().cpu().numpy()


# -- learning ------------------------------------------------------------------------------------


class _Learner(NamedTuple):
    """What an update reads and changes."""

    cfg: DQNConfig
    run: Runtime
    network: Network
    model: nn.Module
    """The network as the runtime has prepared it."""
    target: TargetNetwork[Network]
    optimizer: torch.optim.Optimizer
    memory: Memory
    written_out: QUpdate | None
    """The same update, faster, where the network and the optimizer allow it."""


def _learn(a: _Learner, sampler: np.random.Generator, noise: torch.Generator) -> list[Tensor]:
    """Make a round of updates; return ``(loss, norm of the gradient, mean Q)`` of each."""
    cfg, size = a.cfg, len(a.run.share(a.cfg.batch_size))
    # What depends on no update of the round is worked out for many of them together.
    ahead = max(1, _AT_ONCE // cfg.batch_size)
    if a.memory.prioritized or cfg.network.noise or isinstance(cfg.targets, DoubleQLearning):
        ahead = 1
    figures = []
    for first in range(0, cfg.updates_per_train, ahead):
        batches = min(ahead, cfg.updates_per_train - first)
        if cfg.network.noise is not None:
            sample_noise(a.network, noise)
            sample_noise(a.target.network, noise)
        drawn = a.memory.sample(cfg.batch_size, sampler, batches)
        targets = _targets(a, drawn)
        made = _written_out(a, drawn, targets)
        figures += made
        for k in range(len(made), batches):
            rows = slice(k * size, (k + 1) * size)
            figures.append(_update(a, drawn.rows(rows.start, rows.stop), targets[rows]))
    return figures


@torch.no_grad()
def _targets(a: _Learner, rows: Transitions) -> Tensor:
    """Return what the outputs are trained towards, ``(B,)`` or ``(B, atoms)``."""
    law, masked = a.cfg.network.values, a.memory.masked
    observations, masks = split_masks(rows.next_observations, masked)
    outputs = a.target.network(observations)
    q_values = a.cfg.targets(lambda: law.mean(a.network(observations)), law.mean(outputs))
    if masks is not None:
        q_values = mask_logits(q_values, masks)
    return q_targets(law, rows.rewards, rows.discounts, q_values, outputs)


def _update(a: _Learner, rows: Transitions, targets: Tensor) -> Tensor:
    """Make one update; return its loss, the norm of its gradient and the mean Q, ``(3,)``."""
    law = a.cfg.network.values
    observations, _ = split_masks(rows.observations, a.memory.masked)
    chosen = of_actions(a.model(observations), rows.actions)
    losses = q_losses(law, chosen, targets)
    a.run.backward((rows.weights * losses).sum() / a.cfg.batch_size)
    norm = a.run.step(a.optimizer, a.cfg.max_grad_norm)
    if a.memory.prioritized:
        a.memory.note_errors(q_errors(law, chosen, targets))
    mean = a.run.sum(law.mean(chosen.detach()).sum()) / a.cfg.batch_size
    return torch.stack([a.run.loss, norm, mean])


def _written_out(a: _Learner, rows: Transitions, targets: Tensor) -> list[Tensor]:
    """Make updates as ``_update`` does, where that can be; return the same of each.

    It stops before an update that is not finite, of which ``_update`` says what is wrong.
    """
    if a.written_out is None or not a.written_out.ready:
        return []
    observations, _ = split_masks(rows.observations, a.memory.masked)
    assert isinstance(observations, Tensor)
    weights, size = rows.weights / a.cfg.batch_size, a.cfg.batch_size
    made, chosen = a.written_out(observations, rows.actions, targets, weights, size)
    if a.memory.prioritized and len(made):
        a.memory.note_errors(q_errors(a.cfg.network.values, chosen, targets))
    return list(made)
