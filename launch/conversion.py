"""Text and YAML data to the values that annotations ask for: one conversion for files and flags.

``build`` applies a tree of changes to a value and constructs every object once, at the end; so two
settings that are only valid together may come in any order, from a file and from flags.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from launch.annotations import (
    describe,
    field_types,
    fits,
    is_enum,
    is_mapping,
    is_sequence,
    is_union,
    missing_members,
    plain,
)
from launch.documents import read_document
from launch.errors import UsageError
from launch.scalars import ABSENT, SCALARS, FlagText, WrongValue, convert_scalar, mismatch, show
from launch.spelling import did_you_mean

__all__ = ["Change", "UnknownKey", "build", "is_object", "load_object"]


class UnknownKey(UsageError):
    """A key that does not exist, where ``siblings`` do."""

    def __init__(self, key: str, siblings: Sequence[str]) -> None:
        super().__init__(f"unknown key {key}")
        self.key = key
        self.siblings = siblings


@dataclass(slots=True)
class Change:
    """What is asked of a key: a new value, changes to the keys below it, or one, then the other."""

    value: object = ABSENT
    below: dict[str, Change] = field(default_factory=dict)

    def then(self, later: Change) -> Change:
        """Return this change followed by ``later``, which wins."""
        if later.value is not ABSENT:
            return later
        below = dict(self.below)
        for name, change in later.below.items():
            below[name] = below[name].then(change) if name in below else change
        return Change(self.value, below)


def _parts(values: Mapping[Any, object], below: dict[str, Change]) -> dict[str, Change]:
    """Return a mapping's values as changes, followed by those that came for the keys below."""
    new = Change(below={str(name): Change(value) for name, value in values.items()})
    return new.then(Change(below=below)).below


def build(change: Change, annotation: object, current: object, key: str) -> Any:  # noqa: ANN401 as annotated
    """Return ``current`` after ``change``, as a value of the type that ``annotation`` asks for.

    Args:
        change: What is asked; its values are text or what YAML knows.
        annotation: The type, as ``typing.get_type_hints`` gives it.
        current: The present value, or ``ABSENT``.
        key: The dotted name, for messages.

    Raises:
        UsageError: Names the key, the value and what was expected.

    >>> build(Change("1e-4"), float, ABSENT, "learning_rate")
    0.0001
    >>> build(Change("x"), int | None, ABSENT, "steps")
    Traceback (most recent call last):
        ...
    launch.scalars.WrongValue: steps: got 'x', expected an integer (int) or null
    """
    annotation = plain(annotation)
    kind = get_origin(annotation) or annotation
    if change.value is ABSENT and not change.below:
        return current
    if is_union(annotation):
        return _union(change, annotation, current, key)
    if is_sequence(kind):
        return _sequence(change, annotation, current, key)
    if is_mapping(kind):
        return _mapping(change, annotation, current, key)
    if kind in (Any, object):
        return _anything(change, current, key)
    if kind in (Callable, type):
        return _reference(change, annotation, key)
    if kind is Literal or kind in SCALARS or is_enum(kind):
        if change.below:
            raise UnknownKey(_join(key, next(iter(change.below))), [])
        return convert_scalar(change.value, annotation, key)
    if isinstance(kind, type):
        return _object(change, kind, current, key)
    raise TypeError(f"{key}: a config cannot hold a field of type {annotation}")


# -- unions, lists, mappings ---------------------------------------------------------------------


def _union(change: Change, annotation: object, current: object, key: str) -> object:
    value, members = change.value, get_args(annotation)
    current = ABSENT if current is None else current
    # The member that the present value is of comes first, plain text last: it takes anything.
    ordered = sorted(
        (m for m in members if m is not type(None)),
        key=lambda m: (m is str, current is ABSENT or not fits(current, m)),
    )
    if value is ABSENT:
        objects = [m for m in ordered if not (plain(m) in SCALARS or get_origin(m) is Literal)]
        chosen = ordered[0] if current is not ABSENT else (objects or ordered)[0]
        return build(change, chosen, current, key)
    if type(None) in members and (
        value is None or (isinstance(value, FlagText) and value.is_none())
    ):
        return None
    exact = [] if isinstance(value, FlagText) else [m for m in ordered if _is_exactly(value, m)]
    errors: list[UsageError] = []
    for member in exact or ordered:
        try:
            return build(change, member, current if fits(current, member) else ABSENT, key)
        except (WrongValue, UnknownKey) as error:
            errors.append(error)
    inside = [e for e in errors if getattr(e, "key", key) != key]
    if inside or (len(errors) == 1 and (isinstance(value, Mapping) or _is_flow_mapping(value))):
        raise (inside or errors)[0]
    raise mismatch(value, annotation, key)


def _is_exactly(value: object, member: object) -> bool:
    """Return whether a YAML value is of the member's very type, so that no other may take it."""
    if get_origin(member) is Literal:
        return any(type(option) is type(value) and option == value for option in get_args(member))
    return type(value) is member


def _sequence(change: Change, annotation: object, current: object, key: str) -> object:
    kind, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if change.value is ABSENT:
        values = list(current) if isinstance(current, (tuple, list)) else []
        parts = change.below
    else:
        items = _items(change.value, annotation, key)
        values = [ABSENT] * len(items)
        parts = _parts(dict(enumerate(items)), change.below)
    if kind is tuple and arguments and arguments[-1] is not ...:
        if len(values) != len(arguments):
            raise mismatch(change.value, annotation, key)
        types = list(arguments)
    else:
        types = [arguments[0] if arguments else Any] * len(values)
    for name, part in parts.items():
        where = _join(key, name)
        if not name.isdecimal() or int(name) >= len(values):
            raise UnknownKey(where, [_join(key, str(index)) for index in range(len(values))])
        values[int(name)] = build(part, types[int(name)], values[int(name)], where)
    if kind in (list, set, frozenset):
        return kind(values)
    if kind is AbstractSet:
        return frozenset(values)
    return values if kind is Sequence and isinstance(current, list) else tuple(values)


def _items(value: object, annotation: object, key: str) -> list[object]:
    """Return the elements of a YAML list, or of text such as ``[1, 2]``, ``1,2`` or ``1``."""
    if isinstance(value, str):
        if value.strip().startswith("["):
            value = _parse(value, key)
        else:
            return [FlagText(part.strip()) for part in value.split(",")] if value.strip() else []
    if isinstance(value, list):
        return value
    if type(value) in (int, float):
        return [value]
    raise mismatch(value, annotation, key)


def _mapping(change: Change, annotation: object, current: object, key: str) -> object:
    key_type, value_type = get_args(annotation) or (str, Any)
    result: dict[Any, Any] = {}
    parts = change.below
    if change.value is ABSENT:
        result = dict(current) if isinstance(current, Mapping) else {}
    else:
        value = _parse(change.value, key) if isinstance(change.value, str) else change.value
        if not isinstance(value, Mapping):
            raise mismatch(change.value, annotation, key)
        parts = _parts(value, parts)
    for name, part in parts.items():
        where = _join(key, name)
        converted = convert_scalar(name, plain(key_type), where)
        result[converted] = build(part, value_type, result.get(converted, ABSENT), where)
    return result


def _anything(change: Change, current: object, key: str) -> object:
    """Build a value whose annotation says nothing."""
    value = _parse(change.value, key) if isinstance(change.value, FlagText) else change.value
    change = Change(value, change.below)
    named = isinstance(value, Mapping) and "_type" in value
    if named or (value is ABSENT and is_object(current)):
        return _object(change, object, current, key)
    if change.below:
        return _mapping(change, dict[str, Any], current, key)
    return value


# -- functions and objects -----------------------------------------------------------------------


def _reference(change: Change, annotation: object, key: str) -> object:
    """Build a function or a class, named ``module:name``, or an object that can be called."""
    value = _parse(change.value, key) if _is_flow_mapping(change.value) else change.value
    if isinstance(value, Mapping):
        return _object(Change(value, change.below), object, ABSENT, key)
    if not isinstance(value, str) or ":" not in value:
        raise mismatch(value, annotation, key)
    thing = load_object(value, key)
    wants_class = (get_origin(annotation) or annotation) is type
    if change.below or not (isinstance(thing, type) if wants_class else callable(thing)):
        raise mismatch(value, annotation, key)
    return thing


def _object(change: Change, kind: type, current: object, key: str) -> object:
    """Build a dataclass; for a Protocol, any dataclass or function that fits it."""
    value = _parse(change.value, key) if _is_flow_mapping(change.value) else change.value
    base, below = current, change.below
    if isinstance(value, Mapping):
        below = _parts(value, below)
        named = below.pop("_type", None)
        if named is not None:
            base = _named_class(named.value, kind, key)
    elif isinstance(value, str) and ":" in value:
        base = load_object(value, key)
        if not isinstance(base, type) and not is_object(base) and not below:
            return _checked(base, kind, key)  # a function
    elif value is not ABSENT:
        raise WrongValue(
            key, f"got {show(value)}, expected {_wanted(kind)}{_beside(current, value)}"
        )
    if base is ABSENT or base is None:
        base = kind
    if not is_dataclass(base):
        came = show(base if value is ABSENT else value)
        raise WrongValue(key, f"got {came}, expected {_wanted(kind)}")
    return _checked(_construct(base, below, key), kind, key)


def _wanted(kind: type) -> str:
    """Return a class in words; of one that stands for many, also how one of those is named."""
    how = "" if is_dataclass(kind) else ", as {_type: module:Class, ...} or module:Class"
    return f"{describe(kind)}{how}"


def _beside(current: object, name: object) -> str:
    """Return a hint if ``name`` is a class of the package that the present value's is from."""
    package = type(current).__module__.rpartition(".")[0]
    found = getattr(sys.modules.get(package), name, None) if isinstance(name, str) else None
    return f"; did you mean {package}:{name}?" if isinstance(found, type) else ""


def _named_class(name: object, kind: type, key: str) -> type:
    if not isinstance(name, str) or ":" not in name:
        raise WrongValue(_join(key, "_type"), f"got {show(name)}, expected module:Class")
    found = load_object(name, key)
    if not isinstance(found, type) or not is_dataclass(found):
        raise WrongValue(key, f"{name} is no dataclass, expected {describe(kind)}")
    return found


def _construct(base: Any, changes: Mapping[str, Change], key: str) -> Any:  # noqa: ANN401 any dataclass
    """Return a dataclass: ``base`` with changes, or a new one if ``base`` is the class."""
    fresh = isinstance(base, type)
    cls: type = base if fresh else type(base)
    settable = {f.name: f for f in fields(cls) if f.init}
    for name in changes:
        if name not in settable:
            raise UnknownKey(_join(key, name), [_join(key, known) for known in settable])
    values: dict[str, object] = {}
    for name, f in settable.items():
        present = _default(f) if fresh else getattr(base, name)
        if name in changes:
            annotation = field_types(cls)[name]
            values[name] = _field(changes[name], f, annotation, present, _join(key, name))
        elif not fresh:
            values[name] = present
        elif present is ABSENT:
            raise WrongValue(key, f"{cls.__name__} needs a value for {_join(key, name)}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise WrongValue(key, " ".join(str(error).split())) from error


def _field(change: Change, f: Field[Any], annotation: object, current: object, key: str) -> object:
    """Build a field; plain text for one with a parser goes through that."""
    parse, text = f.metadata.get("parse"), change.value
    if parse is not None and isinstance(text, str) and not _is_flow_mapping(text):
        nullable = type(None) in get_args(annotation)
        if nullable and isinstance(text, FlagText) and text.is_none():
            return None
        try:
            current = parse(str(text))
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise WrongValue(key, " ".join(str(error).split())) from error
        change = Change(below=change.below)
    return build(change, annotation, current, key)


def _default(f: Field[Any]) -> object:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return ABSENT if f.default is MISSING else f.default


def _checked(value: object, kind: type, key: str) -> object:
    """Return ``value`` if it is of this kind, or has the members of this Protocol."""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if not getattr(kind, "_is_protocol", False):
        if kind is not object and not isinstance(value, kind):
            raise WrongValue(key, f"got {name}, expected {describe(kind)}")
    elif absent := missing_members(value, kind):
        raise WrongValue(key, f"{name} has no {', '.join(absent)}, expected {describe(kind)}")
    return value


def load_object(name: str, key: str) -> Any:  # noqa: ANN401 whatever has this name
    """Return what ``module:name`` names.

    Raises:
        UsageError: The module cannot be imported, or has no such name.
    """
    module_name, _, path = name.partition(":")
    try:
        thing: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WrongValue(key, f"{module_name} cannot be imported ({reason})") from error
    for part in path.split("."):
        if not hasattr(thing, part):
            raise WrongValue(key, f"{module_name} has no {path}{did_you_mean(part, dir(thing))}")
        thing = getattr(thing, part)
    return thing


def is_object(value: object) -> bool:
    """Return whether ``value`` is a dataclass instance."""
    return is_dataclass(value) and not isinstance(value, type)


def _is_flow_mapping(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("{")


def _parse(text: object, key: str) -> object:
    return read_document(str(text), source=key or "the config")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
