from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from launch.metrics import Metric
from launch.optimizers import AdamW
from launch.runtime import Runtime
from rl.dqn import DoubleQLearning, DQNConfig, QLearning, train
from rl.evaluation import evaluate
from rl.exploration import Constant, Linear
from rl.memory import Prioritized
from rl.networks import Dueling, FactorisedNoise, Network, QNetworkConfig
from rl.value_laws import CategoricalValues, QuantileValues


class Logged(Runtime):
    """Keeps what is logged."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.records: list[dict[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, Metric]) -> dict[str, float]:
        self.records.append(super().log(step, metrics))
        return self.records[-1]


@dataclass(frozen=True)
class SGD:
    """Plain gradient descent, so that an update can be worked out."""

    learning_rate: float

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


class Again(gymnasium.Env[np.ndarray, int]):
    """Leads from 1 to 2 for a reward of 3, and there the episode is cut off, or ends."""

    observation_space = spaces.Box(0.0, 2.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, ends: bool = False) -> None:
        self.ends = ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> Any:  # noqa: ANN401
        return np.full(1, 2.0, np.float32), 3.0, self.ends, not self.ends, {}


def ending() -> Again:
    return Again(ends=True)


LINEAR = QNetworkConfig(hidden=())
ONE = DQNConfig(  # greedy from the start, so every transition is the same one
    env=Again,
    env_steps=2,
    envs=1,
    network=LINEAR,
    optimizer=SGD(0.1),
    exploration=Constant(0.0),
    train_every=2,
    updates_per_train=1,
    batch_size=2,
    target_every=1_000,
    learning_starts=0,
    discount=0.5,
    max_grad_norm=None,
)


def layer(network: Network) -> nn.Linear:
    """Return the only layer of a linear network."""
    (found,) = [x for x in network.modules() if isinstance(x, nn.Linear)]
    return found


def beginning(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return weights ``(2,)`` and biases ``(2,)`` of the network before any update."""
    streams = Runtime(seed=seed)
    streams.key_by(ONE.seed)
    network = LINEAR.build(Again.observation_space, 2, streams.stream("network"))
    weight, bias = layer(network).weight.detach(), layer(network).bias.detach()
    return weight[:, 0].numpy(), bias.numpy()


@pytest.mark.parametrize(("env", "discount"), [(Again, 0.5), (ending, 0.0)])
def test_update_is_the_one_worked_out_by_hand(env: Any, discount: float) -> None:  # noqa: ANN401
    # Q(x) = w x + b. A cut-off episode bootstraps from 2, one that has ended does not:
    # y = 3 + discount max_a Q(2), error e = Q(1)_a - y, Huber's slope s = clip(e, -1, 1).
    w, b = beginning()
    a = int((w + b).argmax())
    e = (w + b)[a] - (3 + discount * (2 * w + b).max())
    assert e < -1
    run = Logged()
    policy = train(replace(ONE, env=env), run)
    record = run.records[-1]
    assert record["loss"] == pytest.approx(-e - 0.5, rel=1e-6)
    assert record["q"] == pytest.approx((w + b)[a], rel=1e-6)
    assert record["grad_norm"] == pytest.approx(np.sqrt(2), rel=1e-6)  # slope -1 in w_a and b_a
    w[a] += 0.1
    b[a] += 0.1
    np.testing.assert_allclose(layer(policy.network).weight.detach().numpy()[:, 0], w, rtol=1e-6)
    np.testing.assert_allclose(layer(policy.network).bias.detach().numpy(), b, rtol=1e-6)


class Forced(Again):
    """Allows action 0 alone, until the episode is cut off."""

    def action_masks(self) -> np.ndarray:
        return np.array([True, False])


def simulated(seed: int, double: bool, target_every: int) -> list[float]:
    """Return w and b after two rounds of 25 updates on action 0, in numpy."""
    w, b = beginning(seed)
    target = w.copy(), b.copy()
    for update in range(50):
        if update == 25 and target_every == 2:
            target = w.copy(), b.copy()
        following = 2 * target[0] + target[1]
        best = int((2 * w + b).argmax()) if double else int(following.argmax())
        slope = np.clip(w[0] + b[0] - (3 + 0.5 * following[best]), -1, 1)
        w[0] -= 0.1 * slope
        b[0] -= 0.1 * slope
    return [*w.tolist(), *b.tolist()]


SEED = 2  # the target network prefers action 1 in 2, and the updates raise action 0


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("target_every", [2, 1_000])
def test_next_action_is_valued_by_the_copy_and_selected_as_asked(
    double: bool, target_every: int
) -> None:
    cfg = replace(
        ONE,
        env=Forced,
        env_steps=4,
        updates_per_train=25,
        target_every=target_every,
        targets=DoubleQLearning() if double else QLearning(),
    )
    head = layer(train(cfg, Logged(SEED)).network)
    found = torch.cat([head.weight[:, 0], head.bias]).tolist()
    assert found == pytest.approx(simulated(SEED, double, target_every), rel=1e-5)
    assert found != pytest.approx(simulated(SEED, not double, target_every), rel=1e-2)
    assert found != pytest.approx(simulated(SEED, double, 1_002 - target_every), rel=1e-2)


def test_epsilon_falls_over_the_env_steps_after_the_random_ones() -> None:
    cfg = DQNConfig(
        env="CartPole-v1",
        env_steps=800,
        envs=2,
        network=LINEAR,
        exploration=Linear(1.0, 0.0, 800),
        learning_starts=300,
        eval_episodes=1,
    )
    run = Logged()
    policy = train(cfg, run)
    assert [r["epsilon"] for r in run.records] == [1.0, 0.5, 0.25, 0.0]
    assert [r["env_steps"] for r in run.records] == [200, 400, 600, 800]
    assert policy.exploration == 0.0


class Corridor(gymnasium.Env[np.ndarray, int]):
    """Six cells in a row, begun in the second; the last one pays 1, the first one .1."""

    observation_space = spaces.Box(0.0, 1.0, (6,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        self.cell = 1
        return self._see(), {}

    def step(self, action: int) -> Any:  # noqa: ANN401
        self.cell += 1 if action else -1
        reward = {0: 0.1, 5: 1.0}.get(self.cell, 0.0)
        return self._see(), reward, reward > 0, False, {}

    def _see(self) -> np.ndarray:
        return np.eye(6, dtype=np.float32)[self.cell]


LEARNING = DQNConfig(
    env=Corridor,
    env_steps=1_600,
    envs=8,
    network=QNetworkConfig(hidden=(32,)),
    optimizer=AdamW(learning_rate=1e-2, beta2=0.999),
    exploration=Linear(1.0, 0.2, 1_000),
    target_every=64,
    learning_starts=160,
    batch_size=32,
    discount=0.9,
    max_episode_steps=30,
    eval_episodes=1,
)
ATOMS = CategoricalValues(atoms=21, low=0.0, high=1.0)
PARTS = {
    "plain": LEARNING,
    "double, dueling, prioritized, 3 steps": replace(
        LEARNING,
        targets=DoubleQLearning(),
        network=QNetworkConfig(hidden=(32,), dueling=Dueling(hidden=(16,))),
        replay=Prioritized(capacity=2_000, beta=Linear(0.4, 1.0, 1_600)),
        n_step=3,
        exploration=Linear(1.0, 0.02, 600),  # detours of three steps bias what is learned
    ),
    "atoms, noisy": replace(
        LEARNING,
        network=QNetworkConfig(hidden=(32,), values=ATOMS, noise=FactorisedNoise()),
        exploration=Constant(0.1),
    ),
    "quantiles": replace(
        LEARNING, network=QNetworkConfig(hidden=(32,), values=QuantileValues(atoms=11))
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_values_of_a_corridor_are_learned_by_every_part(name: str) -> None:
    # From cell c to the end it is 5 - c steps: Q(c, right) = .9^(4 - c). Back from 1: .1.
    policy = train(PARTS[name], Logged())
    assert evaluate(policy, Corridor, episodes=1, max_episode_steps=30).tolist() == [1.0]
    with torch.no_grad():
        outputs = policy.network.eval()(torch.eye(6)[1:5])
        q_values = PARTS[name].network.values.mean(outputs)
    expected = torch.tensor([0.9**3, 0.9**2, 0.9, 1.0])
    torch.testing.assert_close(q_values[:, 1], expected, atol=0.08, rtol=0)
    assert (q_values[:, 0] < q_values[:, 1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_step": 0}, "n_step=0: give at least 1"), ({"target_every": 0}, "target_every=0")],
)
def test_number_below_one_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DQNConfig(env="CartPole-v1", **changes)  # type: ignore[arg-type]  # counts alone
