from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from rl.layers import UniformFanIn
from rl.networks import (
    FactorisedNoise,
    GaussianMLPConfig,
    MLPConfig,
    Network,
    NetworkConfig,
    QNetworkConfig,
    sample_noise,
)
from rl.normalisation import ObservationNormaliser
from rl.policies import (
    CategoricalPolicy,
    DeterministicPolicy,
    GaussianPolicy,
    GreedyPolicy,
    Policy,
    SquashedGaussianPolicy,
)
from rl.spaces import Space
from rl.value_laws import CategoricalValues

VECTOR = spaces.Box(-1.0, 1.0, (4,))
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(np.float32([-2, 0]), np.float32([2, 1]))
WIDE = MLPConfig(hidden=(8,), initialisation=UniformFanIn())

Kind = Callable[..., Policy]
KINDS: list[tuple[type[Policy], Space, NetworkConfig]] = [
    (CategoricalPolicy, DISCRETE, WIDE),
    (GreedyPolicy, DISCRETE, QNetworkConfig(hidden=(8,))),
    (GaussianPolicy, BOX, GaussianMLPConfig(mean=WIDE)),
    (SquashedGaussianPolicy, BOX, WIDE),
    (DeterministicPolicy, BOX, WIDE),
]


def make(kind: type[Policy], action_space: Space, config: NetworkConfig) -> Policy:
    generator = torch.Generator().manual_seed(0)
    network = config.build(VECTOR, kind.outputs_of(action_space), generator)
    return kind(network, VECTOR, action_space, exploration=0.5)


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def fixed(outputs: list[float], log_std: list[float] | None = None) -> Network:
    """Return a network that says the same of every observation."""
    network = MLPConfig(hidden=()).build(VECTOR, len(outputs), torch.Generator())
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor(outputs))
    network.log_std = None if log_std is None else nn.Parameter(torch.tensor(log_std))
    return network


# --- what holds for all -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "space", "config"), KINDS)
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("count", [0, 1, 8])
def test_actions_are_of_the_space_and_global_streams_stay(
    kind: type[Policy], space: Space, config: NetworkConfig, deterministic: bool, count: int
) -> None:
    policy = make(kind, space, config)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 to watch it
    actions = policy.act(rows(count), deterministic)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002 to watch it
    assert actions.shape == (count, *space.shape)
    assert actions.dtype == (np.int64 if space is DISCRETE else np.float32)
    assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize(("kind", "space", "config"), KINDS)
def test_draws_follow_the_generator_and_the_deterministic_need_none(
    kind: type[Policy], space: Space, config: NetworkConfig
) -> None:
    policy, x = make(kind, space, config), rows(64)
    drawn = [policy.act(x, False, generator=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert np.array_equal(policy.act(x), policy.act(x))
    assert not np.array_equal(policy.act(x, False), policy.act(x, False))
    twins = [make(kind, space, config) for _ in range(2)]
    assert np.array_equal(twins[0].act(x, False), twins[1].act(x, False))


@pytest.mark.parametrize(("kind", "space", "config"), KINDS)
def test_wrong_shape_is_refused_naming_both(
    kind: type[Policy], space: Space, config: NetworkConfig
) -> None:
    policy = make(kind, space, config)
    with pytest.raises(ValueError, match=r"shape \(4,\), expected \(B, 4\)"):
        policy.act(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(B, 4\)"):
        policy.act(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize(("kind", "space", "config"), KINDS)
def test_numbers_of_another_type_act_alike(
    kind: type[Policy], space: Space, config: NetworkConfig
) -> None:
    policy, x = make(kind, space, config), rows(8)
    assert np.array_equal(policy.act(x), policy.act(x.astype(np.float64)))


@pytest.mark.parametrize(("kind", "space", "config"), KINDS)
def test_outputs_that_are_not_finite_are_refused_naming_the_row(
    kind: type[Policy], space: Space, config: NetworkConfig
) -> None:
    x = rows(3)
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"outputs for row 1 are not finite"):
        make(kind, space, config).act(x)


@pytest.mark.parametrize(("kind", "space", "config"), KINDS)
def test_action_space_of_another_kind_is_refused_by_name(
    kind: type[Policy], space: Space, config: NetworkConfig
) -> None:
    other = BOX if space is DISCRETE else DISCRETE
    with pytest.raises(ValueError, match=r"got the action space (Box|Discrete)"):
        kind(config.build(VECTOR, 2, torch.Generator()), VECTOR, other)


def test_normaliser_comes_before_the_network() -> None:
    normaliser = ObservationNormaliser((4,))
    normaliser.update(5 + 3 * rows(100))
    policy, x = make(*KINDS[0]), rows(8)
    scaled = CategoricalPolicy(policy.network, VECTOR, DISCRETE, normaliser=normaliser)
    assert np.array_equal(scaled.act(x), policy.act(normaliser(x)))
    assert not np.array_equal(scaled.act(x), policy.act(x))


def test_normaliser_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), and the space Box\(-1\.0, 1\.0, \(4,\)"):
        CategoricalPolicy(
            make(*KINDS[0]).network, VECTOR, DISCRETE, normaliser=ObservationNormaliser((3,))
        )


def test_policy_acts_by_weights_as_they_are_now() -> None:
    network = fixed([0.0, 1.0, 0.0])
    policy = CategoricalPolicy(network, VECTOR, DISCRETE)
    assert policy.act(rows(1)).tolist() == [1]
    with torch.no_grad():
        network.head.bias[2] = 2.0
    assert policy.act(rows(1)).tolist() == [2]


# --- discrete -----------------------------------------------------------------------------------


def test_categorical_takes_the_likeliest_or_draws_by_probability() -> None:
    policy = CategoricalPolicy(fixed(np.log([0.25, 0.5, 0.25]).tolist()), VECTOR, DISCRETE)
    assert policy.act(rows(2)).tolist() == [1, 1]
    uniforms = np.random.default_rng(3).random(1000)
    drawn = policy.act(rows(1000), False, generator=np.random.default_rng(3))
    expected = np.searchsorted([0.25, 0.75], uniforms, side="right")
    assert (drawn == expected).mean() > 0.999  # all but where rounding moves a border


@pytest.mark.parametrize("kind", [CategoricalPolicy, GreedyPolicy])
def test_discrete_actions_count_from_the_start_of_the_space(kind: type[Policy]) -> None:
    policy = kind(fixed([0.0, 1.0, 0.0]), VECTOR, spaces.Discrete(3, start=-5))
    assert policy.act(rows(1)).tolist() == [-4]


@pytest.mark.parametrize("kind", [CategoricalPolicy, GreedyPolicy])
@pytest.mark.parametrize("deterministic", [True, False])
def test_masked_actions_are_not_taken(kind: type[Policy], deterministic: bool) -> None:
    policy = kind(fixed([0.0, 9.0, 1.0]), VECTOR, DISCRETE, exploration=1.0)
    masks = np.tile(np.array([[1, 0, 1], [1, 0, 0]], np.int8), (32, 1))
    actions = policy.act(rows(64), deterministic, action_masks=masks)
    assert masks[np.arange(64), actions].all()
    if deterministic:
        assert actions[:2].tolist() == [2, 0]


def test_masks_of_another_shape_or_for_a_box_are_refused() -> None:
    policy = make(*KINDS[0])
    with pytest.raises(ValueError, match=r"action_masks of shape \(2, 2\), expected \(2, 3\)"):
        policy.act(rows(2), action_masks=np.ones((2, 2), np.bool_))
    with pytest.raises(ValueError, match="allow nothing in row 0"):
        policy.act(rows(1), action_masks=np.zeros((1, 3), np.bool_))
    with pytest.raises(ValueError, match=r"got the action space Box.*expected Discrete"):
        make(*KINDS[2]).act(rows(1), action_masks=np.ones((1, 2), np.bool_))


def test_greedy_takes_the_best_mean_of_a_distribution() -> None:
    # returns (0, 10): the first action's likeliest is 0, its mean 4.9; the second's mean is 5
    config = QNetworkConfig(hidden=(), values=CategoricalValues(atoms=2, low=0.0, high=10.0))
    network = config.build(VECTOR, 2, torch.Generator())
    with torch.no_grad():
        network.head[0].weight.zero_()
        network.head[0].bias.copy_(torch.tensor([0.51, 0.49, 0.5, 0.5]).log())
    policy = GreedyPolicy(network, VECTOR, spaces.Discrete(2))
    assert policy.act(rows(1)).tolist() == [1]


def test_greedy_explores_as_often_as_asked_when_not_deterministic() -> None:
    policy = GreedyPolicy(fixed([0.0, 9.0]), VECTOR, spaces.Discrete(2), exploration=0.5)
    assert (policy.act(rows(64)) == 1).all()
    uniforms = np.random.default_rng(0).random(64)
    drawn = policy.act(rows(64), False, generator=np.random.default_rng(0))
    assert np.array_equal(drawn == 0, uniforms < 0.25)


def test_noisy_network_acts_without_its_noise() -> None:
    config = QNetworkConfig(hidden=(8,), noise=FactorisedNoise(sigma=3.0))
    policy = make(GreedyPolicy, DISCRETE, config)
    before = policy.act(rows(64))
    sample_noise(policy.network, torch.Generator().manual_seed(1))
    assert np.array_equal(policy.act(rows(64)), before)


# --- box ----------------------------------------------------------------------------------------


def test_gaussian_takes_the_mean_or_draws_around_it_and_clips() -> None:
    # bounds (-2, 2) and (0, 1)
    policy = GaussianPolicy(fixed([1.0, 5.0], [0.0, -20.0]), VECTOR, BOX)
    assert policy.act(rows(1)).tolist() == [[1.0, 1.0]]
    normals = np.random.default_rng(0).standard_normal((64, 2), dtype=np.float32)
    drawn = policy.act(rows(64), False, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[:, 0], np.clip(1 + normals[:, 0], -2, 2))
    assert (drawn[:, 1] == 1.0).all()


def test_gaussian_without_a_deviation_cannot_draw() -> None:
    policy = GaussianPolicy(fixed([1.0, 5.0]), VECTOR, BOX)
    with pytest.raises(ValueError, match=r"no log_std.*GaussianMLPConfig"):
        policy.act(rows(1), deterministic=False)


def test_squashed_gaussian_scales_the_tanh_to_the_bounds() -> None:
    policy = SquashedGaussianPolicy(fixed([0.5, 100.0, -1.0, -100.0]), VECTOR, BOX)
    np.testing.assert_allclose(policy.act(rows(1)), [[2 * np.tanh(0.5), 1.0]], rtol=1e-6)
    normals = np.random.default_rng(0).standard_normal((64, 2), dtype=np.float32)
    drawn = policy.act(rows(64), False, generator=np.random.default_rng(0))
    expected = 2 * np.tanh(0.5 + np.exp(-1.0) * normals[:, 0])
    np.testing.assert_allclose(drawn[:, 0], expected, rtol=1e-5)


def test_deterministic_scales_the_tanh_and_adds_noise_when_asked() -> None:
    policy = DeterministicPolicy(fixed([0.5, -100.0]), VECTOR, BOX, exploration=0.25)
    np.testing.assert_allclose(policy.act(rows(1)), [[2 * np.tanh(0.5), 0.0]], rtol=1e-6)
    normals = np.random.default_rng(0).standard_normal((64, 2), dtype=np.float32)
    drawn = policy.act(rows(64), False, generator=np.random.default_rng(0))
    expected = np.clip(2 * (np.tanh(0.5) + 0.25 * normals[:, 0]), -2, 2)
    np.testing.assert_allclose(drawn[:, 0], expected, rtol=1e-5)
    assert (drawn[:, 1] >= 0).all()


def test_box_of_more_axes_keeps_them() -> None:
    space = spaces.Box(-1.0, 1.0, (2, 3))
    policy = DeterministicPolicy(fixed([0.0] * 6), VECTOR, space)
    assert policy.act(rows(5)).shape == (5, 2, 3)


@pytest.mark.parametrize("kind", [SquashedGaussianPolicy, DeterministicPolicy])
def test_unbounded_box_is_refused_where_actions_are_scaled(kind: type[Policy]) -> None:
    with pytest.raises(ValueError, match="unbounded action space"):
        kind(fixed([0.0]), VECTOR, spaces.Box(-np.inf, np.inf, (1,)))
