"""Sums of two small numbers: a task without dependencies, for tests and first tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.data.tasks.base import Prompt
from posttrain.rewards import AnswerReward, Reward, parse_reward

__all__ = ["Arithmetic"]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """All sums ``a+b=`` with terms from 0 to ``largest``, as text; every fifth one is held out.

    >>> task = Arithmetic()
    >>> len(task.train()), len(task.heldout())
    (80, 20)
    >>> task.train()[1].text, task.train()[1].answer
    ('0+2=', '2')
    """

    largest: int = 9
    reward: Reward = field(default_factory=AnswerReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        if self.largest < 1:
            raise ValueError(f"largest={self.largest}: use at least 1, or there is one sum only")

    def train(self) -> Sequence[Prompt]:
        """Return four fifths of the sums."""
        return [prompt for index, prompt in enumerate(self._all()) if index % 5 != 1]

    def heldout(self) -> Sequence[Prompt]:
        """Return the rest: ``0+1=`` and every fifth after it."""
        return self._all()[1::5]

    def _all(self) -> list[Prompt]:
        terms = range(self.largest + 1)
        return [Prompt(text=f"{a}+{b}=", answer=str(a + b)) for a in terms for b in terms]
