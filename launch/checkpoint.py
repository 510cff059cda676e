"""Checkpoints: complete under their name or not there at all, and checked before they are used.

A checkpoint is written to a temporary folder, synced, renamed, and given its marker ``COMPLETE``
last. The marker lists every file with its size and CRC-32, so damage beside an intact marker is
seen too. What goes in: every named object with a ``state_dict`` (a module as safetensors, all else
as a torch file of plain values) and the global random state of each process.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from launch.errors import UsageError
from launch.folder import synchronize

__all__ = [
    "Stateful",
    "checkpoint_name",
    "complete",
    "damage",
    "difference",
    "load_state",
    "prune",
    "random_state",
    "read_progress",
    "save_state",
    "set_random_state",
    "steps_of",
]

MARKER = "COMPLETE"


class Stateful(Protocol):
    """Anything that can give its state and take it back: modules, optimizers, EMA, buffers."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:  # noqa: ANN401 as torch has it
        """Take what ``state_dict`` returned."""
        ...


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
    from safetensors.torch import save_model

    for name, thing in state.items():
        if isinstance(thing, nn.Module):
            save_model(thing, str(folder / f"{name}.safetensors"))
        else:
            torch.save(thing.state_dict(), folder / f"{name}.pt")
    (folder / "progress.json").write_text(json.dumps(dict(progress)), encoding="utf-8")


def load_state(folder: Path, state: Mapping[str, Stateful]) -> None:
    """Give each object of ``state`` its own back.

    Raises:
        UsageError: The checkpoint has no file for one of them, or that of another model.
    """
    from safetensors.torch import load_model

    for name, thing in state.items():
        is_module = isinstance(thing, nn.Module)
        path = folder / (f"{name}.safetensors" if is_module else f"{name}.pt")
        if not path.exists():
            raise UsageError(
                f"{folder} has no {path.name}: it was written by another kind of run, "
                "so resume it with the recipe that made it"
            )
        if isinstance(thing, nn.Module):
            _check_fit(thing, path)
            load_model(thing, str(path))
        else:
            thing.load_state_dict(torch.load(path, weights_only=True))


def _check_fit(model: nn.Module, path: Path) -> None:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        stored = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        aliases = file.metadata() or {}
    wanted = {name: list(x.shape) for name, x in model.state_dict().items()}
    differs = difference(stored, aliases, wanted)
    if differs is not None:
        raise UsageError(
            f"{path} is of another model than this one: {differs}; resume the run with the "
            "settings that it was begun with"
        )


def difference(
    stored: Mapping[str, list[int]], aliases: Mapping[str, str], wanted: Mapping[str, list[int]]
) -> str | None:
    """Return how the tensors of a file first differ from those of a model, or None.

    Args:
        stored: The shapes in the file, by name.
        aliases: For further names of a tensor, the one that it is stored by.
        wanted: The model's shapes, by name.
    """
    for name, shape in wanted.items():
        found = stored.get(name, stored.get(aliases.get(name, "")))
        if found is None:
            return f"it has no {name}"
        if found != shape:
            return f"{name} is {found} instead of {shape}"
    used = {name if name in stored else aliases[name] for name in wanted}
    return next((f"it has {name} as well" for name in stored if name not in used), None)


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the ``progress`` that ``save_state`` wrote."""
    return dict(json.loads((folder / "progress.json").read_text(encoding="utf-8")))


def complete(temporary: Path, final: Path) -> None:
    """Sync the files of ``temporary``, rename it to ``final`` and write the marker last."""
    sizes = {}
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            name = path.relative_to(temporary).as_posix()
            sizes[name] = [path.stat().st_size, _checksum(path)]
        synchronize(path)
    synchronize(temporary)
    if final.exists():  # what stands there was found damaged, or it would have been resumed from
        shutil.rmtree(final)
    temporary.rename(final)
    synchronize(final.parent)
    unnamed = final / f".{MARKER}"
    unnamed.write_text(json.dumps(sizes), encoding="utf-8")
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
