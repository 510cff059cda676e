from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from launch.errors import UsageError
from rl.spaces import Space, alike, check_actions, empty_rows, leaves, row, write_row

ODD = spaces.MultiDiscrete([2, 3], start=[0, 5])


def test_types_of_rows_are_those_that_agents_take() -> None:
    nested = spaces.Dict(
        {
            "double": spaces.Box(-1, 1, (2,), np.float64),
            "bytes": spaces.Box(0, 255, (2,), np.uint8),
            "short": spaces.Box(0, 9, (2,), np.int16),
            "parts": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(4), ODD)),
        }
    )
    rows = empty_rows(nested, 5)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in leaves(rows)} == {
        "['double']": ((5, 2), np.float32),
        "['bytes']": ((5, 2), np.uint8),
        "['short']": ((5, 2), np.int64),
        "['parts'][0]": ((5,), np.int64),
        "['parts'][1]": ((5, 4), np.int64),
        "['parts'][2]": ((5, 2), np.int64),
    }
    value = nested.sample()
    write_row(rows, 3, value)
    read: Any = row(rows, 3)
    assert read["parts"][0] == value["parts"][0]
    np.testing.assert_array_equal(read["short"], value["short"])


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Sequence(spaces.Discrete(2))])
def test_space_without_a_fixed_shape_is_refused(space: Space) -> None:
    with pytest.raises(UsageError, match=r"has no fixed shape.*wrap the environment"):
        empty_rows(space, 1)


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (spaces.Discrete(3, start=-1), [-1, 1]),
        (ODD, [[1, 5], [0, 7]]),
        (spaces.MultiBinary(2), [[0, 1], [1, 1]]),
        (spaces.Box(-1.0, 1.0, (1,)), [[-1.0], [0.5]]),
    ],
)
def test_actions_come_out_as_the_space_contains_them(space: Space, actions: list[object]) -> None:
    checked = check_actions(np.array(actions), space, 2)
    assert checked.tolist() == actions
    assert all(space.contains(action) for action in checked)


def test_actions_of_a_box_are_clipped_to_its_bounds() -> None:
    space = spaces.Box(np.float32([-1.0, 0.0]), np.float32([1.0, 0.1]))
    (action,) = check_actions(np.array([[-5.0, 5.0]]), space, 1)
    assert action.tolist() == [-1.0, np.float32(0.1)]
    assert space.contains(action)


@pytest.mark.parametrize(
    ("space", "actions", "said"),
    [
        (ODD, [[0, 4]], r"got \[0 4\] as the action of environment 0.*MultiDiscrete"),
        (spaces.MultiBinary(2), [[2, 0]], r"got \[2 0\].*MultiBinary\(2\)"),
        (spaces.Discrete(2), [[0]], r"shape \(1, 1\).*Discrete\(2\).*whole numbers of shape \(1,"),
        (spaces.Box(-1.0, 1.0, (2,)), [[0.0]], r"shape \(1, 1\).*Box.*floats of shape \(1, 2\)"),
        (spaces.Text(3), ["a"], r"the action space Text.* is none that agents act in"),
    ],
)
def test_actions_that_are_not_of_the_space_are_refused(
    space: Space, actions: list[object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_actions(np.array(actions), space, 1)


def test_spaces_are_alike_where_shape_and_kind_are() -> None:
    box = spaces.Box(-1.0, 1.0, (2,))
    assert alike(box, spaces.Box(-9.0, 9.0, (2,)))
    assert not alike(box, spaces.Box(-1.0, 1.0, (3,)))
    assert not alike(spaces.Discrete(2), spaces.Discrete(3))
    assert not alike(spaces.Discrete(2), spaces.MultiBinary(2))
    assert not alike(spaces.Dict(a=box), spaces.Dict(b=box))
