"""Run folders: who may write into one, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from launch.config import changed_keys
from launch.errors import UsageError

__all__ = ["Claim", "atomic_write", "check_claim", "claim", "holds_run", "synchronize"]

LOCK = ".lock"
OLD = ".overwritten"
_SIGNS = ("config.yaml", "metrics.jsonl", "checkpoints")
# What a run makes, and so what --overwrite removes; config.yaml last, so that where this is cut
# short it still says whose remains these are.
_MADE = (
    "checkpoints",
    "architecture",
    "stages",
    "model",
    ".model.old",
    "policy",
    ".policy.old",
    "table.safetensors",
    "figures",
    "trackers",
    "metrics.jsonl",
    "samples.jsonl",
    "items.jsonl",
    "report.html",
    "not-finite-step-*.pt",
    "config.yaml",
)
_PATIENCE = 0.3  # seconds; somebody who only looks holds the lock for an instant
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Claim:
    """The right to write into a run folder, held until ``close`` or the death of the process.

    A run that is to be overwritten is only set aside until ``begin``, so that a run which stops
    before any work, on a wrong setting, costs nothing.
    """

    def __init__(self, path: Path, lock: int, *, made: tuple[Path, ...], before: set[str]) -> None:
        self.path = path
        self.note = ""
        """What there is to say about the start, such as that there was nothing to resume."""
        self._made = made
        self._before = before
        self._lock = lock
        _open_claims.add(self)

    def begin(self) -> None:
        """Remove the run that is overwritten: work begins. A second call does nothing."""
        shutil.rmtree(self.path / OLD, ignore_errors=True)

    def close(self) -> None:
        """Let others have the folder. A second call does nothing."""
        if self._lock >= 0:
            self.begin()
        self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def discard(self) -> None:
        """Close, and put everything back as it was, unless more was written than the config.

        For a run that stops before any work, so that a wrong setting leaves no folder.
        """
        if self._lock >= 0:
            new = {entry.name for entry in self.path.iterdir()} - self._before - {OLD}
            if new <= {LOCK, "config.yaml"}:
                for name in new:
                    (self.path / name).unlink()
                _move_run(self.path / OLD, self.path)
                for folder in self._made:
                    try:
                        folder.rmdir()
                    except OSError:  # somebody else has put something into it
                        break
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.discard()
        self.close()


_open_claims: weakref.WeakSet[Claim] = weakref.WeakSet()


def _forget_claims() -> None:
    """Close the locks in a forked child: the lock must die with the run, not with its children."""
    for held in list(_open_claims):
        held._release()


os.register_at_fork(after_in_child=_forget_claims)


def holds_run(path: Path) -> bool:
    """Return whether a run stands in this folder: a config, metrics or checkpoints."""
    return any(os.path.lexists(path / name) for name in _SIGNS)


def claim(
    path: Path,
    config_yaml: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    resumable: frozenset[str] = frozenset(),
) -> Claim:
    """Take a run folder, made if it is not there, and write ``config.yaml`` into it.

    Args:
        path: The run folder.
        config_yaml: The complete config, as ``launch.config.to_yaml`` writes it.
        resume: Go on with the run that the folder holds. If it holds none, a run starts anew, so
            that a cluster job can always pass ``--resume``; the claim's ``note`` says so.
        overwrite: Remove the run that the folder holds; files that no run makes stay.
        resumable: Dotted keys that may differ from the config of the run that goes on.

    Raises:
        UsageError: The folder holds a run and neither flag is given, the config has changed,
            another run uses the folder, or it cannot be written to. Nothing was changed then.
    """
    check_claim(path, config_yaml, resume=resume, overwrite=overwrite, resumable=resumable)
    made = tuple(p for p in (path, *path.parents) if not p.exists())
    try:
        path.mkdir(parents=True, exist_ok=True)
        before = {entry.name for entry in path.iterdir()}
        held = Claim(path, _lock(path), made=made, before=before)
        held.begin()  # what a killed run had set aside
    except OSError as error:
        raise UsageError(f"the output folder {path} cannot be made: {_reason(error)}") from None
    try:
        # Once more under the lock: another run may have come and gone since the check.
        held.note = _refuse(path, config_yaml, resume, overwrite, resumable)
        _remove_temporary(path)
        if overwrite:
            (path / OLD).mkdir()
            held._before -= _move_run(path, path / OLD)
        if config_yaml:
            atomic_write(path / "config.yaml", config_yaml)
    except OSError as error:
        held.discard()
        raise UsageError(f"the output folder {path} cannot be written: {_reason(error)}") from None
    except BaseException:
        held.discard()
        raise
    return held


def check_claim(
    path: Path,
    config_yaml: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    resumable: frozenset[str] = frozenset(),
) -> str:
    """Raise what ``claim`` would raise, changing nothing; return the note that it would give."""
    if resume and overwrite:
        raise UsageError(
            "--resume goes on with a run and --overwrite removes it: give one of the two"
        )
    try:
        standing = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
        if not standing.is_dir():
            raise UsageError(f"the output folder {path} cannot be made: {standing} is a file")
        if (path / LOCK).exists():  # first: who comes second to an empty folder has to wait
            os.close(_lock(path, only_look=True))
        note = _refuse(path, config_yaml, resume, overwrite, resumable)
    except OSError as error:
        raise UsageError(f"the output folder {path} cannot be used: {_reason(error)}") from None
    if not os.access(standing, os.W_OK | os.X_OK):
        raise UsageError(f"the output folder {path} cannot be written: {standing} is read-only")
    return note


def _recipe(config_yaml: str) -> str:
    """Return the recipe that the first line of a config names; empty if it names none."""
    line = config_yaml.partition("\n")[0]
    return line.removeprefix("# recipe: ") if line.startswith("# recipe: ") else ""


def _refuse(
    path: Path, config_yaml: str, resume: bool, overwrite: bool, resumable: frozenset[str]
) -> str:
    """Raise if the run in ``path`` stands in the way; otherwise return the note for the start."""
    if overwrite:
        return ""
    if not holds_run(path):
        return f"nothing to resume in {path}: the run starts anew" if resume else ""
    if not resume:
        raise UsageError(
            f"{path} holds a run: add --resume to go on with it, --overwrite to remove it, "
            "or choose another --output"
        )
    config = path / "config.yaml"
    try:
        old = config.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise UsageError(
            f"{path} holds a run without a readable config.yaml, so it cannot be resumed: "
            "start anew with --overwrite or choose another --output"
        ) from None
    was, now = _recipe(old), _recipe(config_yaml)
    if was and now and was != now:
        raise UsageError(
            f"{path} holds a run of the recipe {was}, and this is {now}: resume it with monro run "
            f"{was} --output {path} --resume, or choose another --output"
        )
    changed = changed_keys(old, config_yaml, resumable, source=str(config))
    if changed:
        raise UsageError(
            f"--resume needs the config of the run in {path}, but this has changed: "
            f"{', '.join(changed)}. Give the old values (--config {config}), "
            "or start anew with --overwrite"
        )
    return ""


def _lock(path: Path, *, only_look: bool = False) -> int:
    """Open and lock ``path/.lock``; return its file descriptor, not inherited by programs."""
    flags = os.O_RDONLY if only_look else os.O_RDWR | os.O_CREAT
    kind = fcntl.LOCK_SH if only_look else fcntl.LOCK_EX
    end = time.monotonic() + _PATIENCE
    while True:
        lock = os.open(path / LOCK, flags | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            if only_look or _is_there(path / LOCK, lock):
                if not only_look:
                    os.ftruncate(lock, 0)
                    os.write(lock, f"{os.getpid()}\n".encode())
                return lock
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if time.monotonic() > end:
                os.close(lock)
                who = f" (process {holder})" if holder else ""
                raise UsageError(
                    f"{path} is in use by another run{who}: wait for it or choose another --output"
                ) from None
            time.sleep(0.02)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(lock)
                raise
            warnings.warn(
                f"the file system of {path} has no locks: take care that no other run writes there",
                RuntimeWarning,
                stacklevel=4,
            )
            return lock
        os.close(lock)


def _is_there(path: Path, descriptor: int) -> bool:
    """Return whether the file that was locked is still the one with this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _move_run(source: Path, target: Path) -> set[str]:
    """Move what a run makes from one folder to another; return the names."""
    moved = [made for pattern in _MADE for made in source.glob(pattern)]
    for made in moved:
        made.rename(target / made.name)
    return {made.name for made in moved}


def _remove_temporary(path: Path) -> None:
    """Remove what killed processes were writing: ``.NAME.PID.tmp`` beside what runs make."""
    names = [f".{made}.[0-9]*.tmp" for made in _MADE]
    for pattern in [*names, *(f"stages/*/{name}" for name in names)]:
        for left in path.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write a file that appears complete under its name, or not at all.

    The old file stays if the disk is full or the process dies; the new one is on the disk when the
    call returns.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    synchronize(path.parent)


def synchronize(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
