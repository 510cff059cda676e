from __future__ import annotations

import io
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from launch.errors import UsageError
from rl.classic_control import CompiledEnvs, compiled_family
from rl.classic_kernels import uniforms
from rl.vector_env import EnvStep, episode_seed

IDS = ("CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1")
# States far and near: half-widths of the box they are drawn from, past every bound.
WIDTHS = {
    "CartPole-v1": (2.6, 3.0, 0.25, 4.0),
    "MountainCar-v0": (0.9, 0.07),
    "Acrobot-v1": (np.pi, np.pi, 4 * np.pi, 9 * np.pi),
    "Pendulum-v1": (20.0, 8.0),
}


def some_actions(envs: CompiledEnvs, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if isinstance(envs.action_space, gymnasium.spaces.Discrete):
        return rng.integers(envs.action_space.n, size=envs.count)
    return rng.uniform(-3, 3, size=(envs.count, 1)).astype(np.float32)


def put(envs: CompiledEnvs, states: NDArray[np.float64]) -> None:
    envs.reset()
    state = envs.state_dict()
    for entry, values in zip(state["environments"], states, strict=True):
        entry["row"][:-2] = torch.from_numpy(values)
    envs.load_state_dict(state)


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return dict(torch.load(buffer, weights_only=True))


def assert_same(one: EnvStep, other: EnvStep) -> None:
    for name, left, right in zip(EnvStep._fields, one, other, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


# --- against gymnasium ------------------------------------------------------------------------


@pytest.mark.parametrize("env", IDS)
def test_transition_is_gymnasiums_from_any_state(env: str) -> None:
    envs = CompiledEnvs(env, 300, seed=0)
    widths = np.array(WIDTHS[env])
    states = np.random.default_rng(1).uniform(-widths, widths, (300, len(widths)))
    if env == "MountainCar-v0":
        states[:, 0] -= 0.3  # from -1.2 to .6
    put(envs, states)
    actions = some_actions(envs, seed=2)
    step = envs.step(actions)
    assert isinstance(step.next_observations, np.ndarray)
    original = gymnasium.make(env).unwrapped
    ends = 0
    for i in range(300):
        original.reset()
        original.state = states[i].copy()
        observation, reward, terminated, _, _ = original.step(actions[i])
        np.testing.assert_array_equal(step.next_observations[i], observation)
        assert step.rewards[i] == np.float32(reward)
        assert step.terminated[i] == terminated
        ends += terminated
    assert 0 < ends < 300 or env == "Pendulum-v1"


@pytest.mark.parametrize("env", IDS)
def test_whole_episode_is_gymnasiums(env: str) -> None:
    envs = CompiledEnvs(env, 1, seed=3)
    observations = envs.reset()
    original = gymnasium.make(env)
    original.reset()
    original.unwrapped.state = envs.state_dict()["environments"][0]["row"][:-2].numpy()
    total, length, ended = 0.0, 0, False
    while not ended:
        actions = some_actions(envs, seed=length)
        step = envs.step(actions)
        observation, reward, terminated, truncated, _ = original.step(actions[0])
        np.testing.assert_allclose(step.next_observations[0], observation, rtol=1e-5, atol=1e-5)
        assert (step.terminated[0], step.truncated[0]) == (terminated, truncated)
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    returns, lengths = envs.take_episodes()
    assert lengths == [length]
    assert returns == pytest.approx([total], rel=1e-12)
    assert not np.array_equal(step.observations[0], step.next_observations[0])
    assert observations.shape == (1, *original.observation_space.shape)


@pytest.mark.parametrize("env", [*IDS, "CartPole-v0"])
def test_spaces_and_limit_are_the_registered_ones(env: str) -> None:
    envs, spec = CompiledEnvs(env, 1, seed=0), gymnasium.registry[env]
    original = gymnasium.make("CartPole-v1" if env == "CartPole-v0" else env)
    assert envs.observation_space == original.observation_space
    assert envs.action_space == original.action_space
    assert envs.time_limit == spec.max_episode_steps


# --- episodes ---------------------------------------------------------------------------------


def test_uniform_numbers_are_splitmix64s() -> None:
    # The first outputs from the seed 1234567, as published with the generator.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = [(z >> 11) / 2**53 for z in published]
    assert uniforms(1234567, 3).tolist() == expected


@pytest.mark.parametrize("env", IDS)
def test_first_states_have_gymnasiums_distribution(env: str) -> None:
    envs = CompiledEnvs(env, 500, seed=4)
    envs.reset()
    ours = np.stack([e["row"][:-2].numpy() for e in envs.state_dict()["environments"]])
    original = gymnasium.make(env).unwrapped
    theirs = []
    for seed in range(500):
        original.reset(seed=seed)
        theirs.append(np.array(original.state, float))
    for one, other in zip(ours.T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-3
        assert np.ptp(one) == pytest.approx(np.ptp(other), rel=0.05)


def test_episode_is_truncated_at_the_limit_and_a_new_one_begins() -> None:
    envs = CompiledEnvs("MountainCar-v0", 2, seed=8, first=5, max_episode_steps=3)
    envs.reset()
    actions = np.array([0, 2])
    for _ in range(2):
        step = envs.step(actions)
        assert not step.truncated.any()
        assert step.observations is step.next_observations
    step = envs.step(actions)
    assert step.truncated.all()
    assert not step.terminated.any()
    # Episode 1 of environments 5 and 6 begins at rest between -.6 and -.4.
    starts = [uniforms(episode_seed(8, 1, i), 1)[0] for i in (5, 6)]
    first = np.array([[-0.6 + (-0.4 + 0.6) * u, 0.0] for u in starts], np.float32)
    np.testing.assert_array_equal(step.observations, first)
    assert envs.take_episodes() == ([-3.0, -3.0], [3, 3])
    assert envs.take_episodes() == ([], [])


@pytest.mark.parametrize("env", IDS)
def test_episodes_do_not_depend_on_how_environments_are_shared_out(env: str) -> None:
    whole = CompiledEnvs(env, 4, seed=5, max_episode_steps=7)
    parts = [CompiledEnvs(env, 2, seed=5, first=f, max_episode_steps=7) for f in (0, 2)]
    np.testing.assert_array_equal(whole.reset(), np.concatenate([p.reset() for p in parts]))
    for t in range(20):
        actions = some_actions(whole, seed=t)
        steps = [part.step(actions[i : i + 2]) for part, i in zip(parts, (0, 2), strict=True)]
        both = EnvStep(*(np.concatenate(x) for x in zip(*steps, strict=True)))
        assert_same(whole.step(actions), both)


@pytest.mark.parametrize("env", IDS)
def test_resumed_environments_go_on_as_if_never_stopped(env: str) -> None:
    envs = CompiledEnvs(env, 3, seed=6, max_episode_steps=9)
    envs.reset()
    for t in range(13):
        envs.step(some_actions(envs, seed=t))
    state = saved_and_loaded(envs.state_dict())
    other = CompiledEnvs(env, 3, seed=6, max_episode_steps=9)
    other.load_state_dict(state)
    for t in range(20):
        actions = some_actions(envs, seed=100 + t)
        assert_same(envs.step(actions), other.step(actions))
    assert envs.take_episodes() == other.take_episodes()


def test_each_process_takes_its_own_environments_from_a_checkpoint_of_all() -> None:
    whole = CompiledEnvs("CartPole-v1", 4, seed=7)
    whole.reset()
    actions = np.array([0, 1, 0, 1])
    for _ in range(5):
        expected = whole.step(actions).observations
    part = CompiledEnvs("CartPole-v1", 2, seed=7, first=2)
    np.testing.assert_array_equal(part.load_state_dict(whole.state_dict()), expected[2:])
    with pytest.raises(UsageError, match=r"holds environments 0 to 3.*runs 3 to 4"):
        CompiledEnvs("CartPole-v1", 2, seed=7, first=3).load_state_dict(whole.state_dict())
    with pytest.raises(UsageError, match="'CartPole-v1', and these are 'Acrobot-v1'"):
        CompiledEnvs("Acrobot-v1", 4, seed=7).load_state_dict(whole.state_dict())


def test_environment_rests_after_its_quota() -> None:
    envs = CompiledEnvs("CartPole-v1", 2, seed=0, quota=2)
    envs.reset()
    valid = []
    for _ in range(40):
        valid.append(envs.step(np.zeros(2, np.int64)).valid)
    returns, lengths = envs.take_episodes()
    assert len(lengths) == 4
    assert returns == lengths
    # Column i is True as long as its two episodes last.
    assert np.sum(valid, 0).tolist() == [sum(lengths[:2]), sum(lengths[2:])]


def test_arrays_of_a_step_stay_as_they_are() -> None:
    envs = CompiledEnvs("CartPole-v1", 2, seed=0, max_episode_steps=5)
    envs.reset()
    steps = [envs.step(np.array([0, 1])) for _ in range(12)]
    copies = [EnvStep(*(np.array(x) for x in step)) for step in steps]
    for _ in range(12):
        envs.step(np.array([1, 1]))
    for step, copy in zip(steps, copies, strict=True):
        assert_same(step, copy)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "actions", "said"),
    [
        ("CartPole-v1", np.zeros(3, np.int64), r"shape \(3,\).*Discrete\(2\).*shape \(2,\)"),
        ("CartPole-v1", np.zeros(2), r"type float64.*Discrete\(2\).*whole numbers"),
        ("CartPole-v1", np.array([0, 2]), r"got 2 as the action of environment 1.*Discrete\(2\)"),
        ("CartPole-v1", np.array([-1, 0]), r"got -1 as the action of environment 0"),
        ("Pendulum-v1", np.zeros(2, np.float32), r"shape \(2,\).*Box.*floats of shape \(2, 1\)"),
        ("Pendulum-v1", np.array([[0.0], [np.nan]], np.float32), "NaN.*environment 1"),
    ],
)
def test_wrong_actions_are_refused_and_change_nothing(
    env: str, actions: NDArray[Any], said: str
) -> None:
    envs = CompiledEnvs(env, 2, seed=0)
    envs.reset()
    before = [entry["row"].tolist() for entry in envs.state_dict()["environments"]]
    with pytest.raises(UsageError, match=said):
        envs.step(actions)
    after = [entry["row"].tolist() for entry in envs.state_dict()["environments"]]
    assert before == after


def test_actions_of_other_whole_types_do() -> None:
    one, other = (CompiledEnvs("CartPole-v1", 2, seed=0) for _ in range(2))
    one.reset(), other.reset()
    assert_same(one.step(np.array([1, 0], np.int32)), other.step(np.array([1, 0])))
    assert_same(one.step(np.array([True, False])), other.step(np.array([1, 0])))


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(UsageError, match=r"reset\(\) before step\(\)"):
        CompiledEnvs("CartPole-v1", 1, seed=0).step(np.zeros(1, np.int64))


def test_only_what_gymnasium_registers_itself_is_compiled() -> None:
    assert compiled_family("CartPole-v1") is not None
    for env in ("FrozenLake-v1", "MountainCarContinuous-v0", "phys2d/CartPole-v1", "None-v0"):
        assert compiled_family(env) is None
    gymnasium.register(
        "OtherCartPole-v0",
        entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv",
        kwargs={"sutton_barto_reward": True},
    )
    try:
        assert compiled_family("OtherCartPole-v0") is None
        with pytest.raises(UsageError, match="no compiled twin"):
            CompiledEnvs("OtherCartPole-v0", 1, seed=0)
    finally:
        del gymnasium.registry["OtherCartPole-v0"]
