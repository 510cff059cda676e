"""What a dataclass says about its fields: types at run time, and their docstrings."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args, get_origin

__all__ = [
    "describe",
    "field_docs",
    "field_types",
    "fits",
    "is_enum",
    "is_mapping",
    "is_sequence",
    "is_union",
    "metavar",
    "missing_members",
    "plain",
]

_SEQUENCES = (tuple, list, set, frozenset, Sequence, AbstractSet)
_MAPPINGS = (dict, Mapping, MutableMapping)
_WORDS: dict[object, str] = {
    int: "an integer (int)",
    float: "a number (float)",
    bool: "true or false (bool)",
    str: "text (str)",
    Path: "a path",
    type(None): "null",
}


@functools.cache
def field_types(cls: type[Any]) -> Mapping[str, object]:
    """Return the annotations of a dataclass, resolved.

    Raises:
        TypeError: An annotation names something that is only imported for type checkers.
    """
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise TypeError(
            f"the annotations of {cls.__module__}:{cls.__qualname__} cannot be read ({error}): "
            "the types of a config's fields have to be importable at run time"
        ) from error


@functools.cache
def field_docs(cls: type[Any]) -> Mapping[str, str]:
    """Return the docstrings under the fields of a class, inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # built in, or typed into an interpreter
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for above, below in itertools.pairwise(body):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[above.target.id] = inspect.cleandoc(below.value.value)
    return docs


def plain(annotation: object) -> object:
    """Strip ``Annotated``, ``NewType`` and type aliases."""
    while True:
        if get_origin(annotation) is typing.Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation


def is_union(annotation: object) -> bool:
    """Return whether the annotation is ``X | Y``."""
    return get_origin(annotation) in (typing.Union, types.UnionType)


def is_sequence(annotation: object) -> bool:
    """Return whether the annotation is a kind of list, tuple or set."""
    return (get_origin(annotation) or annotation) in _SEQUENCES


def is_mapping(annotation: object) -> bool:
    """Return whether the annotation is a kind of dict."""
    return (get_origin(annotation) or annotation) in _MAPPINGS


def is_enum(annotation: object) -> TypeGuard[type[Enum]]:
    """Return whether the annotation is an Enum."""
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def fits(value: object, annotation: object) -> bool:
    """Return whether ``value`` can stand where ``annotation`` does, as far as can be seen.

    >>> fits(1, int | None), fits("a", Literal["a", "b"]), fits(1.5, int)
    (True, True, False)
    """
    annotation = plain(annotation)
    if is_union(annotation):
        return any(fits(value, member) for member in get_args(annotation))
    kind = get_origin(annotation) or annotation
    if kind is Literal:
        return value in get_args(annotation)
    if kind in (Any, object):
        return True
    if kind is Callable:
        return callable(value)
    if not isinstance(kind, type):
        return False
    if getattr(kind, "_is_protocol", False):
        return not missing_members(value, kind)
    return isinstance(value, kind)


def missing_members(value: object, protocol: type) -> list[str]:
    """Return the members of a Protocol that ``value`` does not have."""
    members: set[str] = set()
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False):
            members |= set(vars(base)) | set(vars(base).get("__annotations__", {}))
    absent = sorted(m for m in members if not m.startswith("_") and not hasattr(value, m))
    if "__call__" in members and not callable(value):
        absent.append("__call__")
    return absent


def describe(annotation: object) -> str:
    """Return an annotation in words.

    >>> describe(int), describe(Literal["fp32", "bf16"]), describe(tuple[float, ...])
    ('an integer (int)', 'one of fp32, bf16', 'a list, each item a number (float)')
    """
    annotation = plain(annotation)
    arguments = get_args(annotation)
    if is_union(annotation):
        return " or ".join(describe(argument) for argument in arguments)
    kind = get_origin(annotation) or annotation
    if kind is Literal:
        return f"one of {', '.join(str(option) for option in arguments)}"
    if kind in _WORDS:
        return _WORDS[kind]
    if is_enum(kind):
        return f"one of {', '.join(member.name for member in kind)}"
    if kind is tuple and arguments and arguments[-1] is not ...:
        return f"a list [{', '.join(describe(argument) for argument in arguments)}]"
    if is_sequence(kind):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if is_mapping(kind):
        return "a mapping"
    if kind is Callable:
        return "a function (module:name)"
    if kind is type:
        return "a class (module:Class)"
    name = getattr(kind, "__name__", str(kind))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


_SHORT: dict[object, str] = {
    int: "INT",
    float: "FLOAT",
    bool: "{true,false}",
    str: "TEXT",
    Path: "PATH",
    type(None): "none",
    Callable: "module:name",
    type: "module:Class",
}


def metavar(annotation: object) -> str:
    """Return what ``--help`` shows for a value.

    >>> metavar(int | None), metavar(Literal["fp32", "bf16"]), metavar(tuple[float, ...])
    ('INT|none', '{fp32,bf16}', 'FLOAT,...')
    """
    annotation = plain(annotation)
    arguments = get_args(annotation)
    if is_union(annotation):
        return "|".join(metavar(argument) for argument in arguments)
    kind = get_origin(annotation) or annotation
    if kind is Literal:
        return f"{{{','.join(str(option) for option in arguments)}}}"
    if is_enum(kind):
        return f"{{{','.join(member.name for member in kind)}}}"
    if kind is tuple and arguments and arguments[-1] is not ...:
        return ",".join(metavar(argument) for argument in arguments)
    if is_sequence(kind):
        return f"{metavar(arguments[0])},..." if arguments else "VALUE,..."
    if is_mapping(kind):
        return "{KEY: VALUE}"
    return _SHORT.get(kind, "module:Class")
