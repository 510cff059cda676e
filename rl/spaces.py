"""Rows of observations and actions, one for each environment, in the arrays that agents take.

Floats are float32, whole numbers int64, bytes (pixels) uint8. A Dict space is a dict of such
arrays, a Tuple space a tuple of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from launch.errors import UsageError

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "Observations",
    "Space",
    "alike",
    "as_tensors",
    "check_actions",
    "check_numbers",
    "copy_rows",
    "empty_rows",
    "equal",
    "leaves",
    "row",
    "write_row",
]

Observations: TypeAlias = "NDArray[Any] | dict[str, Observations] | tuple[Observations, ...]"
"""One row for each environment along the first axis."""
Space: TypeAlias = "gymnasium.Space[Any]"

_ACTIONS = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)


def empty_rows(space: Space, count: int) -> Observations:
    """Return arrays of zeros for ``count`` values of ``space``.

    Raises:
        UsageError: A space whose values have no fixed shape.
    """
    if isinstance(space, spaces.Dict):
        return {name: empty_rows(part, count) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(empty_rows(part, count) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        return np.zeros(count, np.int64)
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return np.zeros((count, *space.shape), _dtype(np.dtype(space.dtype)))
    raise UsageError(
        f"the observation space {space} has no fixed shape: agents take Box, Discrete, "
        "MultiDiscrete, MultiBinary, and Dict and Tuple of these; wrap the environment so that it "
        "gives one of them"
    )


def write_row(rows: Observations, index: int | slice, value: object) -> None:
    """Put one environment's observation into its row, or those of a slice, in place."""
    if isinstance(rows, dict):
        for name, part in rows.items():
            write_row(part, index, cast("dict[str, object]", value)[name])
    elif isinstance(rows, tuple):
        for part, item in zip(rows, cast("tuple[object, ...]", value), strict=True):
            write_row(part, index, item)
    else:
        rows[index] = value


def row(rows: Observations, index: int | NDArray[Any]) -> Observations:
    """Return one row, or those of an array of indices."""
    if isinstance(rows, dict):
        return {name: row(part, index) for name, part in rows.items()}
    if isinstance(rows, tuple):
        return tuple(row(part, index) for part in rows)
    return rows[index]


def copy_rows(rows: Observations) -> Observations:
    """Return the same rows in arrays of their own."""
    if isinstance(rows, dict):
        return {name: copy_rows(part) for name, part in rows.items()}
    if isinstance(rows, tuple):
        return tuple(copy_rows(part) for part in rows)
    return rows.copy()


def leaves(rows: Observations, name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every array with its name, such as ``['camera'][0]``."""
    if isinstance(rows, dict):
        for key, part in rows.items():
            yield from leaves(part, f"{name}[{key!r}]")
    elif isinstance(rows, tuple):
        for index, part in enumerate(rows):
            yield from leaves(part, f"{name}[{index}]")
    else:
        yield name, rows


def as_tensors(rows: Observations) -> list[torch.Tensor]:
    """Return copies of the arrays of ``leaves``, for a checkpoint."""
    return [torch.from_numpy(np.array(leaf)) for _, leaf in leaves(rows)]


def equal(rows: Observations, tensors: list[torch.Tensor]) -> bool:
    """Return whether these are the numbers that ``as_tensors`` returned."""
    arrays = [leaf for _, leaf in leaves(rows)]
    return len(arrays) == len(tensors) and all(
        np.array_equal(array, tensor.numpy()) for array, tensor in zip(arrays, tensors, strict=True)
    )


def alike(one: Space, other: Space) -> bool:
    """Return whether what acts in one space can act in the other; bounds of a Box may differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, spaces.Dict):
        return one.spaces.keys() == other.spaces.keys() and all(
            alike(part, other[name]) for name, part in one.spaces.items()
        )
    if isinstance(one, spaces.Tuple):
        return len(one) == len(other) and all(map(alike, one.spaces, other.spaces))
    if isinstance(one, spaces.Box):
        return one.shape == other.shape and one.dtype == other.dtype
    return bool(one == other)


def check_numbers(
    rows: Observations, rewards: NDArray[Any], *, first: int, steps: Sequence[int]
) -> None:
    """Refuse an observation that is NaN and a reward that is no finite number.

    Args:
        rows: Observations of B environments.
        rewards: ``(B,)``.
        first: Number of the first environment.
        steps: Of each environment since its episode began.

    Raises:
        UsageError: Names the environment, the step and the value.
    """
    for name, leaf in leaves(rows):
        if leaf.dtype.kind == "f" and np.isnan(leaf).any():
            index = int(np.argwhere(np.isnan(leaf))[0, 0])
            raise UsageError(
                f"environment {first + index} gave NaN at step {steps[index]} of an episode: "
                f"observation{name} {_short(leaf[index])}; mend the environment, or let it end "
                "the episode before"
            )
    if not np.isfinite(rewards).all():
        index = int(np.argmin(np.isfinite(rewards)))
        raise UsageError(
            f"environment {first + index} gave the reward {rewards[index]} at step "
            f"{steps[index]} of an episode: a reward is a finite number"
        )


def check_actions(actions: NDArray[Any], space: Space, count: int) -> NDArray[Any]:
    """Return one action for each environment as the environments take them.

    Whole numbers have to be in the space; floats are clipped to the bounds of a Box.

    Raises:
        UsageError: Another shape or kind of number than the space's, or NaN. It names both.
    """
    if not isinstance(space, _ACTIONS):
        raise UsageError(
            f"the action space {space} is none that agents act in: they take Discrete, Box, "
            "MultiDiscrete and MultiBinary; wrap the environment so that it takes one of them"
        )
    actions = np.asarray(actions)
    shape = (count, *space.shape)
    kinds = "fiu" if isinstance(space, spaces.Box) else "iub"
    if actions.shape != shape or actions.dtype.kind not in kinds:
        what = "floats" if isinstance(space, spaces.Box) else "whole numbers"
        raise UsageError(
            f"got actions of shape {actions.shape} and type {actions.dtype} for {count} "
            f"environments with the action space {space}: they take {what} of shape {shape}"
        )
    if isinstance(space, spaces.Box):
        if np.isnan(actions).any():
            index = int(np.argwhere(np.isnan(actions))[0, 0])
            raise UsageError(
                f"got NaN as the action of environment {index}, in the action space {space}: "
                "the policy's numbers have left the range; try a smaller learning rate"
            )
        return np.clip(actions, space.low, space.high).astype(space.dtype)
    low, high = _whole_bounds(space)
    if ((actions < low) | (actions > high)).any():
        index = int(np.argwhere((actions < low) | (actions > high))[0, 0])
        raise UsageError(
            f"got {actions[index]} as the action of environment {index}, "
            f"which is not in the action space {space}"
        )
    return actions.astype(space.dtype if isinstance(space, spaces.MultiBinary) else np.int64)


def _whole_bounds(space: Space) -> tuple[Any, Any]:
    """Return the smallest and largest whole numbers of a space, both in it."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return 0, 1


def _dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return dtype if dtype == np.uint8 else np.dtype(np.int64)


def _short(value: NDArray[Any]) -> str:
    return np.array2string(value, threshold=8, edgeitems=2).replace("\n", "")
