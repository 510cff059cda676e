"""A process that is started by a script's path and talked to through its pipes."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from posttrain.rewards.frames import write_frame

__all__ = ["WorkerGone", "WorkerOwner", "WorkerProcess"]


class WorkerGone(Exception):
    """The process ended, or no longer answers."""


class WorkerProcess:
    """One process. Messages are pickles and go towards it; what comes back is never unpickled.

    Args:
        script: Run by this interpreter, without monro and the folder it lies in on its path.
        environment: All that it gets of one.
    """

    def __init__(self, script: Path, environment: Mapping[str, str]) -> None:
        self._owner = os.getpid()
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=dict(environment),
            start_new_session=True,  # a Ctrl-C in the terminal is for the run, not for its worker
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message: an 8-byte length and a pickle."""
        assert self._process.stdin is not None
        payload = pickle.dumps(message)
        try:
            write_frame(self._process.stdin.fileno(), payload)
        except BrokenPipeError as error:
            raise WorkerGone from error

    def line(self, seconds: float) -> str:
        """Return the next line, which must come within ``seconds``."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            self._more(deadline)
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def exactly(self, size: int, seconds: float) -> bytes:
        """Return the next ``size`` bytes."""
        deadline = time.monotonic() + seconds
        while len(self._unread) < size:
            self._more(deadline)
        found, self._unread = self._unread[:size], self._unread[size:]
        return found

    def _more(self, deadline: float) -> None:
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout.fileno(), select.POLLIN)
        wait = max(0.0, deadline - time.monotonic())
        if not poll.poll(min(wait, 86_400.0) * 1000):
            if wait < 86_400.0:
                raise WorkerGone
            return
        part = os.read(self._process.stdout.fileno(), 1 << 16)
        if not part:
            raise WorkerGone
        self._unread += part

    def __del__(self) -> None:
        if os.getpid() != self._owner:
            self._process.returncode = 0  # after a fork it is not ours to wait for

    def stop(self) -> None:
        """End it: the end of its input ends it and all below it."""
        for pipe in self._process.stdin, self._process.stdout:
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class WorkerOwner:
    """Has a process that is started when it is needed, and ends with this one.

    Threads take turns by ``_lock``. After a fork the process is the parent's: call ``_settle``
    before anything else.
    """

    def __init__(self) -> None:
        self._forget()
        atexit.register(self.close)

    def close(self) -> None:
        """End the process; the next use starts it again."""
        if os.getpid() == self._owner:
            with self._lock:
                self._stop()

    def _settle(self) -> None:
        """Begin anew after a fork."""
        if os.getpid() != self._owner:
            self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
