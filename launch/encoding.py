"""Config values as YAML data, so that ``conversion.build`` gives the same values back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from launch.annotations import field_types, fits, is_mapping, is_sequence, is_union, plain
from launch.conversion import is_object, load_object
from launch.errors import UsageError

__all__ = ["encode"]


def encode(value: Any, annotation: object, key: str) -> Any:  # noqa: ANN401 YAML data
    """Return ``value`` as YAML data: dicts, lists and scalars.

    Args:
        value: What a field of a config holds.
        annotation: The field's type; an object of exactly this class needs no ``_type``.
        key: The dotted name, for messages.

    Raises:
        UsageError: It cannot be written so that it comes back, such as a lambda.
    """
    annotation = plain(annotation)
    if is_object(value):
        return _encode_object(value, annotation, key)
    if isinstance(value, Enum):
        return value.name
    if annotation is float and type(value) is int:
        return float(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if is_union(annotation):
        annotation = next((m for m in get_args(annotation) if fits(value, m)), Any)
    if isinstance(value, (tuple, list)):
        return [encode(v, a, f"{key}.{i}") for i, (v, a) in enumerate(_typed(value, annotation))]
    if isinstance(value, (set, frozenset)):
        return sorted(encode(v, a, key) for v, a in _typed(tuple(value), annotation))
    if isinstance(value, Mapping):
        kinds = get_args(annotation) if is_mapping(annotation) else ()
        kind = kinds[1] if kinds else Any
        return {encode(k, Any, key): encode(v, kind, f"{key}.{k}") for k, v in value.items()}
    return _name(value, annotation, key)


def _encode_object(value: Any, annotation: object, key: str) -> dict[str, Any]:  # noqa: ANN401
    cls: Any = type(value)
    written: dict[str, Any] = {}
    if cls is not annotation:
        written["_type"] = _name(cls, type, key)
    for f in fields(cls):
        if f.init:
            where = f"{key}.{f.name}" if key else f.name
            written[f.name] = encode(getattr(value, f.name), field_types(cls)[f.name], where)
    return written


def _typed(values: Any, annotation: object) -> Iterator[tuple[Any, object]]:  # noqa: ANN401
    """Pair the items of a list with their annotations."""
    kinds = get_args(annotation) if is_sequence(annotation) else ()
    if get_origin(annotation) is tuple and kinds and kinds[-1] is not ...:
        return zip(values, kinds, strict=True)
    return ((value, kinds[0] if kinds else Any) for value in values)


def _name(value: Any, annotation: object, key: str) -> str:  # noqa: ANN401 a function or class
    """Return ``module:name`` of a function or class, sure that it leads back to it."""
    name = f"{getattr(value, '__module__', None)}:{getattr(value, '__qualname__', None)}"
    kind = get_origin(annotation) or annotation
    is_class = isinstance(value, type)
    try:
        if load_object(name, key) is value and (not is_class or kind in (type, Callable)):
            return name
    except UsageError:
        pass
    what = f"the class {value.__qualname__}" if is_class else repr(value)
    raise UsageError(
        f"{key}: {what} cannot be written into a config: use a dataclass, or a function that "
        "stands at the top of a module"
    )
