"""The process in which untrusted answers are judged; ``judge.py`` starts it by its path.

It imports nothing of monro, so that it starts quickly. Once its library is imported it only
watches: every judgement runs in a forked child, which is killed when its time is over and
replaced by another fork within milliseconds. When the process that started it is gone, the end of
its input tells it so at once, and it kills its children and ends.

Frames are an 8-byte length and a pickle. They only ever travel towards the children; what comes
back is one line of text for each request: its index and a letter.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = ["CRASH", "DIFFERENT", "EQUAL", "TIMEOUT", "main"]

if TYPE_CHECKING:
    from posttrain.rewards import frames
else:  # by its path, because this process does not import monro
    _spec = importlib.util.spec_from_file_location("frames", Path(__file__).with_name("frames.py"))
    frames = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(frames)

EQUAL, DIFFERENT, TIMEOUT, CRASH = "=", "!", "T", "C"
_MEMORY = 2 * 2**30
"""Bytes that a child may allocate beyond what the imports took."""
_SERVED = 256
"""Requests after which a child is replaced, so that no cache grows and no state carries far."""

Judge = Callable[[Any], bool]


def _load_math() -> Judge:
    """Import math-verify, and use each of its ways once so that the first request is quick."""
    import logging

    from math_verify import parse, verify
    from sympy.core import random as sympy_random  # type: ignore[import-untyped]  # has no stubs

    logging.disable(logging.CRITICAL)

    def judge(request: tuple[str, str]) -> bool:
        answer, gold = request
        sympy_random.seed(0)  # sympy tests equality at random points
        found = [parse(text, parsing_timeout=None) for text in (gold, answer)]
        return bool(verify(*found, timeout_seconds=None))

    for pair in (r"$\frac{1}{2}$", "$0.5$"), ("$x^2+2x+1$", "$(x+1)^2$"), (r"$\{1,2\}$", "2**3"):
        judge(pair)
    return judge


def _load_gym() -> Judge:
    """Import reasoning-gym; only a full score of a dataset's own scorer is right."""
    import reasoning_gym

    datasets: dict[str, Any] = {}

    def judge(request: tuple[str, dict[str, Any], dict[str, Any], str]) -> bool:
        name, options, item, answer = request
        key = repr((name, options))
        if key not in datasets:
            datasets[key] = reasoning_gym.create_dataset(name, size=1, seed=0, **options)
        return float(datasets[key].score_answer(answer, item)) == 1.0

    return judge


_LOADERS = {"math": _load_math, "gym": _load_gym}


@dataclass(eq=False)
class _Child:
    """A forked process that judges one request at a time."""

    pid: int
    requests: int
    verdicts: int
    served: int = 0
    index: int = -1
    deadline: float = 0.0

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.requests)
        os.close(self.verdicts)


def _serve_as_child(judge: Judge, requests: int, verdicts: int, parent: int) -> None:
    """Judge until the input ends. An error in the library means: not equal."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the end of input
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.set_int_max_str_digits(0)
    while (frame := frames.read_frame(requests)) is not None:
        try:
            verdict = EQUAL if judge(pickle.loads(frame)) else DIFFERENT
        except Exception:  # whatever a parser of arbitrary text may raise
            verdict = DIFFERENT
        os.write(verdicts, verdict.encode())


class _Supervisor:
    """Hands requests to children and holds them to their time."""

    def __init__(self, judge: Judge, requests: int, replies: int) -> None:
        self.judge, self.requests, self.replies = judge, requests, replies
        self.idle: list[_Child] = []
        self.busy: list[_Child] = []
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2
        self.most = max(1, min(4, cores))

    def serve(self) -> None:
        """Judge batch after batch until the input ends."""
        while (frame := frames.read_frame(self.requests)) is not None:
            seconds, batch = pickle.loads(frame)
            self._judge(float(seconds), deque(enumerate(batch)))

    def end(self) -> None:
        """Kill all children."""
        for child in self.idle + self.busy:
            child.end()

    def _judge(self, seconds: float, waiting: deque[tuple[int, bytes]]) -> None:
        while waiting or self.busy:
            while waiting and (self.idle or len(self.busy) < self.most):
                child = self.idle.pop() if self.idle else self._fork()
                child.index, frame = waiting.popleft()
                self.busy.append(child)
                with contextlib.suppress(BrokenPipeError):  # it died; its end of input says so
                    frames.write_frame(child.requests, frame)
                child.deadline = time.monotonic() + seconds
            self._collect()

    def _collect(self) -> None:
        """Wait for a verdict or a deadline, whichever comes first."""
        poll = select.poll()
        poll.register(self.requests, select.POLLIN)
        for child in self.busy:
            poll.register(child.verdicts, select.POLLIN)
        left = min(child.deadline for child in self.busy) - time.monotonic()
        ready = {fd for fd, _ in poll.poll(max(0, min(left, 86_400)) * 1000)}
        if self.requests in ready:  # nothing is sent during a batch, so this is the end
            raise SystemExit
        for child in list(self.busy):
            if child.verdicts in ready:
                self._settle(child, os.read(child.verdicts, 1).decode() or CRASH)
            elif time.monotonic() >= child.deadline:
                self._settle(child, TIMEOUT)

    def _settle(self, child: _Child, verdict: str) -> None:
        self.busy.remove(child)
        child.served += 1
        if verdict in (TIMEOUT, CRASH) or child.served >= _SERVED:
            child.end()
        else:
            self.idle.append(child)
        os.write(self.replies, f"{child.index} {verdict}\n".encode())

    def _fork(self) -> _Child:
        parent = os.getpid()
        requests_out, requests_in = os.pipe()
        verdicts_out, verdicts_in = os.pipe()
        pid = os.fork()
        if pid:
            os.close(requests_out)
            os.close(verdicts_in)
            return _Child(pid, requests_in, verdicts_out)
        try:
            others = [fd for child in self.idle + self.busy for fd in _fds(child)]
            for fd in [self.requests, self.replies, requests_in, verdicts_out, *others]:
                os.close(fd)
            _serve_as_child(self.judge, requests_out, verdicts_in, parent)
        finally:
            os._exit(0)


def _fds(child: _Child) -> tuple[int, int]:
    return child.requests, child.verdicts


def main() -> None:
    """Take the setup, import, say ``ready``, and serve."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in 0, 1, 2:  # libraries may print; only verdicts may travel
        os.dup2(nothing, standard)
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGUSR1:  # it ends with its parent
        signal.signal(number, signal.SIG_IGN)
    setup = frames.read_frame(requests)
    if setup is None:
        return
    kind, path = pickle.loads(setup)
    sys.path[:] = path
    try:
        judge = _LOADERS[kind]()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        os.write(replies, f"error {reason[:1000]}\n".encode())
        return
    gc.collect()
    gc.freeze()
    os.write(replies, b"ready\n")
    supervisor = _Supervisor(judge, requests, replies)
    try:
        supervisor.serve()
    finally:
        supervisor.end()


if __name__ == "__main__":
    main()
