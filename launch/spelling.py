"""The nearest name, for messages about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest"]


def nearest(name: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the name most like ``name``, or None if none is as like as that, from 0 to 1.

    >>> nearest("clip_hihg", ["clip_low", "clip_high"])
    'clip_high'
    """
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=likeness)
    return close[0] if close else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean NAME?"``, or nothing if no name is near.

    >>> did_you_mean("rnu", ["list", "show", "run"])
    '; did you mean run?'
    >>> did_you_mean("xyz", ["list", "show", "run"])
    ''
    """
    close = nearest(name, names)
    return f"; did you mean {close}?" if close else ""
