"""Trains every agent that learns from memory a little: ``python off_policy_contract.py OUTPUT``."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from rl import dqn, sac, td3
from rl.actor_critic import TwinQConfig
from rl.agent import AgentConfig
from rl.exploration import Constant, Linear
from rl.layers import UniformFanIn
from rl.memory import Prioritized, Uniform
from rl.networks import Dueling, FactorisedNoise, MLPConfig, QNetworkConfig
from rl.value_laws import CategoricalValues, QuantileValues

SPEC = importlib.util.spec_from_file_location(
    "agent_contract", Path(__file__).with_name("agent_contract.py")
)
assert SPEC is not None
assert SPEC.loader is not None
walks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(walks)

SHARED: dict[str, Any] = {
    "env_steps": 1_080,
    "envs": 3,
    "eval_every": 430,
    "eval_episodes": 3,
    "batch_size": 17,
    "learning_starts": 250,
    "optimizer": AdamW(learning_rate=3e-3, beta2=0.999),
    "runtime": RuntimeConfig(threads=1),
}
DQN: dict[str, Any] = {
    "train_every": 24,
    "updates_per_train": 5,
    "target_every": 100,
    "exploration": Linear(1.0, 0.1, 600),
}
PAIR: dict[str, Any] = {
    "actor": MLPConfig(hidden=(16,), activation="relu", initialisation=UniformFanIn()),
    "critic": TwinQConfig(hidden=(16,)),
    "train_every": 6,
    "updates_per_train": 2,
    "replay": Uniform(capacity=900),
}
RAINBOW = QNetworkConfig(
    hidden=(16,),
    values=CategoricalValues(atoms=11, low=-30.0, high=10.0),
    dueling=Dueling(hidden=(8,)),
    noise=FactorisedNoise(),
)
JOBS: dict[str, tuple[AgentConfig, Any]] = {
    "dqn-cartpole": (
        dqn.DQNConfig(env="CartPole-v1", network=QNetworkConfig(hidden=(16,)), **SHARED, **DQN),
        dqn.train,
    ),
    "rainbow-masked": (
        dqn.DQNConfig(
            env=walks.masked_walk,
            network=RAINBOW,
            targets=dqn.DoubleQLearning(),
            replay=Prioritized(capacity=700, beta=Linear(0.4, 1.0, 1_000)),
            n_step=3,
            **SHARED,
            **{**DQN, "exploration": Constant(0.0)},
        ),
        dqn.train,
    ),
    "quantile": (
        dqn.DQNConfig(
            env=walks.Walk,
            network=QNetworkConfig(hidden=(16,), values=QuantileValues(atoms=7)),
            n_step=2,
            **SHARED,
            **DQN,
        ),
        dqn.train,
    ),
    "sac-box": (sac.SACConfig(env=walks.box_walk, **SHARED, **PAIR), sac.train),
    "sac-masked": (sac.SACConfig(env=walks.masked_walk, **SHARED, **PAIR), sac.train),
    "td3": (td3.TD3Config(env=walks.box_walk, policy_delay=3, **SHARED, **PAIR), td3.train),
}


def train_all(folder: Path) -> None:
    """Train each job as a stage of one run."""
    with Runtime(RuntimeConfig(threads=1), output=folder, seed=3) as run:
        for name, (cfg, train) in JOBS.items():
            with run.stage(name) as stage:
                train(cfg, stage)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
