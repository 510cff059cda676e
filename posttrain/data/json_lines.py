"""Files of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.errors import UsageError
from launch.spelling import did_you_mean

__all__ = ["field_of", "read_json_lines"]


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, from 1, and the object of each line that is not blank.

    Raises:
        UsageError: There is no such file, it holds no line, or a line is not a JSON object; the
            error names file and line.
    """
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"{path} is a folder, expected a file with one JSON object a line")
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    empty = True
    for number, line in enumerate(lines, start=1):
        if line.strip():
            empty = False
            yield number, _parse(line, f"{path}, line {number}")
    if empty:
        raise UsageError(f"{path} is empty, expected one JSON object a line")


def field_of(row: dict[str, Any], key: str, where: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return ``row[key]``, or raise UsageError that names ``where`` and the nearest key."""
    if key not in row:
        keys = ", ".join(map(str, row)) or "none"
        raise UsageError(f"{where}: there is no {key!r}{did_you_mean(key, row)} (keys: {keys})")
    return row[key]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{where}: not JSON ({reason})") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: {type(row).__name__} in place of an object {{...}}")
    return row


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
