from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from rl import agent
from rl.agent import AgentConfig, Course, Progress, iterations, leave_policy, own_envs
from rl.networks import MLPConfig
from rl.policies import CategoricalPolicy, load_policy

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def policy(bias: float = 0.0) -> CategoricalPolicy:
    network = MLPConfig(hidden=()).build(BOX, 2, torch.Generator().manual_seed(0))
    network.head.bias.data.fill_(bias)
    return CategoricalPolicy(network, BOX, spaces.Discrete(2))


def bias(of: Any) -> float:  # noqa: ANN401 any policy
    return float(of.network.head.bias[0].detach())


def scores(monkeypatch: pytest.MonkeyPatch, *returns: float) -> None:
    """Let evaluations return these, one after another."""
    found = iter(returns)
    monkeypatch.setattr(agent, "evaluate", lambda *_, **__: np.full(3, next(found)))


@given(env_steps=st.integers(40, 5_000), envs=st.integers(1, 8), length=st.integers(1, 300))
def test_course_takes_whole_steps_up_to_the_total(env_steps: int, envs: int, length: int) -> None:
    course = Course(AgentConfig(env_steps=env_steps, envs=envs), length)
    done = 0
    for step in range(1, course.iterations + 1):
        assert 1 <= course.steps(step) <= length
        done += course.steps(step) * envs
        assert course.env_steps(step) == done
    assert 0.8 * env_steps < done <= env_steps
    assert course.evaluates(course.iterations)


def test_course_saves_and_evaluates_by_env_steps() -> None:
    # 10 x 8 = 80 env steps each: a save in 240 is one in 3, an evaluation in 150 one in 2.
    cfg = AgentConfig(env_steps=1_000, envs=8, save_every=240, eval_every=150)
    course = Course(cfg, 10)
    assert (course.iterations, course.save_every) == (13, 3)
    assert [step for step in range(1, 14) if course.evaluates(step)] == [2, 4, 6, 8, 10, 12, 13]
    assert Course(AgentConfig(env_steps=1_000, envs=8), 10).save_every == 0
    every = Course(AgentConfig(env_steps=8_000, envs=8), 10)  # 20 in 100 iterations
    assert sum(every.evaluates(step) for step in range(1, 101)) == 20


def test_best_policy_is_kept_and_of_equals_the_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 1.0, 3.0, 3.0, 2.0)
    cfg, progress, trained = AgentConfig(), Progress(), policy()
    found = []
    with Runtime(output=tmp_path / "run") as run:
        for number in range(4):
            trained.network.head.bias.data.fill_(float(number))  # type: ignore[operator, union-attr]  # a linear layer
            found.append(progress.evaluate(cfg, trained, run))
        assert bias(load_policy(tmp_path / "run" / "policy")) == 2
        left = leave_policy(trained, progress, run)
    assert [figures["eval/return"] for figures in found] == [1, 3, 3, 2]
    assert [figures["eval/best"] for figures in found] == [1, 3, 3, 3]
    assert bias(left) == bias(load_policy(tmp_path / "run" / "policy")) == 2


def test_best_policy_travels_with_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, 5.0, 4.0)
    before, after, trained = Progress(), Progress(), policy(7.0)
    before.evaluate(AgentConfig(), trained, Runtime())
    after.load_state_dict(before.state_dict())
    trained.network.head.bias.data.fill_(1.0)  # type: ignore[operator, union-attr]  # a linear layer
    assert after.evaluate(AgentConfig(), trained, Runtime())["eval/best"] == 5
    assert bias(leave_policy(trained, after, Runtime())) == 7


def test_run_stops_early_with_a_checkpoint_and_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, 1.0, 3.0)
    done = []
    for resume in (False, True):
        progress, trained = Progress(), policy()
        with Runtime(output=tmp_path / "run", resume=resume) as run:
            state: dict[str, Any] = {"progress": progress}
            for step in iterations(run, 9, state=state, progress=progress, save_every=0):
                progress.evaluate(AgentConfig(stop_at=2.0), trained, run)
                done.append(step)
        assert progress.stopped
    assert done == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "COMPLETE").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_steps": 0}, "env_steps=0: give at least 1"),
        ({"envs": 0}, "envs=0: give at least 1"),
        ({"eval_episodes": 0}, "eval_episodes=0: give at least 1"),
        ({"save_every": -1}, "save_every=-1: give 0 or a number of env steps"),
        ({"max_episode_steps": 0}, "max_episode_steps=0: an episode has at least one step"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentConfig(**changes)  # type: ignore[arg-type]  # on purpose


def test_settings_that_are_no_number_or_would_learn_nothing_are_refused() -> None:
    from rl.dqn import DQNConfig
    from rl.ppo import PPOConfig
    from rl.td3 import TD3Config

    with pytest.raises(ValueError, match="stop_at=nan: that is no number"):
        AgentConfig(env="CartPole-v1", stop_at=math.nan)
    for name in ("entropy_weight", "value_weight", "value_clip"):
        changes: dict[str, Any] = {name: math.nan}
        with pytest.raises(ValueError, match=f"{name}=nan: "):
            PPOConfig(**changes)
    for make in (PPOConfig, DQNConfig, TD3Config):
        with pytest.raises(ValueError, match=r"optimizer\.learning_rate=0: nothing would be"):
            make(optimizer=AdamW(learning_rate=0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no environment is given: add --env ID"),
        ({"env": "CartPole-v1", "env_steps": 39}, "env_steps=39 for envs=8: each environment"),
        ({"env": "CartPole-v9"}, "no environment 'CartPole-v9'"),
    ],
)
def test_environment_is_checked_before_the_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AgentConfig(**changes).check_env()


class Rank(Runtime):
    """A runtime that believes to be one of several."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.backend.rank, self.backend.world_size = rank, world_size


def test_processes_share_the_environments() -> None:
    cfg = AgentConfig(env="CartPole-v1", envs=5)
    whole = own_envs(cfg, Runtime()).observations
    parts = [own_envs(cfg, Rank(rank, 2)).observations for rank in range(2)]
    assert [len(part) for part in parts] == [2, 3]
    np.testing.assert_array_equal(np.concatenate(parts), whole)  # type: ignore[arg-type]  # arrays
    with pytest.raises(UsageError, match="envs=5 for 6 processes: each needs at least one"):
        own_envs(cfg, Rank(0, 6))
