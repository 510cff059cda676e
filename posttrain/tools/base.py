"""What a tool is: a function from the text of a call to the text of its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Tool", "ToolOutput"]


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool says to one call."""

    text: str
    """The model reads it; of a call that failed, why."""
    failed: bool = False
    """Counted, so that a run shows how often calls go wrong."""


class Tool(Protocol):
    """Answers calls. Stateless, so that calls can be answered in any order.

    A model under training sends anything: a tool bounds its own time and output, and says what is
    wrong as text. What it raises ends the run. Text that the tokenizer reads as a special token,
    such as one that ends a turn, becomes that token, so a tool does not hand on strangers' text.
    """

    def __call__(self, request: str, /) -> ToolOutput:
        """Answer what stands between the tags of a call, spaces and line breaks included."""
        ...
