"""Frames in pipes: an 8-byte length and so many bytes.

It imports nothing of monro, because worker processes, which do not either, load it by its path.
"""

from __future__ import annotations

import os

__all__ = ["read_frame", "write_all", "write_frame"]


def write_frame(fd: int, payload: bytes) -> None:
    """Write one frame, however large."""
    write_all(fd, len(payload).to_bytes(8, "big") + payload)


def write_all(fd: int, payload: bytes) -> None:
    """Write all of it, however large."""
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]


def read_frame(fd: int) -> bytes | None:
    """Read one frame; None at the end of the input."""
    head = _read_exactly(fd, 8)
    return None if head is None else _read_exactly(fd, int.from_bytes(head, "big"))


def _read_exactly(fd: int, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
