from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from launch.runtime import Runtime
from rl.a2c import A2CConfig, RMSprop, train
from rl.evaluation import evaluate
from rl.on_policy import Learner, policy_gradient_step


def test_update_follows_the_gradient_of_the_loss() -> None:
    # One step of plain descent with rate 1 moves the parameters by the gradient itself.
    cfg = A2CConfig(env="CartPole-v1", envs=3)
    descent = SimpleNamespace(build=lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    learner = Learner(
        cfg,
        Runtime(),
        network=cfg.network,
        optimizer=descent,
        discount=0.99,
        observations=None,
        rewards=None,
    )
    rollout = learner.rollout(5, 1)
    steps = rollout.steps(0.9, 1.0)
    before = {name: p.detach().clone() for name, p in learner.network.named_parameters()}

    outputs, values = learner.network(rollout.observations)
    log_probs = outputs.log_softmax(1)
    losses = [
        -log_probs[i, action] * steps.advantages[i]
        + 0.5 * 0.5 * (values[i] - steps.targets[i]) ** 2
        + 0.1 * (log_probs[i].exp() * log_probs[i]).sum()
        for i, action in enumerate(rollout.actions.tolist())
    ]
    parameters = dict(learner.network.named_parameters())
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))

    sums = policy_gradient_step(
        learner,
        rollout,
        steps,
        value_weight=0.5,
        entropy_weight=0.1,
        max_grad_norm=None,
        micro_batch=4,
    )
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(before[name] - parameter.detach(), gradient)
    assert sums[3] == 15
    assert float(sums[4]) == pytest.approx(float(nn.utils.get_total_norm(gradients)), rel=1e-5)


def test_returns_of_trace_1_are_the_discounted_rewards_and_a_bootstrap() -> None:
    cfg = A2CConfig(env="CartPole-v1", envs=2)
    learner = Learner(
        cfg,
        Runtime(),
        network=cfg.network,
        optimizer=cfg.optimizer,
        discount=0.99,
        observations=None,
        rewards=None,
    )
    rollout = learner.rollout(5, 1)
    assert not (rollout.terminated | rollout.truncated).any()  # five steps do not topple a pole
    targets = rollout.steps(0.9, 1.0).targets.view(5, 2).t()
    for b in range(2):
        value = float(rollout.next_values[b, -1])
        for t in reversed(range(5)):
            value = 1.0 + 0.9 * value
            assert float(targets[b, t]) == pytest.approx(value, rel=1e-5)


def test_rmsprop_makes_the_step_of_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    optimizer = RMSprop(learning_rate=0.1, alpha=0.75, eps=0.5).build(model)
    for gradient in (2.0, 4.0):
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
    # g = 1, then .75 + 4 = 4.75: 1 - .1 * 2 / (1 + .5) - .1 * 4 / (sqrt(4.75) + .5)
    expected = 1 - 0.2 / 1.5 - 0.4 / (np.sqrt(4.75) + 0.5)
    assert float(model.weight.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_rmsprop_without_a_step_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="a learning rate is a finite number above 0"):
        RMSprop(learning_rate=rate)


def test_updates_of_an_iteration_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="updates=0: give at least 1"):
        A2CConfig(env="CartPole-v1", updates=0)


def test_cartpole_is_learned_beyond_chance() -> None:
    policy = train(A2CConfig(env="CartPole-v1", env_steps=16_000, eval_every=4_000), Runtime())
    assert evaluate(policy, "CartPole-v1", episodes=20, seed=1).mean() > 150  # at random: 22
