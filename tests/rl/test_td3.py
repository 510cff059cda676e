from __future__ import annotations

import math
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
from rl.actor_critic import TwinQConfig
from rl.evaluation import evaluate
from rl.layers import UniformFanIn
from rl.networks import MLPConfig
from rl.td3 import TD3Config, train


class Logged(Runtime):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
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


class Aim(gymnasium.Env[np.ndarray, np.ndarray]):
    """One step, which pays for hitting 2 x + 1."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-2.0, 4.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, {}

    def step(self, action: np.ndarray) -> Any:  # noqa: ANN401
        return self.x, -float((action[0] - 2 * self.x[0] - 1) ** 2), True, False, {}


class CutOff(Aim):
    """Leads from 1 to 2 for a reward of 3, and is cut off there; remembers what was done."""

    observation_space = spaces.Box(0.0, 2.0, (1,), np.float32)

    def __init__(self) -> None:
        self.taken: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:  # noqa: ANN401
        self.taken.append(float(action[0]))
        return np.full(1, 2.0, np.float32), 3.0, False, True, {}


def test_actions_are_learned_to_a_hundredth() -> None:
    # At random it is E(a - 2x - 1)^2 = 3 + 4/3 on average.
    cfg = TD3Config(
        env=Aim,
        env_steps=1_200,
        train_every=2,
        actor=MLPConfig(hidden=(32,), activation="relu", initialisation=UniformFanIn()),
        critic=TwinQConfig(hidden=(32,)),
        optimizer=AdamW(learning_rate=1e-2, beta2=0.999),
        batch_size=64,
        learning_starts=200,
        eval_every=1_200,
    )
    policy = train(cfg, Logged())
    assert -0.05 < evaluate(policy, Aim, episodes=50).mean() <= 0


ONE = TD3Config(  # one step, and one update on it
    env=CutOff,
    env_steps=1,
    actor=MLPConfig(hidden=(), initialisation=UniformFanIn()),
    critic=TwinQConfig(hidden=()),
    optimizer=SGD(0.1),
    batch_size=1,
    learning_starts=1,
    discount=0.9,
    smoothing=1.0,
    smoothing_clip=0.3,
    policy_delay=1,
)


def stream(name: str, step: int = 0) -> torch.Generator:
    """Return what a run of ``ONE`` draws from."""
    run = Runtime()
    run.key_by(ONE.seed)
    return run.stream(name, step)


def linear(network: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and biases of the only layer, in double precision."""
    (found,) = [x for x in network.modules() if isinstance(x, nn.Linear)]
    return found.weight.detach().double().numpy(), found.bias.detach().double().numpy()


def beginning() -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Return the layer of the actor, and those of both critics, before any update."""
    actor = ONE.actor.build(CutOff.observation_space, 1, stream("network"))
    critics = ONE.critic.build(CutOff.observation_space, CutOff.action_space, stream("critics"))
    return linear(actor), [linear(critics.first), linear(critics.second)]


def test_update_is_the_one_worked_out_by_hand() -> None:
    # Linear networks: pi(x) = tanh(w x + b), Q(x, a) = (w, v) (x, a) + c.
    (w, b), qs = beginning()
    drawn = torch.randn((1, 1, 1), generator=stream("actions", 1)).item()
    action = math.erf(drawn / math.sqrt(2))
    noise = torch.randn((1, 1), generator=stream("smoothing", 1)).item()

    def value(q: tuple[np.ndarray, np.ndarray], x: float, a: float) -> float:
        return float(q[0][0] @ [x, a] + q[1][0])

    following = math.tanh(float(w[0, 0] * 2 + b[0])) + float(np.clip(noise, -0.3, 0.3))
    following = float(np.clip(following, -1, 1))
    target = 3 + 0.9 * min(value(q, 2.0, following) for q in qs)
    errors = [value(q, 1.0, action) - target for q in qs]
    first = value(qs[0], 1.0, action)
    # The gradient of the sum of both squares; then the actor climbs the first critic.
    slope = float(qs[0][0][0, 1]) - 0.1 * 2 * errors[0] * action
    pi = math.tanh(float(w[0, 0] + b[0]))
    climb = 0.1 * slope * (1 - pi * pi)

    run = Logged()
    policy = train(ONE, run)
    record = run.records[-1]
    assert record["loss"] == pytest.approx(sum(e * e for e in errors), rel=1e-5)
    assert record["q"] == pytest.approx(first, rel=1e-5)
    found_w, found_b = linear(policy.network)
    assert found_w[0, 0] == pytest.approx(w[0, 0] + climb, rel=1e-5)
    assert found_b[0] == pytest.approx(b[0] + climb, rel=1e-5)
    moved = (
        qs[0][0][0] - 0.2 * errors[0] * np.array([1.0, action]),
        qs[0][1] - 0.2 * errors[0],
    )
    assert record["loss/actor"] == pytest.approx(-(moved[0] @ [1.0, pi] + moved[1][0]), rel=1e-4)


@pytest.mark.parametrize(("delay", "updates"), [(1, 4), (2, 2), (3, 1)])
def test_actor_waits_for_its_delay(delay: int, updates: int) -> None:
    # Plain gradient descent with a tiny rate: so many equal steps, to first order.
    cfg = replace(ONE, env_steps=4, policy_delay=delay, optimizer=SGD(1e-6), smoothing=0.0)
    cfg = replace(cfg, exploration=0.0)
    (w, b), qs = beginning()
    pi = math.tanh(float(w[0, 0] + b[0]))
    climb = 1e-6 * float(qs[0][0][0, 1]) * (1 - pi * pi)
    policy = train(replace(cfg, learning_starts=1), Logged())
    found = linear(policy.network)[1][0] - b[0]
    assert found == pytest.approx(updates * climb, rel=0.2)


def test_actions_are_random_and_then_the_policys_with_noise() -> None:
    made: list[CutOff] = []

    def env() -> CutOff:
        made.append(CutOff())
        return made[-1]

    cfg = replace(ONE, env=env, env_steps=6, learning_starts=3, exploration=0.25, eval_every=6)
    cfg = replace(cfg, optimizer=SGD(1e-30))
    train(cfg, Logged())
    (w, b), _ = beginning()
    normals = torch.randn((6, 1, 1), generator=stream("actions", 1)).flatten().double()
    pi = math.tanh(float(w[0, 0] + b[0]))
    unit = [math.erf(x / math.sqrt(2)) for x in normals[:3]]
    unit += [float(np.clip(pi + 0.25 * x, -1, 1)) for x in normals[3:].tolist()]
    expected = [1 + 3 * u for u in unit]  # from [-1, 1] to [-2, 4]
    np.testing.assert_allclose(made[0].taken, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_delay": 0}, "policy_delay=0: give at least 1"),
        ({"exploration": -0.1}, "exploration=-0.1: give 0 or a share of half the Box"),
        ({"smoothing_clip": math.inf}, "smoothing_clip=inf"),
        ({"follow": -0.1}, "follow=-0.1: it lies between 0 and 1"),
    ],
)
def test_number_out_of_range_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TD3Config(env="Pendulum-v1", **changes)  # type: ignore[arg-type]  # numbers alone
