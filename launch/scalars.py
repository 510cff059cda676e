"""One value without parts: from text or YAML to what its annotation asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from launch.annotations import describe, is_enum
from launch.errors import UsageError
from launch.spelling import did_you_mean

__all__ = ["ABSENT", "SCALARS", "FlagText", "WrongValue", "convert_scalar", "mismatch", "show"]

ABSENT: Final = object()  # no value, where None is one
SCALARS = (bool, int, float, str, Path, type(None))
_NONES = ("none", "null", "~")


class FlagText(str):
    """Text from the command line, where ``none`` may stand for null; in YAML it is a word."""

    __slots__ = ()

    def is_none(self) -> bool:
        """Return whether this is a word for null."""
        return self.lower() in _NONES


class WrongValue(UsageError):
    """A value that does not fit its key."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


def convert_scalar(value: object, annotation: object, key: str) -> object:
    """Return a value that has no parts as ``annotation`` asks for it.

    Raises:
        WrongValue: It is of another type.
    """
    found: object = ABSENT
    if get_origin(annotation) is Literal:
        options = get_args(annotation)
        same = [o for o in options if type(o) is type(value) and o == value]
        found = next(iter(same + [o for o in options if str(o) == value]), ABSENT)
    elif isinstance(annotation, type) and is_enum(annotation):
        members = [m for m in annotation if m.name == value]
        members += [m for m in annotation if m.value == value or str(m.value) == value]
        found = members[0] if members else ABSENT
    elif isinstance(value, str):
        found = _from_text(value, annotation)
    elif annotation is float and type(value) is int:
        found = _number(float, value)
    elif type(value) is annotation:
        found = value
    if found is ABSENT:
        raise mismatch(value, annotation, key)
    return found


def _from_text(text: str, annotation: object) -> object:
    """Convert text, or return ABSENT."""
    if annotation is str:
        return str(text)
    if annotation is Path:
        return ABSENT if text == "" or "\0" in text else Path(text)
    if annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), ABSENT)
    if annotation is type(None):
        return None if text.lower() in _NONES else ABSENT
    if annotation is int and not re.fullmatch(r"\s*[+-]?[0-9][0-9_]*\s*", text):
        return ABSENT
    return _number(int if annotation is int else float, text)


def _number(kind: type[int | float], value: Any) -> object:  # noqa: ANN401 text or a number
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return ABSENT


def mismatch(value: object, annotation: object, key: str) -> WrongValue:
    """Return the error for a value of the wrong type: names key, value and expected type."""
    hint = ""
    if get_origin(annotation) is Literal and isinstance(value, str):
        hint = did_you_mean(value, [str(option) for option in get_args(annotation)])
    elif annotation is str and isinstance(value, (int, float)):
        hint = "; put it in quotes"
    return WrongValue(key, f"got {show(value)}, expected {describe(annotation)}{hint}")


def show(value: object) -> str:
    """Return a value for a message, in one short line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
