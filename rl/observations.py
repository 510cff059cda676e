"""Batches of observations on their way into a network: checked, and as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rl.spaces import Observations, Space, leaves

__all__ = [
    "TensorObservations",
    "check_observations",
    "flatten",
    "map_tensors",
    "to_tensors",
    "unflatten",
]

TensorObservations: TypeAlias = (
    "Tensor | dict[str, TensorObservations] | tuple[TensorObservations, ...]"
)
"""``rl.spaces.Observations`` as tensors."""


def to_tensors(observations: Observations) -> TensorObservations:
    """Return the arrays as tensors that share their memory."""
    if isinstance(observations, dict):
        return {name: to_tensors(part) for name, part in observations.items()}
    if isinstance(observations, tuple):
        return tuple(to_tensors(part) for part in observations)
    return torch.from_numpy(observations)


def map_tensors(
    function: Callable[[Tensor], Tensor], observations: TensorObservations
) -> TensorObservations:
    """Return the same structure with ``function`` applied to every tensor."""
    if isinstance(observations, dict):
        return {name: map_tensors(function, part) for name, part in observations.items()}
    if isinstance(observations, tuple):
        return tuple(map_tensors(function, part) for part in observations)
    return function(observations)


def check_observations(space: Space, rows: Observations, given: Observations) -> Observations:
    """Return a batch of observations in the types that networks take.

    Args:
        space: Of one environment; for messages.
        rows: ``empty_rows(space, 0)``: the shapes and types that are wanted.
        given: What is meant to be ``(B, *shape)``; numbers are cast where nothing is lost but
            digits.

    Raises:
        ValueError: Another shape (names both), other parts, or parts that differ in B.
        TypeError: Not numbers, or fractions where the space has whole numbers.
    """
    if isinstance(rows, np.ndarray):
        return _check_array(space, rows, given, "")
    checked = _check(space, rows, given, "")
    sizes = {name: len(array) for name, array in leaves(checked)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"got parts of different B, {sizes}: every part needs the same B")
    return checked


def _check(space: Space, rows: Observations, given: Observations, name: str) -> Observations:
    if isinstance(rows, dict):
        if not isinstance(given, dict) or given.keys() != rows.keys():
            has = sorted(given) if isinstance(given, dict) else type(given).__name__
            raise ValueError(
                f"got observations{name} with {has}, expected a dict with {sorted(rows)}"
            )
        return {
            key: _check(space, part, given[key], f"{name}[{key!r}]") for key, part in rows.items()
        }
    if isinstance(rows, tuple):
        if not isinstance(given, tuple | list) or len(given) != len(rows):
            raise ValueError(
                f"got observations{name} of type {type(given).__name__}, expected a tuple of "
                f"{len(rows)} parts"
            )
        parts = enumerate(zip(rows, given, strict=True))
        return tuple(_check(space, part, item, f"{name}[{i}]") for i, (part, item) in parts)
    return _check_array(space, rows, given, name)


def _check_array(space: Space, rows: np.ndarray, given: Observations, name: str) -> np.ndarray:
    if isinstance(given, dict):
        raise ValueError(f"got observations{name} as a dict, expected one array for {space}")
    array = np.asarray(given)
    shape = rows.shape[1:]
    if array.shape[1:] != shape or array.ndim == 0:
        expected = "(" + ", ".join(["B", *map(str, shape)]) + ("" if shape else ",") + ")"
        advice = "; a single one is observation[None]" if array.shape == shape else ""
        raise ValueError(
            f"got observations{name} of shape {array.shape}, expected {expected}: B rows of "
            f"{space}{advice}"
        )
    if array.dtype == rows.dtype:
        return array
    if array.dtype.kind not in ("biuf" if rows.dtype.kind == "f" else "biu"):
        raise TypeError(
            f"got observations{name} of type {array.dtype}, expected {rows.dtype} for {space}"
        )
    cast = array.astype(rows.dtype)
    if rows.dtype.kind != "f" and not np.array_equal(cast, array):
        raise ValueError(f"got observations{name} that do not fit into {rows.dtype}, for {space}")
    return cast


def flatten(rows: Observations, given: Observations) -> list[np.ndarray]:
    """Return the arrays of ``given`` as a list, in the order in which ``rows`` has them."""
    if isinstance(rows, np.ndarray):
        return [given]  # type: ignore[list-item]  # the same structure, so an array
    keys = rows if isinstance(rows, dict) else range(len(rows))
    return [array for key in keys for array in flatten(rows[key], given[key])]  # type: ignore[index]


def unflatten(rows: Observations, arrays: Iterator[np.ndarray]) -> Observations:
    """Return the observations that ``flatten`` made a list of."""
    if isinstance(rows, dict):
        return {name: unflatten(part, arrays) for name, part in rows.items()}
    if isinstance(rows, tuple):
        return tuple(unflatten(part, arrays) for part in rows)
    return next(arrays)
