"""Runs untrusted programs in processes that are locked in, limited and killed."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from launch.errors import UsageError
from posttrain.rewards import sandbox_kernel, sandbox_worker
from posttrain.rewards.worker_process import WorkerGone, WorkerOwner, WorkerProcess

__all__ = ["Execution", "Limits", "Outcome", "Program", "Sandbox"]

_START_SECONDS = 120.0
_GRACE_SECONDS = 60.0
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": sandbox_kernel.FOLDER,
    "TMPDIR": sandbox_kernel.FOLDER,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All that a program sees of the environment: ours may hold keys."""


class Outcome(Enum):
    """How a program ended."""

    ENDED = sandbox_worker.ENDED
    """By itself, with exit status 0, and its checks, if there are any, passed."""
    FAILED = sandbox_worker.FAILED
    """By an error, another status, a signal, or a check that does not hold."""
    TIMEOUT = sandbox_worker.TIMEOUT
    """It was over its wall-clock or processor time."""
    OUTPUT = sandbox_worker.OUTPUT
    """It printed too much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one program may use. A hanging one costs ``seconds``, whatever it does."""

    seconds: float = 5.0
    """Wall-clock time."""
    cpu_seconds: int = 5
    """Processor time of each of its processes."""
    memory: int = 512 * 2**20
    """Bytes of address space of each of its processes, beyond the interpreter's own."""
    disk: int = 16 * 2**20
    """Bytes of a file; with namespaces also of all of its folder."""
    output: int = 2**20
    """Bytes it may print."""
    processes: int = 16
    """Processes and threads at once."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds={self.seconds}: give a positive, finite limit, such as 5")
        for name in ("cpu_seconds", "memory", "disk", "output", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A Python program, and what is put to it."""

    source: str
    stdin: str = ""
    checks: str = ""
    """Python that is run after the program, in its namespace, such as asserts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What came of a program."""

    outcome: Outcome
    output: str
    """What it printed, up to the limit; bytes that are no UTF-8 are replaced."""
    seconds: float
    """Wall-clock time that it took."""


class Sandbox(WorkerOwner):
    """A warm interpreter of which every program is a fork, started with the first program.

    Where the kernel allows it (Linux, as root or with user namespaces), a program has no network,
    sees no other process, and finds nothing on disk but the interpreter and the system's
    libraries, read-only, and an empty folder of its own. When it ends, everything that it
    started ends with it. Elsewhere the limits hold, its process group and all its descendants are
    killed, and it has a temporary folder, but the network and what the user may read and write
    are open to it; a warning says so.

    It is made for programs that a model wrote, which go wrong in every way, on purpose at times.
    It is no proof against an attack on the kernel: for that, add a virtual machine.

    Args:
        limits: Of each program.
        imports: Modules that are imported once and for all, so that programs need not wait for
            them, such as ``numpy``; often used ones of the standard library always are.
        as_root_without_namespaces: Run programs even if we are root and the kernel refuses
            namespaces. They run as a user that does not exist, but in the open.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        imports: Sequence[str] = (),
        as_root_without_namespaces: bool = False,
    ) -> None:
        self.limits, self.imports = limits, tuple(imports)
        self.as_root_without_namespaces = as_root_without_namespaces
        self._namespaces = True
        super().__init__()

    def run(self, programs: Sequence[Program]) -> list[Execution]:
        """Run programs and return what came of each, in their order.

        Raises:
            UsageError: We are root, there are no namespaces, and nobody insisted.
            RuntimeError: The interpreter does not start, or cannot lock a program in.
        """
        self._settle()
        jobs = [(p.source, p.stdin.encode("utf-8", "replace"), p.checks) for p in programs]
        found: dict[int, Execution] = {}
        suspect, given_up = -1, 0
        with self._lock:
            while left := [index for index in range(len(jobs)) if index not in found]:
                try:
                    self._exchange(jobs, left, found)
                except WorkerGone:  # without namespaces, a program of the same user may kill it
                    self._stop()
                    first = next((index for index in left if index not in found), -1)
                    if first == suspect:
                        found[first] = Execution(outcome=Outcome.FAILED, output="", seconds=0.0)
                        given_up += 1
                    suspect = first
                except BaseException:  # an interrupt leaves a batch half answered
                    self._stop()
                    raise
        if given_up:
            warnings.warn(
                "the process that runs programs ended twice at the same program, for "
                f"{given_up} of {len(jobs)}, which count as failed",
                RuntimeWarning,
                stacklevel=2,
            )
        return [found[index] for index in range(len(jobs))]

    def _exchange(
        self, jobs: list[tuple[str, bytes, str]], left: list[int], found: dict[int, Execution]
    ) -> None:
        if self._worker is None:
            self._worker = self._start()
        self._worker.send((asdict(self.limits), [jobs[index] for index in left]))
        patience = self.limits.seconds + _GRACE_SECONDS
        for _ in left:
            index, letter, milliseconds, size = self._worker.line(patience).split()
            output = self._worker.exactly(int(size), patience).decode("utf-8", "replace")
            if letter == sandbox_worker.BROKEN:
                raise RuntimeError(f"a program could not be locked in, so it was not run: {output}")
            found[left[int(index)]] = Execution(
                outcome=Outcome(letter), output=output, seconds=int(milliseconds) / 1000
            )

    def _start(self) -> WorkerProcess:
        said = ""
        for wanted in (True, False) if self._namespaces else (False,):
            worker = WorkerProcess(Path(sandbox_worker.__file__), _ENVIRONMENT)
            try:
                worker.send((wanted, self.imports))
                said = worker.line(_START_SECONDS)
            except WorkerGone:
                said = "error it ended without a word"
            if said == "ready":
                return worker
            worker.stop()
            if not said.startswith("refused "):
                break
            self._accept_no_namespaces(said.removeprefix("refused "))
        reason = said.removeprefix("error ")
        raise RuntimeError(f"the process that runs programs did not start: {reason}")

    def _accept_no_namespaces(self, reason: str) -> None:
        if os.geteuid() == 0 and not self.as_root_without_namespaces:
            raise UsageError(
                f"the kernel refuses namespaces ({reason}), and untrusted programs would run in "
                "the open while we are root: run as another user, allow the container unshare and "
                "mount, or insist with as_root_without_namespaces=True"
            )
        if self._namespaces:
            self._namespaces = False
            warnings.warn(
                f"the kernel refuses namespaces ({reason}): programs are limited and killed, but "
                "the network and the user's files are open to them",
                RuntimeWarning,
                stacklevel=4,
            )
