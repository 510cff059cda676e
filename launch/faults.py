"""Why workers failed: the rank that failed first, and not the peers that lost it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

__all__ = [
    "CRASH",
    "LOGS",
    "USAGE",
    "explain",
    "first_rank",
    "say",
    "tell_once",
]

USAGE = "usage"  # usage-RANK holds a line
CRASH = "crash"  # crash-RANK holds a traceback
LOGS = "logs"  # torchrun's folder: LOGS/RUN/attempt_0/RANK/stderr.log
_SHOWN = 10  # lines of stderr


def first_rank(codes: Mapping[int, int], crashes: Mapping[int, float]) -> int:
    """Return the rank whose end is the cause of all the others.

    Signals nobody asked for come before an exit without a traceback, and that before tracebacks,
    of which the oldest counts: a peer that loses its connection raises, or aborts. Last come the
    signals that a launcher sends.

    Args:
        codes: The exit code of each rank that failed; -N for signal N.
        crashes: The time of each rank's traceback.

    >>> first_rank({0: 1, 1: -9}, {0: 5.0})
    1
    >>> first_rank({0: 1, 1: 7}, {0: 5.0})
    1
    >>> first_rank({0: 1, 1: 1}, {0: 6.0, 1: 5.0})
    1
    """

    def order(rank: int) -> tuple[int, float, int]:
        code = codes[rank]
        if code < 0:
            place = {-signal.SIGABRT: 3, -signal.SIGTERM: 5}.get(code, 0)
        elif code > 128:  # a signal that was asked for
            place = 4
        else:
            place = 2 if rank in crashes else 1
        return place, crashes.get(rank, 0.0), rank

    return min(codes, key=order)


def explain(codes: Mapping[int, int], folder: Path, advice: str) -> int:
    """Say on stderr why the workers failed; return the exit code.

    Args:
        codes: The exit code of each rank that failed; -N for signal N.
        folder: Where the workers have left their errors and their stderr.
        advice: What is said of a worker that was killed.
    """
    usage = sorted(folder.glob(f"{USAGE}-*"))
    if usage:
        say(usage[0].read_text(encoding="utf-8"))
        return 2
    crashes = {int(p.name.partition("-")[2]): p for p in folder.glob(f"{CRASH}-*")}
    rank = first_rank(codes, {r: path.stat().st_mtime for r, path in crashes.items()})
    code = codes[rank]
    if code > 128:
        return code
    if code > 0 and rank in crashes:
        print(crashes[rank].read_text(encoding="utf-8"), end="", file=sys.stderr)
    else:
        for line in _last_lines(folder, rank):
            print(f"rank {rank} | {line}", file=sys.stderr)
    if code < 0:
        hint = ": is there enough memory?" if code == -signal.SIGKILL else "."
        say(f"rank {rank} was killed by {_name(-code)}{hint} {advice}".rstrip())
        return 1
    say(f"rank {rank} ended with exit code {code}")
    return code


def tell_once(message: str, folder: Path, rank: int, *, usage: bool) -> None:
    """Say a worker's error on stderr, under a launcher that says nothing of it itself.

    The first of the ranks tells its own; of a peer that lost it, one line is enough, and none if
    what the user has to mend was said already.

    Args:
        message: A line, or a traceback.
        folder: One that the ranks of this launch share.
        rank: Of this process.
        usage: Whether it is something that the user can mend.
    """
    claim = folder / f"monro-{USAGE if usage else CRASH}"
    try:
        with claim.open("x", encoding="utf-8") as file:
            file.write(str(rank))
    except FileExistsError:
        with contextlib.suppress(OSError):  # such as that this has been said already
            if not usage and claim.read_text(encoding="utf-8") != str(rank):
                claim.with_name(f"{claim.name}-{rank}").touch(exist_ok=False)
                say(f"rank {rank} ended as well: {message.strip().splitlines()[-1]}")
        return
    except OSError:  # the disk is full: better twice than never
        pass
    if usage:
        say(message)
    else:
        lines = "".join(f"rank {rank} | {line}\n" for line in message.splitlines())
        print(lines, end="", file=sys.stderr, flush=True)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _last_lines(folder: Path, rank: int) -> list[str]:
    """Return the end of a rank's stderr; nothing if it went to a terminal."""
    lines: deque[str] = deque(maxlen=_SHOWN)
    for path in sorted(folder.glob(f"{LOGS}/*/attempt_*/{rank}/stderr.log")):
        with path.open(encoding="utf-8", errors="replace") as file:
            lines.extend(line.rstrip() for line in file)
    return list(lines)


def say(line: str) -> None:
    """Print a line of the launcher."""
    print(f"monro: {line}", file=sys.stderr, flush=True)
