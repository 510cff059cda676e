"""``--help`` pages, drawn by tyro from the same data that the command line is parsed with."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Sequence
from dataclasses import field, make_dataclass
from typing import Annotated, Any

from launch.command_line import Option
from launch.config import Flag

__all__ = ["command_page", "overview", "recipe_page"]


def overview(program: str, summary: str, commands: Sequence[tuple[str, str]]) -> None:
    """Print the page of all commands, each with a line."""
    import tyro

    made: list[Any] = [
        Annotated[make_dataclass(name, []), tyro.conf.subcommand(name, description=line)]
        for name, line in commands
    ]
    _show(functools.reduce(operator.or_, made), program, summary)


def command_page(
    program: str, summary: str, arguments: Sequence[Option], options: Sequence[Option]
) -> None:
    """Print the page of one command."""
    _show(make_dataclass("Command", _fields(arguments, options), kw_only=True), program, summary)


def recipe_page(
    program: str, summary: str, options: Sequence[Option], flags: Sequence[Flag]
) -> None:
    """Print the page of a command for one recipe: its own flags after those of the command."""
    kind = make_dataclass("Recipe", [*_fields([], options), *_tree(flags, "")], kw_only=True)
    _show(kind, program, summary)


def _fields(arguments: Sequence[Option], options: Sequence[Option]) -> list[Any]:
    import tyro

    made: list[Any] = []
    for option in arguments:
        told = tyro.conf.arg(help=option.doc, metavar=option.metavar)
        made.append((option.name, tyro.conf.Positional[Annotated[str, told]]))
    for option in options:
        told = tyro.conf.arg(help=option.doc, metavar=option.metavar or None, help_behavior_hint="")
        if option.metavar:
            made.append((option.name, Annotated[str, told], field(default="")))
        else:
            switch = Annotated[tyro.conf.FlagCreatePairsOff[bool], told]
            made.append((option.name, switch, field(default=False)))
    return made


def _tree(flags: Sequence[Flag], prefix: str) -> list[Any]:
    """Return dataclass fields for the flags below a prefix; an object becomes a dataclass."""
    import tyro

    made: list[Any] = []
    for flag in flags:
        head, _, name = flag.key.rpartition(".")
        if head != prefix.rstrip("."):
            continue
        if flag.object_doc is None:
            told = tyro.conf.arg(help=_text(flag.doc), metavar=flag.kind)
            made.append((name, Annotated[str, told], field(default=flag.value)))
            continue
        kind = make_dataclass(name, _tree(flags, f"{flag.key}."), kw_only=True)
        lines = [flag.doc, f"{flag.value}: {flag.object_doc}" if flag.object_doc else flag.value]
        told = tyro.conf.arg(help=_text("\n".join(filter(None, lines))))
        made.append((name, Annotated[kind, told], field(default_factory=kind)))
    return made


def _text(doc: str) -> str:
    return doc.replace("``", "`")


def _show(kind: Any, program: str, summary: str) -> None:  # noqa: ANN401 a type that was made
    import tyro

    with contextlib.suppress(SystemExit):
        tyro.cli(kind, prog=program, description=summary, args=["--help"], use_underscores=True)
