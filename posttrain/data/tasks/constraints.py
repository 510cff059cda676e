"""Constraints on an answer that a program can check.

The idea is IFEval's (Zhou et al. 2023, arXiv:2311.07911); the wording and the checks are our own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

__all__ = [
    "KINDS",
    "AtLeastWords",
    "AtMostWords",
    "Avoids",
    "Bullets",
    "Constraint",
    "EndsWith",
    "InCase",
    "Includes",
    "NoCommas",
    "Paragraphs",
    "read_constraints",
    "write_constraints",
]

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


class Constraint(Protocol):
    """What an answer must be like."""

    topic: ClassVar[str]
    """A request has at most one constraint of a topic, so that none contradicts another."""

    def text(self) -> str:
        """Return the constraint as a sentence."""
        ...

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        ...


@dataclass(frozen=True, slots=True)
class AtLeastWords:
    """A least number of words."""

    topic: ClassVar[str] = "length"
    count: int

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return f"Use at least {self.count} words."

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return len(_WORD.findall(answer)) >= self.count


@dataclass(frozen=True, slots=True)
class AtMostWords:
    """A largest number of words, and not none."""

    topic: ClassVar[str] = "length"
    count: int

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return f"Use at most {self.count} words."

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return 1 <= len(_WORD.findall(answer)) <= self.count


@dataclass(frozen=True, slots=True)
class Includes:
    """A word that must stand in it so many times at least, in any case."""

    topic: ClassVar[str] = "word"
    word: str
    count: int

    def text(self) -> str:
        """Return the constraint as a sentence."""
        times = "once" if self.count == 1 else f"{self.count} times"
        return f'Use the word "{self.word}" at least {times}.'

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return _WORD.findall(answer.lower()).count(self.word.lower()) >= self.count


@dataclass(frozen=True, slots=True)
class Avoids:
    """A word that must not stand in it, in any case."""

    topic: ClassVar[str] = "avoided"
    word: str

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return f'Do not use the word "{self.word}".'

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return self.word.lower() not in _WORD.findall(answer.lower())


@dataclass(frozen=True, slots=True)
class NoCommas:
    """No comma anywhere."""

    topic: ClassVar[str] = "punctuation"

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return "Do not use any commas."

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return "," not in answer


@dataclass(frozen=True, slots=True)
class InCase:
    """All letters small, or all capital."""

    topic: ClassVar[str] = "case"
    capital: bool

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return f"Write in {'capital' if self.capital else 'small'} letters only."

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return answer == (answer.upper() if self.capital else answer.lower())


@dataclass(frozen=True, slots=True)
class Bullets:
    """So many lines that begin with a star and a space."""

    topic: ClassVar[str] = "layout"
    count: int

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return f'Give exactly {self.count} bullet points, lines that begin with "* ".'

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return sum(line.startswith("* ") for line in answer.splitlines()) == self.count


@dataclass(frozen=True, slots=True)
class Paragraphs:
    """So many paragraphs, with blank lines between them."""

    topic: ClassVar[str] = "layout"
    count: int

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return f"Write exactly {self.count} paragraphs with a blank line between them."

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        parts = re.split(r"\n[ \t]*\n", answer.strip())
        return sum(bool(part.strip()) for part in parts) == self.count


@dataclass(frozen=True, slots=True)
class EndsWith:
    """Last words, in any case."""

    topic: ClassVar[str] = "end"
    words: str

    def text(self) -> str:
        """Return the constraint as a sentence."""
        return f'End with the words "{self.words}" and nothing after them.'

    def holds(self, answer: str) -> bool:
        """Tell whether an answer meets it."""
        return answer.rstrip().lower().endswith(self.words.lower())


KINDS: tuple[type[Any], ...] = (
    AtLeastWords,
    AtMostWords,
    Includes,
    Avoids,
    NoCommas,
    InCase,
    Bullets,
    Paragraphs,
    EndsWith,
)


def write_constraints(constraints: Sequence[Any]) -> str:
    """Return constraints as a prompt's ``answer``.

    >>> write_constraints([AtMostWords(20)])
    '[{"kind": "AtMostWords", "count": 20}]'
    """
    return json.dumps([{"kind": type(made).__name__} | asdict(made) for made in constraints])


def read_constraints(answer: str) -> list[Constraint]:
    """Return the constraints that a prompt's ``answer`` holds.

    >>> read_constraints('[{"kind": "AtMostWords", "count": 20}]')
    [AtMostWords(count=20)]

    Raises:
        ValueError: It holds something else.
    """
    kinds = {kind.__name__: kind for kind in KINDS}
    try:
        found: list[Constraint] = []
        for entry in json.loads(answer):
            fields = {name: value for name, value in entry.items() if name != "kind"}
            found.append(kinds[entry["kind"]](**fields))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{answer[:80]!r} are no constraints ({reason})") from error
    if not found:
        raise ValueError(f"{answer!r} holds no constraint: every answer would meet it")
    return found
