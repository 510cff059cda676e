from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from launch.errors import UsageError
from rl.gymnasium_vector import GymnasiumVectorEnvs
from rl.listed_envs import ListedEnvs
from rl.spaces import Observations, as_tensors, equal
from rl.vector_env import EnvStep, VectorEnv

MODES = tuple(AutoresetMode)
Options: TypeAlias = dict[str, object] | None
Reset: TypeAlias = tuple[dict[str, NDArray[np.float64]], dict[str, object]]
Step: TypeAlias = tuple[dict[str, NDArray[np.float64]], float, bool, bool, dict[str, object]]


class Count(gymnasium.Env[Any, int]):
    """Counts what its actions add up to; ends at 4, is truncated after 3 steps; draws nothing."""

    observation_space = spaces.Dict({"sum": spaces.Box(-9.0, 9.0, (1,), np.float64)})
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Options = None) -> Reset:
        super().reset(seed=seed)
        self.total = self.steps = 0
        return self.observed()

    def step(self, action: int) -> Step:
        self.total, self.steps = self.total + action, self.steps + 1
        ends = (self.total, self.total >= 4, self.steps >= 3)
        observation, info = self.observed()
        return observation, *ends, info

    def observed(self) -> Reset:
        mask = np.array([self.total < 3, True, True], np.int8)
        return {"sum": np.array([self.total], float)}, {"action_mask": mask}


class Chance(Count):
    """What it observes is drawn."""

    def observed(self) -> Reset:
        observation, info = super().observed()
        return {"sum": observation["sum"] + self.np_random.random()}, info


def adapted(mode: AutoresetMode, maker: type[Count] = Count, count: int = 3) -> GymnasiumVectorEnvs:
    return GymnasiumVectorEnvs(SyncVectorEnv([maker] * count, autoreset_mode=mode), seed=4)


def some_actions(t: int, count: int = 3) -> NDArray[np.int64]:
    return np.random.default_rng(t).integers(3, size=count)


def same(one: Observations, other: Observations) -> bool:
    return equal(one, as_tensors(other))


def assert_same(one: EnvStep, other: EnvStep) -> None:
    for name, left, right in zip(EnvStep._fields, one, other, strict=True):
        assert same(left, right), name


def place(observations: Observations) -> list[float]:
    assert isinstance(observations, dict)
    assert isinstance(observations["sum"], np.ndarray)
    return observations["sum"][:, 0].tolist()


# --- the three modes --------------------------------------------------------------------------


def test_next_step_mode_marks_the_reset_as_no_step() -> None:
    envs = adapted(AutoresetMode.NEXT_STEP, count=2)
    assert place(envs.reset()) == [0.0, 0.0]
    envs.step(np.array([2, 1]))
    step = envs.step(np.array([2, 1]))
    assert step.terminated.tolist() == [True, False]
    assert place(step.next_observations) == [4.0, 2.0]
    step = envs.step(np.array([2, 1]))
    assert step.valid.tolist() == [False, True]
    assert place(step.observations) == [0.0, 3.0]
    assert step.rewards.tolist() == [0.0, 3.0]
    assert step.truncated.tolist() == [False, True]
    step = envs.step(np.array([2, 1]))
    assert step.valid.tolist() == [True, False]
    assert place(step.next_observations) == [2.0, 0.0]
    assert envs.take_episodes() == ([6.0, 6.0], [2, 3])  # 2 + 4; 1 + 2 + 3


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_modes_give_final_and_first_observation_in_one_step(mode: AutoresetMode) -> None:
    envs = adapted(mode, count=2)
    envs.reset()
    envs.step(np.array([2, 1]))
    step = envs.step(np.array([2, 1]))
    assert step.valid.all()
    assert step.terminated.tolist() == [True, False]
    assert place(step.next_observations) == [4.0, 2.0]
    assert place(step.observations) == [0.0, 2.0]
    step = envs.step(np.array([2, 1]))
    assert step.truncated.tolist() == [False, True]
    assert place(step.next_observations) == [2.0, 3.0]
    assert place(step.observations) == [2.0, 0.0]
    assert envs.take_episodes() == ([6.0, 6.0], [2, 3])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_steps_of_single_environments(mode: AutoresetMode) -> None:
    # What each environment is asked depends on how many valid steps it has had.
    def transitions(envs: VectorEnv) -> list[list[tuple[object, ...]]]:
        seen: list[list[tuple[object, ...]]] = [[], [], []]
        envs.reset()
        while min(len(of_one) for of_one in seen) < 12:
            masks = envs.action_masks()
            step = envs.step(np.array([some_actions(len(of_one))[0] for of_one in seen]))
            for i in np.flatnonzero(step.valid):
                ends = (bool(step.terminated[i]), bool(step.truncated[i]))
                reached = place(step.next_observations)[i]
                seen[i].append((masks[i].tolist(), reached, float(step.rewards[i]), *ends))
        return [of_one[:12] for of_one in seen]

    listed = ListedEnvs([Count() for _ in range(3)], seed=4)
    assert transitions(adapted(mode)) == transitions(listed)


def test_disabled_mode_runs_the_episodes_of_single_environments() -> None:
    envs, listed = (
        adapted(AutoresetMode.DISABLED, Chance),
        ListedEnvs([Chance() for _ in range(3)], seed=4),
    )
    assert same(envs.reset(), listed.reset())
    for t in range(20):
        assert_same(envs.step(some_actions(t)), listed.step(some_actions(t)))
    assert envs.take_episodes() == listed.take_episodes()


def test_gymnasiums_own_cart_pole_vector_is_taken() -> None:
    vector = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    envs = GymnasiumVectorEnvs(vector, seed=0)
    envs.reset()
    lengths, valid, ends = [], 0, 0
    for _ in range(60):
        step = envs.step(np.zeros(2, np.int64))
        valid += step.valid.sum()
        ends += step.terminated.sum()
        lengths += envs.take_episodes()[1]
    assert ends == len(lengths) > 8
    assert 120 - 2 - ends <= valid <= 120 - ends + 2
    assert all(8 <= length <= 10 for length in lengths)


@pytest.mark.parametrize("mode", MODES)
def test_environment_rests_after_its_quota(mode: AutoresetMode) -> None:
    vector = SyncVectorEnv([Count, Count], autoreset_mode=mode)
    envs = GymnasiumVectorEnvs(vector, seed=4, quota=1)
    envs.reset()
    valid = [envs.step(np.array([2, 1])).valid.tolist() for _ in range(5)]
    assert valid == [[True, True], [True, True], [False, True], [False, False], [False, False]]
    assert envs.take_episodes() == ([6.0, 6.0], [2, 3])


# --- resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9])
def test_disabled_mode_resumes_as_if_never_stopped(steps: int) -> None:
    envs, other = adapted(AutoresetMode.DISABLED, Chance), adapted(AutoresetMode.DISABLED, Chance)
    now = envs.reset()
    for t in range(steps):
        now = envs.step(some_actions(t)).observations
    assert same(other.load_state_dict(envs.state_dict()), now)
    for t in range(steps, steps + 12):
        assert_same(envs.step(some_actions(t)), other.step(some_actions(t)))
        np.testing.assert_array_equal(envs.action_masks(), other.action_masks())
    assert envs.take_episodes() == other.take_episodes()


def test_short_episode_waits_through_others_of_its_own_for_a_long_one_to_catch_up() -> None:
    class Patient(Chance):
        def step(self, action: int) -> Step:
            observation, reward, terminated, _, info = super().step(action)
            return observation, reward, terminated, False, info

    envs, other = (adapted(AutoresetMode.DISABLED, Patient) for _ in range(2))
    envs.reset()
    for _ in range(20):
        now = envs.step(np.array([0, 2, 1])).observations
    assert [entry["actions"].shape for entry in envs.state_dict()["environments"]] == [
        (20,),
        (0,),
        (0,),
    ]
    assert same(other.load_state_dict(envs.state_dict()), now)
    assert_same(envs.step(some_actions(0)), other.step(some_actions(0)))


def test_other_modes_say_that_new_episodes_begin() -> None:
    envs = adapted(AutoresetMode.SAME_STEP)
    envs.reset()
    envs.step(np.array([1, 1, 1]))
    with pytest.warns(RuntimeWarning, match=r"not bit for bit; give a function"):
        observations = adapted(AutoresetMode.SAME_STEP).load_state_dict(envs.state_dict())
    assert place(observations) == [0.0, 0.0, 0.0]


# --- bad input --------------------------------------------------------------------------------


def test_vector_that_does_not_say_how_it_resets_is_refused() -> None:
    vector = SyncVectorEnv([Count])
    vector.metadata = {}
    with pytest.raises(UsageError, match=r"autoreset_mode'\]=None"):
        GymnasiumVectorEnvs(vector, seed=0)


def test_same_step_mode_without_final_observations_is_refused() -> None:
    class Silent(SyncVectorEnv):
        def step(self, actions: NDArray[np.int64]) -> tuple[Any, ...]:
            return *super().step(actions)[:4], {}

    envs = GymnasiumVectorEnvs(Silent([Count], autoreset_mode=AutoresetMode.SAME_STEP), seed=0)
    envs.reset()
    envs.step(np.array([2]))
    with pytest.raises(UsageError, match="infos has no 'final_obs'"):
        envs.step(np.array([2]))


@pytest.mark.parametrize("mode", MODES)
def test_nan_is_named_also_in_a_final_observation(mode: AutoresetMode) -> None:
    class Ends(Count):
        def observed(self) -> Reset:
            observation, info = super().observed()
            return {"sum": np.where(self.total < 4, observation["sum"], np.nan)}, info

    envs = adapted(mode, Ends, count=2)
    envs.reset()
    envs.step(np.array([1, 2]))
    with pytest.raises(UsageError, match=r"environment 1 gave NaN at step 2 .*\['sum'\] \[nan\]"):
        envs.step(np.array([1, 2]))


def test_steps_before_reset_are_refused() -> None:
    for call in (lambda e: e.step(np.zeros(3, np.int64)), lambda e: e.state_dict()):
        with pytest.raises(UsageError, match=r"call reset\(\) before"):
            call(adapted(AutoresetMode.DISABLED))


def test_no_warning_leaves_gymnasium() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in MODES:
            envs = adapted(mode)
            envs.reset()
            for t in range(6):
                envs.step(some_actions(t))
            envs.close()
