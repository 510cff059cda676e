"""Configs: dataclasses to YAML and back, and changed by flags.

A config is a frozen dataclass that holds objects. In YAML an object is a mapping with
``_type: module:Class`` beside its fields, a function is ``module:name``; a dataclass whose field is
annotated with exactly its class needs no ``_type``.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from launch.annotations import (
    field_docs,
    field_types,
    metavar,
)
from launch.conversion import Change, UnknownKey, build, is_object
from launch.documents import read_document, write_document, write_line
from launch.encoding import encode
from launch.errors import UsageError
from launch.scalars import ABSENT, FlagText, WrongValue
from launch.spelling import nearest

__all__ = [
    "Flag",
    "changed_fields",
    "changed_keys",
    "configure",
    "flags",
    "from_yaml",
    "override",
    "resumable",
    "resumable_keys",
    "to_yaml",
]

T = TypeVar("T")


def resumable(default: T) -> T:
    """Make a dataclass field that ``--resume`` lets change: it only prolongs or observes a run.

    >>> @dataclass(frozen=True)
    ... class Training:
    ...     seed: int = 0
    ...     steps: int = resumable(100)
    >>> resumable_keys(Training())
    frozenset({'steps'})
    """
    made: T = field(default=default, metadata={"resumable": True})
    return made


# -- writing -------------------------------------------------------------------------------------


def to_yaml(config: object) -> str:
    """Return the complete config as YAML that ``from_yaml`` reads back exactly.

    Raises:
        UsageError: It holds something that YAML cannot name, such as a lambda.
    """
    return write_document(encode(config, type(config), ""))


# -- reading -------------------------------------------------------------------------------------


def from_yaml(text: str, default: T, *, source: str = "the config") -> T:
    """Return ``default`` with the keys that YAML text gives; a complete text gives all of them.

    A mapping changes the object that is there; one with ``_type`` makes a new one.

    Args:
        text: YAML, complete or partial.
        default: The config whose keys may be given.
        source: The file, for messages.

    Raises:
        UsageError: Unknown or duplicate keys, wrong types, or values that a class refuses.
    """
    return configure(default, text=text, source=source)


def override(config: T, changes: Mapping[str, str]) -> T:
    """Return ``config`` with flags applied: dotted keys and their text.

    Raises:
        UsageError: Unknown keys, wrong types, or values that a class refuses.

    >>> @dataclass(frozen=True)
    ... class Training:
    ...     learning_rate: float = 1e-3
    >>> override(Training(), {"learning_rate": "1e-4"})
    Training(learning_rate=0.0001)
    >>> override(Training(), {"learning_rat": "1e-4"})
    Traceback (most recent call last):
        ...
    launch.errors.UsageError: unknown key learning_rat; did you mean learning_rate?
    """
    return configure(config, changes=changes)


def configure(
    default: T,
    *,
    text: str = "",
    source: str = "the config",
    changes: Mapping[str, str] = types.MappingProxyType({}),
    also: Sequence[str] = (),
) -> T:
    """Return ``default`` with a YAML file's keys, then flags, every object constructed once.

    Args:
        default: The config whose keys may be given.
        text: YAML, complete or partial.
        source: The file, for messages.
        changes: Dotted keys and their text.
        also: Names that are no keys, but that an unknown key may have been meant for.

    Raises:
        UsageError: Unknown or duplicate keys, wrong types, or values that a class refuses.
    """
    data = read_document(text, source=source)
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise UsageError(f"{source}: got {type(data).__name__}, expected keys and values")
    change = Change(dict(data), _tree(changes))
    try:
        return build(change, type(default), default, "")
    except (UnknownKey, WrongValue) as error:
        said = _unknown(error, default, also) if isinstance(error, UnknownKey) else str(error)
        by_file = str(error) == _refusal(Change(dict(data)), default)
        raise UsageError(f"{source}: {said}" if by_file else said) from error.__cause__


def _refusal(change: Change, default: object) -> str:
    """Return the error that building raises; empty if there is none."""
    try:
        build(change, type(default), default, "")
    except (UnknownKey, WrongValue) as error:
        return str(error)
    return ""


def _tree(changes: Mapping[str, str]) -> dict[str, Change]:
    root = Change()
    for key, text in changes.items():
        node = root
        for name in key.split("."):
            node = node.below.setdefault(name, Change())
        node.value = FlagText(text)
    return root.below


def _unknown(error: UnknownKey, config: object, also: Sequence[str]) -> str:
    """Name the nearest key: the same word elsewhere, a near one beside it, a near one elsewhere."""
    everywhere = {_last(flag.key): flag.key for flag in reversed(flags(config))}
    beside = {_last(key): key for key in error.siblings}
    if "." not in error.key:
        beside |= {name: name for name in also}
    word = _last(error.key)
    close = everywhere.get(word) or beside.get(nearest(word, beside) or "")
    close = close or everywhere.get(nearest(word, everywhere, likeness=0.75) or "")
    if close is not None:
        return f"unknown key {error.key}; did you mean {close}?"
    there = f"the keys there are {', '.join(beside)}" if beside else "there are no keys there"
    return f"unknown key {error.key}; {there}"


def _last(key: str) -> str:
    return key.rpartition(".")[2]


# -- looking at ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One key of a config, as ``--help`` shows it."""

    key: str
    """Dotted."""
    kind: str
    """The type, as ``--help`` shows it."""
    value: str
    """The present value, as a flag takes it."""
    doc: str
    """The docstring under the field."""
    object_doc: str | None
    """For an object, which has keys of its own: the first line of its docstring. Else None."""


def flags(config: object, prefix: str = "") -> list[Flag]:
    """Return every key of a config in order; an object comes before its keys."""
    found: list[Flag] = []
    cls: Any = type(config)
    for f in fields(cls):
        if not f.init:
            continue
        value, key, kind = getattr(config, f.name), prefix + f.name, field_types(cls)[f.name]
        nested = is_object(value)
        try:
            written = encode(value, kind, key)
        except UsageError:
            written = str(value)
        if nested:
            written = f"{type(value).__module__}:{type(value).__qualname__}"
        found.append(
            Flag(
                key=key,
                kind=metavar(kind),
                value=written if isinstance(written, str) else write_line(written),
                doc=field_docs(cls).get(f.name, ""),
                object_doc=(type(value).__doc__ or "").partition("\n")[0] if nested else None,
            )
        )
        if nested:
            found += flags(value, f"{key}.")
    return found


def resumable_keys(config: object, prefix: str = "") -> frozenset[str]:
    """Return the dotted keys whose fields are ``resumable``; what lies below one is so too.

    Below a field with ``metadata={"resumable": False}``, such as the config of a stage that others
    follow, none is: what they started from would be another.
    """
    found: set[str] = set()
    cls: Any = type(config)
    for f in fields(cls):
        value = getattr(config, f.name)
        mark = f.metadata.get("resumable")
        if mark:
            found.add(prefix + f.name)
        elif mark is None and is_object(value):
            found |= resumable_keys(value, f"{prefix}{f.name}.")
    return frozenset(found)


def changed_fields(old_yaml: str, config: object, *, source: str = "config.yaml") -> list[str]:
    """Return the dotted keys that differ from a run's config and may not; in order."""
    return changed_keys(old_yaml, to_yaml(config), resumable_keys(config), source=source)


def changed_keys(
    old_yaml: str, new_yaml: str, resumable: AbstractSet[str], *, source: str = "config.yaml"
) -> list[str]:
    """Return the dotted keys that differ between two complete configs and are not resumable.

    Where an object is of another class, its own key is named and none of those below it.

    >>> changed_keys("{steps: 5, seed: 0}", "{steps: 9, seed: 1}", {"steps"})
    ['seed']
    """
    old, new = read_document(old_yaml, source=source), read_document(new_yaml, source="the config")
    return [
        key
        for key in _differences(old, new, "")
        if not any(key == name or key.startswith(f"{name}.") for name in resumable)
    ]


def _differences(old: object, new: object, key: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.get("_type") == new.get("_type"):
        for name in [*new, *(name for name in old if name not in new)]:
            where = f"{key}.{name}" if key else str(name)
            yield from _differences(old.get(name, ABSENT), new.get(name, ABSENT), where)
    elif repr(old) != repr(new):  # so that nan equals nan, and true is not 1
        yield key or "the whole config"
