"""The sources of Python's standard library as text: a real corpus that every machine has.

Which files are held out follows from their names alone, so a model never sees a line of them. Other
versions of Python have other sources; figures are compared within one.
"""

from __future__ import annotations

import os
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from launch.errors import UsageError

__all__ = ["BYTES", "StandardLibrary", "TextFile", "TextSource", "parse_text"]

BYTES = 256
"""The vocabulary: a token is a byte."""
HELD_OUT_SHARE = 10
"""One file in so many is held out."""
_LEFT_OUT = {
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip
"""Tables, tests and what some systems ship apart or not at all."""


class TextSource(Protocol):
    """Gives bytes to train on, and others that are held out."""

    def check(self) -> None:
        """Raise UsageError for what can be seen before any work."""
        ...

    def load(self) -> tuple[Tensor, Tensor]:
        """Return bytes to train on and held-out ones, each ``(N,)`` uint8."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StandardLibrary:
    """The standard library's ``.py`` files, each ended by a zero byte."""

    train_bytes: int = 4_000_000
    """Most bytes to train on; the last file is cut there."""
    heldout_bytes: int = 100_000
    """Most bytes held out."""

    def __post_init__(self) -> None:
        for name in ("train_bytes", "heldout_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")

    def check(self) -> None:
        """Raise UsageError if the sources are not on this machine."""
        if not any(_library().glob("*.py")):
            raise UsageError(
                f"{_library()} has no .py files: this Python comes without its sources; give "
                "--text FILE"
            )

    def load(self) -> tuple[Tensor, Tensor]:
        """Return bytes to train on and held-out ones; the same on every call."""
        root = _library()
        # Ordered by a hash of their names, not by the alphabet, so that a cap leaves a mixture.
        names = sorted((_hashed(name), name) for name in _names(root))
        held_out = [name for number, name in names if number % HELD_OUT_SHARE == 0]
        trained = [name for number, name in names if number % HELD_OUT_SHARE]
        return _joined(root, trained, self.train_bytes), _joined(root, held_out, self.heldout_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFile:
    """Any one file; its last part is held out."""

    path: str
    heldout_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share}: give a share between 0 and 1")

    def check(self) -> None:
        """Raise UsageError if the file cannot be read or has too little to split."""
        if not Path(self.path).is_file():
            raise UsageError(f"{self.path} is no file: give a text to train on")
        if not os.access(self.path, os.R_OK):
            raise UsageError(f"{self.path} may not be read: change its permissions")
        if Path(self.path).stat().st_size < 1_000:
            raise UsageError(f"{self.path} has fewer than 1,000 bytes: too few to hold some out")

    def load(self) -> tuple[Tensor, Tensor]:
        """Return the first part of the file and the rest."""
        data = torch.frombuffer(bytearray(Path(self.path).read_bytes()), dtype=torch.uint8)
        cut = round(len(data) * (1 - self.heldout_share))
        return data[:cut], data[cut:]


def parse_text(text: str) -> TextSource:
    """Read ``--text stdlib`` or ``--text FILE``."""
    return StandardLibrary() if text == "stdlib" else TextFile(path=text)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _names(root: Path) -> list[str]:
    """Return the relative names of the sources, without what is left out."""
    found: list[str] = []
    folders = [root]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                if path.name not in _LEFT_OUT and not path.name.startswith("config-"):
                    folders.append(path)
            elif path.suffix == ".py":
                found.append(path.relative_to(root).as_posix())
    return found


def _hashed(name: str) -> int:
    return zlib.crc32(name.encode())


def _joined(root: Path, names: list[str], most: int) -> Tensor:
    """Return the first ``most`` bytes of the files, one after the other."""
    data = bytearray()
    for name in names:
        data += (root / name).read_bytes() + b"\0"
        if len(data) >= most:
            break
    return torch.frombuffer(data[:most], dtype=torch.uint8)
