"""What a reward is: a function of samples that returns one number for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Reward", "Sample"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion, as a reward sees it."""

    prompt: str
    """The prompt's text; of a chat, the text that its template made."""
    completion: str
    """The completion's text, tool output included, without the token that stopped it."""
    answer: str
    """The task's gold answer."""
    tokens: tuple[int, ...] = ()
    """All tokens after the prompt's, those of tool output and the stop token included."""
    prompt_tokens: tuple[int, ...] = ()
    """The prompt's tokens, as the engine continued them."""
    finish_reason: str = "stop"
    """``"stop"``: it ended by a stop token; ``"length"``: it was cut, at ``max_tokens``
    or at a tool call too many."""


class Reward(Protocol):
    """Scores samples. Stateless but for counters, so that it can be called in any order."""

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32, one finite reward for each sample."""
        ...
