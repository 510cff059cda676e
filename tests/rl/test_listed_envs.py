from __future__ import annotations

import io
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from launch.errors import UsageError
from rl.listed_envs import ListedEnvs, time_limit
from rl.spaces import Observations, as_tensors, equal
from rl.vector_env import EnvStep, episode_seed

Options: TypeAlias = dict[str, object] | None
Reset: TypeAlias = tuple[Any, dict[str, object]]
Step: TypeAlias = tuple[Any, float, bool, bool, dict[str, object]]


class Walk(gymnasium.Env[NDArray[np.float32], int]):
    """Starts at a drawn place and ends at 3; the reward is the place, with some noise drawn."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2, start=1)

    def reset(self, *, seed: int | None = None, options: Options = None) -> Reset:
        super().reset(seed=seed)
        self.place, self.start = 0, self.np_random.random()
        return np.array([self.start, self.place]), {}

    def step(self, action: int) -> Step:
        self.place += action
        noise = self.np_random.random()
        return np.array([self.start + noise, self.place]), self.place, self.place >= 3, False, {}


class Forgetful(Walk):
    """Draws from what its seed does not determine."""

    drawn = 0

    def reset(self, *, seed: int | None = None, options: Options = None) -> Reset:
        observation, info = super().reset(seed=seed)
        Forgetful.drawn += 1
        self.start += Forgetful.drawn
        return observation, info


class Masked(Walk):
    """Allows what its class says."""

    mask: tuple[bool, ...] = (True, False)

    def action_masks(self) -> tuple[bool, ...]:
        return self.mask


class Broken(Walk):
    """Gives what its class says at step 2."""

    observation: tuple[float, ...] = (0.0, 0.0)
    reward = 0.0

    def step(self, action: int) -> Step:
        observation, reward, *rest = super().step(action)
        if self.place == 2:
            return np.array(self.observation), self.reward, *rest
        return observation, reward, *rest


class Mixed(gymnasium.Env[Any, Any]):
    """A Dict with a Tuple in it, and Box actions that it gives back as rewards."""

    observation_space = spaces.Dict(
        {
            "picture": spaces.Box(0, 255, (2, 2, 3), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(4), spaces.MultiBinary(2))),
        }
    )
    action_space = spaces.Box(-1.0, 2.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Options = None) -> Reset:
        super().reset(seed=seed)
        return self.observation(), {}

    def step(self, action: NDArray[np.float32]) -> Step:
        assert self.action_space.contains(action)
        return self.observation(), action.sum(), False, False, {}

    def observation(self) -> dict[str, object]:
        picture = self.np_random.integers(256, size=(2, 2, 3), dtype=np.uint8)
        return {"picture": picture, "pair": (self.np_random.integers(4), np.array([1, 0]))}


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return dict(torch.load(buffer, weights_only=True))


def same(one: Observations, other: Observations) -> bool:
    return equal(one, as_tensors(other))


def assert_same(one: EnvStep, other: EnvStep) -> None:
    for name, left, right in zip(EnvStep._fields, one, other, strict=True):
        assert same(left, right), name


# --- steps ------------------------------------------------------------------------------------


def test_final_observation_is_kept_beside_the_first_of_the_next_episode() -> None:
    envs = ListedEnvs([Walk(), Walk()], seed=0, first=3)
    first = envs.reset()
    step = envs.step(np.array([2, 1]))
    assert isinstance(first, np.ndarray)
    assert isinstance(step.next_observations, np.ndarray)
    assert isinstance(step.observations, np.ndarray)
    assert first.dtype == step.observations.dtype == np.float32
    assert step.rewards.tolist() == [2.0, 1.0]
    assert step.rewards.dtype == np.float32
    step = envs.step(np.array([2, 1]))
    assert isinstance(step.next_observations, np.ndarray)
    assert isinstance(step.observations, np.ndarray)
    assert step.terminated.tolist() == [True, False]
    assert step.next_observations[:, 1].tolist() == [4.0, 2.0]
    assert step.observations[:, 1].tolist() == [0.0, 2.0]
    # Environment 3's episode 1 starts where its seed says, drawn by numpy itself.
    draw = gymnasium.utils.seeding.np_random(episode_seed(0, 1, 3))[0].random()
    assert step.observations[0, 0] == np.float32(draw)
    assert envs.take_episodes() == ([6.0], [2])  # 2 + 4
    assert envs.take_episodes() == ([], [])


def test_episodes_stand_in_the_order_of_environments() -> None:
    envs = ListedEnvs([Walk(), Walk()], seed=0)
    envs.reset()
    for actions in ([1, 2], [1, 2], [1, 2], [1, 2]):
        envs.step(np.array(actions))
    # 1 + 2 + 3, and twice 2 + 4: the second environment's first episode ended before.
    assert envs.take_episodes() == ([6.0, 6.0, 6.0], [3, 2, 2])


def test_longest_episode_is_truncated_and_not_terminated() -> None:
    envs = ListedEnvs([Mixed()], seed=0, max_episode_steps=2)
    envs.reset()
    action = np.ones((1, 2), np.float32)
    assert not envs.step(action).truncated[0]
    step = envs.step(action)
    assert step.truncated[0]
    assert not step.terminated[0]
    assert not same(step.observations, step.next_observations)


def test_both_ends_at_once_are_both_told() -> None:
    envs = ListedEnvs([Walk()], seed=0, max_episode_steps=2)
    envs.reset()
    envs.step(np.array([2]))
    step = envs.step(np.array([2]))
    assert step.terminated[0]
    assert step.truncated[0]


def test_time_limit_is_the_wrappers_where_that_comes_earlier() -> None:
    limited = gymnasium.wrappers.TimeLimit(Walk(), 5)
    assert time_limit(gymnasium.wrappers.OrderEnforcing(limited)) == 5
    assert time_limit(Walk()) is None
    assert ListedEnvs([limited], seed=0).time_limit == 5
    assert ListedEnvs([limited], seed=0, max_episode_steps=4).time_limit == 4
    assert ListedEnvs([limited], seed=0, max_episode_steps=6).time_limit == 5


def test_dict_of_all_kinds_keeps_its_structure_and_box_actions_are_clipped() -> None:
    envs = ListedEnvs([Mixed(), Mixed()], seed=0)
    observations = envs.reset()
    assert isinstance(observations, dict)
    pair = observations["pair"]
    assert isinstance(pair, tuple)
    kinds = [(x.shape, x.dtype) for x in (observations["picture"], *pair)]
    assert kinds == [((2, 2, 2, 3), np.uint8), ((2,), np.int64), ((2, 2), np.int64)]
    step = envs.step(np.array([[9.0, 0.5], [-9.0, 0.5]]))
    assert step.rewards.tolist() == [2.5, -0.5]
    with pytest.raises(UsageError, match="NaN as the action of environment 1"):
        envs.step(np.array([[0.0, 0.5], [np.nan, 0.5]]))


def test_arrays_of_a_step_stay_as_they_are() -> None:
    envs = ListedEnvs([Walk(), Walk()], seed=0)
    first = envs.reset()
    steps = [envs.step(np.array([1, 2])) for _ in range(5)]
    copies = [EnvStep(*(np.array(x) for x in step)) for step in steps]
    copy = np.array(first)
    for _ in range(5):
        envs.step(np.array([2, 2]))
    np.testing.assert_array_equal(first, copy)
    for one, other in zip(steps, copies, strict=True):
        assert_same(one, other)


def test_environment_that_rests_is_not_stepped() -> None:
    envs = ListedEnvs([Walk(), Walk()], seed=0, quota=1)
    envs.reset()
    actions = np.array([2, 1])
    assert envs.step(actions).valid.tolist() == [True, True]
    last = envs.step(actions)
    assert last.valid.tolist() == [True, True]
    assert last.terminated.tolist() == [True, False]
    step = envs.step(actions)
    assert step.valid.tolist() == [False, True]
    assert step.rewards.tolist() == [0.0, 3.0]
    assert step.terminated.tolist() == [False, True]
    assert same(step.observations[0], last.next_observations[0])
    assert envs.take_episodes() == ([6.0, 6.0], [2, 3])


# --- masks ------------------------------------------------------------------------------------


def test_masks_come_from_info_or_from_the_environment() -> None:
    taxi = ListedEnvs([gymnasium.make("Taxi-v4") for _ in range(2)], seed=0)
    taxi.reset()
    for action in (0, 1):
        states = taxi.step(np.array([action, action])).observations
        table = [taxi.envs[0].unwrapped.action_mask(s) for s in states]
        masks = taxi.action_masks()
        assert masks is not None
        assert masks.dtype == np.bool_
        np.testing.assert_array_equal(masks, np.array(table, bool))
    envs = ListedEnvs([Masked()], seed=0)
    envs.reset()
    np.testing.assert_array_equal(envs.action_masks(), [[True, False]])
    plain = ListedEnvs([Walk()], seed=0)
    plain.reset()
    assert plain.action_masks() is None


@pytest.mark.parametrize("mask", [(True,), (False, False)])
def test_mask_of_another_length_or_of_nothing_is_refused(mask: tuple[bool, ...]) -> None:
    class Wrong(Masked):
        pass

    Wrong.mask = mask
    with pytest.raises(UsageError, match=r"environment 0 gave the action mask .*2 actions"):
        ListedEnvs([Wrong()], seed=0).reset()


# --- resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_resumed_environments_go_on_as_if_never_stopped(steps: int) -> None:
    envs = ListedEnvs([Walk(), Walk()], seed=1)
    now = envs.reset()
    for t in range(steps):
        now = envs.step(np.array([1, 1 + t % 2])).observations
    other = ListedEnvs([Walk(), Walk()], seed=1)
    assert same(other.load_state_dict(saved_and_loaded(envs.state_dict())), now)
    for t in range(6):
        actions = np.array([1 + t % 2, 1])
        assert_same(envs.step(actions), other.step(actions))
    assert envs.take_episodes() == other.take_episodes()


def test_mixed_observations_and_box_actions_resume() -> None:
    envs, other = (ListedEnvs([Mixed()], seed=1, max_episode_steps=7) for _ in range(2))
    envs.reset()
    actions = np.random.default_rng(0).normal(size=(20, 1, 2))
    for action in actions[:10]:
        envs.step(action)
    other.load_state_dict(saved_and_loaded(envs.state_dict()))
    for action in actions[10:]:
        assert_same(envs.step(action), other.step(action))
    assert envs.take_episodes() == other.take_episodes()


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "LunarLanderContinuous-v3"])
def test_box2d_worlds_that_cannot_be_pickled_resume_bit_for_bit(env_id: str) -> None:
    draws = np.random.default_rng(3)
    envs, other = (ListedEnvs([gymnasium.make(env_id) for _ in range(2)], seed=1) for _ in "ab")
    assert not same(envs.reset(), envs.reset()[::-1])
    actions = draws.integers(0, 4, (330, 2))
    if env_id == "LunarLanderContinuous-v3":
        actions = draws.uniform(-1, 1, (330, 2, 2)).astype(np.float32)
    for action in actions[:230]:
        now = envs.step(action).observations
    returns, lengths = envs.take_episodes()
    assert len(returns) >= 2  # so both are amid an episode that is not their first
    assert sum(lengths) < 460
    assert same(other.load_state_dict(saved_and_loaded(envs.state_dict())), now)
    for action in actions[230:]:
        assert_same(envs.step(action), other.step(action))
    assert envs.take_episodes() == other.take_episodes()


def test_resuming_brings_masks_and_rest_back() -> None:
    envs = ListedEnvs([Masked(), Masked()], seed=1, quota=1)
    envs.reset()
    for _ in range(2):
        envs.step(np.array([2, 1]))
    other = ListedEnvs([Masked(), Masked()], seed=1, quota=1)
    other.load_state_dict(saved_and_loaded(envs.state_dict()))
    np.testing.assert_array_equal(other.action_masks(), envs.action_masks())
    assert other.step(np.array([1, 1])).valid.tolist() == [False, True]


def test_each_process_takes_its_own_environments_from_a_checkpoint_of_all() -> None:
    whole = ListedEnvs([Walk() for _ in range(3)], seed=2)
    whole.reset()
    now = whole.step(np.array([1, 2, 1])).observations
    part = ListedEnvs([Walk()], seed=2, first=2)
    assert same(part.load_state_dict(whole.state_dict()), now[2:])


def test_environment_that_its_seed_does_not_determine_is_not_resumed() -> None:
    envs = ListedEnvs([Forgetful()], seed=0)
    envs.reset()
    envs.step(np.array([1]))
    with pytest.raises(UsageError, match=r"environment 0 .*same 1 actions.*self\.np_random"):
        ListedEnvs([Forgetful()], seed=0).load_state_dict(envs.state_dict())


def test_checkpoint_of_another_environment_is_refused() -> None:
    envs = ListedEnvs([Walk()], seed=0, name="Walk-v0")
    envs.reset()
    with pytest.raises(UsageError, match="'Walk-v0', and these are 'Mixed-v0'"):
        ListedEnvs([Mixed()], seed=0, name="Mixed-v0").load_state_dict(envs.state_dict())


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation", "reward", "said"),
    [
        ((0.5, np.nan), 0.0, r"environment 7 gave NaN at step 2 .*observation \[0.5 nan\]"),
        ((0.0, 0.0), np.nan, "environment 7 gave the reward nan at step 2"),
        ((0.0, 0.0), -np.inf, "environment 7 gave the reward -inf at step 2"),
        ((0.0, 0.0, 0.0), 0.0, r"environment 7 gave an observation that is not in its space Box"),
    ],
)
def test_broken_environment_is_named_with_step_and_value(
    observation: tuple[float, ...], reward: float, said: str
) -> None:
    class This(Broken):
        pass

    This.observation, This.reward = observation, reward
    envs = ListedEnvs([Walk(), This()], seed=0, first=6)
    envs.reset()
    envs.step(np.array([1, 1]))
    with pytest.raises(UsageError, match=said):
        envs.step(np.array([1, 1]))


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.array([1, 2, 1]), r"shape \(3,\).*2 environments.*Discrete\(2, start=1\)"),
        (np.array([0, 1]), r"got 0 as the action of environment 0.*Discrete\(2, start=1\)"),
        (np.array([1, 3]), r"got 3 as the action of environment 1"),
        (np.array([1.0, 1.0]), r"type float64.*whole numbers"),
    ],
)
def test_actions_outside_the_space_are_refused(actions: NDArray[Any], said: str) -> None:
    envs = ListedEnvs([Walk(), Walk()], seed=0)
    envs.reset()
    with pytest.raises(UsageError, match=said):
        envs.step(actions)


def test_environments_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match="the environments differ"):
        ListedEnvs([Walk(), Mixed()], seed=0)
    walk = Walk()
    with pytest.raises(UsageError, match="returned the same one twice"):
        ListedEnvs([walk, walk], seed=0)


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(UsageError, match=r"reset\(\) before step\(\)"):
        ListedEnvs([Walk()], seed=0).step(np.array([1]))
