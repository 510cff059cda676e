"""Recipes of reinforcement learning: functions without arguments that return a complete config."""

from __future__ import annotations

from dataclasses import replace

from launch.optimizers import AdamW
from launch.schedule import Constant, Linear
from rl.a2c import A2CConfig
from rl.dqn import DoubleQLearning, DQNConfig
from rl.exploration import Constant as Always
from rl.exploration import Linear as Annealed
from rl.mdp import TabularMDP, grid_world
from rl.memory import Prioritized, Uniform
from rl.monte_carlo import mc_epsilon_greedy
from rl.networks import Dueling, FactorisedNoise, QNetworkConfig
from rl.on_policy import ObservationScaling, RewardScaling
from rl.ppo import PPOConfig
from rl.reinforce import REINFORCEConfig
from rl.sac import SACConfig
from rl.step_sizes import Power
from rl.tabular_jobs import Grid, Plan, TabularControl
from rl.tabular_schedules import Linear as Falling
from rl.td3 import TD3Config
from rl.temporal_difference import q_learning, sarsa
from rl.value_laws import CategoricalValues
from rl.value_maps import FROZEN_LAKE_ARROWS

__all__ = [
    "a2c",
    "dqn",
    "dqn_cartpole",
    "dqn_mountaincar",
    "mc_blackjack",
    "ppo",
    "ppo_acrobot",
    "ppo_cartpole",
    "ppo_continuous_lunarlander",
    "ppo_lunarlander",
    "q_learning_frozenlake",
    "rainbow_cartpole",
    "reinforce",
    "sac",
    "sac_pendulum",
    "sarsa_cliff",
    "td3",
    "td3_pendulum",
    "value_iteration_gridworld",
]


def zhao_grid() -> TabularMDP:
    """Return the 5 x 5 grid of Zhao 2025, figure 3.4: forbidden cells, the target among them."""
    forbidden = [(1, 1), (1, 2), (2, 2), (3, 1), (3, 3), (4, 1)]
    return grid_world(5, 5, forbidden=forbidden, target=(3, 2))


def value_iteration_gridworld() -> Plan:
    """Zhao's 5 x 5 grid world, solved exactly: values and policy arrows."""
    return Plan(model=zhao_grid, grid=Grid(rows=5, columns=5))


def q_learning_frozenlake() -> TabularControl:
    """Q-learning on FrozenLake8x8, held against the exact optimum."""
    return TabularControl(
        env="FrozenLake8x8-v1",
        learn=q_learning,
        discount=0.99,
        steps=1_000_000,
        step_size=Power(exponent=0.6),
        epsilon=1.0,
        grid=Grid(rows=8, columns=8, arrows=FROZEN_LAKE_ARROWS),
    )


def sarsa_cliff() -> TabularControl:
    """Sarsa on CliffWalking: the safe way while it explores, the short one as it stops."""
    return TabularControl(
        env="CliffWalking-v1",
        learn=sarsa,
        discount=0.99,
        steps=400_000,
        step_size=0.1,
        epsilon=Falling(0.3, 0.0, 300_000),
        max_episode_steps=500,
        grid=Grid(rows=4, columns=12),
    )


def mc_blackjack() -> TabularControl:
    """Monte Carlo control of Blackjack, held against the exact value of the game."""
    return TabularControl(
        env="Blackjack-v1",
        learn=mc_epsilon_greedy,
        discount=1.0,
        episodes=2_000_000,
        step_size=Power(exponent=0.8),  # forgets the returns of the first, poor policies
        epsilon=Falling(0.3, 0.02, 1_500_000),
        seeds=4,
        points=10,
    )


def ppo() -> PPOConfig:
    """PPO on any environment: --env ID."""
    return PPOConfig()


def ppo_cartpole() -> PPOConfig:
    """PPO on CartPole: 500 of 500 in less than a minute."""
    return PPOConfig(
        env="CartPole-v1",
        env_steps=100_000,
        envs=8,
        rollout_steps=32,
        epochs=20,
        minibatches=1,
        optimizer=AdamW(learning_rate=1e-3, beta2=0.999, eps=1e-5),
        schedule=Linear(),
        discount=0.98,
        trace=0.8,
        entropy_weight=0.0,
        value_clip=None,
    )


def ppo_acrobot() -> PPOConfig:
    """PPO on Acrobot: upright in some 80 steps."""
    return PPOConfig(
        env="Acrobot-v1",
        env_steps=1_000_000,
        envs=16,
        rollout_steps=256,
        epochs=4,
        minibatches=64,
        optimizer=AdamW(learning_rate=3e-4, beta2=0.999, eps=1e-5),
        schedule=Constant(),
        trace=0.94,
        entropy_weight=0.0,
        value_clip=None,
        observations=ObservationScaling(),
        rewards=RewardScaling(),
    )


def ppo_lunarlander() -> PPOConfig:
    """PPO on LunarLander-v3, which needs the extra box2d."""
    return PPOConfig(
        env="LunarLander-v3",
        env_steps=1_000_000,
        envs=16,
        rollout_steps=1_024,
        epochs=4,
        minibatches=256,
        optimizer=AdamW(learning_rate=3e-4, beta2=0.999, eps=1e-5),
        schedule=Constant(),
        discount=0.999,
        trace=0.98,
        entropy_weight=0.01,
        value_clip=None,
    )


def ppo_continuous_lunarlander() -> PPOConfig:
    """PPO on LunarLander with continuous engines, which needs the extra box2d."""
    return replace(ppo_lunarlander(), env="LunarLanderContinuous-v3")


def a2c() -> A2CConfig:
    """A2C on any environment: --env ID."""
    return A2CConfig()


def reinforce() -> REINFORCEConfig:
    """REINFORCE with a learned baseline on any environment: --env ID."""
    return REINFORCEConfig()


def dqn() -> DQNConfig:
    """DQN on any environment with Discrete actions: --env ID."""
    return DQNConfig()


def dqn_cartpole() -> DQNConfig:
    """DQN on CartPole, with RL Zoo's numbers."""
    return DQNConfig(
        env="CartPole-v1",
        env_steps=50_000,
        envs=1,
        optimizer=AdamW(learning_rate=2.3e-3, beta2=0.999),
        exploration=Annealed(1.0, 0.04, 8_000),
        train_every=256,
        updates_per_train=128,
        target_every=10,
    )


def dqn_mountaincar() -> DQNConfig:
    """DQN on MountainCar, double and over 5 steps: at the top in some 100 steps.

    RL Zoo's numbers but for a memory of 50,000, a smaller rate and network, and more evaluations:
    the rare first successes spread over five steps at once and are not forgotten.
    """
    return DQNConfig(
        env="MountainCar-v0",
        env_steps=120_000,
        envs=1,
        network=QNetworkConfig(hidden=(64, 64)),
        targets=DoubleQLearning(),
        replay=Uniform(capacity=50_000),
        n_step=5,
        optimizer=AdamW(learning_rate=1e-3, beta2=0.999),
        exploration=Annealed(1.0, 0.07, 24_000),
        train_every=16,
        updates_per_train=8,
        batch_size=128,
        target_every=600,
        discount=0.98,
        eval_every=3_000,
        eval_episodes=50,
    )


def rainbow_cartpole() -> DQNConfig:
    """All parts of Rainbow on CartPole: double, dueling, prioritized, 3 steps, C51, noisy."""
    network = QNetworkConfig(
        hidden=(128,),
        values=CategoricalValues(atoms=51, low=0.0, high=100.0),
        dueling=Dueling(hidden=(128,)),
        noise=FactorisedNoise(),
    )
    return replace(
        dqn_cartpole(),
        network=network,
        targets=DoubleQLearning(),
        replay=Prioritized(),
        n_step=3,
        optimizer=AdamW(learning_rate=1e-3, beta2=0.999),
        exploration=Always(0.0),
        env_steps=30_000,
    )


def sac() -> SACConfig:
    """SAC on any environment, Box or Discrete actions: --env ID."""
    return SACConfig()


def sac_pendulum() -> SACConfig:
    """SAC on Pendulum: upright after 5,000 steps."""
    return SACConfig(
        env="Pendulum-v1", env_steps=20_000, optimizer=AdamW(learning_rate=1e-3, beta2=0.999)
    )


def td3() -> TD3Config:
    """TD3 on any environment with Box actions: --env ID."""
    return TD3Config()


def td3_pendulum() -> TD3Config:
    """TD3 on Pendulum, with RL Zoo's numbers."""
    return TD3Config(
        env="Pendulum-v1",
        env_steps=20_000,
        replay=Uniform(capacity=200_000),
        learning_starts=10_000,
        discount=0.98,
    )
