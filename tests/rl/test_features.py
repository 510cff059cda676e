from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.features import (
    Aggregation,
    BinaryFeatures,
    Features,
    FeatureTable,
    Fourier,
    OneHot,
    Polynomial,
    RadialBasis,
    TileCoding,
)
from rl.linear_arrays import Floats

BOX = [-1.0, 0.0], [1.0, 10.0]
OF_A_BOX: list[Features] = [
    TileCoding(*BOX, tilings=4, tiles=(3, 5)),
    TileCoding(*BOX, tilings=4, tiles=3, hashed_size=50),
    Fourier(*BOX, order=2),
    Polynomial(*BOX, order=2),
    RadialBasis(*BOX, centers=(2, 3)),
]


def points(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed).uniform(*BOX, size=(count, 2))


# --- tile coding ------------------------------------------------------------------------------


def test_tiles_of_hand_worked_points() -> None:
    # Two tilings of 2 x 2 tiles, so 3 x 3 each. The second is displaced by half a tile times
    # (1, 3), within a tile half a tile along both axes.
    # (0, 0): tiles (0, 0) and (.5, .5) -> 0, 9 + 0.  (0.3, 0.9) is (.6, 1.8) tiles: (0, 1) -> 1
    # and (1.1, 2.3) -> 9 + 1 * 3 + 2 = 14.  (1, 1): (2, 2) -> 8, (2.5, 2.5) -> 17
    coder = TileCoding([0, 0], [1, 1], tilings=2, tiles=2)
    assert coder.size == 18
    np.testing.assert_array_equal(
        coder.active([[0, 0], [0.3, 0.9], [1, 1]]), [[0, 9], [1, 14], [8, 17]]
    )
    expected = np.zeros(18)
    expected[[1, 14]] = 1
    np.testing.assert_array_equal(coder([[0.3, 0.9]]), expected[None], strict=True)


def tiles3(point: Floats, tilings: int) -> list[tuple[int, ...]]:
    """Sutton's tiles3, without its hash table; a tile has the width 1."""
    scaled = [int(np.floor(x * tilings)) for x in point]
    tiles = []
    for tiling in range(tilings):
        coordinates, b = [tiling], tiling
        for q in scaled:
            coordinates.append((q + b) // tilings)
            b += tiling * 2
        tiles.append(tuple(coordinates))
    return tiles


# Of the hashed tiles no two share a feature, which is luck that stays.
@pytest.mark.parametrize("hashed_size", [None, 2**31 - 1])
def test_tiles_part_points_as_suttons_do(hashed_size: int | None) -> None:
    coder = TileCoding([0, 0, 0], [4, 4, 4], tilings=8, tiles=4, hashed_size=hashed_size)
    rows = np.random.default_rng(0).uniform(0, 4, size=(2000, 3))
    names: dict[int, tuple[int, ...]] = {}
    for row, active in zip(rows, coder.active(rows), strict=True):
        for feature, tile in zip(active.tolist(), tiles3(row, 8), strict=True):
            assert names.setdefault(feature, tile) == tile
    assert len(set(names.values())) == len(names)


@given(seed=st.integers(0, 2**16), tilings=st.sampled_from([1, 2, 5, 8]))
def test_each_tiling_has_one_tile_of_its_own_at_every_point(seed: int, tilings: int) -> None:
    coder = TileCoding(*BOX, tilings=tilings, tiles=(3, 4))
    corners = np.array(list(itertools.product(*zip(*BOX, strict=True))))
    rows = np.concatenate([points(seed, 20), corners, 100 * points(seed, 5)])
    assert coder.size == tilings * 4 * 5
    np.testing.assert_array_equal(
        coder.active(rows) // 20, np.broadcast_to(np.arange(tilings), (len(rows), tilings))
    )


def test_hashed_tiles_that_share_a_feature_are_counted() -> None:
    coder = TileCoding(0.0, 1.0, tilings=8, hashed_size=2)
    features = coder([[0.3], [0.7]])
    np.testing.assert_array_equal(features.sum(1), [8, 8])
    assert features.max() > 1
    many = TileCoding(np.zeros(30), np.ones(30), hashed_size=64).active(np.full((1, 30), 0.5))
    assert ((many >= 0) & (many < 64)).all()


# --- other features of a box ------------------------------------------------------------------


def test_fourier_basis_of_hand_worked_point() -> None:
    # s = (1/2, 1/3):  c = (0, 0), (0, 1), (1, 0), (1, 1)
    basis = Fourier([0, 0], [2, 3], order=1)
    found = basis([[1.0, 1.0]])
    angles = np.pi * np.array([0, 1 / 3, 1 / 2, 5 / 6])
    np.testing.assert_allclose(found, np.cos(angles)[None], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(basis.step_scales, [1, 1, 1, 1 / np.sqrt(2)])


def test_fourier_basis_is_orthogonal_over_the_box() -> None:
    middles = (np.arange(40) + 0.5)[:, None] / 40
    features = Fourier(0.0, 1.0, order=5)(middles)
    np.testing.assert_allclose(
        features.T @ features / 40, np.diag([1.0] + [0.5] * 5), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("kind", [Fourier, Polynomial])
def test_interactions_are_left_out(kind: type[Fourier] | type[Polynomial]) -> None:
    low, high = np.zeros(3), np.ones(3)
    assert kind(low, high, order=2).size == 27
    assert kind(low, high, order=2, max_interactions=1).size == 1 + 3 * 2
    assert kind(low, high, order=2, max_interactions=2).size == 27 - 8
    many = kind(np.zeros(40), np.ones(40), order=3, max_interactions=1)
    assert many(np.full((2, 40), 0.5)).shape == (2, 121)


def test_polynomial_of_hand_worked_point() -> None:
    # s = (1/2, 1/4), powers (i, j) = (0, 0), (0, 1), (0, 2), (1, 0), ...
    found = Polynomial([0, 0], [2, 4], order=2)([[1.0, 1.0]])
    expected = [1, 1 / 4, 1 / 16, 1 / 2, 1 / 8, 1 / 32, 1 / 4, 1 / 16, 1 / 64]
    np.testing.assert_array_equal(found, [expected], strict=True)


def test_radial_basis_of_hand_worked_point() -> None:
    # Centers (0, 0), (0, 1), (1, 0), (1, 1) of the unit box, width 1; the point is (0, 1/2)
    found = RadialBasis([0, 0], [2, 2], centers=2)([[0.0, 1.0]])
    near, far = np.exp(-0.5 * 0.25), np.exp(-0.5 * 1.25)
    np.testing.assert_allclose(found, [[near, near, far, far]], rtol=1e-15)
    single = RadialBasis([0, 0], [1, 1], centers=(1, 2), width=[1.0, 0.5])
    np.testing.assert_array_equal(single.centers, [[0.5, 0], [0.5, 1]])
    np.testing.assert_allclose(
        single([[0.5, 0.5]]), np.full((1, 2), np.exp(-0.5)), rtol=1e-15, strict=True
    )


@pytest.mark.parametrize("features", OF_A_BOX, ids=lambda found: type(found).__name__)
def test_features_of_a_box(features: Features) -> None:
    rows = points(0, 7)
    together = features(rows)
    assert together.dtype == np.float64
    assert together.shape == (7, features.size)  # type: ignore[attr-defined]
    for row, found in zip(rows, together, strict=True):
        np.testing.assert_allclose(features(row[None])[0], found, rtol=1e-14, atol=1e-15)
    beyond, border = np.array([[-9.0, 5], [0, np.inf]]), np.array([[-1.0, 5], [0, 10]])
    np.testing.assert_array_equal(features(beyond), features(border))
    with pytest.raises(ValueError, match=r"shape \(2,\): these features take \(B, 2\)"):
        features(rows[0])
    with pytest.raises(ValueError, match=r"shape \(7, 1\): these features take \(B, 2\)"):
        features(rows[:, :1])
    with pytest.raises(ValueError, match="an observation holds NaN"):
        features(np.array([[0.0, np.nan]]))


# --- numbered states --------------------------------------------------------------------------


def test_features_of_numbered_states() -> None:
    states = np.arange(4)[:, None]
    np.testing.assert_array_equal(OneHot(4)(states), np.eye(4), strict=True)
    np.testing.assert_array_equal(
        Aggregation([1, 0, 0, 2])(states), [[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]]
    )
    np.testing.assert_array_equal(FeatureTable([[1.5, 2], [3, 4]])([[1], [0]]), [[3, 4], [1.5, 2]])
    cards = OneHot((32, 11, 2))
    assert cards.size == 704
    np.testing.assert_array_equal(cards.active([[21, 10, 1]]), [[(21 * 11 + 10) * 2 + 1]])


@pytest.mark.parametrize("features", [OneHot(3), Aggregation([0, 0, 1]), FeatureTable(np.eye(3))])
@pytest.mark.parametrize("state", [-1.0, 0.5, 3.0])
def test_a_continuous_observation_is_refused_by_tables(features: Features, state: float) -> None:
    with pytest.raises(ValueError, match=f"has {state:g} where .* whole numbers from 0 to 2"):
        features(np.array([[0.0], [state]]))


@pytest.mark.parametrize(
    "features",
    [OneHot(3), OneHot((2, 2)), Aggregation([0, 1, 1]), *OF_A_BOX[:2]],
    ids=lambda found: type(found).__name__,
)
def test_active_features_are_those_that_are_not_zero(features: BinaryFeatures) -> None:
    assert isinstance(features, BinaryFeatures)
    dimensions = 1 if features.size <= 3 else 2
    rows = np.ones((1, dimensions))
    counts = np.bincount(features.active(rows)[0], minlength=features.size)
    np.testing.assert_array_equal(features(rows), counts[None].astype(np.float64), strict=True)


def test_only_binary_features_name_the_active_ones() -> None:
    assert not isinstance(Fourier(0.0, 1.0), BinaryFeatures)
    assert not isinstance(FeatureTable(np.eye(2)), BinaryFeatures)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TileCoding([0, 0], [1]), r"low of shape \(2,\) and high of \(1,\)"),
        (lambda: Fourier([0, 3], [1, 3]), "component 1 lies between 3.0 and 3.0"),
        (lambda: TileCoding([-np.inf], [np.inf]), "component 0 lies between -inf and inf"),
        (lambda: TileCoding(0, 1, tilings=0), "tilings=0: use a whole number of 1 or more"),
        (lambda: TileCoding(0, 1, tiles=0), "tiles=0: use"),
        (lambda: TileCoding(0, 1, tiles=(2, 3)), "got 2 tiles for 1 axes"),
        (lambda: TileCoding(0, 1, hashed_size=0), "hashed_size=0"),
        (lambda: TileCoding(np.zeros(10), np.ones(10)), r"features: use fewer tiles, or hashed_s"),
        (lambda: Fourier(np.zeros(30), np.ones(30)), "use a lower order, or max_interactions="),
        (lambda: RadialBasis(np.zeros(30), np.ones(30)), "use fewer centers"),
        (lambda: Polynomial(0, 1, order=-1), "order=-1"),
        (lambda: RadialBasis(0, 1, width=0), "width=0: use a number above 0"),
        (lambda: OneHot(0), "sizes=0"),
        (lambda: Aggregation([0.0, 1.0]), "type float64: expected integers"),
        (lambda: Aggregation([-1, 0]), "a group is -1"),
        (lambda: FeatureTable([1, 2]), r"got features of shape \(2,\): expected \(S, d\)"),
    ],
)
def test_what_makes_no_features_is_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=said):
        make()
