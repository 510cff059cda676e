"""What a run reports: weighted sums that become means, one JSON object a logged step, a console.

Figures of the clock are called ``seconds``, ``seconds/<phase>`` or ``speed/<unit>``; everything
else in ``metrics.jsonl`` is reproducible.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launch.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Console", "JsonLines", "Mean", "Metric", "Phases", "Rate", "combine", "kept_lines"]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over all processes: ``sum`` of totals over ``sum`` of counts; over nothing, 0."""

    total: Tensor | float
    """This process's sum."""
    count: Tensor | float
    """What this process's sum runs over."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units, over all processes, since the last log; reported per second."""

    count: Tensor | float
    """This process's units."""


Metric = Tensor | float | int | Mean | Rate


def combine(
    metrics: Mapping[str, Metric], all_reduce: Callable[[Tensor], Tensor], seconds: float
) -> dict[str, float]:
    """Return plain figures: means and rates over all processes, by one exchange for all of them.

    Args:
        metrics: By name; a plain number or scalar tensor stays as it is.
        all_reduce: Sums a tensor over processes.
        seconds: Since the last log; a rate's denominator.
    """
    pairs: list[float] = []
    for value in metrics.values():
        if isinstance(value, Mean):
            pairs += [float(value.total), float(value.count)]
        elif isinstance(value, Rate):
            pairs += [float(value.count), 0.0]
    sums = iter(all_reduce(torch.tensor(pairs, dtype=torch.float64)).tolist() if pairs else ())
    combined = {}
    for name, value in metrics.items():
        if isinstance(value, Mean | Rate):
            total, count = next(sums), next(sums)
            if isinstance(value, Rate):
                count = max(seconds, 1e-9)
            combined[name] = total / count if count else 0.0
        else:
            combined[name] = float(value)
    return combined


class Phases:
    """Wall-clock seconds spent in named phases since they were last taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the block's seconds to phase ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return ``{"seconds/<phase>": ...}`` and start anew."""
        taken = {f"seconds/{name}": round(value, 6) for name, value in self.seconds.items()}
        self.seconds = {}
        return taken


class JsonLines:
    """Appends one JSON object a line, each in one write, so that a reader sees whole records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def write(self, record: Mapping[str, object]) -> None:
        """Append ``record``. Floats that JSON cannot hold become null.

        Raises:
            UsageError: It could not be written, for example because the disk is full.
        """
        try:
            line = json.dumps(record, allow_nan=False, ensure_ascii=False)
        except ValueError:
            line = json.dumps(_finite(record), ensure_ascii=False)
        data = (line + "\n").encode(errors="replace")
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            left = memoryview(data)
            while left:  # a full disk takes a part first, and only then says so
                left = left[self._file.write(left) :]
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be written: {error.strerror or error}; make room, then go on "
                "with --resume"
            ) from None

    def close(self) -> None:
        """Close the file; the next ``write`` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(x) for x in value]
    return value


def kept_lines(path: Path, keep: Callable[[int], bool]) -> str:
    """Return the text of ``path`` without damaged lines and records whose step is not kept."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:  # half a line, from a process that was killed while it wrote
            continue
        step = record.get("step", 0) if isinstance(record, dict) else None
        if isinstance(step, int) and keep(step):
            kept.append(line + "\n")
    return "".join(kept)


class Console:
    """Progress on stderr: a live bar in a terminal, a line now and then elsewhere."""

    def __init__(self, title: str, total: int, done: int, headline: Sequence[str]) -> None:
        self.total, self.done, self.headline = total, done, tuple(headline)
        self.title = title
        self._start, self._first, self._shown = time.perf_counter(), done, 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Console:
        if sys.stderr.isatty():
            self._progress, self._task = _live(self.title, self.total, self.done)
            self._progress.start()
        return self

    def update(self, step: int, figures: Mapping[str, object]) -> None:
        """Show that ``step`` is done, at most ten times a second (elsewhere every ten seconds)."""
        now, self.done = time.perf_counter(), step
        wait = 0.1 if self._progress is not None else 10.0
        if now - self._shown < wait and step < self.total:
            return
        self._shown = now
        speed = (step - self._first) / max(1e-9, now - self._start)
        named = [f"{name} {figures[name]:.3g}" for name in self.headline if name in figures]
        text = "  ".join([f"{speed:.3g} steps/s", *named])
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, figures=text)
        else:
            left = (self.total - step) / max(1e-9, speed)
            print(f"{self.title} {step}/{self.total}  {text}  {left:.0f} s left", file=sys.stderr)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def _live(title: str, total: int, done: int) -> tuple[Progress, TaskID]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
        refresh_per_second=4,
    )
    return progress, progress.add_task(title, total=total, completed=done, figures="")
