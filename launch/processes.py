"""Several processes on one machine: started through accelerate, ended together.

The parent checks, starts the workers as its own children and waits. Workers know themselves by the
variables that torchrun sets, so ``accelerate launch -m launch run ...`` gives the same run.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launch.child import SET_DEATH_SIGNAL, run_child
from launch.errors import UsageError
from launch.faults import CRASH, USAGE, explain, say, tell_once
from launch.torchrun import handlers_kept, run_workers
from launch.watcher import watching

__all__ = [
    "check_devices",
    "check_machine",
    "check_shared_memory",
    "crash_noted",
    "die_with_parent",
    "gpus",
    "is_worker",
    "launched_processes",
    "leave",
    "leave_error",
    "start",
]

PARENT = "MONRO_PARENT"
ERRORS = "MONRO_ERRORS"
_SHARED = 64 << 20  # bytes of shared memory for each process with a GPU


def is_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher has started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys()


def launched_processes(
    environment: Mapping[str, str] = os.environ, parent: Sequence[str] | None = None
) -> int | None:
    """Return how many processes the launcher of this one was asked for; None without a launcher.

    ``accelerate launch --cpu --num_processes 2`` starts one process without a word and sets no
    WORLD_SIZE; its command line is that of our parent, and it sets MASTER_PORT only if more than
    one was asked for.

    Args:
        environment: The environment variables.
        parent: The parent's command line; by default it is read from /proc.

    >>> launched_processes({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, [])
    4
    >>> simple = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}
    >>> launched_processes(simple, ["accelerate", "launch", "--cpu", "--num_processes=3", "a.py"])
    3
    >>> launched_processes({}, ["bash"]) is None
    True
    """
    if is_worker(environment):
        return int(environment["WORLD_SIZE"])
    if "ACCELERATE_MIXED_PRECISION" not in environment:
        return None
    words = _parent_command() if parent is None else parent
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value if equals else following
            return int(value) if value.isdecimal() else None
    # Asked for in accelerate's own config file: more than one, but who knows how many.
    return 2 if "MASTER_PORT" in environment else 1


def _parent_command() -> list[str]:
    try:
        text = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return text.decode(errors="replace").split("\0")


def die_with_parent() -> None:
    """Have a worker killed when its launcher dies, even by SIGKILL, so that none is left behind.

    Call it at the start of a run. Without a launcher that starts workers from its main thread
    (``monro`` or torchrun), and on systems other than Linux, it does nothing. What this process
    starts in turn is not told of the launcher.
    """
    parent = os.environ.pop(PARENT, None)
    if not sys.platform.startswith("linux") or not (parent or "TORCHELASTIC_RUN_ID" in os.environ):
        return
    ctypes.CDLL(None, use_errno=True).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    if parent is not None and os.getppid() != int(parent):  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def leave_error(message: str, *, usage: bool) -> bool:
    """In a worker, leave an error for the parent to print.

    A parent that is torchrun, or accelerate, prints none: the first worker does it then.

    Args:
        message: A line, or a traceback.
        usage: Whether it is something that the user can mend, with exit code 2.

    Returns:
        Whether that was possible; if not, the message is still to be printed.
    """
    folder = os.environ.get(ERRORS)
    if folder is None or not is_worker():
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # ATTEMPT/RANK/error.json
        if not file or not is_worker():
            return False
        tell_once(message, Path(file).parents[1], int(os.environ["RANK"]), usage=usage)
        return True
    path = Path(folder) / f"{USAGE if usage else CRASH}-{os.environ['RANK']}"
    if path.exists():
        return True
    try:
        path.write_text(message, encoding="utf-8")
        # Whose error came first is read from these times, so they are not those of a clock that
        # somebody may set.
        os.utime(path, (time.monotonic(),) * 2)
    except OSError:  # the parent is gone
        return False
    return True


@contextlib.contextmanager
def crash_noted() -> Iterator[None]:
    """Leave a traceback for the parent as soon as it comes out of the block.

    Before anything is closed, that is: the peers, which lose their connections by that, would
    otherwise be the first to complain.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UsageError):
            leave_error(traceback.format_exc(), usage=False)
        raise


def leave(code: int) -> None:
    """End a worker with this exit code; in a process that is not a worker, do nothing.

    accelerate and DDP keep the process groups alive beyond ``destroy_process_group``, and with them
    gloo's threads. One that wants the interpreter's lock while the interpreter is taken down ends
    the process with "terminate called without an active exception", though all work was done. So a
    worker runs its exit functions, and leaves without taking the interpreter down.
    """
    if not is_worker():
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the stream is
            stream.flush()
    os._exit(code)


def check_devices(count: int) -> None:
    """Raise if ``count`` processes cannot each have a device.

    Raises:
        UsageError: ``count`` is less than 1, or there are GPUs but fewer than that, or too little
            shared memory for them.
    """
    if count < 1:
        raise UsageError(f"--processes {count}: give at least 1")
    found = gpus()
    if 0 < found < count:
        raise UsageError(
            f"--processes {count}: this machine has {found} GPU{'s' * (found > 1)}, and each "
            "process needs its own; ACCELERATE_USE_CPU=true runs them on the CPU"
        )
    check_shared_memory(count)


def check_shared_memory(count: int, free: int | None = None) -> None:
    """Raise if ``count`` processes with GPUs cannot exchange gradients through shared memory.

    NCCL keeps buffers in /dev/shm where GPUs have no other way to each other, and dies of a bus
    error when they do not fit. A container has 64 MiB unless it is given more.

    Args:
        count: Of processes on this machine.
        free: Bytes of shared memory; by default what /dev/shm has.

    Raises:
        UsageError: It has less than 64 MiB for each process.

    >>> check_shared_memory(8, 2**30)
    """
    if count < 2 or gpus() == 0 or os.environ.get("NCCL_SHM_DISABLE") == "1":
        return
    if free is None:
        folder = Path("/dev/shm")
        if not folder.is_dir():
            return
        free = shutil.disk_usage(folder).free
    if free < count * _SHARED:
        raise UsageError(
            f"too little shared memory: /dev/shm has {free >> 20} MiB free, and {count} processes "
            f"with GPUs need {count * _SHARED >> 20} MiB, {_SHARED >> 20} each: give a container "
            "more (docker run --shm-size=1g), or set NCCL_SHM_DISABLE=1, which is slower"
        )


def check_machine(environment: Mapping[str, str] = os.environ) -> None:
    """In the first worker of a machine, raise if its workers lack what they share.

    One worker speaks for all of them, so that it is said once; its launcher ends the others.
    """
    if environment.get("LOCAL_RANK") == "0":
        check_shared_memory(int(environment.get("LOCAL_WORLD_SIZE", "1")))


def gpus() -> int:
    """Return how many GPUs this machine has for a run; 0 if it is told to use the CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def start(
    arguments: Sequence[str],
    count: int,
    *,
    advice: str,
    alone: bool = False,
    hang_seconds: float | None = None,
) -> int:
    """Run ``monro`` with these arguments in ``count`` processes; return the exit code.

    SIGTERM, SIGINT and SIGUSR1 are handed on to the workers, which finish their step and save; the
    exit code is then 128 + signal. If a worker fails, the others are ended, and one line says why.

    Args:
        arguments: Of ``monro``.
        count: Of processes.
        advice: What is said of a worker that was killed.
        alone: Start one process by itself, without torchrun and process groups.
        hang_seconds: The longest that a step after the first may take; None waits for ever.
    """
    folder = Path(tempfile.mkdtemp(prefix="monro-"))
    try:
        with handlers_kept(), watching(folder, hang_seconds, advice) as watch:
            codes = _one(arguments) if alone else _several(arguments, count, folder)
        if watch.line and not isinstance(codes, int):
            say(watch.line)
            return 1
        if watch.line:  # asked for its stack, it went on to the end of the run
            say(f"{watch.line.partition(': all ranks')[0]}; it went on, and the run has ended")
        return codes if isinstance(codes, int) else explain(codes, folder, advice)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _several(arguments: Sequence[str], count: int, folder: Path) -> int | dict[int, int]:
    """Run workers that leave their errors in ``folder``."""
    with _environment(folder):
        return run_workers(arguments, count, folder)


def _one(arguments: Sequence[str]) -> int | dict[int, int]:
    """Run one process that hears the same signals; return its exit code, a fault by its rank."""
    environment = {**os.environ, PARENT: str(os.getpid())}
    code, heard = run_child([sys.executable, "-m", "launch", *arguments], environment)
    if code < 0 and heard:
        return 128 + heard
    return code if code == 0 or code == 2 or code > 128 else {0: code}


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Set what the workers inherit."""
    before = dict(os.environ)
    os.environ[PARENT] = str(os.getpid())
    os.environ[ERRORS] = str(folder)
    os.environ["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = "${role_name}"  # which is empty
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if gpus() == 0:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
