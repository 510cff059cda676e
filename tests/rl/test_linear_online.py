from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl.estimators.off_policy import emphasis
from rl.linear import (
    GTD2,
    TD,
    TDC,
    Aggregation,
    DivergenceError,
    ExpectedMethod,
    OneHot,
    TileCoding,
    emphatic_td,
    expected_updates,
    gtd2,
    semi_gradient_td,
    tdc,
)
from rl.linear_arrays import Floats
from rl.mdp import TabularMDP
from rl.step_sizes import Power

Learn = Callable[..., Floats]
WITHOUT_TRACE: list[Learn] = [gtd2, tdc]
WITH_TRACE: list[Learn] = [semi_gradient_td, emphatic_td]
every_method = pytest.mark.parametrize("learn", WITH_TRACE + WITHOUT_TRACE)


def settings_of(learn: Learn, **changes: object) -> dict[str, object]:
    settings: dict[str, object] = {"discount": 0.5, "episodes": 1, "step_size": 0.5}
    if learn in WITHOUT_TRACE:
        settings["secondary_step_size"] = 0.25
    return settings | changes


def chain(length: int) -> TabularMDP:
    """0 -> 1 -> ... -> end, each step paying 1; two actions that do the same."""
    table = np.repeat(np.eye(length, k=1)[:, None], 2, axis=1)
    start = np.eye(length)[0]
    return TabularMDP(table, np.ones((length, 2)), start)


class Recorded(gymnasium.Env[Any, Any]):  # type: ignore[misc]  # gymnasium is not followed
    """A continuing model's environment that keeps what happened; truncated by its wrapper."""

    def __init__(self, mdp: TabularMDP) -> None:
        self.inner = mdp.to_env()
        self.observation_space, self.action_space = (
            self.inner.observation_space,
            self.inner.action_space,
        )
        self.steps: list[tuple[int, int, float, int, bool]] = []
        self.starts: list[int] = []

    def reset(self, **settings: object) -> tuple[int, dict[str, Any]]:
        self.state, info = self.inner.reset(**settings)  # type: ignore[arg-type]
        self.starts.append(len(self.steps))
        return self.state, info

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        following, reward, terminated, truncated, info = self.inner.step(action)
        self.steps.append((self.state, int(action), float(reward), following, terminated))
        self.state = following
        return following, float(reward), terminated, truncated, info


# --- hand-worked ------------------------------------------------------------------------------


def test_td_with_traces_of_hand_worked_episode() -> None:
    # x = 1, 2, discount 1/2, trace 1/2, step 1/2, w = 1:
    # delta = 1 + 1/2 * 2 - 1 = 1, z = 1, w = 3/2;  delta = 1 - 3 = -2, z = 1/4 + 2, w = -3/4
    def learned(trace: float, episodes: int = 1) -> float:
        return float(
            semi_gradient_td(
                chain(2),
                [0, 0],
                [[1.0], [2.0]],
                discount=0.5,
                episodes=episodes,
                step_size=0.5,
                trace=trace,
                initial_weights=[1.0],
            )[0]
        )

    assert learned(0.5) == -0.75
    assert learned(0.0) == 1.5 - 2
    # the trace does not reach into the next episode: 1 + 1/2 (-3/2) + 3/4 = 1, w = -1/4;
    # 1 + 1/2 = 3/2, w = -1/4 + 9/4 * 3/4
    assert learned(0.5, episodes=2) == -0.25 + 27 / 16


def test_td_weighs_traces_by_ratios() -> None:
    # The target takes action 0, the behaviour both by halves: ratios 2 or 0. With one weight for
    # each state: after 0, 0:  z = (2, 0), delta 1, w = (1, 0);  z = 2 (1/2 (2, 0) / 2 + (0, 1))
    def learned(seed: int) -> tuple[float, ...]:
        return tuple(
            semi_gradient_td(
                chain(2),
                [0, 0],
                OneHot(2),
                behaviour=np.full((2, 2), 0.5),
                discount=0.5,
                episodes=1,
                step_size=0.5,
                trace=0.5,
                seed=seed,
            )
        )

    # actions 0, 0: w = (1, 0) + 1/2 (1, 2); 0, 1: (1, 0); 1, 0: (0, 1); 1, 1: (0, 0)
    expected = {(1.5, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)}
    assert {learned(seed) for seed in range(40)} == expected


def test_gradient_methods_of_hand_worked_episode() -> None:
    # x = 1, 2, discount 1/2, w = 1, h = 0, steps 1/2 and 1/4. delta = 1, h = 1/4.
    # TDC: w = 3/2; delta = 1 - 3 = -2, x h = 1/2, at the end discount x' = 0: w = 3/2 - 2 = -1/2
    # GTD2: w = 1; x h = 1/2, x - discount x' = 2: w = 1 + 1/2 * 1/2 * 2 = 3/2
    for learn, expected in ((tdc, -0.5), (gtd2, 1.5)):
        settings = settings_of(learn, initial_weights=[1.0])
        assert learn(chain(2), [0, 0], [[1.0], [2.0]], **settings) == [expected]


def test_gradient_correction_of_hand_worked_episodes() -> None:
    # A second episode from h: after the first, h = 1/4 + 1/4 (delta - 1/2) 2
    # TDC: delta = -2, h = -1. w = -1/2: delta = 1 - 1/2 + 1/2 = 1,
    #   w = -1/2 + 1/2 (1 + 1/2 * 2) = 1/2, h = -1 + 1/4 (1 + 1) = -1/2;  delta = 1 - 1 = 0: w stays
    # GTD2: delta = 1 - 2 = -1 at w = 1, h = 1/4 + 1/4 (-3/2) 2 = -1/2; w = 3/2: x - x' / 2 = 0, so
    #   w stays; delta = 1 + 3/2 - 3/2, h = -1/2 + 1/4 * 3/2 = -1/8; x h = -1/4, w = 3/2 - 1/4
    for learn, expected in ((tdc, 0.5), (gtd2, 1.25)):
        settings = settings_of(learn, initial_weights=[1.0], episodes=2)
        assert learn(chain(2), [0, 0], [[1.0], [2.0]], **settings) == [expected]


def test_emphasis_of_hand_worked_episodes() -> None:
    # On-policy, discount 1/2: F = 1, 3/2, 7/4, and 1 again in the next episode.
    # One weight for each state, trace 0, step 1/2, delta = 1 each: w = 1/2 (1, 3/2, 7/4).
    settings = settings_of(emphatic_td)
    found = emphatic_td(chain(3), [0, 0, 0], OneHot(3), **settings)
    np.testing.assert_array_equal(found, [0.5, 0.75, 0.875])
    # Again: delta = 1 + 3/8 - 1/2, 1 + 7/16 - 3/4, 1 - 7/8
    found = emphatic_td(chain(3), [0, 0, 0], OneHot(3), **(settings | {"episodes": 2}))
    expected = [0.5 + 0.5 * 0.875, 0.75 + 0.75 * 0.6875, 0.875 + 0.875 * 0.125]
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    # trace 1: M = 1, and z = 1/2 z + x:  w_0 = 1/2 (1 + 1/2 + 1/4)
    found = emphatic_td(chain(3), [0, 0, 0], OneHot(3), **(settings | {"trace": 1.0}))
    np.testing.assert_array_equal(found, [0.875, 0.75, 0.5])


@pytest.mark.parametrize("trace", [0.0, 0.6])
def test_emphatic_td_agrees_with_the_estimator(trace: float) -> None:
    rng = np.random.default_rng(5)
    mdp = TabularMDP(0.9 * rng.dirichlet(np.ones(3), (3, 2)), rng.normal(size=(3, 2)))
    target, behaviour = rng.dirichlet(np.ones(2), 3), rng.dirichlet(np.ones(2), 3)
    env, x, step = Recorded(mdp), rng.normal(size=(3, 2)), 0.01
    w = emphatic_td(
        env,
        target,
        x,
        behaviour=behaviour,
        discount=0.8,
        episodes=8,
        step_size=step,
        trace=trace,
        max_episode_steps=5,
    )
    states, actions, rewards, following, terminated = map(np.array, zip(*env.steps, strict=True))
    ends = np.isin(np.arange(len(states)) + 1, [*env.starts, len(states)])
    assert (ends & ~terminated).any()  # some are truncated
    ratios = target[states, actions] / behaviour[states, actions]
    discounts = torch.tensor(np.where(terminated, 0.0, 0.8))
    weighed = emphasis(discounts, torch.tensor(ratios), trace=trace, ends=torch.tensor(ends))
    expected, z = np.zeros(2), np.zeros(2)
    for t, m in enumerate(weighed.numpy()):
        z = ratios[t] * (0.8 * trace * z * (t not in env.starts) + m * x[states[t]])
        ahead = 0.0 if terminated[t] else 0.8 * x[following[t]] @ expected
        expected = expected + step * (rewards[t] + ahead - x[states[t]] @ expected) * z
    np.testing.assert_allclose(w, expected, rtol=1e-12)


# --- in expectation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learn", "method"),
    [(semi_gradient_td, TD()), (emphatic_td, TD()), (tdc, TDC()), (gtd2, GTD2())],
)
def test_methods_do_on_average_what_is_expected(learn: Learn, method: ExpectedMethod) -> None:
    # Episodes of one step are independent draws, and the updates are linear in the weights; so the
    # mean weights follow the expected updates, states weighted by the start. F is always 1.
    rng = np.random.default_rng(7)
    table = 0.8 * rng.dirichlet(np.ones(3), (3, 2))
    mdp = TabularMDP(table, rng.normal(size=(3, 2)), rng.dirichlet(np.ones(3)))
    target, behaviour = rng.dirichlet(np.ones(2), 3), rng.dirichlet(np.full(2, 3.0), 3)
    x = rng.normal(size=(3, 2))
    steps = {"step_size": 0.2}
    if learn in WITHOUT_TRACE:
        steps["secondary_step_size"] = 0.3
    expected = expected_updates(
        mdp,
        x,
        target=target,
        behaviour=behaviour,
        discount=0.9,
        method=method,
        secondary_step_size=0.3,
        step_size=0.2,
        sweeps=8,
        initial_weights=[1.0, -1.0],
        state_weights=mdp.start,
    )
    generator = np.random.default_rng(0)
    runs = np.array(
        [
            learn(
                mdp,
                target,
                x,
                behaviour=behaviour,
                discount=0.9,
                episodes=8,
                seed=generator,
                initial_weights=[1.0, -1.0],
                max_episode_steps=1,
                **steps,
            )
            for _ in range(500)
        ]
    )
    errors = runs.std(0, ddof=1) / np.sqrt(len(runs))
    assert (np.abs(runs.mean(0) - expected) < 4 * errors).all()
    assert (errors < 0.1).all()
    assert (np.abs(expected - [1.0, -1.0]) > 8 * errors).any()  # it has moved


# --- environments -----------------------------------------------------------------------------


@every_method
def test_same_seed_gives_the_same_weights(learn: Learn) -> None:
    coder = TileCoding([-1.2, -0.07], [0.6, 0.07], tilings=4, tiles=3)
    settings = settings_of(learn, step_size=0.05, max_episode_steps=30, episodes=2)
    found = [
        learn("MountainCar-v0", lambda row: np.full(3, 1 / 3), coder, **settings, seed=seed)
        for seed in (3, 3, np.random.default_rng(3), 4)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[3]).any()
    assert found[0].dtype == np.float64


def test_initial_weights_are_not_changed() -> None:
    given = np.ones(2)
    settings = settings_of(semi_gradient_td)
    semi_gradient_td(chain(2), [0, 0], OneHot(2), **settings, initial_weights=given)
    np.testing.assert_array_equal(given, [1, 1])


def test_policies_are_tables_or_functions() -> None:
    policies = [
        [0, 1],
        [[1.0, 0], [0, 1]],
        lambda row: int(row[0]),
        lambda row: np.eye(2)[int(row[0])],
    ]
    for policy in policies:
        found = semi_gradient_td(chain(2), policy, OneHot(2), **settings_of(semi_gradient_td))
        np.testing.assert_array_equal(found, [0.5, 0.5])


def test_step_sizes_are_numbers_arrays_or_functions() -> None:
    def learned(step_size: object) -> list[float]:
        settings = settings_of(semi_gradient_td, step_size=step_size)
        return list(semi_gradient_td(chain(2), [0, 0], OneHot(2), **settings))

    assert learned([0.5, 0.25]) == [0.5, 0.25]
    assert learned(Power()) == [1.0, 0.5]
    assert learned(lambda k: k / 4) == [0.25, 0.5]


class Corridor(gymnasium.Env[Any, Any]):  # type: ignore[misc]  # gymnasium is not followed
    """One step from its first observation to its second, for a reward."""

    def __init__(
        self,
        space: spaces.Space[Any],
        seen: list[Any],
        reward: float = 1.0,
        actions: spaces.Space[Any] | None = None,
    ) -> None:
        self.observation_space, self.seen, self.reward = space, seen, reward
        self.action_space = actions or spaces.Discrete(2)

    def reset(self, **settings: object) -> tuple[Any, dict[str, Any]]:
        return self.seen[0], {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self.seen[1], self.reward, True, False, {}


@pytest.mark.parametrize(
    ("space", "seen", "features"),
    [
        (spaces.Discrete(3, start=5), [6, 5], OneHot(3)),
        (spaces.MultiDiscrete([2, 3]), [np.array([0, 1]), np.array([0, 0])], OneHot((2, 3))),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), [(0, 1), (0, 0)], OneHot((2, 3))),
        (spaces.Box(0, 9, (1,)), [np.array([1.0]), np.array([0.0])], Aggregation([0, 1])),
    ],
)
def test_observations_are_rows_that_count_from_zero(
    space: spaces.Space[Any], seen: list[Any], features: OneHot
) -> None:
    env = Corridor(space, seen, actions=spaces.Discrete(2, start=7))
    found = semi_gradient_td(env, lambda row: 1, features, **settings_of(semi_gradient_td))
    np.testing.assert_array_equal(found, 0.5 * np.eye(features.size)[1])


# --- bad input --------------------------------------------------------------------------------

BOX = spaces.Box(-1, 1, (2,))
ROW = np.zeros(2)
CODER = TileCoding([-1, -1], [1, 1], tilings=2, tiles=2)


def both(row: Floats) -> Floats:
    return np.array([0.5, 0.5])


@every_method
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"discount": 1.5}, r"discount=1.5 is outside \[0, 1\]"),
        ({"episodes": 0}, "episodes=0: use a whole number of 1 or more"),
        ({"step_size": 0.0}, "step_size=0.0: a step size is a finite number greater than 0"),
        ({"step_size": [0.1, 0.1]}, r"step_size of shape \(2,\): give a number, or one for each"),
        ({"step_size": np.linspace(0, 1, 18)}, "step_size=0.0"),
        ({"step_size": lambda k: -k}, r"step_size\(1\)=-1"),
        ({"initial_weights": [0.0]}, r"initial_weights of shape \(1,\): expected \(18,\)"),
        ({"policy": [0, 1]}, "policy is a table, but the observations of Corridor are Box"),
        ({"behaviour": [0, 1]}, "behaviour is a table"),
        ({"policy": lambda row: 2}, "policy returned 2 at the observation .* from 0 to 1"),
        ({"behaviour": lambda row: [0.5, 0.6]}, r"behaviour returned \[0.5 0.6\] at"),
        ({"policy": lambda row: np.ones(3) / 3}, r"the probabilities \(2,\) of all"),
        ({"behaviour": lambda row: 0}, r"behaviour \[1. 0.\]: it must take whatever"),
        ({"features": np.ones((3, 2))}, "got a table of features, but the observations of Corrid"),
        ({"features": OneHot(2)}, r"shape \(1, 2\): these features take \(B, 1\)"),
        ({"features": lambda rows: rows[0]}, r"have shape \(2,\): they are \(1, d\)"),
        (
            {"env": Corridor(BOX, [ROW, ROW], np.nan)},
            "Corridor returned a reward of nan at step 1 ",
        ),
        (
            {"env": Corridor(BOX, [ROW, ROW * np.nan])},
            "Corridor returned the observation .* step 1",
        ),
        (
            {"env": Corridor(BOX, [ROW * np.nan, ROW])},
            "Corridor returned the observation .* step 0",
        ),
        (
            {"env": Corridor(BOX, [ROW, ROW], 1.0, BOX)},
            "actions of Corridor are Box.* not Discrete",
        ),
        ({"env": Corridor(spaces.Dict(a=BOX), [{}, {}])}, "observations of Corridor are Dict"),
        ({"env": "NoSuchCar-v0"}, "no environment 'NoSuchCar-v0'"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
    ],
)
def test_bad_input_is_refused(learn: Learn, changes: dict[str, object], said: str) -> None:
    good = {"env": Corridor(BOX, [ROW, ROW]), "policy": both, "features": CODER}
    with pytest.raises(ValueError, match=said):
        learn(**settings_of(learn, **(good | changes)))


@pytest.mark.parametrize("learn", WITH_TRACE)
def test_traces_outside_of_0_to_1_are_refused(learn: Learn) -> None:
    with pytest.raises(ValueError, match=r"trace=1.5 is outside \[0, 1\]"):
        learn(chain(2), [0, 0], OneHot(2), **settings_of(learn, trace=1.5))


@pytest.mark.parametrize("learn", WITHOUT_TRACE)
def test_secondary_step_sizes_that_are_not_positive_are_refused(learn: Learn) -> None:
    with pytest.raises(ValueError, match="secondary_step_size=0"):
        learn(chain(2), [0, 0], OneHot(2), **settings_of(learn, secondary_step_size=0))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ([0, 1, 0], r"policy has shape \(3,\)"),
        ([0, 2], "policy takes actions 0 to 2"),
        ([[0.5, 0.6], [1, 0]], r"policy\[0\] = .* is no distribution"),
    ],
)
def test_a_policy_of_wrong_shape_is_refused(policy: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        semi_gradient_td(chain(2), policy, OneHot(2), **settings_of(semi_gradient_td))  # type: ignore[arg-type]


def test_a_table_of_features_of_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="table of features of 3 states, but TabularEnv has 2"):
        semi_gradient_td(chain(2), [0, 0], np.eye(3), **settings_of(semi_gradient_td))


@every_method
def test_an_episode_that_never_ends_is_refused(learn: Learn) -> None:
    loop = TabularMDP([[[1.0], [0.0]]], [[0.0, 0.0]])  # action 1 ends
    settings = settings_of(learn)
    with pytest.raises(ValueError, match="max_episode_steps="):
        learn(loop, [0], OneHot(1), **settings)
    assert learn(loop, [0], OneHot(1), **settings, max_episode_steps=3).shape == (1,)
    assert learn(loop, [1], OneHot(1), **settings).shape == (1,)


@every_method
def test_weights_that_diverge_are_reported(learn: Learn) -> None:
    settings = settings_of(learn, step_size=1e9, episodes=1000, secondary_step_size=1e9)
    if learn not in WITHOUT_TRACE:
        del settings["secondary_step_size"]
    with pytest.raises(DivergenceError, match=r"update \d+ left the range .* number of tilings"):
        learn(chain(3), [0, 0, 0], [[1.0], [2.0], [3.0]], **settings)
