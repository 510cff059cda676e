from __future__ import annotations

from typing import Any

import pytest
import torch

from launch.optimizers import AdamW
from launch.runtime import Runtime
from rl import reinforce
from rl.evaluation import evaluate
from rl.on_policy import Learner
from rl.reinforce import LearnedBaseline, REINFORCEConfig, train
from rl.rollouts import Rollout, Steps


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Rollout, Steps]]:
    """Return the list to which what each update is given is added."""
    update, found = reinforce.policy_gradient_step, []

    def note(learner: Learner, rollout: Rollout, steps: Steps, **settings: Any) -> torch.Tensor:  # noqa: ANN401
        found.append((rollout, steps))
        return update(learner, rollout, steps, **settings)

    monkeypatch.setattr(reinforce, "policy_gradient_step", note)
    return found


@pytest.mark.parametrize("baseline", [None, LearnedBaseline()])
def test_updates_are_given_one_whole_episode_of_each_environment(
    baseline: LearnedBaseline | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(monkeypatch)
    cfg = REINFORCEConfig(
        env="CartPole-v1", envs=3, env_steps=1_500, baseline=baseline, discount=0.5, eval_episodes=1
    )
    train(cfg, Runtime())
    assert len(found) > 10
    firsts = set()
    for rollout, steps in found[:-1]:  # the last may be cut off by the total
        ends = rollout.terminated | rollout.truncated
        assert ends.sum(1).tolist() == [1, 1, 1]
        lengths = rollout.valid.sum(1)
        assert (ends.int().argmax(1) == lengths - 1).all()
        firsts.add(float(rollout.observations[0, 0]))  # type: ignore[index]  # a tensor
        returns = (steps.advantages + steps.values).view(-1, 3).t()
        for b in range(3):  # rewards of 1, halved each step: 2 - 2^(1 - n), n steps from the end
            n = int(lengths[b])
            expected = [2 - 2.0 ** (t - n + 1) for t in range(n)]
            assert returns[b, :n].tolist() == pytest.approx(expected, abs=1e-5)
        if baseline is None:
            assert not steps.values.any()
    assert len(firsts) == len(found) - 1  # every episode begins anew


def test_without_a_baseline_the_critic_stays_as_it_was() -> None:
    cfg = REINFORCEConfig(env="CartPole-v1", env_steps=800, baseline=None, eval_episodes=1)
    run = Runtime(seed=4)
    made: list[Learner] = []

    class Seen(Learner):
        def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401
            super().__init__(*args, **settings)
            made.append(self)
            self.before = [p.clone() for p in self.network.critic.parameters()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "Learner", Seen)
        train(cfg, run)
    after = list(made[0].network.critic.parameters())
    assert all(torch.equal(a, b) for a, b in zip(made[0].before, after, strict=True))  # type: ignore[attr-defined]  # set above


def test_steps_come_to_the_total_however_long_the_episodes_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An episode of Pendulum lasts 200 steps: four times 200, and then 4 x 150, cut off.
    found = watch(monkeypatch)
    cfg = REINFORCEConfig(env="Pendulum-v1", envs=4, env_steps=1_400, eval_episodes=1)
    train(cfg, Runtime())
    assert [rollout.rewards.shape[1] for rollout, _ in found] == [200, 150]
    assert found[1][0].truncated[:, -1].all()


@pytest.mark.parametrize("baseline", [None, LearnedBaseline()])
def test_cartpole_is_learned_beyond_chance(baseline: LearnedBaseline | None) -> None:
    cfg = REINFORCEConfig(
        env="CartPole-v1", env_steps=20_000, baseline=baseline, optimizer=AdamW(learning_rate=3e-3)
    )
    policy = train(cfg, Runtime())
    assert evaluate(policy, "CartPole-v1", episodes=20, seed=1).mean() > 100  # at random: 22
