"""A command line taken apart: arguments, a command's own flags, and the keys of a config."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from launch.errors import UsageError
from launch.spelling import did_you_mean

__all__ = ["Option", "Parsed", "parse"]


@dataclass(frozen=True, slots=True)
class Option:
    """A flag or an argument of a command."""

    name: str
    doc: str
    metavar: str = ""
    """What stands for the value; empty for a switch."""


@dataclass(slots=True)
class Parsed:
    """A command line, taken apart but not yet understood."""

    words: tuple[str, ...]
    """All of it, as it came."""
    positional: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    """The command's own flags; a switch has the value ``"true"``."""
    changes: dict[str, str] = field(default_factory=dict)
    """Every other ``--a.b value``; of a key that comes twice, the last."""
    help: bool = False


def parse(words: Sequence[str], options: Collection[Option]) -> Parsed:
    """Take a command line apart.

    Every flag but the command's own switches takes one value, ``--a.b value`` or ``--a.b=value``.
    So a value may begin with a minus sign, and flags and arguments may stand in any order. In the
    command's own flags ``-`` is as good as ``_``.

    Raises:
        UsageError: A flag is malformed or lacks its value.

    >>> switches = [Option("resume", "Go on.")]
    >>> parsed = parse(["sft", "--loss.shift", "-1.5", "--resume", "--steps=3"], switches)
    >>> parsed.positional, parsed.options, parsed.changes
    (['sft'], {'resume': 'true'}, {'loss.shift': '-1.5', 'steps': '3'})
    >>> parse(["--dry-run"], [Option("dry_run", "Print alone.")]).options
    {'dry_run': 'true'}
    """
    own = {option.name: option for option in options}
    switches = [name for name, option in own.items() if not option.metavar]
    parsed = Parsed(tuple(words))
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("--help", "-h"):
            parsed.help = True
            continue
        if not word.startswith("-"):
            parsed.positional.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or not name:
            raise UsageError(f"unknown flag {word}: flags are --name value or --name=value")
        if name.replace("-", "_") in own:
            name = name.replace("-", "_")
        if name in switches:
            if equals:
                raise UsageError(f"--{name} takes no value, but got {value!r}")
            parsed.options[name] = "true"
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{name} needs a value{did_you_mean(name, switches)}")
            value = rest.pop(0)
        (parsed.options if name in own else parsed.changes)[name] = value
    return parsed
