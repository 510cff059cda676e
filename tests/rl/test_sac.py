from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import scipy.stats
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
from rl.sac import AutomaticTemperature, FixedTemperature, SACConfig, train


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


class Aim(gymnasium.Env[np.ndarray, Any]):
    """One step: pays for hitting 2 x + 1, or among three actions the third that x lies in."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space: Any = spaces.Box(-2.0, 4.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, {}

    def step(self, action: Any) -> Any:  # noqa: ANN401
        return self.x, self._pay(action), True, False, {}

    def _pay(self, action: Any) -> float:  # noqa: ANN401
        return -float((action[0] - 2 * self.x[0] - 1) ** 2)


class Choose(Aim):
    action_space = spaces.Discrete(3, start=5)

    def _pay(self, action: Any) -> float:  # noqa: ANN401
        return float(action - 5 == int(self.x[0] > -0.33) + int(self.x[0] > 0.33))


class Indifferent(Aim):
    """Pays nothing; only entropy is left to be wanted."""

    action_space = spaces.Discrete(4)

    def _pay(self, action: Any) -> float:  # noqa: ANN401
        return 0.0


SMALL = MLPConfig(hidden=(32,), activation="relu", initialisation=UniformFanIn())
LEARNING = SACConfig(
    env=Aim,
    env_steps=1_200,
    train_every=2,
    actor=SMALL,
    critic=TwinQConfig(hidden=(32,)),
    optimizer=AdamW(learning_rate=1e-2, beta2=0.999),
    batch_size=64,
    eval_every=1_200,
)


def test_actions_of_a_box_are_learned_to_a_hundredth() -> None:
    # At random it is E(a - 2x - 1)^2 = 3 + 4/3 on average.
    policy = train(LEARNING, Logged())
    assert -0.05 < evaluate(policy, Aim, episodes=50).mean() <= 0


def test_discrete_actions_are_learned() -> None:
    temperature = AutomaticTemperature(entropy=0.2)
    policy = train(replace(LEARNING, env=Choose, temperature=temperature), Logged())
    assert evaluate(policy, Choose, episodes=50).mean() >= 0.9


@pytest.mark.parametrize(("aim", "falls"), [(0.5, True), (2.0, False)])
def test_temperature_falls_while_the_policy_is_more_random_than_it_has_to_be(
    aim: float, falls: bool
) -> None:
    # With equal rewards the policy is uniform whatever the temperature: log 4 = 1.39 nats.
    cfg = replace(LEARNING, env=Indifferent, temperature=AutomaticTemperature(entropy=aim))
    run = Logged()
    train(cfg, run)
    first, *_, last = run.records
    assert last["entropy"] == pytest.approx(math.log(4), abs=0.02)
    assert (last["temperature"] < 0.2 * first["temperature"]) is falls
    assert (last["temperature"] > 3 * first["temperature"]) is not falls


def test_fixed_temperature_stays() -> None:
    run = Logged()
    train(replace(LEARNING, env_steps=400, temperature=FixedTemperature(value=0.25)), run)
    assert [r["temperature"] for r in run.records] == [0.25, 0.25]


class CutOff(Aim):
    """Leads from 1 to 2 for a reward of 3, and is cut off there."""

    observation_space = spaces.Box(0.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:  # noqa: ANN401
        return np.full(1, 2.0, np.float32), 3.0, False, True, {}


def linear(network: nn.Module) -> tuple[np.ndarray, float | np.ndarray]:
    """Return weights and biases of the only layer, in double precision."""
    (found,) = [x for x in network.modules() if isinstance(x, nn.Linear)]
    return found.weight.detach().double().numpy(), found.bias.detach().double().numpy()


def squashed(actor: Any, x: float, normal: float) -> tuple[float, float]:  # noqa: ANN401 two arrays
    """Return tanh(u) and its log-density, u drawn by a linear actor that sees ``x``."""
    mean, log_std = actor[0][:, 0] * x + actor[1]
    u = mean + math.exp(log_std) * normal
    slope = 1 - math.tanh(u) ** 2
    return math.tanh(u), scipy.stats.norm.logpdf(u, mean, math.exp(log_std)) - math.log(slope)


def test_update_is_the_one_worked_out_by_hand() -> None:
    # One step, and one update on it. Linear networks: Q(x, a) = w x + v a + b.
    rate, alpha, discount = 0.1, 0.5, 0.9
    cfg = SACConfig(
        env=CutOff,
        env_steps=1,
        actor=MLPConfig(hidden=(), initialisation=UniformFanIn()),
        critic=TwinQConfig(hidden=()),
        temperature=AutomaticTemperature(value=alpha),
        optimizer=SGD(rate),
        batch_size=1,
        learning_starts=1,
        discount=discount,
    )
    run, streams = Logged(), Runtime()
    streams.key_by(cfg.seed)
    actor = linear(cfg.actor.build(CutOff.observation_space, 2, streams.stream("network")))
    critics = cfg.critic.build(
        CutOff.observation_space, CutOff.action_space, streams.stream("critics")
    )
    drawn = torch.randn((1, 1, 1), generator=streams.stream("actions", 1)).item()
    action = math.erf(drawn / math.sqrt(2))
    now, then = torch.randn((2, 1, 1), generator=streams.stream("update", 1)).flatten().tolist()

    qs = [linear(critics.first), linear(critics.second)]

    def value(q: Any, x: float, a: float) -> float:  # noqa: ANN401 weights and bias
        return float(q[0][0] @ [x, a] + q[1][0])

    a, log_prob = squashed(actor, 2.0, then)
    target = 3 + discount * (min(value(q, 2.0, a) for q in qs) - alpha * log_prob)
    errors = [value(q, 1.0, action) - target for q in qs]
    first = value(qs[0], 1.0, action)
    inputs = np.array([1.0, action])
    for (w, b), e in zip(qs, errors, strict=True):
        w -= rate * e * inputs
        b -= rate * e

    def actor_loss(weights: np.ndarray) -> float:
        a, log_prob = squashed((weights[:2, None], weights[2:]), 1.0, now)
        return alpha * log_prob - min(value(q, 1.0, a) for q in qs)

    weights = np.concatenate([actor[0][:, 0], actor[1]])
    steps = 1e-6 * np.eye(4)
    gradient = np.array([actor_loss(weights + h) - actor_loss(weights - h) for h in steps]) / 2e-6
    entropy = -squashed(actor, 1.0, now)[1]

    policy = train(cfg, run)
    record = run.records[-1]
    assert record["loss"] == pytest.approx(0.5 * sum(e * e for e in errors), rel=1e-5)
    assert record["q"] == pytest.approx(first, rel=1e-5)
    norm = math.sqrt(sum(e * e * (2 + action * action) for e in errors))
    assert record["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert record["loss/actor"] == pytest.approx(actor_loss(weights), rel=1e-5)
    assert record["entropy"] == pytest.approx(entropy, rel=1e-5)
    aim = -1.0
    expected = math.exp(math.log(alpha) - rate * (entropy - aim))
    assert record["temperature"] == pytest.approx(expected, rel=1e-5)
    w, b = linear(policy.network)
    np.testing.assert_allclose([*w[:, 0], *b], weights - rate * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutomaticTemperature(value=0.0), "value=0.0: a temperature that moves"),
        (lambda: FixedTemperature(value=-1.0), "value=-1.0: a temperature is"),
        (lambda: SACConfig(env="Pendulum-v1", follow=1.5), "follow=1.5: it lies between 0 and 1"),
    ],
)
def test_number_out_of_range_is_refused(make: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        make()
