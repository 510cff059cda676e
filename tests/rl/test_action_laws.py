from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rl.action_laws import (
    ActionBounds,
    action_count,
    action_size,
    categorical_log_probs,
    categorical_sample,
    check_action_masks,
    gaussian_log_probs,
    gaussian_sample,
    mask_logits,
    split_mean_log_std,
)

logits_2d = hnp.arrays(np.float32, (6, 4), elements=st.floats(-30, 30, width=32))
uniforms_6 = hnp.arrays(np.float64, 6, elements=st.floats(0, 1, exclude_max=True))
masks_2d = hnp.arrays(np.bool_, (6, 4)).filter(lambda m: m.any(1).all())


def test_categorical_sample_inverts_the_distribution_function() -> None:
    # p = (1/8, 0, 5/8, 1/4): sums 1/8, 1/8, 3/4, 1
    logits = np.log(np.array([[1.0, 1e-30, 5.0, 2.0]]))
    logits[0, 1] = -np.inf
    points = [0.0, 0.1249, 0.1251, 0.7499, 0.7501, math.nextafter(1, 0)]
    drawn = categorical_sample(np.repeat(logits, 6, axis=0), np.array(points))
    assert drawn.tolist() == [0, 0, 2, 2, 3, 3]


@given(logits=logits_2d, uniforms=uniforms_6)
def test_categorical_sample_of_tensors_is_that_of_arrays(
    logits: NDArray[np.float32], uniforms: NDArray[np.float64]
) -> None:
    # The exponentials of both may differ in their last bit, and so the draw next to a border.
    arrays = categorical_sample(logits, uniforms)
    tensors = categorical_sample(torch.from_numpy(logits), torch.from_numpy(uniforms)).numpy()
    wide = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True)).cumsum(1)
    gaps = np.abs(wide / wide[:, -1:] - uniforms[:, None]).min(1)
    assert ((arrays == tensors) | (gaps < 1e-12)).all()
    assert arrays.dtype == tensors.dtype == np.int64


@given(logits=logits_2d, uniforms=uniforms_6, masks=masks_2d)
def test_masked_action_is_never_drawn(
    logits: NDArray[np.float32], uniforms: NDArray[np.float64], masks: NDArray[np.bool_]
) -> None:
    rows = np.arange(6)
    assert masks[rows, categorical_sample(mask_logits(logits, masks), uniforms)].all()
    for u in (np.zeros(6), np.full(6, math.nextafter(1, 0)), np.ones(6)):
        assert masks[rows, categorical_sample(mask_logits(logits, masks), u)].all()
        tensors = mask_logits(torch.from_numpy(logits), torch.from_numpy(masks))
        assert masks[rows, categorical_sample(tensors, torch.from_numpy(u)).numpy()].all()


@given(logits=logits_2d, uniforms=uniforms_6, row=st.integers(0, 5))
def test_row_is_drawn_alike_whatever_stands_beside_it(
    logits: NDArray[np.float32], uniforms: NDArray[np.float64], row: int
) -> None:
    alone = categorical_sample(logits[row : row + 1], uniforms[row : row + 1])
    assert alone[0] == categorical_sample(logits, uniforms)[row]


def test_even_grid_of_uniforms_gives_the_probabilities() -> None:
    probabilities = np.array([0.125, 0.25, 0.5, 0.125])
    uniforms = (np.arange(64) + 0.5) / 64
    drawn = categorical_sample(np.repeat(np.log(probabilities)[None], 64, axis=0), uniforms)
    assert np.bincount(drawn).tolist() == [8, 16, 32, 8]


@given(logits=logits_2d, masks=masks_2d)
def test_categorical_log_probs_agree_with_torch(
    logits: NDArray[np.float32], masks: NDArray[np.bool_]
) -> None:
    masked = mask_logits(logits, masks)
    actions = masks.argmax(1)
    law = torch.distributions.Categorical(logits=torch.from_numpy(masked))
    expected = law.log_prob(torch.from_numpy(actions))
    arrays = categorical_log_probs(masked, actions)
    assert arrays.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(arrays), expected)
    tensors = categorical_log_probs(torch.from_numpy(masked), torch.from_numpy(actions))
    torch.testing.assert_close(tensors, expected)


def test_gaussian_sample_and_log_probs_agree_with_scipy() -> None:
    g = np.random.default_rng(0)
    mean, log_std, normals = (
        g.normal(size=(5, 3)),
        np.array([-1.0, 0.0, 2.0]),
        g.normal(size=(5, 3)),
    )
    actions = gaussian_sample(mean, log_std, normals)
    np.testing.assert_allclose(actions, mean + np.exp(log_std) * normals, rtol=0)
    expected = scipy.stats.norm.logpdf(actions, mean, np.exp(log_std)).sum(1)
    np.testing.assert_allclose(gaussian_log_probs(actions, mean, log_std), expected)
    tensors = [torch.from_numpy(x) for x in (mean, log_std, normals)]
    torch.testing.assert_close(gaussian_sample(*tensors), torch.from_numpy(actions))
    log_probs = gaussian_log_probs(torch.from_numpy(actions), tensors[0], tensors[1])
    torch.testing.assert_close(log_probs, torch.from_numpy(expected))


def test_mean_and_deviation_are_halves_and_the_deviation_is_held() -> None:
    outputs = np.array([[1.0, 30.0, -30.0, 5.0]], np.float32)
    for given_outputs in (outputs, torch.from_numpy(outputs)):
        mean, log_std = split_mean_log_std(given_outputs)
        assert mean.tolist() == [[1.0, 30.0]]
        assert log_std.tolist() == [[-20.0, 2.0]]


def test_masks_are_checked_against_rows_and_actions() -> None:
    assert check_action_masks(np.array([[0, 1]], np.int8), 1, 2).tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(1, 2\)"):
        check_action_masks(np.ones(2, np.bool_), 1, 2)
    with pytest.raises(ValueError, match="allow nothing in row 1"):
        check_action_masks(np.array([[True, False], [False, False]]), 2, 2)


def test_bounds_scale_to_the_corners_and_back() -> None:
    bounds = ActionBounds(spaces.Box(np.float32([-2, 0]), np.float32([2, 1])))
    unit = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]], np.float32)
    actions = bounds.from_unit(unit)
    assert actions.tolist() == [[-2.0, 0.0], [0.0, 0.5], [2.0, 1.0]]
    assert bounds.to_unit(actions).tolist() == unit.tolist()
    assert bounds.clip(np.array([[-5.0, 5.0]])).tolist() == [[-2.0, 1.0]]


@given(
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-3, 1e3),
    unit=hnp.arrays(np.float32, (4, 1), elements=st.floats(-1, 1, width=32)),
)
def test_scaled_actions_are_in_a_box_of_doubles(
    low: float, width: float, unit: NDArray[np.float32]
) -> None:
    space = spaces.Box(low, low + width, (1,), np.float64)
    actions = ActionBounds(space).from_unit(unit)
    assert actions.dtype == np.float32
    assert all(space.contains(action) for action in actions)


def test_bounds_keep_the_shape_of_the_space() -> None:
    bounds = ActionBounds(spaces.Box(-1.0, 1.0, (2, 3)))
    assert bounds.from_unit(np.zeros((5, 6), np.float32)).shape == (5, 2, 3)
    assert bounds.to_unit(np.zeros((5, 2, 3), np.float32)).shape == (5, 6)


def test_unbounded_box_can_be_clipped_and_not_scaled() -> None:
    bounds = ActionBounds(spaces.Box(-np.inf, 1.0, (1,)))
    assert bounds.clip(np.array([[-1e9], [2.0]])).tolist() == [[-1e9], [1.0]]
    with pytest.raises(ValueError, match=r"unbounded action space Box\(-inf, 1\.0"):
        bounds.require_finite()


def test_wrong_action_space_is_refused_by_name() -> None:
    assert action_count(spaces.Discrete(3, start=1)) == 3
    assert action_size(spaces.Box(-1.0, 1.0, (2, 3))) == 6
    with pytest.raises(ValueError, match=r"got the action space Box.*expected Discrete"):
        action_count(spaces.Box(-1.0, 1.0, (2,)))
    with pytest.raises(ValueError, match=r"got the action space Discrete\(2\), expected a Box"):
        action_size(spaces.Discrete(2))
