from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from launch.errors import UsageError
from rl.normalisation import ObservationNormaliser, Reducer, RewardNormaliser, RunningMoments

NO_ENDS = np.zeros(2, np.bool_)


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return dict(torch.load(buffer, weights_only=True))


class Together:
    """Sums over as many threads as there are processes, like an all-reduce."""

    def __init__(self, count: int) -> None:
        self.given: list[Tensor] = [torch.empty(0)] * count
        self.barrier = threading.Barrier(count, timeout=20)

    def reducer(self, rank: int) -> Reducer:
        def total(x: Tensor) -> Tensor:
            self.given[rank] = x
            self.barrier.wait()
            result = torch.stack(self.given).sum(0)
            self.barrier.wait()
            return result

        return total


# --- moments ----------------------------------------------------------------------------------


def test_moments_of_hand_worked_batches() -> None:
    moments = RunningMoments((2,))
    assert moments.variance.tolist() == [1.0, 1.0]
    moments.update([[0.0, 5.0], [4.0, 5.0]])
    assert moments.mean.tolist() == [2.0, 5.0]
    assert moments.variance.tolist() == [4.0, 0.0]
    # 0, 4, 8: mean 4, squares 16 + 0 + 16, a third of 32
    moments.update([[8.0, 5.0]])
    assert moments.mean.tolist() == [4.0, 5.0]
    assert moments.variance.tolist() == pytest.approx([32 / 3, 0.0])
    assert moments.count == 3


def test_empty_batch_changes_nothing() -> None:
    moments = RunningMoments((2,))
    moments.update(np.zeros((0, 2)))
    assert moments.count == 0
    moments.update([[1.0, 2.0]])
    before = moments.state_dict()
    moments.update(np.zeros((0, 2)))
    assert str(moments.state_dict()) == str(before)


def test_moments_keep_their_digits_far_from_0() -> None:
    # The textbook's mean of squares less squared mean leaves no digit of this variance.
    moments = RunningMoments()
    for _ in range(3):
        moments.update(np.array([1e9, 1e9 + 1]))
    assert float(moments.variance) == pytest.approx(0.25, rel=1e-9)


@given(seed=st.integers(0, 2**16), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_moments_do_not_depend_on_how_data_are_cut(seed: int, cuts: list[int]) -> None:
    data = np.random.default_rng(seed).normal(3.0, 2.0, (30, 2, 2))
    moments = RunningMoments((2, 2))
    for part in np.split(data, sorted(cuts)):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, data.var(0), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(7, 5), (12, 0), (0, 12)])
def test_processes_end_with_the_moments_of_all_their_data(sizes: tuple[int, int]) -> None:
    data = np.random.default_rng(0).normal(50.0, 2.0, (3, sum(sizes), 2))
    alone, both, together = RunningMoments((2,)), [RunningMoments((2,)) for _ in "ab"], Together(2)

    def run(rank: int, rows: slice) -> None:
        for batch in data:
            both[rank].update(batch[rows], total=together.reducer(rank))

    parts = (slice(0, sizes[0]), slice(sizes[0], None))
    threads = [threading.Thread(target=run, args=item) for item in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in data:
        alone.update(batch)
    assert str(both[0].state_dict()) == str(both[1].state_dict())
    np.testing.assert_allclose(both[0].mean, alone.mean, rtol=1e-14)
    np.testing.assert_allclose(both[0].variance, alone.variance, rtol=1e-12)


def test_batch_and_state_of_another_shape_are_refused() -> None:
    moments = RunningMoments((2,))
    with pytest.raises(ValueError, match=r"shape \(4, 3\).*of the shape \(2,\)"):
        moments.update(np.zeros((4, 3)))
    with pytest.raises(UsageError, match=r"shape \(3,\), and these \(2,\)"):
        moments.load_state_dict(RunningMoments((3,)).state_dict())


# --- observations -----------------------------------------------------------------------------


def test_observations_come_out_in_deviations_and_clipped() -> None:
    normaliser = ObservationNormaliser((2,), clip=1.5)
    normaliser.update(np.array([[0.0, 7.0], [4.0, 7.0]], np.float32))
    scaled = normaliser(np.array([[3.0, 7.0], [100.0, 7.0], [-100.0, 7.0]], np.float32))
    assert scaled.dtype == np.float32
    # mean 2, deviation 2; what never varied is 0
    np.testing.assert_allclose(scaled, [[0.5, 0.0], [1.5, 0.0], [-1.5, 0.0]], rtol=1e-7)


def test_rollout_of_observations_is_taken_in_whole_and_scaling_takes_in_nothing() -> None:
    rollout = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    normaliser = ObservationNormaliser((4,))
    normaliser.update(rollout)
    assert normaliser.moments.count == 15
    assert normaliser(rollout).shape == (3, 5, 4)
    assert normaliser.moments.count == 15
    normaliser.frozen = True
    normaliser.update(rollout)
    assert normaliser.moments.count == 15


def test_observation_normaliser_comes_back_bit_for_bit_also_from_text() -> None:
    normaliser = ObservationNormaliser((3,), clip=4.0, epsilon=1e-3)
    normaliser.update(np.random.default_rng(0).normal(size=(9, 3)))
    observations = np.random.default_rng(1).normal(size=(5, 3))
    state = saved_and_loaded(normaliser.state_dict())
    text = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in state.items()}
    for saved in (state, text):
        other = ObservationNormaliser((3,))
        other.load_state_dict(saved)
        np.testing.assert_array_equal(other(observations), normaliser(observations))
        other.update(observations)
    normaliser.update(observations)
    np.testing.assert_array_equal(other(observations), normaliser(observations))


# --- rewards ----------------------------------------------------------------------------------


def test_rewards_are_divided_by_the_deviation_of_hand_worked_returns() -> None:
    normaliser = RewardNormaliser(2, discount=0.5)
    # Returns 2 and 4: deviation 1.
    scaled = normaliser(np.array([2.0, 4.0]), np.array([True, False]))
    np.testing.assert_allclose(scaled, [2.0, 4.0], rtol=1e-6)
    # The first begins anew: 0, and 0 + .5 * 4 = 2. Of 2, 4, 0, 2: mean 2, deviation sqrt(2).
    scaled = normaliser(np.array([0.0, 0.0]), NO_ENDS)
    assert float(normaliser.moments.variance) == 2.0
    # 0 + 3 = 3 and .5 * 2 + 1 = 2. Of 2, 4, 0, 2, 3, 2: sum 13, squares 37, 37/6 - 169/36 = 53/36
    scaled = normaliser(np.array([3.0, -1.0 + 2.0]), NO_ENDS)
    np.testing.assert_allclose(scaled, np.array([3.0, 1.0]) / np.sqrt(53 / 36), rtol=1e-6)


@given(seed=st.integers(0, 2**16))
def test_rollout_takes_in_what_its_steps_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, ended = rng.normal(size=(2, 6)), rng.random((2, 6)) < 0.3
    whole, steps = (RewardNormaliser(2, discount=0.9) for _ in range(2))
    scaled = whole(rewards, ended)
    for t in range(6):
        last = steps(rewards[:, t], ended[:, t])
    np.testing.assert_allclose(whole.moments.variance, steps.moments.variance, rtol=1e-12)
    np.testing.assert_allclose(scaled[:, -1], last, rtol=1e-6)
    np.testing.assert_array_equal(whole._running, steps._running)


def test_what_is_no_step_is_left_out() -> None:
    one, other = (RewardNormaliser(1, discount=0.5) for _ in range(2))
    one(np.array([[1.0, 5.0, 2.0]]), np.array([[False] * 3]), np.array([[True, False, True]]))
    other(np.array([[1.0, 2.0]]), np.array([[False] * 2]))
    assert str(one.state_dict()) == str(other.state_dict())


def test_frozen_rewards_are_scaled_as_before_and_clipped() -> None:
    normaliser = RewardNormaliser(2, discount=0.5, clip=3.0)
    normaliser(np.array([0.0, 4.0]), NO_ENDS)  # deviation 2
    normaliser.frozen = True
    for _ in range(2):
        scaled = normaliser(np.array([1.0, -100.0]), NO_ENDS)
        np.testing.assert_allclose(scaled, [0.5, -3.0], rtol=1e-6)


def test_reward_normaliser_resumes_its_own_environments() -> None:
    whole = RewardNormaliser(3, discount=0.9)
    rewards: NDArray[np.float64] = np.array([1.0, 2.0, 3.0])
    whole(rewards, np.zeros(3, np.bool_))
    state = saved_and_loaded(whole.state_dict())
    part = RewardNormaliser(1, discount=0.9, first=2)
    part.load_state_dict(state)
    assert part._running.tolist() == [3.0]
    whole.load_state_dict(state)
    assert whole._running.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(UsageError, match=r"3 environments from 0 on.* runs 2 from 2 on"):
        RewardNormaliser(2, discount=0.9, first=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"discount": 1.1}, r"discount=1\.1"),
        ({"discount": float("nan")}, "discount=nan"),
        ({"clip": 0.0}, r"clip=0\.0"),
        ({"epsilon": 0.0}, r"epsilon=0\.0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], said: str) -> None:
    settings: dict[str, Any] = {"discount": 0.9} | wrong
    with pytest.raises(UsageError, match=said):
        RewardNormaliser(1, **settings)


def test_rewards_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\).*\(2,\) or \(2, T\)"):
        RewardNormaliser(2, discount=0.9)(np.zeros(3), np.zeros(3, np.bool_))
