from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.special import log_softmax
from scipy.stats import entropy as shannon
from scipy.stats import norm

from launch.metrics import Metric
from launch.optimizers import AdamW
from launch.runtime import Runtime
from launch.schedule import Constant
from rl.actor_critic import SeparateTrunks
from rl.evaluation import evaluate
from rl.policies import load_policy
from rl.ppo import PPOConfig, _loss, _minibatches, train
from rl.rollouts import Rollout, Steps, evaluate_actions
from rl.sampled_actions import action_law

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
DISCRETE, BOX = spaces.Discrete(4), spaces.Box(-1.0, 1.0, (2,), np.float32)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Return the list to which every record is added."""
    log, found = Runtime.log, []

    def note(self: Runtime, step: int, metrics: Mapping[str, Metric]) -> dict[str, float]:
        found.append(log(self, step, metrics))
        return found[-1]

    monkeypatch.setattr(Runtime, "log", note)
    return found


def batch(space: Any, seed: int) -> tuple[Any, Rollout, Steps]:  # noqa: ANN401
    """Return a learner's stand-in, six steps with masks where they may be, and what they train."""
    g = torch.Generator().manual_seed(seed)
    network = SeparateTrunks(hidden=(8,)).build(VECTOR, space, g)
    network.actor.head.weight.data.normal_(generator=g)
    law, masks = action_law(space), None
    if space is DISCRETE:
        actions = torch.tensor([0, 1, 2, 3, 0, 2])
        masks = torch.ones(6, 4, dtype=torch.bool)
        masks[0, 1] = masks[3, 0] = masks[3, 2] = False
    else:
        actions = torch.randn(6, 2, generator=g)
        network.actor.log_std.data.copy_(torch.tensor([-0.5, 0.3]))  # type: ignore[union-attr]  # of a Box
    rest = torch.zeros(1, 6)
    rollout = Rollout(
        raw=np.zeros((6, 3), np.float32),
        observations=torch.randn(6, 3, generator=g),
        actions=actions,
        action_masks=masks,
        log_probs=torch.zeros(6),
        values=rest,
        next_values=rest,
        rewards=rest,
        terminated=rest.bool(),
        truncated=rest.bool(),
        valid=~rest.bool(),
    )
    learner = SimpleNamespace(
        network=network,
        evaluate=lambda rollout, index: evaluate_actions(network, law, rollout, index),
    )
    with torch.no_grad():
        now, _, values = learner.evaluate(rollout, torch.arange(6))
    # Ratios inside and outside 1 +- .2, with gains of both signs; values moved less and more.
    steps = Steps(
        index=torch.arange(6),
        log_probs=now + torch.tensor([0.05, -0.5, 0.5, -0.5, 0.5, -0.1]),
        advantages=torch.tensor([1.0, 2.0, 1.5, -1.0, -2.0, -0.5]),
        values=values + torch.tensor([0.1, 0.5, -0.5, 0.5, -0.5, 0.0]),
        targets=values + torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 0.3]),
    )
    return learner, rollout, steps


def expected_loss(
    cfg: PPOConfig,
    space: Any,  # noqa: ANN401
    network: Any,  # noqa: ANN401
    rollout: Rollout,
    steps: Steps,
) -> tuple[float, float, float]:
    """Return the sums of policy loss, value loss and entropy: row by row, with scipy."""
    policy_loss = value_loss = entropy = 0.0
    for i in range(6):
        with torch.no_grad():
            outputs, value = network(rollout.observations[i : i + 1])
        x, v, action = outputs[0].double().numpy(), float(value), rollout.actions[i].numpy()
        if space is DISCRETE:
            x = np.where(rollout.action_masks[i], x, -np.inf)  # type: ignore[index]  # there are masks
            log_prob, h = log_softmax(x)[action], shannon(np.exp(log_softmax(x)))
        else:
            law = norm(x, np.exp(network.log_std.detach().numpy()))
            log_prob, h = law.logpdf(action).sum(), law.entropy().sum()
        ratio, a = math.exp(log_prob - float(steps.log_probs[i])), float(steps.advantages[i])
        policy_loss -= min(ratio * a, min(max(ratio, 1 - cfg.clip), 1 + cfg.clip) * a)
        old, target = float(steps.values[i]), float(steps.targets[i])
        error = (v - target) ** 2
        if cfg.value_clip is not None:
            held = old + min(max(v - old, -cfg.value_clip), cfg.value_clip)
            error = max(error, (held - target) ** 2)
        value_loss += error / 2
        entropy += float(h)
    return policy_loss, value_loss, entropy


@pytest.mark.parametrize("space", [DISCRETE, BOX])
@pytest.mark.parametrize("value_clip", [None, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_sum_that_loops_over_rows_give(
    space: Any,  # noqa: ANN401
    value_clip: float | None,
    seed: int,
) -> None:
    cfg = PPOConfig(value_clip=value_clip, value_weight=0.7, entropy_weight=0.03)
    learner, rollout, steps = batch(space, seed)
    loss, parts, log_ratios = _loss(cfg, learner, rollout, steps)
    policy_loss, value_loss, entropy = expected_loss(cfg, space, learner.network, rollout, steps)
    assert parts.tolist() == pytest.approx([policy_loss, value_loss, entropy], rel=1e-5)
    total = policy_loss + 0.7 * value_loss - 0.03 * entropy
    assert loss.item() == pytest.approx(total, rel=1e-5)
    moved = torch.tensor([-0.05, 0.5, -0.5, 0.5, -0.5, 0.1])
    torch.testing.assert_close(log_ratios, moved, rtol=0, atol=1e-6)


def test_gradient_stops_where_a_gain_is_clipped_and_at_masked_actions() -> None:
    cfg = PPOConfig(value_weight=0.0, entropy_weight=0.0)
    learner, rollout, steps = batch(DISCRETE, 0)
    for row, flows in enumerate([True, False, True, True, False, True]):
        learner.network.zero_grad()
        loss, _, _ = _loss(cfg, learner, rollout, steps.rows(row, row + 1))
        loss.backward()
        bias = learner.network.actor.head.bias.grad
        assert bool(bias.abs().sum() > 0) is flows, row
        assert torch.isfinite(bias).all()
        forbidden = ~rollout.action_masks[row]  # type: ignore[index]  # there are masks
        assert not bias[forbidden].any()


@pytest.mark.parametrize("minibatches", [1, 3, 7, 60])
@pytest.mark.parametrize("ends", [(0, 3), (0, 1, 3)])
def test_minibatches_hold_every_valid_row_once(minibatches: int, ends: tuple[int, ...]) -> None:
    # Three environments of 20 steps, on one process or on two; row t * B + b of a process.
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(3, 20, generator=generator) > 0.1
    cfg = PPOConfig(envs=3, rollout_steps=20, minibatches=minibatches)
    seen, sizes = [], torch.zeros(minibatches, dtype=torch.int64)
    for first, last in pairwise(ends):
        mine, zeros = range(first, last), torch.zeros((last - first) * 20)
        index = torch.arange(len(zeros))
        flat = Steps(
            index=index, log_probs=zeros, values=zeros, advantages=index.float(), targets=zeros
        )
        run = Runtime(seed=5)
        run.sum = lambda x: x.clamp(min=1)  # type: ignore[method-assign, union-attr]  # none is left out
        rollout = SimpleNamespace(values=torch.zeros(len(mine), 20), valid=valid[first:last])
        learner: Any = SimpleNamespace(run=run, mine=mine)
        for number, (rows, _) in enumerate(_minibatches(cfg, learner, rollout, flat, 2, 1)):  # type: ignore[arg-type]  # alike
            sizes[number] += len(rows)
            time, environment = rows.index // len(mine), rows.index % len(mine) + first
            assert valid[environment, time].all()
            seen += (environment * 20 + time).tolist()
    assert sorted(seen) == valid.flatten().nonzero().flatten().tolist()
    if minibatches < 60:
        assert sizes.max() - sizes.min() <= 1 + int((~valid).sum())


def test_advantages_of_a_minibatch_have_mean_0_and_deviation_1() -> None:
    generator = torch.Generator().manual_seed(0)
    cfg = PPOConfig(envs=2, minibatches=4)
    advantages = 100 + torch.randn(64, generator=generator)
    zeros = torch.zeros(64)
    steps = Steps(
        index=torch.arange(64), log_probs=zeros, values=zeros, advantages=advantages, targets=zeros
    )
    rollout: Any = SimpleNamespace(values=torch.zeros(2, 32), valid=torch.ones(2, 32).bool())
    learner: Any = SimpleNamespace(run=Runtime(), mine=range(2))
    for rows, count in _minibatches(cfg, learner, rollout, steps, 1, 0):
        x = advantages[rows.index]
        assert count == len(rows) == 16
        expected = (x - x.mean()) / x.std(correction=0)
        torch.testing.assert_close(rows.advantages, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_ratio_is_1_in_the_first_update_of_every_rollout(
    env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(monkeypatch)
    cfg = PPOConfig(
        env=env,
        env_steps=400,
        envs=2,
        rollout_steps=50,
        epochs=1,
        minibatches=1,
        eval_episodes=1,
        eval_every=400,
        optimizer=AdamW(learning_rate=1e-2),
    )
    train(cfg, Runtime())
    assert len(found) == 4
    assert all(abs(record["kl/old"]) < 1e-9 and record["clip_fraction"] == 0 for record in found)
    # A second pass finds the policy moved.
    train(replace(cfg, epochs=2), Runtime())
    assert all(record["kl/old"] > 1e-6 and record["updates"] == 2 for record in found[4:])


def test_passes_end_once_the_policy_has_moved_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    found = watch(monkeypatch)
    cfg = PPOConfig(env="CartPole-v1", env_steps=512, envs=4, epochs=9, eval_episodes=1)
    train(replace(cfg, max_kl=1e-7), Runtime())
    train(replace(cfg, max_kl=1e7), Runtime())
    # After the first pass its four minibatches have moved the policy; nothing moves it by 1e7.
    assert [record["updates"] for record in found] == [4, 36]


def test_training_returns_and_leaves_the_best_evaluated_policy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = watch(monkeypatch)
    cfg = PPOConfig(env="CartPole-v1", env_steps=4_000, envs=4, rollout_steps=50, seed=1)
    with Runtime(output=tmp_path / "run") as run:
        policy = train(cfg, run)
    scores = [record["eval/return"] for record in found if "eval/return" in record]
    assert len(scores) == 20
    assert max(scores) > scores[-1]  # else this test says nothing
    for each in (policy, load_policy(tmp_path / "run" / "policy")):
        assert evaluate(each, "CartPole-v1", episodes=20, seed=run.seed).mean() == max(scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 65}, "minibatches=65, but a rollout has only rollout_steps \\* envs = 64"),
        ({"trace": -0.1}, "trace=-0.1: it lies between 0 and 1"),
        ({"epochs": 0}, "epochs=0: give at least 1"),
        ({"clip": 0.0}, "clip=0.0: it is how far something may move"),
        ({"value_clip": -1.0}, "value_clip=-1.0: it is how far something may move"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(env="CartPole-v1", envs=2, rollout_steps=32, **changes)


# -- learning ------------------------------------------------------------------------------------


def test_cartpole_is_learned_in_fifteen_thousand_steps() -> None:
    cfg = PPOConfig(
        env="CartPole-v1",
        env_steps=15_360,
        envs=8,
        rollout_steps=32,
        epochs=20,
        minibatches=1,
        optimizer=AdamW(learning_rate=1e-3),
        discount=0.98,
        trace=0.8,
        entropy_weight=0.0,
        value_clip=None,
        eval_every=5_120,
    )
    policy = train(cfg, Runtime())
    assert evaluate(policy, "CartPole-v1", episodes=20, seed=1).mean() > 150  # at random: 22


class Aim(gymnasium.Env[np.ndarray, np.ndarray]):
    """One shot at a place that the observation names; the reward is minus the squared miss."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ANN401
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.target, {}

    def step(self, action: np.ndarray) -> Any:  # noqa: ANN401
        return self.target, -float(((action - self.target) ** 2).sum()), True, False, {}


def test_gaussian_policy_learns_to_aim() -> None:
    cfg = PPOConfig(
        env=Aim,
        env_steps=8_192,
        envs=16,
        rollout_steps=32,
        epochs=10,
        optimizer=AdamW(learning_rate=3e-3),
        schedule=Constant(),
        entropy_weight=0.0,
        eval_every=8_192,
    )
    policy = train(cfg, Runtime())
    assert evaluate(policy, Aim, episodes=50, seed=1).mean() > -0.05  # the middle: -2/3
