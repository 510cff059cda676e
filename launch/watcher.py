"""The watcher of hangs: a step that takes too long is told with every stack, and ended.

It reads what the ranks note (see ``launch.hang``) and counts the time by its own ticks, so setting
the clock changes nothing. Imports the standard library alone, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from launch.hang import BEAT, STACK, WATCHER, Beat

__all__ = ["Watch", "behind", "main", "patience", "watching"]

_TICK = 0.1  # seconds between two looks
_LONGEST_TICK = 1.0  # a watcher that was itself stopped does not count that time
_STACK_WAIT, _STACK_TICK = 2.0, 0.02  # seconds that a rank has to write its stacks
_WAITING = ("/torch/distributed/", "/torch/autograd/", "/torch/nn/parallel/", "/deepspeed/comm/")


def patience(text: str) -> int:
    """Return how surely a rank with these stacks waits for others: 2, 1 (perhaps) or 0.

    The main thread's stack stands last. A rank in a collective is at one of torch's distributed
    calls, or in a backward pass that exchanges gradients.
    """
    frames = [line for line in text.rpartition("hread 0x")[2].splitlines() if "File " in line]
    if not frames:
        return 0
    if any(part in frames[0] for part in _WAITING):
        return 2
    return 1 if "/launch/" in frames[0] else 0


def behind(beats: Mapping[int, Beat], stacks: Mapping[int, str], stopped: set[int]) -> int:
    """Return the rank that the others wait for.

    A stopped rank comes first, then one that has begun fewer steps, then one that is not in a
    collective.

    Args:
        beats: The last of each rank that has had any.
        stacks: Of each rank.
        stopped: Ranks that a signal has stopped.
    """

    def order(rank: int) -> tuple[bool, int, int, int]:
        count = beats[rank].count if rank in beats else 0
        return rank not in stopped, count, patience(stacks.get(rank, "")), rank

    return min({*beats, *stopped}, key=order)


class Watch:
    """Looks at the ranks of one launcher on this machine.

    Args:
        folder: Where the ranks note their steps.
        parent: Their launcher, whose children may be stopped before they have noted a step.
        seconds: The longest that a rank without a beat may be stopped; None: for ever.
        advice: The end of the line that is said.
    """

    def __init__(
        self,
        folder: Path,
        *,
        parent: int | None = None,
        seconds: float | None = None,
        advice: str = "",
    ) -> None:
        self.line = ""
        """What is to be said of a hang; empty if there was none."""
        self._folder, self._parent = folder, parent
        self._seconds, self._advice = seconds, advice
        self._beats: dict[int, Beat] = {}
        self._ages: dict[int, float] = {}  # seconds since the last beat
        self._still: dict[int, float] = {}  # seconds since a stop

    def look(self, elapsed: float) -> bool:
        """Look once, ``elapsed`` seconds after the last time; return whether a rank hangs."""
        late = False
        for path in self._folder.glob(f"{BEAT}-*"):
            rank, beat = int(path.name.rpartition("-")[2]), Beat.read(path)
            if beat is None:
                continue
            if beat.watched and not _is_alive(beat.pid):
                return False  # a fault, not a hang: the launcher ends the others
            same = beat == self._beats.get(rank)
            self._ages[rank] = self._ages[rank] + elapsed if same else 0.0
            self._beats[rank] = beat
            late |= beat.watched and self._ages[rank] > beat.seconds
        for rank, pid in self.pids().items():
            stopped = _state(pid) == "T"
            self._still[rank] = self._still.get(rank, 0.0) + elapsed if stopped else 0.0
            limit = self._limit(rank)
            late |= limit is not None and self._still[rank] > limit
        return late

    def _limit(self, rank: int) -> float | None:
        beat = self._beats.get(rank)
        return self._seconds if beat is None else beat.seconds

    def pids(self) -> dict[int, int]:
        """Return the process of each rank that is alive."""
        found = {rank: beat.pid for rank, beat in self._beats.items() if _is_alive(beat.pid)}
        return found if self._parent is None else _ranks_below(self._parent) | found

    def end(self, to: TextIO) -> None:
        """Print the stacks of all ranks, note what there is to say, and kill the ranks."""
        pids = self.pids()
        stopped = {rank for rank, pid in pids.items() if _state(pid) == "T"}
        stacks = self._dump(pids)
        for rank, text in sorted(stacks.items()):
            for row in text.splitlines() or [
                "(no stack: it has begun no step, or does not answer)"
            ]:
                print(f"rank {rank} | {row}", file=to)
        known = {rank: beat for rank, beat in self._beats.items() if rank in pids}
        rank = behind(known, stacks, stopped)
        limit, beat = self._limit(rank), known.get(rank)
        did = f"did not end step {beat.step} within" if beat and beat.watched else "stood still for"
        held = "was stopped by a signal and " * (rank in stopped)
        waiting = [str(r) for r in sorted(stacks) if r != rank and patience(stacks[r]) == 2]
        waits = f", and rank {', '.join(waiting)} waited for it" if waiting else ""
        self.line = (
            f"hang: rank {rank} {held}{did} {limit:g} s{waits}: "
            f"all ranks were ended with SIGKILL. {self._advice}"
        ).rstrip()
        to.flush()
        for pid in pids.values():
            _kill(pid)

    def _dump(self, pids: Mapping[int, int]) -> dict[int, str]:
        """Have every rank write its stacks, and stop each when it has."""
        texts = dict.fromkeys(pids, "")
        waiting = {rank for rank in pids if rank in self._beats}  # they have a handler for it
        for rank in waiting:
            _signal(pids[rank], signal.SIGUSR2)
            _signal(pids[rank], signal.SIGCONT)  # so that a stopped one hears it
        end = time.monotonic() + _STACK_WAIT
        while waiting and time.monotonic() < end:
            time.sleep(_STACK_TICK)
            for rank in sorted(waiting):
                before, texts[rank] = texts[rank], _text(self._folder / f"{STACK}-{rank}")
                if texts[rank] and texts[rank] == before:
                    _signal(pids[rank], signal.SIGSTOP)
                    waiting.remove(rank)
        return texts

    def until(self, over: Callable[[float], bool]) -> bool:
        """Look until ``over(seconds to wait)`` is true, or there is a hang: return which."""
        before = time.monotonic()
        while not over(_TICK):
            now = time.monotonic()
            elapsed, before = min(now - before, _LONGEST_TICK), now
            if self.look(elapsed):
                self.end(sys.stderr)
                return True
        return False


@contextlib.contextmanager
def watching(folder: Path, seconds: float | None, advice: str) -> Iterator[Watch]:
    """Watch the children of this process from a thread; with ``seconds`` None, do not.

    They are to have ``WATCHER`` in their environment, as it is set inside the block.
    """
    watch = Watch(folder, parent=os.getpid(), seconds=seconds, advice=advice)
    if seconds is None:
        yield watch
        return
    before = os.environ.get(WATCHER)
    os.environ[WATCHER] = f"{os.getpid()}:{folder}"
    over = threading.Event()
    thread = threading.Thread(target=watch.until, args=(over.wait,), daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
        del os.environ[WATCHER]
        if before is not None:
            os.environ[WATCHER] = before


def _ranks_below(parent: int) -> dict[int, int]:
    """Return the children of a process that are ranks; one that is alone has no ``RANK``."""
    found = {}
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in map(int, _text(path).split()):
            variables = _text(Path(f"/proc/{pid}/environ")).split("\0")
            named = dict(word.partition("=")[::2] for word in variables)
            if named.get(WATCHER, "").startswith(f"{parent}:") or "RANK" in named:
                found[int(named.get("RANK", 0))] = pid
    return {rank: pid for rank, pid in found.items() if _is_alive(pid)}


def _state(pid: int) -> str:
    """Return the letter of a process's state, such as T for stopped; empty if there is none."""
    return _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].strip()[:1]


def _is_alive(pid: int) -> bool:
    if not sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            return True
        return False
    return _state(pid) not in ("", "Z", "X")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill(pid: int) -> None:
    """Kill a rank, with its own children if it leads a group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def main(folder: Path) -> None:
    """Watch the ranks that note their steps in a folder until none of them is left."""
    watch = Watch(folder)

    def over(seconds: float) -> bool:
        time.sleep(seconds)
        beats = [Beat.read(path) for path in folder.glob(f"{BEAT}-*")]
        return not any(beat is not None and _is_alive(beat.pid) for beat in beats)

    try:
        if watch.until(over):
            print(f"monro: {watch.line}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
