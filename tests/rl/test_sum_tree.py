from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rl.sum_tree import SumTree, draw_leaves, find_leaves, set_leaves

weights_7 = hnp.arrays(np.float64, 7, elements=st.floats(0, 1e6))


def filled(weights: NDArray[np.float64]) -> SumTree:
    tree = SumTree(len(weights))
    tree.set(np.arange(len(weights)), weights)
    return tree


def test_nodes_of_a_hand_worked_tree() -> None:
    # leaves 1 2 3 0, above them 3 3, on top 6
    tree = filled(np.array([1.0, 2.0, 3.0]))
    assert tree.nodes.tolist() == [0.0, 6.0, 3.0, 3.0, 1.0, 2.0, 3.0, 0.0]
    points = np.array([0.0, 0.999, 1.0, 2.999, 3.0, 5.999])
    assert tree.find(points).tolist() == [0, 0, 1, 1, 2, 2]
    assert tree.get(np.array([2, 0])).tolist() == [3.0, 1.0]


def test_tree_of_one_leaf() -> None:
    tree = filled(np.array([2.5]))
    assert tree.total == 2.5
    assert tree.find(np.array([0.0, 2.4])).tolist() == [0, 0]


@given(
    weights=weights_7,
    indices=hnp.arrays(np.int64, 9, elements=st.integers(0, 6)),
    changes=hnp.arrays(np.float64, 9, elements=st.floats(0, 1e6)),
    shares=hnp.arrays(np.float64, 9, elements=st.floats(0, 1)),
)
def test_compiled_tree_is_the_readable_one_bit_for_bit(
    weights: NDArray[np.float64],
    indices: NDArray[np.int64],
    changes: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> None:
    tree = filled(weights)
    nodes = tree.nodes.copy()
    tree.set(indices, changes)
    set_leaves.py_func(nodes, indices, changes)
    assert np.array_equal(tree.nodes, nodes)
    points = shares * tree.total
    assert np.array_equal(tree.find(points), find_leaves.py_func(nodes, points))


@given(
    weights=weights_7,
    indices=hnp.arrays(np.int64, 9, elements=st.integers(0, 6)),
    changes=hnp.arrays(np.float64, 9, elements=st.floats(0, 1e6)),
)
def test_changed_tree_has_the_bits_of_one_built_anew(
    weights: NDArray[np.float64], indices: NDArray[np.int64], changes: NDArray[np.float64]
) -> None:
    tree = filled(weights)
    tree.set(indices, changes)
    leaves = weights.copy()
    for index, change in zip(indices, changes, strict=True):
        leaves[index] = change
    assert np.array_equal(tree.nodes, filled(leaves).nodes)
    assert tree.total == pytest.approx(leaves.sum())


@given(
    weights=hnp.arrays(np.int64, 7, elements=st.integers(0, 100)).filter(lambda w: w.any()),
    share=st.floats(0, 1, exclude_max=True),
)
def test_point_finds_the_leaf_in_whose_share_it_lies(
    weights: NDArray[np.int64], share: float
) -> None:
    # whole weights sum without rounding
    point = share * float(weights.sum())
    found = int(filled(weights.astype(np.float64)).find(np.array([point]))[0])
    assert found == int(
        np.searchsorted(weights.cumsum(), min(point, weights.sum() - 1e-9), "right")
    )


@given(weights=weights_7.filter(lambda w: w.any()), share=st.floats(0, 1))
def test_leaf_without_weight_is_never_found_even_at_the_very_end(
    weights: NDArray[np.float64], share: float
) -> None:
    tree = filled(weights)
    assert weights[tree.find(np.array([share * tree.total]))[0]] > 0


def test_draw_of_a_hand_worked_tree() -> None:
    # Probabilities 1/8, 5/8, 2/8 of four leaves in use; the parts are [0, 4) and [4, 8), and the
    # points 0 and 7 lie in the first and the third leaf: 4/8 and 4 * 2/8 to the power -1.
    leaves, weights = filled(np.array([1.0, 5.0, 2.0, 0.0])).draw(np.array([0.0, 0.75]), 4, 1.0)
    assert leaves.tolist() == [0, 2]
    assert weights.tolist() == [1.0, 0.5]
    assert weights.dtype == np.float32


@given(
    weights=hnp.arrays(np.float64, 7, elements=st.floats(0.01, 100)),
    uniforms=hnp.arrays(np.float64, 5, elements=st.floats(0, 1, exclude_max=True)),
    beta=st.floats(0, 1),
)
def test_compiled_draw_is_the_readable_one(
    weights: NDArray[np.float64], uniforms: NDArray[np.float64], beta: float
) -> None:
    tree = filled(weights)
    leaves, found = tree.draw(uniforms, 7, beta)
    expected = draw_leaves.py_func(tree.nodes, uniforms, 7, beta)
    assert np.array_equal(leaves, expected[0])
    np.testing.assert_allclose(found, expected[1], rtol=1e-6)
