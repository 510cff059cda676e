"""The bytes of tensors that live at the same time, counted by the allocator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile

__all__ = ["LiveBytes", "live_bytes"]


@dataclass(slots=True)
class LiveBytes:
    """What was taken and given back inside a block, over what was there before it."""

    peak: int = 0
    """The most bytes at a time."""
    stays: int = 0
    """Bytes at the block's end."""


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Count the bytes of tensors on the CPU inside the block, by torch's profiler.

    Every block that its allocator hands out is counted, also inside operations and in the backward
    pass. Watching tensors from Python would change what is counted: a gradient that Python has
    seen is no longer added to in place.

    >>> import torch
    >>> with live_bytes() as seen:
    ...     x = torch.zeros(256)
    ...     y = (x + 1).sum()  # x + 1 is gone when the sum is there
    >>> seen.peak - 4 * (256 + 256) < 200, seen.stays - 4 * 257 < 200
    (True, True)

    Yields:
        Filled at the block's end.
    """
    found = LiveBytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        yield found
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        found.stays += event.nbytes()
        found.peak = max(found.peak, found.stays)
