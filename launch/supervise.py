"""``monro run --supervise``: after a fault, begin again at the last complete checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import processes

__all__ = [
    "RELAUNCHES",
    "back_off",
    "begun",
    "newest",
    "relaunch",
    "saved",
    "supervise",
    "words_of_launch",
]

RELAUNCHES = 3
_LONGEST_WAIT = 60.0  # seconds


def relaunch(code: int, *, used: int, limit: int, progressed: bool) -> int | None:
    """Return which relaunch in a row now follows, from 1; None if none does.

    None follows success, what the user has to mend (2) and a signal that was asked for (above 128),
    nor more than ``limit`` without a new checkpoint between them.

    Args:
        code: The exit code of the launch that has ended.
        used: Relaunches before it since the last progress.
        limit: The most relaunches without progress.
        progressed: Whether that launch has left a new checkpoint.

    >>> relaunch(1, used=2, limit=3, progressed=False)
    3
    >>> relaunch(1, used=3, limit=3, progressed=False) is None
    True
    >>> relaunch(1, used=3, limit=3, progressed=True)
    1
    """
    if code in (0, 2) or code > 128:
        return None
    number = 1 if progressed else used + 1
    return number if number <= limit else None


def back_off(number: int) -> float:
    """Return the seconds to wait before relaunch ``number`` in a row: 1, 2, 4, ..., at most 60.

    >>> [back_off(number) for number in (1, 2, 3, 6, 7, 5000)]
    [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]
    """
    return float(min(_LONGEST_WAIT, 2 ** (number - 1)))


def words_of_launch(words: Sequence[str], *, again: bool) -> list[str]:
    """Return the arguments of one launch: those of the supervised run without its own flags.

    Args:
        words: The arguments as they came.
        again: Whether an earlier launch has begun the run; what it left is then gone on with.

    >>> given = ["sft", "--supervise", "--relaunches", "5", "--overwrite", "--steps=3"]
    >>> words_of_launch(given, again=False)
    ['sft', '--overwrite', '--steps=3']
    >>> words_of_launch(given, again=True)
    ['sft', '--steps=3', '--resume']
    """
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--relaunches":
            next(rest)
        elif word.startswith("--relaunches=") or word == "--supervise":
            continue
        elif not (again and word in ("--overwrite", "--resume")):
            kept.append(word)
    return [*kept, "--resume"] if again else kept


def saved(output: Path) -> dict[Path, int]:
    """Return the complete checkpoints of a run and its stages, each with its marker's inode.

    One that is written again under its name has another inode. What a clock says is not asked.
    """
    from launch.checkpoint import MARKER

    found = {}
    for marker in output.glob(f"**/checkpoints/step-*/{MARKER}"):
        try:
            found[marker.parent] = marker.stat().st_ino
        except OSError:  # removed in the meantime
            continue
    return found


def newest(now: Mapping[Path, int], before: Mapping[Path, int]) -> str:
    """Return the name of the checkpoint that a relaunch goes on from: the last of a launch.

    Args:
        now: What ``saved`` returns after the launch.
        before: What it returned before; a stage that has none since then is over, or to come.

    >>> one, two = Path("run/checkpoints/step-00000002"), Path("run/checkpoints/step-00000010")
    >>> newest({two: 5, one: 4}, {one: 4})
    'step-00000010'
    >>> newest({}, {})
    'the start'
    """
    made = [path for path, inode in now.items() if before.get(path) != inode]
    return max((path.name for path in made or now), default="the start")


def begun(output: Path) -> int:
    """Return the inode of the run's config, which every launch writes anew; 0 if there is none."""
    try:
        return (output / "config.yaml").stat().st_ino
    except OSError:
        return 0


def supervise(
    words: Sequence[str], count: int, output: Path, limit: int, hang_seconds: float | None = None
) -> int:
    """Launch ``monro run`` with these arguments until it ends without a fault.

    Args:
        words: The arguments after ``run``, as they came.
        count: The number of processes.
        output: The run folder.
        limit: The most relaunches in a row without a new checkpoint between them.
        hang_seconds: The longest that a step after a launch's first may take; None: for ever.

    Returns:
        The exit code of the last launch.
    """
    used, again = 0, False
    before, config = saved(output), begun(output)
    while True:
        code = processes.start(
            ["run", *words_of_launch(words, again=again)],
            count,
            advice="",
            alone=count == 1,
            hang_seconds=hang_seconds,
        )
        now = saved(output)
        progressed = bool(now.items() - before.items())
        number = relaunch(code, used=used, limit=limit, progressed=progressed)
        if number is None:
            if code not in (0, 2) and code <= 128:
                _say(f"not relaunched: --relaunches {limit} without a new checkpoint are used up")
            return code
        # A launch that died before it began has not yet removed the run that it is to overwrite.
        again = again or "--overwrite" not in words or begun(output) != config
        seconds = back_off(number)
        start = newest(now, before) if again else "the start"
        _say(f"relaunch {number} of {limit} from {start} in {seconds:g} s")
        time.sleep(seconds)
        used, before = number, now


def _say(line: str) -> None:
    print(f"monro: {line}", file=sys.stderr, flush=True)
