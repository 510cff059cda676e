"""gymnasium spaces as plain values for a JSON file, exact to the last bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from rl.spaces import Space

__all__ = ["Plain", "array_from_plain", "array_to_plain", "space_from_plain", "space_to_plain"]

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"


def space_to_plain(space: Space) -> dict[str, Plain]:
    """Return a space as plain values.

    Raises:
        ValueError: This kind of space has no text.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return {
            "space": "Box",
            "low": array_to_plain(space.low),
            "high": array_to_plain(space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {
            "space": "Discrete",
            "n": int(space.n),
            "start": int(space.start),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"space": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "space": "MultiDiscrete",
            "nvec": array_to_plain(space.nvec),
            "start": array_to_plain(space.start),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Dict):
        parts: list[Plain] = [[name, space_to_plain(part)] for name, part in space.spaces.items()]
        return {"space": "Dict", "parts": parts}
    if isinstance(space, spaces.Tuple):
        return {"space": "Tuple", "parts": [space_to_plain(part) for part in space.spaces]}
    raise ValueError(
        f"the space {space} cannot be written as text: expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, Dict or Tuple"
    )


def space_from_plain(plain: Mapping[str, Plain]) -> Space:
    """Return the space that ``space_to_plain`` was given.

    Raises:
        ValueError, KeyError, TypeError: These values describe no space.
    """
    from gymnasium import spaces

    match dict(plain):
        case {"space": "Box", "low": dict(low), "high": dict(high)}:
            bounds = array_from_plain(low)
            return spaces.Box(bounds, array_from_plain(high), dtype=bounds.dtype.type)
        case {"space": "Discrete", "n": int(n), "start": int(start), "dtype": str(dtype)}:
            return spaces.Discrete(n, start=start, dtype=np.dtype(dtype).type)
        case {"space": "MultiBinary", "shape": list(shape)}:
            return spaces.MultiBinary(shape if len(shape) > 1 else shape[0])
        case {"space": "MultiDiscrete", "nvec": dict(n), "start": dict(s), "dtype": str(dtype)}:
            kind = np.dtype(dtype).type
            return spaces.MultiDiscrete(array_from_plain(n), kind, start=array_from_plain(s))
        case {"space": "Dict", "parts": list(parts)}:
            return spaces.Dict(OrderedDict(map(_named_space, parts)))  # a dict it would sort
        case {"space": "Tuple", "parts": list(parts)}:
            return spaces.Tuple([_named_space(["", part])[1] for part in parts])
    raise ValueError(f"{str(plain)[:80]} describes no space")


def _named_space(plain: Plain) -> tuple[str, Space]:
    match plain:
        case [str(name), dict(space)]:
            return name, space_from_plain(space)
    raise ValueError(f"{str(plain)[:80]} describes no part of a space")


def array_to_plain(array: np.ndarray) -> dict[str, Plain]:
    """Return an array's type, shape and values; one value alone where all are equal.

    Python writes a float so that it reads back exactly; infinity is a string, as JSON has none.
    """
    flat = array.ravel().tolist()
    if len(flat) > 1 and flat.count(flat[0]) == len(flat):
        flat = flat[:1]
    values: list[Plain] = [v if np.isfinite(v) else str(v) for v in flat]
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": values}


def array_from_plain(plain: Mapping[str, Plain]) -> np.ndarray:
    """Return the array that ``array_to_plain`` was given."""
    match dict(plain):
        case {"dtype": str(dtype), "shape": list(shape), "values": list(values)}:
            numbers = [float(v) if isinstance(v, str) else v for v in values]
            flat = np.array(numbers, dtype=np.dtype(dtype))
            size = int(np.prod(shape, dtype=np.int64))  # type: ignore[arg-type]  # else a TypeError
            if len(flat) not in (1, size):
                raise ValueError(f"{len(flat)} values do not fill the shape {shape}")
            return np.full(shape, flat[0]) if len(flat) < size else flat.reshape(shape)  # type: ignore[arg-type]  # as above
    raise ValueError(f"{str(plain)[:80]} describes no array")
