"""Requests with constraints that a program can check, made by a seeded generator.

The idea is IFEval's (Zhou et al. 2023, arXiv:2311.07911); the wording and the checks are our own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launch import streams
from posttrain.data.tasks.asking import Form, Lazily, ask
from posttrain.data.tasks.base import Prompt
from posttrain.data.tasks.constraints import KINDS, read_constraints, write_constraints
from posttrain.rewards.base import Sample

__all__ = ["InstructionReward", "Instructions"]

_REQUESTS = ("Write about", "Tell a story about", "Explain", "Describe", "Write a letter about")
# fmt: off
_SUBJECTS = (
    "a lighthouse", "the sea", "a lost key", "bread", "the moon", "winter", "a bridge",
    "a small garden", "rain", "the library", "a train journey", "honey", "an old clock",
    "the desert", "a kite", "snow", "a market", "paper boats", "the wind", "a violin", "sleep",
    "maps", "a river", "the night sky", "tea", "a broken window", "mountains", "ants",
    "a puppet", "salt",
)
# fmt: on
_HELDOUT_SUBJECTS = ("a harbour", "ice", "a candle", "the forest", "a letter", "clouds")
_WORDS = ("light", "slowly", "because", "blue", "always", "stone", "warm", "never", "small", "home")
_ENDS = ("that is all", "and so it was", "thank you", "the end")


@dataclass(frozen=True)
class InstructionReward:
    """1 where the answer, what stands after ``</think>``, meets every constraint, else 0."""

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones.

        Raises:
            ValueError: A sample's answer holds no constraints.
        """
        found = []
        for sample in samples:
            answer = sample.completion.rpartition("</think>")[2].strip()
            found.append(
                bool(answer) and all(c.holds(answer) for c in read_constraints(sample.answer))
            )
        return torch.tensor(found, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Instructions:
    """Requests with one to ``most`` constraints, each about something else.

    Held-out requests are about subjects that are never asked for in training.

    >>> Instructions(form="text").train()[1].text
    'Tell a story about rain. Use at least 70 words.'
    """

    size: int = 20_000
    """Prompts to train on; i is made from ``(seed, i)`` alone."""
    heldout_size: int = 256
    most: int = 3
    """Constraints of a request at the most."""
    seed: int = 0
    system: str | None = None
    form: Form = "chat"

    def __post_init__(self) -> None:
        topics = len({kind.topic for kind in KINDS})
        if not 1 <= self.most <= topics:
            raise ValueError(f"most={self.most}: expected 1 to {topics}, one a topic")
        if self.size < 1 or self.heldout_size < 0:
            raise ValueError(
                f"size={self.size}, heldout_size={self.heldout_size}: expected at least 1 prompt "
                "to train on and no negative number held out"
            )
        if self.form not in ("chat", "text"):
            raise ValueError(f"form={self.form!r}: expected chat or text")

    @property
    def reward(self) -> InstructionReward:
        """Pays what meets all constraints."""
        return InstructionReward()

    def train(self) -> Sequence[Prompt]:
        """Return ``size`` prompts, made when they are asked for."""
        return Lazily(self.size, lambda index: self._prompt("train", index, _SUBJECTS))

    def heldout(self) -> Sequence[Prompt]:
        """Return ``heldout_size`` prompts about other subjects."""
        return Lazily(
            self.heldout_size, lambda index: self._prompt("heldout", index, _HELDOUT_SUBJECTS)
        )

    def _prompt(self, part: str, index: int, subjects: Sequence[str]) -> Prompt:
        draws = random.Random(streams.key(self.seed, f"instructions/{part}", 0, index))
        request = f"{draws.choice(_REQUESTS)} {draws.choice(subjects)}."
        by_topic: dict[str, list[type[Any]]] = {}
        for kind in KINDS:
            by_topic.setdefault(kind.topic, []).append(kind)
        topics = draws.sample(list(by_topic), draws.randint(1, self.most))
        word, avoided = draws.sample(_WORDS, 2)
        values = _values(draws, word, avoided)
        chosen = []
        for topic in topics:
            kind = draws.choice(by_topic[topic])
            chosen.append(kind(**values[kind.__name__]))
        text = " ".join([request, *(made.text() for made in chosen)])
        metadata = {"constraints": len(chosen)}
        return ask(
            text, write_constraints(chosen), system=self.system, form=self.form, metadata=metadata
        )


def _values(draws: random.Random, word: str, avoided: str) -> Mapping[str, Mapping[str, object]]:
    """Draw the settings of each kind; all are drawn, so that one more kind moves no other."""
    return {
        "AtLeastWords": {"count": draws.randrange(20, 101, 10)},
        "AtMostWords": {"count": draws.randrange(20, 101, 4)},
        "Includes": {"word": word, "count": draws.randint(1, 3)},
        "Avoids": {"word": avoided},
        "NoCommas": {},
        "InCase": {"capital": draws.random() < 0.5},
        "Bullets": {"count": draws.randint(2, 5)},
        "Paragraphs": {"count": draws.randint(2, 4)},
        "EndsWith": {"words": draws.choice(_ENDS)},
    }
