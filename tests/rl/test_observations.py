from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl.observations import check_observations, flatten, map_tensors, to_tensors, unflatten
from rl.spaces import Observations, Space, empty_rows

BOX = spaces.Box(-1.0, 1.0, (4,))
DICT = spaces.Dict({"b": BOX, "a": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])})


def check(space: Space, given: Observations) -> Observations:
    return check_observations(space, empty_rows(space, 0), given)


def batch(count: int) -> dict[str, Observations]:
    numbers = np.arange(count, dtype=np.int64)
    return {"b": np.ones((count, 4), np.float32), "a": (numbers, np.zeros((count, 2), np.int64))}


@pytest.mark.parametrize(
    ("space", "given", "shapes"),
    [
        (BOX, np.zeros(4), ("(4,)", "(B, 4)", "observation[None]")),
        (BOX, np.zeros((2, 3)), ("(2, 3)", "(B, 4)", "Box")),
        (BOX, np.zeros(()), ("()", "(B, 4)", "Box")),
        (spaces.Discrete(3), np.int64(1), ("()", "(B,)", "observation[None]")),
        (spaces.Discrete(3), np.zeros((2, 1), np.int64), ("(2, 1)", "(B,)", "Discrete(3)")),
    ],
)
def test_another_shape_is_refused_naming_both(
    space: Space, given: np.ndarray, shapes: tuple[str, str, str]
) -> None:
    message = r"shape {}, expected {}:.*{}".format(*map(re.escape, shapes))
    with pytest.raises(ValueError, match=message):
        check(space, given)


def test_numbers_are_cast_and_the_right_ones_are_not_copied() -> None:
    rows = np.zeros((2, 4), np.float32)
    assert check(BOX, rows) is rows
    for other in (np.float64, np.int64, np.bool_, np.uint8):
        cast = check(BOX, np.ones((2, 4), other))
        assert isinstance(cast, np.ndarray)
        assert cast.dtype == np.float32
        assert (cast == 1).all()
    assert check(spaces.Discrete(3), np.array([1, 2], np.int32)).dtype == np.int64  # type: ignore[union-attr]  # an array
    assert check(BOX, [[1, 2, 3, 4]]).tolist() == [[1.0, 2.0, 3.0, 4.0]]  # type: ignore[arg-type,union-attr]  # a list


def test_what_does_not_cast_is_refused() -> None:
    with pytest.raises(TypeError, match=r"type <U1, expected float32"):
        check(BOX, np.full((1, 4), "x"))
    with pytest.raises(TypeError, match=r"type float64, expected int64"):
        check(spaces.Discrete(3), np.array([0.5]))
    pixels = spaces.Box(0, 255, (2,), np.uint8)
    with pytest.raises(ValueError, match="do not fit into uint8"):
        check(pixels, np.array([[0, 256]]))


def test_parts_are_checked_by_name_and_have_one_batch_size() -> None:
    checked = check(DICT, batch(3))
    assert isinstance(checked, dict)
    assert list(checked) == list(DICT.spaces)
    wrong = batch(3) | {"b": np.zeros((3, 5))}
    with pytest.raises(
        ValueError, match=r"observations\['b'\] of shape \(3, 5\), expected \(B, 4\)"
    ):
        check(DICT, wrong)
    with pytest.raises(ValueError, match=r"different B.*\['b'\].: 2"):
        check(DICT, batch(3) | {"b": np.zeros((2, 4))})
    with pytest.raises(ValueError, match=r"with \['b'\], expected a dict with \['a', 'b'\]"):
        check(DICT, {"b": np.zeros((2, 4))})
    with pytest.raises(ValueError, match="with ndarray, expected a dict"):
        check(DICT, np.zeros((2, 4)))
    with pytest.raises(
        ValueError, match=r"observations\['a'\] of type ndarray, expected a tuple of 2"
    ):
        check(DICT, batch(2) | {"a": np.zeros(2)})
    with pytest.raises(ValueError, match="as a dict, expected one array"):
        check(BOX, batch(2))


def test_flatten_follows_the_layout_and_unflatten_undoes_it() -> None:
    layout = empty_rows(DICT, 0)
    given = dict(reversed(batch(2).items()))  # another order than the layout's
    arrays = flatten(layout, given)
    assert [array.shape for array in arrays] == [(2,), (2, 2), (2, 4)]
    back = unflatten(layout, iter(arrays))
    assert isinstance(back, dict)
    assert back["b"] is given["b"]
    assert back["a"] == given["a"]


def test_tensors_share_memory_and_map_keeps_the_structure() -> None:
    rows = batch(2)
    tensors = to_tensors(rows)
    assert isinstance(tensors, dict)
    assert isinstance(tensors["b"], torch.Tensor)
    tensors["b"].fill_(5.0)
    assert (rows["b"] == 5).all()  # type: ignore[union-attr]  # an array
    halves = map_tensors(lambda x: x[:1], tensors)
    assert [len(x) for x in flatten(empty_rows(DICT, 0), halves)] == [1, 1, 1]  # type: ignore[arg-type]  # tensors will do
