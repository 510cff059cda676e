"""Named random streams: what a row draws is keyed by the work, never by the process.

A key is (seed, name, step, index), where ``index`` is global. Because nothing is carried from one
draw to the next, the number of processes changes no draw, and resuming needs no stored state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

__all__ = ["key", "keys", "stream"]


def key(seed: int, name: str, step: int = 0, index: int = 0) -> int:
    """Return a 63-bit integer that only this seed, name, step and index lead to.

    >>> key(0, "prompts", step=3) == key(0, "prompts", step=3)
    True
    >>> len({key(0, "prompts", step) for step in range(1000)})
    1000
    """
    text = f"{seed}/{name}/{step}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def keys(seed: int, name: str, step: int, indices: Iterable[int]) -> list[int]:
    """Return the keys of many rows; ``indices`` are global."""
    return [key(seed, name, step, index) for index in indices]


def stream(seed: int, name: str, step: int = 0, index: int = 0) -> torch.Generator:
    """Return a CPU generator that starts at this key."""
    return torch.Generator().manual_seed(key(seed, name, step, index))
