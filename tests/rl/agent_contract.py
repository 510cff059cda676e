"""Trains every on-policy agent a little: ``python agent_contract.py OUTPUT``, on any processes."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from rl import a2c, ppo, reinforce
from rl.actor_critic import SeparateTrunks
from rl.agent import AgentConfig
from rl.on_policy import ObservationScaling, RewardScaling

Env = gymnasium.Env[Any, Any]


class Walk(gymnasium.Env[np.ndarray, Any]):
    """A random walk with a push: ends beyond 3, is cut off after 9 steps, may forbid an action."""

    def __init__(self, action_space: Any = None, masked: bool = False) -> None:  # noqa: ANN401
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space or spaces.Discrete(3, start=-1)
        self.masked = masked

    def action_masks(self) -> np.ndarray | None:
        return np.array([self.place > -1, True, self.place < 2]) if self.masked else None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.normal(), 0
        return self._see(), {}

    def step(self, action: Any) -> Any:  # noqa: ANN401
        push = float(np.sum(action))
        if self.masked:
            assert self.action_masks()[int(push) + 1]  # type: ignore[index]  # it is masked
        self.place += 0.5 * push + 0.3 * self.np_random.normal()
        self.steps += 1
        ended, late = abs(self.place) > 3, self.steps >= 9
        return self._see(), -abs(self.place - 1) - 5.0 * ended, bool(ended), late, {}

    def _see(self) -> np.ndarray:
        return np.array([self.place, self.steps], np.float32)


def masked_walk() -> Env:
    return Walk(masked=True)


def box_walk() -> Env:
    return Walk(spaces.Box(-2.0, 2.0, (2,), np.float32))


SHARED: dict[str, Any] = {
    "env_steps": 540,
    "envs": 3,
    "eval_episodes": 3,
    "network": SeparateTrunks(hidden=(16,)),
    "observations": ObservationScaling(),
    "rewards": RewardScaling(),
    "runtime": RuntimeConfig(threads=1),
}
PPO: dict[str, Any] = {"rollout_steps": 25, "optimizer": AdamW(learning_rate=3e-3)}
JOBS: dict[str, tuple[AgentConfig, Any]] = {
    "ppo-cartpole": (ppo.PPOConfig(env="CartPole-v1", **SHARED, **PPO), ppo.train),
    "ppo-masked": (ppo.PPOConfig(env=masked_walk, micro_batch=7, **SHARED, **PPO), ppo.train),
    "ppo-box": (ppo.PPOConfig(env=box_walk, max_kl=0.02, **SHARED, **PPO), ppo.train),
    "a2c": (a2c.A2CConfig(env=masked_walk, updates=4, **SHARED), a2c.train),
    "ppo-lander": (
        ppo.PPOConfig(env="LunarLander-v3", max_episode_steps=80, **SHARED, **PPO),
        ppo.train,
    ),
    "a2c-cartpole": (a2c.A2CConfig(env="CartPole-v1", updates=4, **SHARED), a2c.train),
    "reinforce": (reinforce.REINFORCEConfig(env=masked_walk, **SHARED), reinforce.train),
    "reinforce-box": (
        reinforce.REINFORCEConfig(env=box_walk, baseline=None, **SHARED),
        reinforce.train,
    ),
}


def train_all(folder: Path) -> None:
    """Train each job as a stage of one run."""
    with Runtime(RuntimeConfig(threads=1), output=folder, seed=3) as run:
        for name, (cfg, train) in JOBS.items():
            with run.stage(name) as stage:
                train(cfg, stage)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
