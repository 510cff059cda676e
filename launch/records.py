"""Reads a run folder back, whatever state a killed process has left it in.

Nothing here raises for damage: what cannot be read is left out and said in ``problems``.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from launch.errors import UsageError
from launch.folder import holds_run

__all__ = ["RunRecord", "flat_config", "read_run"]

_SHOWN_SAMPLES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a run folder holds."""

    folder: Path
    recipe: str = ""
    """From the first line of ``config.yaml``; empty if it does not say."""
    config_yaml: str = ""
    metrics: list[dict[str, object]] = field(default_factory=list)
    items: list[dict[str, object]] = field(default_factory=list)
    """In order; a later item of the same kind and name has taken the place of the earlier."""
    samples: list[dict[str, object]] = field(default_factory=list)
    """The first few and the last few."""
    stages: list[RunRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name


def read_run(folder: Path) -> RunRecord:
    """Read a run folder and its stages.

    Raises:
        UsageError: ``folder`` is no folder, or holds no run.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}: a report is made of a run folder; give its path")
    if not holds_run(folder):
        raise UsageError(
            f"{folder} holds no run: expected config.yaml, metrics.jsonl or checkpoints/ in it; "
            "give the folder that was the run's --output"
        )
    return _read(folder, depth=0)


def flat_config(config_yaml: str) -> dict[str, str] | None:
    r"""Return a config as dotted keys and their values in words; None if it is not readable.

    >>> flat_config("seed: 1\nobjective: {_type: a:B, clip: [0.1, 0.2]}")
    {'seed': '1', 'objective._type': 'a:B', 'objective.clip': '[0.1, 0.2]'}
    """
    try:
        config = yaml.safe_load(config_yaml)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return dict(_flat(config, "")) if isinstance(config, Mapping) else None


def _flat(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)


def _read(folder: Path, depth: int) -> RunRecord:
    problems: list[str] = []
    config_yaml = _text(folder / "config.yaml", problems)
    recipe = re.match(r"#\s*recipe:\s*(\S+)", config_yaml)
    stages: list[RunRecord] = []
    if depth < 3 and (folder / "stages").is_dir():
        inner = [path for path in (folder / "stages").iterdir() if path.is_dir()]
        stages = [_read(path, depth + 1) for path in sorted(inner, key=_stage_order)]
    return RunRecord(
        folder=folder,
        recipe=recipe[1] if recipe else "",
        config_yaml=config_yaml,
        metrics=_metrics(folder / "metrics.jsonl", problems),
        items=_items(folder / "items.jsonl", problems),
        samples=_samples(folder / "samples.jsonl", problems),
        stages=stages,
        problems=problems,
    )


def _stage_order(path: Path) -> tuple[float, str]:
    number = re.match(r"\d{1,9}", path.name)
    return (int(number[0]) if number else float("inf"), path.name)


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
        return ""


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")


def _parsed(
    lines: Iterator[tuple[int, str]], name: str, problems: list[str]
) -> list[dict[str, object]]:
    """Return the lines that are JSON objects; the others are counted in one problem."""
    records, damaged = [], []
    for number, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged.append(number)
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        lines_are = "line {} is" if len(damaged) == 1 else "lines {} are"
        problems.append(
            f"{name}: {lines_are.format(which)} no JSON object, as a killed process leaves behind; "
            "the report goes on without."
        )
    return records


def _metrics(path: Path, problems: list[str]) -> list[dict[str, object]]:
    """Return the records, each step once (the last one counts), in order of first appearance."""
    by_step: dict[object, dict[str, object]] = {}
    for index, record in enumerate(_parsed(_lines(path, problems), path.name, problems)):
        step = record.get("step")
        numbered = isinstance(step, int | float) and not isinstance(step, bool)
        by_step[step if numbered else f"line {index}"] = record
    return list(by_step.values())


def _items(path: Path, problems: list[str]) -> list[dict[str, object]]:
    items: dict[tuple[str, str], dict[str, object]] = {}
    for item in _parsed(_lines(path, problems), path.name, problems):
        items[str(item.get("kind")), str(item.get("name"))] = item
    return list(items.values())


def _samples(path: Path, problems: list[str]) -> list[dict[str, object]]:
    first: list[tuple[int, str]] = []
    last: deque[tuple[int, str]] = deque(maxlen=_SHOWN_SAMPLES)
    for numbered_line in _lines(path, problems):
        if len(first) < _SHOWN_SAMPLES:
            first.append(numbered_line)
        else:
            last.append(numbered_line)
    return _parsed(iter([*first, *last]), path.name, problems)
