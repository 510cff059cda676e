from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rl.space_text import array_from_plain, array_to_plain, space_from_plain, space_to_plain
from rl.spaces import Space

SPACES: list[Space] = [
    spaces.Box(-np.inf, np.inf, (4,)),
    spaces.Box(np.float32([-1.1, 0]), np.float32([1 / 3, np.inf])),
    spaces.Box(-0.1, 0.3, (2, 1), np.float64),
    spaces.Box(0, 255, (84, 84, 3), np.uint8),
    spaces.Box(0.0, 1.0, ()),
    spaces.Discrete(3),
    spaces.Discrete(3, start=-1),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [0, 0]]),
    spaces.Dict(OrderedDict(b=spaces.Discrete(2), a=spaces.Box(0.0, 1.0, (2,)))),
    spaces.Tuple([spaces.Discrete(2), spaces.Dict(x=spaces.MultiBinary(1))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_space_comes_back_from_json_as_it_was(space: Space) -> None:
    text = json.dumps(space_to_plain(space), allow_nan=False)
    back = space_from_plain(json.loads(text))
    assert back == space
    assert back.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert list(back.spaces) == list(space.spaces)


def test_equal_bounds_are_written_once() -> None:
    text = json.dumps(space_to_plain(spaces.Box(0, 255, (210, 160, 3), np.uint8)))
    assert len(text) < 300


@given(
    array=st.sampled_from([np.float32, np.float64, np.int64, np.uint8]).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    )
)
def test_array_comes_back_bit_for_bit(array: NDArray[np.float64]) -> None:
    back = array_from_plain(json.loads(json.dumps(array_to_plain(array), allow_nan=False)))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


def test_space_without_a_text_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Text\(.*cannot be written as text"):
        space_to_plain(spaces.Text(3))


@pytest.mark.parametrize(
    "plain",
    [
        {"space": "Sphere"},
        {"space": "Discrete", "n": "three", "start": 0, "dtype": "int64"},
        {"space": "Dict", "parts": [["a", 3]]},
        {"space": "Tuple", "parts": [3]},
        {"space": "Box", "low": {"dtype": "float32"}, "high": {}},
    ],
)
def test_values_that_describe_no_space_are_refused(plain: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"describes no (space|array|part of a space)"):
        space_from_plain(plain)  # type: ignore[arg-type]  # on purpose


def test_values_that_do_not_fill_the_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 values do not fill the shape \[3\]"):
        array_from_plain({"dtype": "float32", "shape": [3], "values": [1.0, 2.0]})
