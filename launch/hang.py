"""Hangs, as seen by a rank: it notes its steps where a watcher outside of it reads them.

The watcher (see ``launch.watcher``) is none of the ranks. So one that was stopped, or is in a call
that keeps the interpreter's lock, is seen as well. ``monro run`` watches in the launcher; under
another launcher, and in one's own script, local rank 0 starts a small process for it, which ends
with the ranks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BEAT", "STACK", "WATCHER", "Beat", "is_watched", "watched"]

WATCHER = "MONRO_WATCHER"  # PID:FOLDER of the launcher that watches its children
BEAT, STACK = "beat", "stack"  # beat-RANK holds a Beat, stack-RANK what faulthandler writes
_SIZE = 96  # bytes of a beat: written, and read, at once


_PROGRAM = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from launch.watcher import main
main(Path(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank has noted: the step that it has begun."""

    pid: int
    seconds: float
    """The longest that a step may take."""
    count: int
    """Beats of this process so far."""
    watched: bool
    """False in the first step of a loop, which compiles and loads, and outside of the loops."""
    step: int

    def line(self) -> bytes:
        """Return it as it stands in the file."""
        words = (self.pid, self.seconds, self.count, int(self.watched), self.step)
        return " ".join(map(str, words)).ljust(_SIZE).encode()

    @classmethod
    def read(cls, path: Path) -> Beat | None:
        """Return a rank's last beat; None if there is none.

        >>> with tempfile.NamedTemporaryFile() as file:
        ...     beat = Beat(pid=7, seconds=2.5, count=3, watched=True, step=12)
        ...     _ = file.write(beat.line()), file.flush()
        ...     Beat.read(Path(file.name)) == beat
        True
        """
        try:
            pid, seconds, count, is_watched, step = path.read_bytes().split()
        except (OSError, ValueError):
            return None
        return cls(int(pid), float(seconds), int(count), is_watched == b"1", int(step))


class _Pulse:
    """A rank's own file of beats, and its stacks on SIGUSR2."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.count = 0
        # Written by a C handler, also while the main thread keeps the interpreter's lock.
        self.stacks = (folder / f"{STACK}-{rank}").open("w")
        faulthandler.register(signal.SIGUSR2, file=self.stacks, all_threads=True)
        self._file = os.open(folder / f"{BEAT}-{rank}", os.O_WRONLY | os.O_CREAT, 0o600)

    def beat(self, seconds: float, step: int, *, is_watched: bool) -> None:
        self.count += 1
        beat = Beat(os.getpid(), seconds, self.count, is_watched, step)
        with contextlib.suppress(OSError):  # the launcher is gone, or the disk is full
            os.pwrite(self._file, beat.line(), 0)


_pulses: dict[int, _Pulse] = {}  # of this process, by its id


@contextlib.contextmanager
def watched(seconds: float | None, rank: int) -> Iterator[Callable[[int], None]]:
    """Give what a loop calls with the number of each step that it begins.

    Args:
        seconds: The longest that a step after the loop's first may take, from its beginning to
            that of the next; None does not watch.
        rank: Of this process.
    """
    if seconds is None:
        yield lambda step: None
        return
    pulse = _pulse_of(rank)
    now, is_first = 0, True

    def begin(step: int) -> None:
        nonlocal now, is_first
        pulse.beat(seconds, step, is_watched=not is_first)
        now, is_first = step, False

    try:
        yield begin
    finally:
        pulse.beat(seconds, now, is_watched=False)


def is_watched() -> bool:
    """Return whether the launcher of this process watches it."""
    return _given_folder() is not None


def _given_folder() -> Path | None:
    pid, _, folder = os.environ.get(WATCHER, "").partition(":")
    return Path(folder) if folder and pid == str(os.getppid()) else None


def _pulse_of(rank: int) -> _Pulse:
    own = os.getpid()
    if own not in _pulses:
        folder = _given_folder()
        if folder is not None:
            _pulses[own] = _Pulse(folder, rank)
        else:
            folder = _shared_folder()
            pulse = _pulses[own] = _Pulse(folder, rank)
            pulse.beat(0.0, 0, is_watched=False)  # the watcher ends when it finds nobody
            if os.environ.get("LOCAL_RANK", "0") == "0":
                _start_watcher(folder)
    return _pulses[own]


def _shared_folder() -> Path:
    """Return a folder that the ranks of one launcher on this machine find without a word."""
    if "RANK" not in os.environ:
        return Path(tempfile.mkdtemp(prefix="monro-hang-"))
    words = ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    name = "-".join(str(x) for x in (os.getuid(), os.getppid(), *map(os.environ.get, words)))
    folder = Path(tempfile.gettempdir()) / f"monro-hang-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _start_watcher(folder: Path) -> None:
    mine = ("RANK", "LOCAL_RANK", "WORLD_SIZE", WATCHER)
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    subprocess.Popen(
        [sys.executable, "-P", "-S", "-c", _PROGRAM, str(Path(__file__).parents[1]), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # a Ctrl-C, or the end of the rank's group, is not for it
    )
