"""Checkpoints: complete under their name or not there at all, and checked before they are used.

A checkpoint is written to a temporary folder, synced, renamed, and given its marker ``COMPLETE``
last. The marker lists every file with its size and CRC-32, so damage beside an intact marker is
seen too. What goes in: every named object with a ``state_dict`` (``launch.shards`` says how) and
the global random state of each process.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.folder import synchronize
from launch.shards import Stateful, load, taken

__all__ = [
    "Stateful",
    "checkpoint_name",
    "complete",
    "damage",
    "load_state",
    "prune",
    "random_state",
    "read_progress",
    "save_state",
    "set_random_state",
    "steps_of",
    "sums",
    "write_progress",
]

MARKER = "COMPLETE"


def checkpoint_name(step: int) -> str:
    """Return the folder's name after ``step`` steps.

    >>> checkpoint_name(100)
    'step-00000100'
    """
    return f"step-{step:08d}"


def steps_of(folder: Path) -> list[int]:
    """Return the steps for which ``folder`` has a checkpoint, complete or not, newest first."""
    found = [p.name.removeprefix("step-") for p in folder.glob("step-*") if p.is_dir()]
    return sorted((int(name) for name in found if name.isdigit()), reverse=True)


def random_state() -> dict[str, Any]:
    """Return the state of every global generator of this process, as plain values."""
    kind, words, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 users' code may draw here
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Take what ``random_state`` returned."""
    torch.set_rng_state(state["torch"])
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002 see above
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_state(folder: Path, state: Mapping[str, Stateful], progress: Mapping[str, Any]) -> None:
    """Write the objects of ``state`` and ``progress`` (plain JSON values) into ``folder``."""
    for name, thing in state.items():
        for file in taken(name, thing):
            file.into(folder)
    write_progress(folder, progress)


def write_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """Write what ``read_progress`` returns."""
    (folder / "progress.json").write_text(json.dumps(dict(progress)), encoding="utf-8")


def load_state(folder: Path, state: Mapping[str, Stateful]) -> None:
    """Give each object of ``state`` its own back.

    Raises:
        UsageError: The checkpoint has no file for one of them, or that of another model.
    """
    for name, thing in state.items():
        load(folder, name, thing)


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the ``progress`` that ``save_state`` wrote."""
    return dict(json.loads((folder / "progress.json").read_text(encoding="utf-8")))


def sums(folder: Path, names: Iterable[str] | None = None) -> dict[str, list[int]]:
    """Sync files of ``folder`` and return the size and the CRC-32 of each, by its name.

    Args:
        folder: Where they are.
        names: Of the files; None takes all there are.
    """
    found = {}
    for path in sorted(folder.rglob("*")) if names is None else [folder / x for x in names]:
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found[name] = [path.stat().st_size, _checksum(path)]
        synchronize(path)
    return found


def complete(
    temporary: Path, final: Path, found: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Rename ``temporary``, whose files are synced, to ``final`` and write the marker last.

    Args:
        temporary: The folder as it was written.
        final: Its name.
        found: What ``sums`` returned of all its files; None asks it.
    """
    found = sums(temporary) if found is None else found
    synchronize(temporary)
    if final.exists():  # what stands there was found damaged, or it would have been resumed from
        shutil.rmtree(final)
    temporary.rename(final)
    synchronize(final.parent)
    unnamed = final / f".{MARKER}"
    unnamed.write_text(json.dumps(dict(found)), encoding="utf-8")
    synchronize(unnamed)
    unnamed.rename(final / MARKER)
    synchronize(final)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if it is whole."""
    try:
        return _damage(folder)
    except OSError as error:
        return f"it cannot be read ({error})"


def _damage(folder: Path) -> str | None:
    marker = folder / MARKER
    if not marker.exists():
        return f"it has no {MARKER} marker, so its writing was cut off"
    try:
        sizes = json.loads(marker.read_text(encoding="utf-8"))
        items = [(str(name), int(size), int(sum_)) for name, (size, sum_) in sizes.items()]
    except (ValueError, TypeError, AttributeError):
        return f"its {MARKER} marker cannot be read"
    if not items:
        return f"its {MARKER} marker names no file"
    for name, size, checksum in items:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _checksum(path) != checksum:
            return f"{name} has changed since it was written"
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints, and what was left half-written.

    A damaged checkpoint older than a complete one serves nothing and goes as well.
    """
    whole = [
        step for step in steps_of(folder) if (folder / checkpoint_name(step) / MARKER).exists()
    ]
    if len(whole) < keep:
        return
    oldest = whole[keep - 1]
    for step in steps_of(folder):
        if step < oldest:
            shutil.rmtree(folder / checkpoint_name(step), ignore_errors=True)


def _checksum(path: Path) -> int:
    value = 0
    for block in _blocks(path):
        value = zlib.crc32(block, value)
    return value


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            yield block
