"""Letters to be written backwards: a task whose every right completion is as long as the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from posttrain.data.tasks.base import Prompt
from posttrain.rewards import Reward, Sample, parse_reward

__all__ = ["BackwardLetters", "ExactReward"]


@dataclass(frozen=True, slots=True)
class ExactReward:
    """1 where the completion is the answer, letter by letter, else 0."""

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones."""
        return torch.tensor([float(s.completion == s.answer) for s in samples])


@dataclass(frozen=True, slots=True)
class BackwardLetters:
    """All words of ``length`` letters, shuffled, each to be answered by its letters backwards.

    Every fifth word is held out, so nothing that is judged was ever trained on.

    >>> task = BackwardLetters()
    >>> len(task.train()), len(task.heldout())
    (3276, 820)
    >>> task.train()[0].text, task.train()[0].answer
    ('bbcd=', 'dcbb')
    """

    length: int = 4
    letters: str = "abcdefgh"
    reward: Reward = field(default_factory=ExactReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 5:
            raise ValueError(f"length={self.length}: give 2 to 5, for all such words are listed")
        if len(set(self.letters)) != len(self.letters) or not 2 <= len(self.letters) <= 10:
            raise ValueError(f"letters={self.letters!r}: give 2 to 10 different letters")

    def train(self) -> Sequence[Prompt]:
        """Return four fifths of the words."""
        return [prompt for index, prompt in enumerate(self._all()) if index % 5]

    def heldout(self) -> Sequence[Prompt]:
        """Return the rest."""
        return self._all()[::5]

    def _all(self) -> list[Prompt]:
        words = ["".join(word) for word in product(self.letters, repeat=self.length)]
        random.Random(0).shuffle(words)
        return [Prompt(text=f"{word}=", answer=word[::-1]) for word in words]
