"""Recipes shortened to seconds: what they leave earns more than chance does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from launch.optimizers import AdamW
from launch.runtime import Runtime
from rl import dqn, ppo, recipes, sac, td3
from rl.actor_critic import TwinQConfig
from rl.agent import AgentConfig
from rl.envs import make_env
from rl.evaluation import evaluate
from rl.layers import UniformFanIn
from rl.networks import Dueling, MLPConfig
from rl.value_laws import CategoricalValues

ACTOR = MLPConfig(hidden=(64, 64), activation="relu", initialisation=UniformFanIn())
CRITIC = TwinQConfig(hidden=(64, 64))
SOON: dict[str, Any] = {"batch_size": 64, "actor": ACTOR, "critic": CRITIC}
PENDULUM: dict[str, Any] = {**SOON, "env_steps": 3_000, "eval_every": 1_000, "learning_starts": 500}
PENDULUM |= {"discount": 0.95, "follow": 0.02, "optimizer": AdamW(learning_rate=2e-3, beta2=0.999)}

Case = tuple[Callable[[Any, Runtime], Any], AgentConfig, float]


def rainbow_cartpole() -> Case:
    recipe = recipes.rainbow_cartpole()
    network = replace(
        recipe.network,
        hidden=(64,),
        values=CategoricalValues(atoms=21, low=0.0, high=100.0),
        dueling=Dueling(hidden=(32,)),
    )
    cfg = replace(
        recipe,
        env_steps=6_000,
        envs=4,
        network=network,
        train_every=64,
        updates_per_train=16,
        learning_starts=500,
        eval_every=2_000,
    )
    return dqn.train, cfg, 100.0


def sac_discrete() -> Case:
    cfg = replace(
        recipes.sac(),
        **SOON,
        env="CartPole-v1",
        env_steps=4_000,
        train_every=2,
        learning_starts=500,
        optimizer=AdamW(learning_rate=2e-3, beta2=0.999),
        eval_every=1_000,
    )
    return sac.train, cfg, 60.0


def sac_pendulum() -> Case:
    return sac.train, replace(recipes.sac_pendulum(), **PENDULUM), -700.0


def td3_pendulum() -> Case:
    return td3.train, replace(recipes.td3_pendulum(), **PENDULUM, exploration=0.3), -700.0


def ppo_continuous_lunarlander() -> Case:
    cfg = replace(
        recipes.ppo_continuous_lunarlander(),
        env_steps=49_152,
        rollout_steps=128,
        epochs=8,
        minibatches=16,
        optimizer=AdamW(learning_rate=1e-3, beta2=0.999, eps=1e-5),
        eval_every=8_192,
    )
    return ppo.train, cfg, -100.0


CASES = (rainbow_cartpole, sac_discrete, sac_pendulum, td3_pendulum, ppo_continuous_lunarlander)


class Chance:
    """Draws every action from the space."""

    def __init__(self, env: str) -> None:
        self.space = make_env(env).action_space
        self.space.seed(0)

    def act(self, observations: np.ndarray, deterministic: bool = True) -> np.ndarray:
        return np.stack([self.space.sample() for _ in observations])


@pytest.mark.parametrize("case", CASES)
def test_short_recipe_learns_beyond_chance(case: Callable[[], Case]) -> None:
    train, cfg, least = case()
    chance = evaluate(Chance(cfg.env), cfg.env, episodes=50, seed=1)
    standard_error = chance.std() / np.sqrt(50)
    assert chance.mean() + 5 * standard_error < least
    assert evaluate(train(cfg, Runtime()), cfg.env, episodes=50, seed=1).mean() > least
