"""What a task is: prompts to learn from, prompts held out, and a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain.rewards.base import Reward

__all__ = ["Prompt", "Task"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One problem: text for a base model, or messages for a chat model; exactly one of them."""

    answer: str
    """The gold answer, which the task's reward compares with."""
    text: str | None = None
    """Raw text that the model continues."""
    messages: tuple[Mapping[str, str], ...] | None = None
    """A chat, each message with ``role`` and ``content``; the model writes the next turn."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the task knows besides, such as the difficulty."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError(
                "a Prompt has either text or messages: text is continued as it is, "
                "messages go through the tokenizer's chat template"
            )


class Task(Protocol):
    """Where problems come from. The sequences may be lazy and very long."""

    @property
    def reward(self) -> Reward:
        """The reward that scores this task's completions."""
        ...

    def train(self) -> Sequence[Prompt]:
        """Return the prompts to learn from; none of them is held out."""
        ...

    def heldout(self) -> Sequence[Prompt]:
        """Return the prompts to evaluate on, the same in every call."""
        ...
