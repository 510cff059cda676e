"""The process in which programs run; ``sandbox.py`` starts it by its path.

It is a small interpreter that is warm: it has imported what programs often need, and every program
is a fork of it. It hands out programs, reads what they print, and kills what is over a limit. When
the process that started it is gone, the end of its input says so, and it ends with all below it.

Frames are an 8-byte length and a pickle. They only ever travel towards this process; back comes,
for each run, one line (index, letter, milliseconds, length) and so many bytes of output.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.util
import os
import pickle
import random
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

__all__ = ["BROKEN", "ENDED", "FAILED", "OUTPUT", "TIMEOUT", "main"]


def _beside(name: str) -> types.ModuleType:
    """Load a file by its path, because this process does not import monro."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from posttrain.rewards import frames
    from posttrain.rewards import sandbox_kernel as kernel
else:
    frames, kernel = _beside("frames"), _beside("sandbox_kernel")

ENDED, FAILED, TIMEOUT, OUTPUT, BROKEN = "=", "!", "T", "O", "B"
# fmt: off
_WARM = (
    "abc", "argparse", "array", "ast", "base64", "bisect", "calendar", "cmath", "collections",
    "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "io", "itertools", "json", "locale", "math", "numbers",
    "operator", "pprint", "queue", "re", "statistics", "string", "struct", "textwrap", "time",
    "traceback", "typing", "unicodedata", "uuid",
)
# fmt: on


@dataclass(frozen=True)
class Limits:
    """Of one program."""

    seconds: float
    cpu_seconds: int
    memory: int
    disk: int
    output: int
    processes: int


@dataclass(eq=False)
class _Run:
    """A program that runs."""

    index: int
    pid: int
    pidfd: int
    out: int
    verdict: int
    fault: int
    token: bytes
    started: float
    slot: int
    folder: str | None
    printed: bytearray = field(default_factory=bytearray)
    open: bool = True


class Supervisor:
    """Runs batch after batch."""

    def __init__(
        self, namespaces: kernel.Namespaces | None, requests: int, replies: int, most: int
    ) -> None:
        self.namespaces, self.requests, self.replies = namespaces, requests, replies
        self.slots = list(range(most))
        self.running: list[_Run] = []

    def serve(self) -> None:
        """Run what is sent until the input ends."""
        while (frame := frames.read_frame(self.requests)) is not None:
            limits, programs = pickle.loads(frame)
            self.limits = Limits(**limits)
            self._run_all(deque(enumerate(programs)))

    def end(self) -> None:
        """Kill all that runs, and leave no folder behind."""
        for run in self.running:
            self._kill(run)
            if run.folder is not None:
                shutil.rmtree(run.folder, ignore_errors=True)

    def _run_all(self, waiting: deque[tuple[int, tuple[str, bytes, str]]]) -> None:
        while waiting or self.running:
            while waiting and self.slots:
                self.running.append(self._start(*waiting.popleft()))
            self._wait()

    def _start(self, index: int, program: tuple[str, bytes, str]) -> _Run:
        source, given, checks = program
        slot, token = self.slots.pop(), os.urandom(16) if checks else b""
        uid = kernel.unused_uid(slot)
        folder = None if self.namespaces else _folder(uid)
        stdin, nothing = _file(given), _nothing()
        (out, writes), (verdict, tells), (fault, fails) = os.pipe(), os.pipe(), os.pipe()
        if self.namespaces:
            self.namespaces.fresh_pids()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setsid()
                for number, fd in enumerate((stdin, writes, nothing, tells, fails)):
                    os.dup2(fd, number)
                os.closerange(5, 1024)
                self._lock_in(folder, uid)
                for number in (4,) if checks else (3, 4):
                    os.close(number)
                status = run_program(source, checks, token)
            finally:
                os._exit(status)
        for fd in (stdin, nothing, writes, tells, fails):
            os.close(fd)
        for fd in (out, verdict, fault):
            os.set_blocking(fd, False)
        pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
        started = time.monotonic()
        return _Run(index, pid, pidfd, out, verdict, fault, token, started, slot, folder)

    def _lock_in(self, folder: str | None, uid: int | None) -> None:
        """In the child, before its program: what cannot be done is told and ends it."""
        processes = self.limits.processes
        try:
            if self.namespaces:
                self.namespaces.enter(self.limits.disk)
            else:
                os.chdir(folder or "/")
            if uid is None:  # the user's other processes count as well
                processes += 16 if self.namespaces else kernel.processes_of(os.geteuid())
            limits = self.limits
            kernel.limit(limits.memory, limits.cpu_seconds, limits.disk, processes)
            kernel.renounce(uid)
        except BaseException as error:
            os.write(4, f"{type(error).__name__}: {error}".encode()[:1000])
            raise

    def _wait(self) -> None:
        """Wait for output, an end or a deadline, whichever comes first."""
        poll = select.poll()
        poll.register(self.requests, select.POLLIN)
        for run in self.running:
            for fd in (run.out if run.open else -1, run.pidfd):
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
        deadline = min(run.started for run in self.running) + self.limits.seconds
        wait = min(max(0.0, deadline - time.monotonic()), 60.0)
        if any(run.pidfd < 0 for run in self.running):
            wait = min(wait, 0.01)
        ready = {fd for fd, _ in poll.poll(1000 * wait + 1)}
        if self.requests in ready:  # nothing is sent during a batch, so this is the end
            raise SystemExit
        for run in list(self.running):
            over = time.monotonic() >= run.started + self.limits.seconds
            if run.open and run.out in ready and not self._read(run):
                self._settle(run, OUTPUT)
            elif run.pidfd in ready or (run.pidfd < 0 and _has_ended(run.pid)):
                self._settle(run, None)
            elif over:
                self._settle(run, TIMEOUT)

    def _read(self, run: _Run) -> bool:
        """Read what was printed; False if it is too much."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(run.out, 1 << 16):
                run.printed += part
                if len(run.printed) > self.limits.output:
                    return False
            run.open = False
        return True

    def _settle(self, run: _Run, letter: str | None) -> None:
        """End a run and say what came of it; ``letter`` is None if it ended by itself."""
        seconds = time.monotonic() - run.started
        status, cpu = self._kill(run)
        fault = _content(run.fault)
        if fault:
            letter, run.printed = BROKEN, bytearray(fault)
        elif letter is None:
            letter = self._letter(run, status, cpu)
        self.running.remove(run)
        self.slots.append(run.slot)
        for fd in (run.out, run.verdict, run.fault, run.pidfd):
            if fd >= 0:
                os.close(fd)
        if run.folder is not None:
            shutil.rmtree(run.folder, ignore_errors=True)
        output = bytes(run.printed[: self.limits.output])
        head = f"{run.index} {letter} {1000 * seconds:.0f} {len(output)}\n"
        frames.write_all(self.replies, head.encode() + output)

    def _kill(self, run: _Run) -> tuple[int, float]:
        """Kill a program and all it started; return its status and its processor time."""
        os.kill(run.pid, signal.SIGKILL)  # not reaped yet, so it is there; its namespace goes too
        if self.namespaces is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.pid, signal.SIGKILL)
            kernel.kill_descendants()
        _, status, usage = os.wait4(run.pid, 0)
        while self.namespaces is None and _reap():
            kernel.kill_descendants()
        return status, usage.ru_utime + usage.ru_stime

    def _letter(self, run: _Run, status: int, cpu: float) -> str:
        if not self._read(run):
            return OUTPUT
        if os.WIFSIGNALED(status) and cpu >= 0.8 * self.limits.cpu_seconds:  # clocks differ
            return TIMEOUT
        return ENDED if status == 0 and _content(run.verdict) == run.token else FAILED


def run_program(source: str, checks: str, token: bytes) -> int:
    """Run a program as Python would, then its checks; return the exit status.

    With checks the program is a module, so that what stands under ``if __name__ == "__main__"`` is
    left out, and only checks that come to their end write the token: an early exit is no success.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    name = "program" if checks else "__main__"
    module = types.ModuleType(name)
    sys.modules[name], sys.argv = module, ["program.py"]
    sys.stdin, sys.stdout, sys.stderr = _text(0, "r"), _text(1, "w"), _text(2, "w")
    random.seed(0)  # a fork seeds it anew; equal programs should do the same
    status = 0
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        if checks:
            exec(compile(checks, "checks.py", "exec", dont_inherit=True), module.__dict__)
            os.write(3, token)
    except SystemExit as error:
        status = 0 if error.code in (None, 0) else 1
    except BaseException:
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at an exit
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        status = 1
    return status


def _text(fd: int, mode: str) -> IO[str]:
    errors = "replace" if mode == "r" else "backslashreplace"
    return open(fd, mode, encoding="utf-8", errors=errors, closefd=False)


def _file(content: bytes) -> int:
    """Return a file of a program's input; unlike a pipe it takes any length at once."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("stdin")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    frames.write_all(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _folder(uid: int | None) -> str:
    folder = tempfile.mkdtemp(prefix="program-")
    if uid is not None:
        os.chown(folder, uid, uid)
    return folder


def _nothing() -> int:
    return os.open(os.devnull, os.O_RDWR)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _reap() -> bool:
    """Reap an orphan; False if none is left."""
    try:
        if os.waitpid(-1, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
    except ChildProcessError:
        return False
    return True


def _content(fd: int) -> bytes:
    """Return what stands in a pipe, and does not block."""
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, 4096)
    return b""


def main() -> None:
    """Take the setup, import, say ``ready``, and serve."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = _nothing()
    for standard in 0, 1, 2:
        os.dup2(nothing, standard)
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGUSR1:  # it ends with its parent
        signal.signal(number, signal.SIG_IGN)
    setup = frames.read_frame(requests)
    if setup is None:
        return
    wanted, imports = pickle.loads(setup)
    try:
        for name in [*_WARM, *imports]:
            importlib.import_module(name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        os.write(replies, f"error {reason[:1000]}\n".encode())
        return
    namespaces = None
    if wanted:
        try:
            namespaces = kernel.Namespaces([sys.prefix, sys.base_prefix])
        except (OSError, AttributeError) as error:
            os.write(replies, f"refused {' '.join(str(error).split())[:1000]}\n".encode())
            return
    kernel.hide()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    # Without namespaces orphans cannot be told apart, so there is one program at a time.
    most = max(1, min(8, cores)) if namespaces else 1
    gc.collect()
    gc.freeze()
    os.write(replies, b"ready\n")
    supervisor = Supervisor(namespaces, requests, replies, most)
    try:
        supervisor.serve()
    finally:
        supervisor.end()


if __name__ == "__main__":
    main()
