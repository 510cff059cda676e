"""Saving and restoring a run on all its processes together."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launch import checkpoint
from launch.backends import Backend, unwrap
from launch.checkpoint import Stateful, checkpoint_name
from launch.errors import UsageError

__all__ = ["keep_architectures", "restore", "save"]


def keep_architectures(backend: Backend, waiting: dict[Path, Callable[[Path], None]]) -> None:
    """Write each folder that waits to be written and is not there whole; then none waits.

    Raises:
        UsageError: On every process alike, if one could not be written; its name is free then.
    """
    while waiting:
        folder, write = waiting.popitem()
        backend.on_main(partial(_keep, folder, write))


def _keep(folder: Path, write: Callable[[Path], None]) -> None:
    if folder.exists() and checkpoint.damage(folder) is None:
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        write(temporary)
        checkpoint.complete(temporary, folder)
    except OSError as error:
        raise UsageError(f"{folder} could not be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save(
    backend: Backend,
    folder: Path,
    step: int,
    state: Mapping[str, Stateful],
    seconds: float,
    keep: int,
) -> None:
    """Write ``folder/step-...`` and remove all but the newest ``keep``.

    Every process calls each ``state_dict``, so that one may gather from all; the main one writes.

    Raises:
        UsageError: On every process alike, if it could not be written; nothing older is lost.
    """
    final = folder / checkpoint_name(step)
    temporary = folder / f".{final.name}.tmp"
    progress = {"step": step, "seconds": seconds, "processes": backend.world_size}
    taken = {name: _taken(thing) for name, thing in _bare(backend, state).items()}

    def write_random_state() -> None:
        torch.save(checkpoint.random_state(), temporary / f"random-{backend.rank}.pt")

    def write_state() -> None:
        checkpoint.save_state(temporary, taken, progress)

    try:
        backend.on_main(lambda: _fresh(folder, temporary))
        backend.on_all(lambda: _as_os_error(write_random_state))
        backend.on_main(lambda: _as_os_error(write_state))
        backend.on_main(lambda: checkpoint.complete(temporary, final))
    except UsageError as error:
        if backend.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise UsageError(
            f"the checkpoint of step {step} could not be written ({error}); those before it are "
            "intact: make room, then go on with --resume"
        ) from None
    backend.on_main(lambda: checkpoint.prune(folder, keep))


def restore(backend: Backend, folder: Path, state: Mapping[str, Stateful]) -> tuple[int, float]:
    """Load the newest whole checkpoint; return its step and seconds, or zeros if there is none.

    A damaged one is skipped with a warning that names it. On another number of processes the
    random states of the processes that were not there start as they are.
    """
    step = int(backend.broadcast_object(_newest(folder) if backend.rank == 0 else 0))
    backend.on_main(lambda: _set_aside(folder, step))
    if step == 0:
        return 0, 0.0
    path = folder / checkpoint_name(step)
    checkpoint.load_state(path, _bare(backend, state))
    own = path / f"random-{backend.rank}.pt"
    if own.exists():
        checkpoint.set_random_state(torch.load(own, weights_only=True))
    return step, float(checkpoint.read_progress(path)["seconds"])


def _newest(folder: Path) -> int:
    for step in checkpoint.steps_of(folder):
        path = folder / checkpoint_name(step)
        wrong = checkpoint.damage(path)
        if wrong is None:
            return step
        warnings.warn(
            f"checkpoint {path} is skipped: {wrong}; an older one is used if there is any",
            RuntimeWarning,
            stacklevel=2,
        )
    return 0


def _set_aside(folder: Path, step: int) -> None:
    """Rename the damaged checkpoints of later steps, so that new ones take their place."""
    for later in checkpoint.steps_of(folder):
        if later > step:
            path = folder / checkpoint_name(later)
            aside = folder / f"damaged-{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _bare(backend: Backend, state: Mapping[str, Stateful]) -> dict[str, Stateful]:
    """Return the things to save: models as they were given to ``prepare``, and fp16's scaler."""
    bare: dict[str, Stateful] = {
        name: unwrap(thing) if isinstance(thing, nn.Module) else thing
        for name, thing in state.items()
    }
    if backend.scaler is not None:
        bare["scaler"] = backend.scaler
    return bare


class _Taken:
    """A state that was taken already."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        raise NotImplementedError("a state that was taken is only written")


def _taken(thing: Stateful) -> Stateful:
    """Return the thing as it is now; a module is written from its parameters."""
    return thing if isinstance(thing, nn.Module) else _Taken(thing.state_dict())


def _fresh(folder: Path, temporary: Path) -> None:
    """Make ``temporary`` anew, and remove what a killed run left half-written beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left)
    temporary.mkdir()


def _as_os_error(function: Callable[[], None]) -> None:
    """Run ``function``; the writers' own kinds of error are raised as OSError."""
    from safetensors import SafetensorError

    try:
        function()
    except (RuntimeError, SafetensorError) as error:
        said = str(error).splitlines()[0]
        if "inline_container" in said or "PytorchStreamWriter" in said:  # torch's own words for it
            said = "No space left on device, or a limit on the size of files"
        raise OSError(said) from error
