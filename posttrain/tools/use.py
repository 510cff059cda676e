"""How a completion calls a tool: the tags, and which tokens may end a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from posttrain.tools.base import Tool, ToolOutput
from posttrain.tools.calculator import Calculator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ToolUse", "closing_tokens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolUse:
    """A tool, and the text by which it is called: ``<tool>3*4</tool><output>12</output>``.

    The model writes a call; the output and its tags are put behind it, and the model goes on. The
    tags may be any text, such as those that a checkpoint's own chat format has.
    """

    tool: Tool = field(default_factory=Calculator)
    max_calls: int = 4
    """Calls of a completion that are answered; one more cuts it off there."""
    opening: str = "<tool>"
    """Begins a call."""
    closing: str = "</tool>"
    """Ends a call."""
    before: str = "<output>"
    """Stands before the tool's output."""
    after: str = "</output>"
    """Stands after it; where a chat gives tools a turn, up to where the next of the model begins.
    """

    def __post_init__(self) -> None:
        if self.max_calls < 1:
            raise ValueError(
                f"max_calls={self.max_calls}: give at least 1, or set tools to null for none"
            )
        if not self.opening or not self.closing or self.opening == self.closing:
            raise ValueError(
                f"opening={self.opening!r}, closing={self.closing!r}: a call needs two different "
                "tags, or it cannot be told where one begins and ends"
            )

    def request(self, text: str) -> str | None:
        """Return what the first call in ``text`` asks; None if no call is closed in it.

        A call begins anew at a later opening tag.

        >>> ToolUse().request("so <tool>1+<tool>2+3</tool>")
        '2+3'
        >>> ToolUse().request("<tool>2+3") is ToolUse().request("2+3</tool>") is None
        True
        """
        inside, closed, _ = text.partition(self.closing)
        _, opened, request = inside.rpartition(self.opening)
        return request if opened and closed else None

    def written(self, output: ToolOutput) -> str:
        """Return the text that follows a call.

        >>> ToolUse().written(ToolOutput("12"))
        '<output>12</output>'
        """
        return f"{self.before}{output.text}{self.after}"


def closing_tokens(tokenizer: PreTrainedTokenizerBase, closing: str) -> tuple[int, ...]:
    """Return the ids of all tokens with which text may come to hold the tag ``closing``.

    A tag that is a token of its own is one of them. Otherwise they are the tokens in which the
    tag's last character can stand: of ``</tool>`` those that begin with ``>``, ``l>``, ``ol>``...
    Having drawn one, look at the text: it may be there for another reason.
    """
    ids = sorted(set(tokenizer.get_vocab().values()))
    texts = tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=False)
    return tuple(token for token, text in zip(ids, texts, strict=True) if _may_end(text, closing))


def _may_end(text: str, tag: str) -> bool:
    heads = (text[: i + 1] for i, character in enumerate(text) if character == tag[-1])
    return any(tag.endswith(head) or head.endswith(tag) for head in heads)
