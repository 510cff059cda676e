from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from launch.batch import Splittable
from launch.errors import UsageError
from rl.replay import PrioritizedReplay, Replay, Transitions

NUMBER = spaces.Box(-np.inf, np.inf, (1,))
DISCRETE = spaces.Discrete(1_000_000)
KINDS = [Replay, PrioritizedReplay]


class Step(NamedTuple):
    """What one environment did: states and actions are numbers that never come twice."""

    state: int
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_state: int
    valid: bool


def episodes(seed: int, environments: int, length: int, resets: bool) -> list[list[Step]]:
    """Return ``length`` steps of each environment, with ends at random."""
    g = np.random.default_rng(seed)
    state = iter(range(10**6))
    return [_steps(g, state, length, resets) for _ in range(environments)]


def _steps(g: np.random.Generator, state: Iterator[int], length: int, resets: bool) -> list[Step]:
    steps: list[Step] = []
    now = next(state)
    while len(steps) < length:
        terminated, truncated = (bool(x) for x in g.random(2) < 0.15)
        to = next(state)
        reward = float(g.integers(-8, 9))
        steps.append(Step(now, next(state), reward, terminated, truncated, to, True))
        ended = terminated or truncated
        now = next(state) if ended else to
        if ended and resets:  # the row of NEXT_STEP autoreset
            steps.append(Step(to, next(state), 99.0, False, False, now, False))
    return steps[:length]


def columns(steps: list[Step]) -> tuple[NDArray[Any], ...]:
    """Return one step of every environment as the arguments of ``add``."""
    states, actions, rewards, terminated, truncated, next_states, valid = (
        np.array(column) for column in zip(*steps, strict=True)
    )
    return (
        states[:, None].astype(np.float32),
        actions,
        rewards.astype(np.float32),
        terminated,
        truncated,
        next_states[:, None].astype(np.float32),
        valid,
    )


def naive(steps: list[Step], n: int, gamma: float) -> list[tuple[float, ...]]:
    """Return every whole transition of one environment, by looking ahead from each step."""
    found = []
    real = [step for step in steps if step.valid]
    for start, first in enumerate(real):
        total = 0.0
        for k, step in enumerate(real[start : start + n]):
            total += gamma**k * step.reward
            if step.terminated or step.truncated or k + 1 == n:
                discount = 0.0 if step.terminated else gamma ** (k + 1)
                found.append((first.state, first.action, total, discount, step.next_state))
                break
    return found


def contents(replay: Replay) -> list[tuple[float, ...]]:
    rows = replay.take(np.arange(len(replay)))
    assert isinstance(rows.observations, torch.Tensor)
    assert isinstance(rows.next_observations, torch.Tensor)
    parts = (
        rows.observations[:, 0],
        rows.actions,
        rows.rewards,
        rows.discounts,
        rows.next_observations[:, 0],
    )
    return list(zip(*(part.tolist() for part in parts), strict=True))


def fill(replay: Replay, worlds: list[list[Step]]) -> None:
    for steps in zip(*worlds, strict=True):
        replay.add(*columns(list(steps)))


# --- what is stored -----------------------------------------------------------------------------


def test_three_steps_of_hand_worked_rewards() -> None:
    # gamma 1/2, rewards 1 2 4 8, the fourth step terminates:
    # 1 + 2/2 + 4/4 = 3 (1/8), then 2 + 2 + 2 = 6 (0), 4 + 4 = 8 (0), 8 (0)
    replay = Replay(10, NUMBER, DISCRETE, n_step=3, discount=0.5)
    steps = [Step(i, i, 2.0**i, i == 3, False, i + 1, True) for i in range(4)]
    for count, step in zip([0, 0, 1, 4], steps, strict=True):
        replay.add(*columns([step]))
        assert len(replay) == count
    assert contents(replay) == [
        (0, 0, 3.0, 0.125, 3),
        (1, 1, 6.0, 0.0, 4),
        (2, 2, 8.0, 0.0, 4),
        (3, 3, 8.0, 0.0, 4),
    ]


def test_truncation_ends_the_sum_and_keeps_the_value_of_its_final_observation() -> None:
    replay = Replay(10, NUMBER, DISCRETE, n_step=3, discount=0.5)
    for step in (Step(0, 0, 1.0, False, False, 1, True), Step(1, 1, 2.0, False, True, 77, True)):
        replay.add(*columns([step]))
    assert contents(replay) == [(0, 0, 2.0, 0.25, 77), (1, 1, 2.0, 0.5, 77)]


def test_terminal_step_that_is_also_truncated_is_terminal() -> None:
    replay = Replay(10, NUMBER, DISCRETE, discount=0.5)
    replay.add(*columns([Step(0, 0, 1.0, True, True, 1, True)]))
    assert contents(replay) == [(0, 0, 1.0, 0.0, 1)]


@given(
    seed=st.integers(0, 2**16),
    environments=st.integers(1, 4),
    length=st.integers(1, 25),
    n=st.integers(1, 6),
    capacity=st.integers(1, 120),
    resets=st.booleans(),
)
def test_memory_holds_the_newest_of_all_transitions_that_there_are(
    seed: int, environments: int, length: int, n: int, capacity: int, resets: bool
) -> None:
    worlds = episodes(seed, environments, length, resets)
    whole = Replay(1000, NUMBER, DISCRETE, n_step=n, discount=0.5)
    fill(whole, worlds)
    # Halves and small whole numbers: every sum is exact, in whatever order.
    expected = [row for world in worlds for row in naive(world, n, 0.5)]
    assert sorted(contents(whole)) == sorted(expected)
    order = {row: place for place, row in enumerate(contents(whole))}
    ring = Replay(capacity, NUMBER, DISCRETE, n_step=n, discount=0.5)
    fill(ring, worlds)
    newest = contents(whole)[-capacity:]
    assert sorted(contents(ring), key=order.__getitem__) == newest


@pytest.mark.parametrize("kind", KINDS)
def test_ring_wider_than_one_step_keeps_the_last(kind: type[Replay]) -> None:
    replay = kind(3, NUMBER, DISCRETE, discount=1.0)
    for t in range(2):
        steps = [Step(10 * t + i, 0, 0.0, False, False, 0, True) for i in range(5)]
        replay.add(*columns(steps))
        assert sorted(row[0] for row in contents(replay)) == [10 * t + i for i in (2, 3, 4)]


def test_dicts_and_bytes_keep_their_types_and_their_rows() -> None:
    space = spaces.Dict(
        camera=spaces.Box(0, 255, (2, 2), np.uint8), gear=spaces.Tuple([spaces.Discrete(9)])
    )
    replay = Replay(4, space, spaces.Box(-1.0, 1.0, (2,)), n_step=2, discount=0.5)
    for t in range(4):
        now, later = (
            {"gear": (np.array([i]),), "camera": np.full((1, 2, 2), i, np.uint8)}
            for i in (t, t + 1)
        )
        no = np.array([False])
        replay.add(now, np.full((1, 2), t, np.float32), np.ones(1), no, no, later)
    rows = replay.take(np.array([2, 0]))
    for part, expected in ((rows.observations, [2, 0]), (rows.next_observations, [4, 2])):
        assert isinstance(part, dict)
        camera, (gear,) = part["camera"], part["gear"]
        assert (camera.dtype, gear.dtype) == (torch.uint8, torch.int64)  # type: ignore[union-attr]  # tensors
        assert camera[:, 1, 1].tolist() == gear.tolist() == expected  # type: ignore[index,union-attr]  # tensors
    assert rows.actions.tolist() == [[2.0, 2.0], [0.0, 0.0]]
    assert rows.actions.dtype == rows.rewards.dtype == rows.discounts.dtype == torch.float32


def test_what_was_added_is_copied() -> None:
    replay = Replay(4, NUMBER, DISCRETE, discount=0.5)
    arguments = columns([Step(1, 2, 3.0, False, False, 4, True)])
    replay.add(*arguments)
    before = contents(replay)
    for array in arguments:
        array[...] = 0
    assert contents(replay) == before


# --- drawing ------------------------------------------------------------------------------------


def ready(kind: type[Replay], count: int = 10, seed: int = 0, **settings: float) -> Replay:
    replay = kind(16, NUMBER, DISCRETE, discount=0.5, seed=seed, **settings)  # type: ignore[arg-type]  # floats
    for i in range(count):
        replay.add(*columns([Step(i, i, i, False, False, i, True)]))
    return replay


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_of_what_is_filled_and_follow_the_generator(kind: type[Replay]) -> None:
    replay = ready(kind)
    rows = replay.sample(512, np.random.default_rng(1))
    assert set(rows.indices.tolist()) == set(range(10))
    assert rows.observations[:, 0].tolist() == rows.indices.tolist()  # type: ignore[call-overload,index]  # a tensor
    again = ready(kind).sample(512, np.random.default_rng(1))
    assert torch.equal(rows.indices, again.indices)
    own, same, other = (ready(kind, seed=seed).sample(512).indices for seed in (3, 3, 4))
    assert torch.equal(own, same)
    assert not torch.equal(own, other)


def test_even_draw_is_that_of_numpy_and_weighs_1() -> None:
    rows = ready(Replay).sample(100, np.random.default_rng(1))
    assert rows.indices.tolist() == np.random.default_rng(1).integers(0, 10, 100).tolist()
    assert (rows.weights == 1).all()


def test_priorities_of_a_hand_worked_memory() -> None:
    # |errors| 1 and 3 with alpha 1: probabilities 1/4 and 3/4. A batch of 4 has one draw in each
    # quarter: 0 1 1 1. Weights with beta 1: (2/4)^-1 = 2 and (2 * 3/4)^-1 = 2/3; over 2: 1 and 1/3
    replay = ready(PrioritizedReplay, count=2, alpha=1.0, beta=1.0, epsilon=1e-300)
    replay.update_priorities(torch.tensor([0, 1]), torch.tensor([-1.0, 3.0]))
    rows = replay.sample(4)
    assert rows.indices.tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(rows.weights, torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3]))


def test_alpha_bends_priorities_and_beta_weights() -> None:
    # errors 1 and 16, alpha 1/4: 1 and 2, so thirds. beta 1/2: (2/3)^-.5 against (4/3)^-.5
    replay = ready(PrioritizedReplay, count=2, alpha=0.25, beta=0.5, epsilon=1e-300)
    replay.update_priorities(torch.tensor([0, 1]), torch.tensor([1.0, 16.0]))
    rows = replay.sample(3)
    assert rows.indices.tolist() == [0, 1, 1]
    torch.testing.assert_close(rows.weights, torch.tensor([1.0, 0.5**0.5, 0.5**0.5]))
    assert isinstance(replay, PrioritizedReplay)
    replay.beta = 0.0
    assert (replay.sample(3).weights == 1).all()


def test_new_transition_has_the_largest_priority_that_there_ever_was() -> None:
    replay = ready(PrioritizedReplay, count=2, alpha=1.0, epsilon=1e-300)
    replay.update_priorities(torch.tensor([0, 1]), torch.tensor([5.0, 0.5]))
    replay.update_priorities(torch.tensor([0]), torch.tensor([0.5]))
    replay.add(*columns([Step(2, 2, 2.0, False, False, 2, True)]))
    # priorities 1/2, 1/2, 5: of six draws in equal parts the first is of 0 or 1, five are of 2
    assert (replay.sample(6).indices == 2).tolist() == [False, True, True, True, True, True]


def test_priorities_change_nothing_in_an_even_memory() -> None:
    replay, twin = ready(Replay), ready(Replay)
    replay.update_priorities(torch.tensor([0]), torch.tensor([9.0]))
    assert torch.equal(replay.sample(64).indices, twin.sample(64).indices)


def test_overwritten_transition_loses_its_priority() -> None:
    replay = PrioritizedReplay(2, NUMBER, DISCRETE, discount=0.5, alpha=1.0, epsilon=1e-300)
    for i in range(2):
        replay.add(*columns([Step(i, i, i, False, False, i, True)]))
    replay.update_priorities(torch.tensor([0, 1]), torch.tensor([1e-9, 1.0]))
    replay.add(*columns([Step(2, 2, 2.0, False, False, 2, True)]))
    assert sorted(replay.sample(2).indices.tolist()) == [0, 1]


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 16),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1),
)
def test_weights_are_those_of_the_formula(seed: int, count: int, alpha: float, beta: float) -> None:
    replay = ready(PrioritizedReplay, count=count, alpha=alpha, beta=beta)
    errors = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    replay.update_priorities(torch.arange(count), errors)
    rows = replay.sample(8)
    powers = (errors.abs() + 1e-6) ** alpha
    expected = (count * powers / powers.sum())[rows.indices] ** -beta
    torch.testing.assert_close(rows.weights, (expected / expected.max()).float())


# --- state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("length", [0, 2, 9, 40])
def test_memory_that_was_saved_goes_on_as_if_never_stopped(
    kind: type[Replay], n: int, length: int
) -> None:
    def make() -> Replay:
        return kind(32, NUMBER, DISCRETE, n_step=n, discount=0.9, seed=4)

    def go_on(replay: Replay, start: int) -> list[Transitions]:
        drawn = []
        for steps in list(zip(*worlds, strict=True))[start : start + 20]:
            replay.add(*columns(list(steps)))
            if len(replay):
                rows = replay.sample(8)
                replay.update_priorities(rows.indices, rows.rewards)
                drawn.append(rows)
        return drawn

    worlds = episodes(1, 2, 80, resets=True)
    replay = make()
    fill(replay, [world[:length] for world in worlds])
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    restored = make()
    fill(restored, [world[40:45] for world in worlds])  # what it held before is gone
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert len(restored) == len(replay)
    ours, theirs = go_on(replay, length), go_on(restored, length)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in Transitions.__slots__:
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_state_holds_only_what_is_filled_and_nothing_that_changes_later() -> None:
    replay = ready(PrioritizedReplay, count=3)
    state = replay.state_dict()
    assert [len(x) for x in state["observations"]] == [3]
    assert len(state["priorities"]) == 3
    frozen = copy.deepcopy(state)
    replay.add(*columns([Step(9, 9, 9.0, False, False, 9, True)]))
    replay.update_priorities(torch.tensor([0]), torch.tensor([7.0]))
    replay.sample(4)
    assert str(frozen) == str(state)


def test_state_of_another_memory_is_refused() -> None:
    state = ready(Replay).state_dict()
    with pytest.raises(UsageError, match=r"capacity 16 .*this one 8"):
        Replay(8, NUMBER, DISCRETE, discount=0.5).load_state_dict(state)
    wider = spaces.Box(-1.0, 1.0, (2,))
    with pytest.raises(UsageError, match=r"rows of \[\(1,\).*this one 16 and \[\(2,\)"):
        Replay(16, wider, DISCRETE, discount=0.5).load_state_dict(state)


# --- transitions --------------------------------------------------------------------------------


def test_transitions_can_be_handed_out_in_micro_batches() -> None:
    rows = ready(Replay).take(np.arange(5))
    assert isinstance(rows, Splittable)
    assert [part.indices.tolist() for part in rows.split(2)] == [[0, 1], [2, 3], [4]]
    assert len(rows.empty()) == 0
    assert len(list(rows.empty().split(2))) == 0
    assert rows.to("cpu").actions.tolist() == rows.actions.tolist()
    with pytest.raises(ValueError, match="micro-batch of 0 rows"):
        next(rows.split(0))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"n_step": 0}, "n_step=0"),
        ({"discount": 1.5}, r"discount=1\.5"),
        ({"discount": float("nan")}, "discount=nan"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_number_out_of_range_is_refused(
    kind: type[Replay], settings: dict[str, Any], message: str
) -> None:
    given_settings = {"capacity": 4, "discount": 0.5} | settings
    with pytest.raises(UsageError, match=message):
        kind(observation_space=NUMBER, action_space=DISCRETE, **given_settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"alpha=1\.5"),
        ({"beta": -0.1}, r"beta=-0\.1"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_priority_setting_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PrioritizedReplay(4, NUMBER, DISCRETE, discount=0.5, **settings)  # type: ignore[arg-type]  # floats


def test_more_rows_than_memory_are_refused_in_bytes() -> None:
    images = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    # 2 * 84 * 84 * 4 pixels, an int64 action, a float32 reward and discount
    with pytest.raises(
        UsageError, match=r"capacity=1000000000: at 56464 bytes.*56464000000000 byt"
    ):
        Replay(10**9, images, DISCRETE, discount=0.99)


def test_arrays_that_do_not_fit_are_refused_naming_both_shapes() -> None:
    replay = Replay(4, NUMBER, DISCRETE, discount=0.5)
    good = list(columns([Step(0, 0, 0.0, False, False, 0, True)] * 2))
    for place, wrong in ((0, np.zeros((2, 3))), (1, np.zeros((2, 1))), (5, np.zeros(1))):
        bad = [*good[:place], wrong, *good[place + 1 :]]
        with pytest.raises(ValueError, match=rf"shape \({wrong.shape[0]},.*expected \(2,"):
            replay.add(*bad)
    assert len(replay) == 0


def test_changing_number_of_environments_is_refused_where_sums_span_steps() -> None:
    replay = Replay(4, NUMBER, DISCRETE, n_step=2, discount=0.5)
    step = Step(0, 0, 0.0, False, False, 0, True)
    replay.add(*columns([step]))
    with pytest.raises(ValueError, match="step of 2 environments after steps of 1"):
        replay.add(*columns([step, step]))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_memory_cannot_be_drawn_from(kind: type[Replay]) -> None:
    replay = kind(4, NUMBER, DISCRETE, n_step=3, discount=0.5)
    with pytest.raises(ValueError, match=r"cannot draw 2 of 0 transitions.*n_step=3"):
        replay.sample(2)
    with pytest.raises(ValueError, match="cannot draw 0 of 10"):
        ready(kind).sample(0)


def test_error_that_is_not_finite_is_refused_naming_the_row() -> None:
    replay = ready(PrioritizedReplay)
    with pytest.raises(ValueError, match="error nan in row 1"):
        replay.update_priorities(torch.tensor([0, 1]), torch.tensor([1.0, float("nan")]))
