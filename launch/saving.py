"""Saving and restoring a run on all its processes together."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from launch import checkpoint
from launch.backends import Backend, unwrap
from launch.checkpoint import Stateful, checkpoint_name
from launch.errors import UsageError
from launch.shards import Write, taken

__all__ = ["Saver", "keep_architectures", "restore"]


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


_SMALL = 1 << 24  # bytes of tensors that a process has to write


class Saver:
    """Writes a run's checkpoints, each process its own files, while training goes on.

    ``save`` copies the state and returns; files are written, synced and summed by a thread. Once
    all processes are done, ``finish`` names the checkpoint and marks it complete. A small one is
    not worth the wait until the next step: there ``save`` does all of it.

    Args:
        backend: The processes.
        folder: Of the checkpoints.
        keep: Newest checkpoints that stay.
    """

    def __init__(self, backend: Backend, folder: Path, keep: int) -> None:
        self.backend, self.folder, self.keep = backend, folder, keep
        self._step = 0
        self._thread: threading.Thread | None = None
        self._found: dict[str, list[int]] = {}
        self._error: str | None = None

    @property
    def is_writing(self) -> bool:
        """Whether this process has begun a checkpoint and is not done with its files."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_begun(self) -> bool:
        """Whether a checkpoint waits for ``finish``: on every process alike."""
        return self._thread is not None

    def save(self, step: int, state: Mapping[str, Stateful], seconds: float) -> None:
        """Begin the checkpoint after ``step`` steps; one that was begun is finished first.

        Every process calls each ``state_dict``, so that one may gather from all.

        Raises:
            UsageError: On every process alike, if one could not be written; nothing older is lost.
        """
        self.finish()
        backend, temporary = self.backend, self._temporary(step)
        try:
            backend.on_main(lambda: _fresh(self.folder, temporary))
        except UsageError as error:
            raise _unwritten(step, error) from None
        files: list[Write] = []
        for name, thing in _bare(backend, state).items():
            files += taken(name, thing, rank=backend.rank, world=backend.world_size)
        size = sum(file.size for file in files)
        random_state, file = checkpoint.random_state(), f"random-{backend.rank}.pt"
        writes = [file.into for file in files]
        writes.append(lambda folder: torch.save(random_state, folder / file))
        if backend.rank == 0:
            progress = {"step": step, "seconds": seconds, "processes": backend.world_size}
            writes.append(lambda folder: checkpoint.write_progress(folder, progress))
        self._step, self._found, self._error = step, {}, None
        self._thread = threading.Thread(target=self._write, args=(temporary, writes), daemon=True)
        self._thread.start()
        if int(backend.all_reduce(torch.tensor(size), largest=True)) < _SMALL:
            self.finish()

    def _write(self, temporary: Path, writes: Sequence[Callable[[Path], None]]) -> None:
        """Write, sync and sum the files of this process, in a folder of its own until then."""
        own = temporary / f".process-{self.backend.rank}"
        try:
            own.mkdir()
            for write in writes:
                _as_os_error(partial(write, own))
            self._found = checkpoint.sums(own)
            for name in self._found:
                (own / name).rename(temporary / name)
            own.rmdir()
        except OSError as error:
            self._error = str(error)

    def finish(self) -> None:
        """Wait for the files of every process, and complete what ``save`` has begun.

        Raises:
            UsageError: On every process alike, if it could not be written; nothing older is lost.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        ended = self.backend.gather_objects((self._error, self._found))
        temporary = self._temporary(self._step)
        final = self.folder / checkpoint_name(self._step)
        try:
            for error, _ in ended:
                if error is not None:
                    raise UsageError(error)
            files = {name: x for _, found in ended for name, x in found.items()}
            self.backend.on_main(lambda: checkpoint.complete(temporary, final, files))
        except UsageError as error:
            if self.backend.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise _unwritten(self._step, error) from None
        self.backend.on_main(lambda: checkpoint.prune(self.folder, self.keep))

    def _temporary(self, step: int) -> Path:
        return self.folder / f".{checkpoint_name(step)}.tmp"


def _unwritten(step: int, error: UsageError) -> UsageError:
    return UsageError(
        f"the checkpoint of step {step} could not be written ({error}); those before it are "
        "intact: make room, then go on with --resume"
    )


def restore(backend: Backend, folder: Path, state: Mapping[str, Stateful]) -> tuple[int, float]:
    """Load the newest whole checkpoint; return its step and seconds, or zeros if there is none.

    A damaged one is skipped with a warning that names it. On another number of processes the
    random states of the processes that were not there start as they are.
    """
    newest: list[int] = []
    backend.on_main(lambda: newest.append(_newest(folder)))
    step = int(backend.broadcast_object(newest[0] if newest else 0))
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
    """Return the step of the newest whole checkpoint, or 0 if none was ever complete.

    Raises:
        UsageError: There were some, and all are damaged.
    """
    were_complete = []
    for step in checkpoint.steps_of(folder):
        path = folder / checkpoint_name(step)
        wrong = checkpoint.damage(path)
        if wrong is None:
            return step
        if (path / checkpoint.MARKER).exists():
            were_complete.append(path.name)
        warnings.warn(
            f"checkpoint {path} is skipped: {wrong}; an older one is used if there is any",
            RuntimeWarning,
            stacklevel=2,
        )
    if were_complete:
        raise UsageError(
            f"{folder} has no whole checkpoint left: {', '.join(were_complete)} "
            f"{'is' if len(were_complete) == 1 else 'are'} damaged. Give a copy of one back, or "
            "begin anew with --overwrite or another --output"
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
