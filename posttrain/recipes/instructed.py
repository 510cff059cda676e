"""Pairs of answers to instructions, of which one breaks a constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.data.instruction_pairs import InstructionPair, instruction_pairs
from posttrain.data.preferences import Pair
from posttrain.data.tasks import Instructions
from posttrain.models import LanguageModel
from posttrain.recipes.replies import written
from posttrain.recipes.worked import Made

__all__ = ["InstructionPairs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionPairs:
    """Pairs of ``instruction_pairs``: the rejected answer breaks one constraint of its request."""

    task: Instructions = field(default_factory=Instructions)
    count: int = 2_000
    """Requests that pairs are made for."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count}: give at least 1")

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return requests with both of their answers."""
        made = instruction_pairs(self.task.train()[: min(count, self.count)], seed=0)
        asked = [[m["content"] for m in pair.prompt.messages or ()] for pair in made]
        return [
            "\n".join([*messages, pair.chosen, pair.rejected])
            for messages, pair in zip(asked, made, strict=True)
        ]

    def pairs(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Pair]:
        """Return a pair for each request; every epoch goes through them all."""
        return encoded(lm, instruction_pairs(self.task.train()[: self.count], seed=seed))

    def heldout(self, lm: LanguageModel) -> Sequence[Pair]:
        """Return a pair for each request that the task holds out."""
        return encoded(lm, instruction_pairs(self.task.heldout(), seed=0))


def encoded(lm: LanguageModel, made: Sequence[InstructionPair]) -> Sequence[Pair]:
    """Return pairs as documents, encoded when they are asked for."""

    def make(index: int) -> Pair:
        pair = made[index]
        return written(lm, pair.prompt, pair.chosen), written(lm, pair.prompt, pair.rejected)

    return Made(len(made), make)
