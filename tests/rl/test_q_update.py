from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from rl import dqn
from rl.exploration import Constant
from rl.huber_kernel import huber_slopes
from rl.memory import Prioritized
from rl.networks import Dueling, FactorisedNoise, Network, QNetworkConfig
from rl.q_losses import of_actions, q_losses
from rl.q_update import QUpdate, can_write_out
from rl.value_laws import ExpectedValues, QuantileValues

VECTOR = spaces.Box(-1.0, 1.0, (2, 3))
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def build(config: QNetworkConfig, space: spaces.Space = VECTOR) -> Network:
    return config.build(space, 4, torch.Generator().manual_seed(1))


def batch(seed: int) -> Batch:
    """Return observations, actions, targets with errors on both sides of 1, and weights."""
    g = torch.Generator().manual_seed(seed)
    observations, actions = torch.randn(50, 2, 3, generator=g), torch.randint(4, (50,), generator=g)
    return observations, actions, 2 * torch.randn(50, generator=g), torch.rand(50, generator=g) / 50


def readable_loss(network: Network, rows: Batch) -> tuple[Tensor, Tensor]:
    observations, actions, targets, weights = rows
    chosen = of_actions(network(observations), actions)
    return (weights * q_losses(ExpectedValues(), chosen, targets)).sum(), chosen


@pytest.mark.parametrize("hidden", [(), (8,), (64, 8), (8, 8, 8)])
def test_gradients_equal_those_of_autograd(hidden: tuple[int, ...]) -> None:
    network, rows = build(QNetworkConfig(hidden=hidden)), batch(0)
    update = QUpdate(network, AdamW().build(network), None)
    numbers, chosen = [x.numpy() for x in rows[1:]], np.empty(50, np.float32)
    with torch.no_grad():
        loss = update.differentiate(rows[0].flatten(1), *numbers, chosen)
    expected, q_values = readable_loss(network, rows)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(torch.from_numpy(chosen), q_values.detach())
    for gradient, parameter in zip(update.gradients, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


def test_compiled_huber_loss_is_the_readable_one_and_that_of_a_hand_worked_case() -> None:
    # Errors 1/2, 3 and -2 of weights 1, 2, 1: 1/8 + 2 * 5/2 + 3/2.
    q_values = np.array([[0.5, 9.0], [9.0, 4.0], [-1.0, 9.0]], np.float32)
    targets, weights = np.array([0.0, 1.0, 1.0], np.float32), np.array([1.0, 2.0, 1.0], np.float32)
    for function in (huber_slopes, huber_slopes.py_func):
        slopes, chosen = np.full((3, 2), 7.0, np.float32), np.empty(3, np.float32)
        loss = function(q_values, np.array([0, 1, 0]), targets, weights, slopes, chosen)
        assert loss == 6.625
        assert slopes.tolist() == [[0.5, 0.0], [0.0, 2.0], [-1.0, 0.0]]
        assert chosen.tolist() == [0.5, 4.0, -1.0]


@pytest.mark.parametrize("max_norm", [None, 0.05, 100.0])
def test_updates_equal_those_of_runtime_and_optimizer(max_norm: float | None) -> None:
    config = AdamW(learning_rate=1e-2, beta2=0.999)
    run, networks = Runtime(), [build(QNetworkConfig(hidden=(16, 8))) for _ in range(2)]
    optimizers = [config.build(network) for network in networks]
    update = QUpdate(networks[1], optimizers[1], max_norm)
    for network, optimizer in zip(networks, optimizers, strict=True):
        run.backward(readable_loss(network, batch(0))[0])
        run.step(optimizer, max_norm)
    assert update.ready
    for seed in range(1, 30, 3):
        figures = []
        for rows in map(batch, range(seed, seed + 3)):
            loss, chosen = readable_loss(networks[0], rows)
            run.backward(loss)
            norm = run.step(optimizers[0], max_norm)
            figures.append(torch.stack([run.loss, norm, chosen.detach().mean()]))
        made, chosen = update(
            *map(torch.cat, zip(*map(batch, range(seed, seed + 3)), strict=True)), 50
        )
        torch.testing.assert_close(made, torch.stack(figures), rtol=1e-4, atol=1e-5)
        assert chosen.view(3, 50).mean(1).tolist() == pytest.approx(made[:, 2].tolist(), abs=1e-6)
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        first, second = optimizers[0].state[one], optimizers[1].state[other]
        assert first["step"] == second["step"] == 31
        torch.testing.assert_close(first["exp_avg_sq"], second["exp_avg_sq"], rtol=1e-3, atol=1e-9)


def test_first_update_is_left_to_the_optimizer() -> None:
    network = build(QNetworkConfig())
    assert not QUpdate(network, AdamW().build(network), None).ready


def test_updates_end_before_one_that_is_not_finite() -> None:
    networks = [build(QNetworkConfig(hidden=(8,))) for _ in range(2)]
    run, optimizers = Runtime(), [AdamW().build(network) for network in networks]
    for network, optimizer in zip(networks, optimizers, strict=True):
        run.backward(readable_loss(network, batch(0))[0])
        run.step(optimizer)
    observations, actions, targets, weights = batch(1)
    targets[27] = torch.nan  # in the third of five parts
    rows = observations, actions, targets, weights
    made, chosen = QUpdate(networks[0], optimizers[0], 1.0)(*rows, 10)
    assert made.shape == (2, 3)
    assert chosen.shape == (20,)
    QUpdate(networks[1], optimizers[1], 1.0)(*(x[:20] for x in rows), 10)
    pairs = zip(networks[0].parameters(), networks[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_training_that_leaves_the_finite_says_at_which_step() -> None:
    cfg = dqn.DQNConfig(
        env="CartPole-v1",
        env_steps=2_000,
        learning_starts=16,
        optimizer=AdamW(learning_rate=1e30),
    )
    with pytest.raises(UsageError, match=r"step 1: .* is not finite"):
        dqn.train(cfg, Runtime())


@pytest.mark.parametrize(
    "changes",
    [{}, {"replay": Prioritized(capacity=500), "n_step": 3, "targets": dqn.DoubleQLearning()}],
)
def test_training_with_it_is_training_without_it(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random actions: rounding cannot lead the two to other places.
    cfg = dqn.DQNConfig(
        env="CartPole-v1",
        env_steps=400,
        envs=4,
        network=QNetworkConfig(hidden=(16,)),
        exploration=Constant(1.0),
        learning_starts=100,
        target_every=40,
        eval_every=400,
        eval_episodes=1,
    )
    cfg, made = replace(cfg, **changes), []
    monkeypatch.setattr(QUpdate, "__call__", counted(made, QUpdate.__call__))
    policies = [dqn.train(cfg, Runtime())]
    updates = sum(made)
    assert updates > 100
    monkeypatch.setattr(dqn, "can_write_out", lambda *_: False)
    policies.append(dqn.train(cfg, Runtime()))
    assert sum(made) == updates
    pairs = zip(*(policy.network.parameters() for policy in policies), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def counted(made: list[int], call: Any) -> Any:  # noqa: ANN401
    def counting(*given: Any) -> Any:  # noqa: ANN401
        figures, chosen = call(*given)
        made.append(len(figures))
        return figures, chosen

    return counting


@pytest.mark.parametrize(
    ("config", "space"),
    [
        (QNetworkConfig(activation="tanh"), VECTOR),
        (QNetworkConfig(dueling=Dueling(hidden=(8,))), VECTOR),
        (QNetworkConfig(noise=FactorisedNoise()), VECTOR),
        (QNetworkConfig(values=QuantileValues(atoms=3)), VECTOR),
        (QNetworkConfig(), spaces.Discrete(3)),
        (QNetworkConfig(), spaces.Box(0, 255, (36, 36, 3), np.uint8)),
    ],
)
def test_other_networks_are_left_to_the_readable_twin(
    config: QNetworkConfig, space: spaces.Space
) -> None:
    network = build(config, space)
    assert not can_write_out(network, AdamW().build(network))


def test_other_numbers_and_optimizers_are_left_to_the_readable_twin() -> None:
    network = build(QNetworkConfig())
    assert can_write_out(network, AdamW().build(network))
    assert not can_write_out(network, AdamW(weight_decay=0.1).build(network))  # of matrices alone
    assert not can_write_out(network, torch.optim.SGD(network.parameters(), lr=0.1))
    assert not can_write_out(network, torch.optim.AdamW(network.parameters(), amsgrad=True))
    double = build(QNetworkConfig()).double()
    assert not can_write_out(double, AdamW().build(double))
