"""Folders that appear complete under their name or not at all: models, policies.

A folder is written beside its place and takes it by two renames; where a process dies between
them, ``folder_to_read`` still finds the older one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError

from launch.errors import UsageError
from launch.folder import synchronize

__all__ = ["folder_to_read", "replaced_folder"]


@contextmanager
def replaced_folder(folder: Path, *, kind: str, own: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of ``folder`` when the block ends.

    What stands beside an older one's own files is kept. Where the block raises or the disk
    refuses, the older one is intact.

    Args:
        folder: Made if it is not there.
        kind: What it holds, for messages: "model".
        own: Shell patterns of the files that belong to it. A folder that is not empty is replaced
            only if it has a file like the first.

    Raises:
        UsageError: Something else stands there, or the disk refuses.
    """
    try:
        folder = folder.resolve()  # of a link the target is replaced, wherever it is
        temporary, old = _beside(folder, f"{os.getpid()}.tmp"), _beside(folder, "old")
        _recover(folder)
        _check_replaceable(folder, kind, own[0])
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _refused(folder, kind, error) from error
    try:
        yield temporary
        _settle(temporary)
        if folder.is_dir():
            _copy_others(folder, temporary, own)
            folder.rename(old)
        temporary.rename(folder)
        synchronize(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if old.is_dir():
            _recover(folder)
        raise _refused(folder, kind, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_to_read(folder: Path) -> Path:
    """Return ``folder``, or its older self where a process died while replacing it."""
    if folder.exists():
        return folder
    old = _beside(folder, "old")
    return old if old.is_dir() else folder


def _beside(folder: Path, end: str) -> Path:
    return folder.with_name(f".{folder.name}.{end}")


def _recover(folder: Path) -> None:
    found = folder_to_read(folder)
    if found != folder:
        found.rename(folder)


def _refused(folder: Path, kind: str, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return UsageError(f"the {kind} folder {folder} cannot be written: {reason}")


def _check_replaceable(folder: Path, kind: str, mark: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: a {kind} is saved as a folder, give another name")
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob(mark)):
        raise UsageError(
            f"{folder} holds something else than a {kind} (it has no {mark}): give a new folder"
        )
    here = Path.cwd()
    if folder in (here, *here.parents):
        raise UsageError(
            f"{folder} is the folder that this program works in, which cannot be replaced: give "
            "the name of one in it"
        )


def _settle(folder: Path) -> None:
    """Give files the permissions of ordinary ones, and wait until all is on the disk."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # safetensors makes its files readable to their owner alone
        synchronize(path)
    synchronize(folder)


def _copy_others(folder: Path, target: Path, own: Sequence[str]) -> None:
    """Copy what stands beside a folder's own files, such as a video; links stay links."""
    for path in folder.iterdir():
        copy = target / path.name
        if os.path.lexists(copy) or any(fnmatchcase(path.name, pattern) for pattern in own):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, copy, symlinks=True)
        else:
            shutil.copy2(path, copy, follow_symlinks=False)
        for made in (copy, *(copy.rglob("*") if copy.is_dir() else ())):
            if not made.is_symlink():
                synchronize(made)
    synchronize(target)
