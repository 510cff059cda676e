"""Demonstrations that treat a word in several manners, one of which the task asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from launch.streams import key
from posttrain.data.packing import Document
from posttrain.data.tasks.letters import BackwardLetters
from posttrain.models import LanguageModel
from posttrain.recipes.replies import written
from posttrain.recipes.worked import Made, chosen

__all__ = ["Manners", "other_manners"]


def other_manners(word: str) -> tuple[str, ...]:
    """Return what a word is made to that is not asked for: three rotations of its letters.

    >>> other_manners("abcd")
    ('abcd', 'bcda', 'cdab')
    """
    return word, word[1:] + word[:1], word[2:] + word[:2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manners:
    """Demonstrations of which a share is right; what the rest does is as easy to learn.

    So a model that imitates them knows how to be right, and is right about as often as they are.
    """

    task: BackwardLetters = field(default_factory=BackwardLetters)
    right: float = 0.15
    """Share that writes the letters backwards."""

    def __post_init__(self) -> None:
        if not 0 <= self.right <= 1:
            raise ValueError(f"right={self.right}: give a share between 0 and 1")

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return words with their answers."""
        return [f"{prompt.text}{prompt.answer}" for prompt in self.task.train()[:count]]

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` demonstrations on the words to train on."""
        prompts = self.task.train()

        def make(index: int) -> Document:
            prompt = prompts[index % len(prompts)]
            others = other_manners(prompt.answer[::-1])
            text = others[key(seed, "manner", 0, index) % len(others)]
            if chosen(self.right, seed, "right", index):
                text = prompt.answer
            return written(lm, prompt, text)

        return Made(count, make)
