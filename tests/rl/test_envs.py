from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from launch.errors import UsageError
from rl.classic_control import CompiledEnvs
from rl.envs import (
    EnvSource,
    GymnasiumVectorEnvs,
    ListedEnvs,
    check_env,
    make_async_envs,
    make_env,
    make_envs,
)
from rl.spaces import as_tensors, equal
from rl.vector_env import EnvStep, VectorEnv


def cart_pole() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1")


class Coin:
    """A model: it plays CartPole, and says so."""

    name = "coin"

    def to_env(self, max_episode_steps: int | None = None) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1", max_episode_steps=max_episode_steps or 4)


def lengths(envs: VectorEnv, steps: int) -> list[int]:
    envs.reset()
    for _ in range(steps):
        envs.step(np.zeros(envs.count, np.int64))
    return envs.take_episodes()[1]


def assert_same(one: EnvStep, other: EnvStep) -> None:
    for name, left, right in zip(EnvStep._fields, one, other, strict=True):
        assert equal(left, as_tensors(right)), name


# --- what is made -----------------------------------------------------------------------------


def test_each_source_gets_the_environments_that_suit_it() -> None:
    assert isinstance(make_envs("CartPole-v1", 2, seed=0), CompiledEnvs)
    for source in ("FrozenLake-v1", cart_pole, Coin()):
        assert isinstance(make_envs(source, 2, seed=0), ListedEnvs)
    vector = SyncVectorEnv([cart_pole] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    assert isinstance(make_envs(vector, 2, seed=0), GymnasiumVectorEnvs)


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1", cart_pole])
def test_environments_are_numbered_over_all_processes(env: EnvSource) -> None:
    whole = make_envs(env, 4, seed=3)
    parts = [make_envs(env, 2, seed=3, first=first) for first in (0, 2)]
    whole.reset()
    for part in parts:
        part.reset()
    for t in range(30):
        actions = np.random.default_rng(t).integers(2, size=4)
        step = whole.step(actions)
        for first, part in zip((0, 2), parts, strict=True):
            other = part.step(actions[first : first + 2])
            np.testing.assert_array_equal(other.rewards, step.rewards[first : first + 2])
            for left, right in zip(
                as_tensors(other.next_observations), as_tensors(step.next_observations), strict=True
            ):
                assert left.tolist() == right[first : first + 2].tolist()


def test_limit_replaces_that_of_an_id_and_of_a_model() -> None:
    # A pole falls within 8 to 10 pushes to the left.
    assert lengths(make_envs("CartPole-v1", 1, seed=0, max_episode_steps=3), 9) == [3, 3, 3]
    assert make_envs("FrozenLake-v1", 1, seed=0).time_limit == 100
    assert make_envs("FrozenLake-v1", 1, seed=0, max_episode_steps=500).time_limit == 500
    assert lengths(make_envs(Coin(), 1, seed=0), 8) == [4, 4]
    assert lengths(make_envs(Coin(), 1, seed=0, max_episode_steps=2), 4) == [2, 2]
    assert lengths(make_envs(cart_pole, 1, seed=0, max_episode_steps=3), 9) == [3, 3, 3]
    assert make_envs(cart_pole, 1, seed=0, max_episode_steps=900).time_limit == 500


def test_compiled_and_single_environments_speak_alike() -> None:
    for envs in (make_envs("CartPole-v1", 2, seed=0), make_envs(cart_pole, 2, seed=0)):
        observations = envs.reset()
        step = envs.step(np.array([0, 1]))
        for array in (observations, step.observations, step.next_observations):
            assert isinstance(array, np.ndarray)
            assert (array.shape, array.dtype) == ((2, 4), np.float32)
        assert step.rewards.dtype == np.float32
        for flags in (step.terminated, step.truncated, step.valid):
            assert (flags.shape, flags.dtype) == ((2,), np.bool_)
        envs.close()


def test_environments_in_other_processes_are_the_same_and_resume() -> None:
    envs, listed = (
        make_async_envs("FrozenLake-v1", 2, seed=5),
        make_envs("FrozenLake-v1", 2, seed=5),
    )
    other = make_async_envs("FrozenLake-v1", 2, seed=5)
    try:
        assert equal(envs.reset(), as_tensors(listed.reset()))
        for t in range(60):
            actions = np.random.default_rng(t).integers(4, size=2)
            assert_same(envs.step(actions), listed.step(actions))
            if t == 40:
                other.load_state_dict(envs.state_dict())
            elif t > 40:
                other.step(actions)
        assert envs.take_episodes() == other.take_episodes() == listed.take_episodes()
    finally:
        envs.close()
        other.close()


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("Taxi-v3", r"no environment 'Taxi-v3': .*Taxi-v4"),
        ("CartPol-v1", r"no environment 'CartPol-v1': .*Did you mean: `CartPole`"),
        ("CartPole-v7", r"no environment 'CartPole-v7': .*`v0`, `v1`"),
        ("no_such_module:Env-v0", r"no environment 'no_such_module:Env-v0': No module named"),
        ("", "no environment ''"),
        (3, r"got int for an environment: give a registered id such as 'CartPole-v1'"),
        (lambda: 3, r"<lambda> returned int: it has to return a gymnasium\.Env"),
    ],
)
def test_environment_that_cannot_be_made_is_refused_in_one_line(env: EnvSource, said: str) -> None:
    for make in (check_env, lambda env: make_envs(env, 2, seed=0)):
        with pytest.raises(UsageError, match=said) as caught:
            make(env)
        assert "\n" not in str(caught.value)


def test_environment_itself_is_refused_where_several_are_needed() -> None:
    env = cart_pole()
    with pytest.raises(UsageError, match="give a function that makes one"):
        make_env(env)
    with pytest.raises(UsageError, match="returned the same one twice"):
        make_envs(lambda: env, 2, seed=0)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(UsageError, match=r'LunarLander-v3 needs .*pip install "monro\[box2d\]"'):
        make_envs("LunarLander-v3", 1, seed=0)


def test_vector_of_another_count_or_with_a_limit_is_refused() -> None:
    vector = SyncVectorEnv([cart_pole] * 2)
    with pytest.raises(UsageError, match="vector of 2 environments where 3 are needed"):
        make_envs(vector, 3, seed=0)
    with pytest.raises(UsageError, match="max_episode_steps=5 cannot be set on a vector"):
        make_envs(vector, 2, seed=0, max_episode_steps=5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "count=0"),
        ({"first": -1}, "first=-1"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
        ({"quota": 0}, "quota=0"),
    ],
)
def test_counts_out_of_range_are_refused(wrong: dict[str, int], said: str) -> None:
    arguments: dict[str, Any] = {"count": 1, "seed": 0} | wrong
    for env in ("CartPole-v1", cart_pole):
        with pytest.raises(UsageError, match=said):
            make_envs(env, **arguments)
