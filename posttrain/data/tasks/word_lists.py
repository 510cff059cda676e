"""Lists of words, of which one is asked for by its place: questions without any reasoning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launch import streams
from posttrain.data.tasks.asking import Lazily, ask, check_sizes, in_tags
from posttrain.data.tasks.base import Prompt
from posttrain.data.tasks.words import THINGS
from posttrain.rewards import Reward, Sample, parse_reward
from posttrain.rewards.answer import extract_answer

__all__ = ["ExactWord", "WordLists"]

_PLACES = ("first", "second", "third", "last")
_WORDS = THINGS[:30]
_TRAIN = (
    "Name the {place} of: {words}.",
    "Which is the {place} word: {words}?",
    "Say the {place} one: {words}.",
    "What comes {place} here: {words}?",
    "Take the {place} of these: {words}.",
    "I need the {place} word of: {words}.",
)
_HELDOUT = (
    "Say the {place} of: {words}.",
    "Name the {place} word: {words}.",
    "Which is the {place} one here: {words}?",
)


@dataclass(frozen=True, slots=True)
class ExactWord:
    """1 where the answer is the gold word and nothing else, whatever its capitals.

    >>> said = Sample(prompt="", completion="<answer> Lamp </answer>", answer="lamp")
    >>> ExactWord()([said])
    tensor([1.])
    """

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones."""
        said = [(extract_answer(s.completion) or "").casefold() for s in samples]
        gold = [s.answer.strip().casefold() for s in samples]
        return torch.tensor([float(a == b) for a, b in zip(said, gold, strict=True)])


@dataclass(frozen=True, slots=True)
class WordLists:
    """Four different words, of which the first, second, third or last is asked for.

    Held-out lists are asked about in other wordings. The metadata has two whole replies: ``good``
    names the word, ``bad`` another of the four.

    >>> prompt = WordLists().train()[0]
    >>> prompt.messages[0]["content"], prompt.answer
    ('I need the third word of: lamp, chair, spoon, table.', 'spoon')
    """

    size: int = 100_000
    """Prompts to train on; i is made from ``(seed, i)`` alone."""
    heldout_size: int = 512
    seed: int = 0
    reward: Reward = field(default_factory=ExactWord, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        check_sizes(self.size, self.heldout_size)

    def train(self) -> Sequence[Prompt]:
        """Return ``size`` prompts, made when they are asked for."""
        return Lazily(self.size, lambda index: self._prompt("train", index, _TRAIN))

    def heldout(self) -> Sequence[Prompt]:
        """Return ``heldout_size`` prompts in wordings that training never uses."""
        return Lazily(self.heldout_size, lambda index: self._prompt("heldout", index, _HELDOUT))

    def _prompt(self, part: str, index: int, asked: Sequence[str]) -> Prompt:
        draws = random.Random(streams.key(self.seed, f"word lists/{part}", 0, index))
        words = draws.sample(_WORDS, len(_PLACES))
        place = draws.randrange(len(_PLACES))
        wording = draws.choice(asked)
        answer = words[place]
        other = draws.choice([word for word in words if word != answer])
        metadata = {"wording": wording, "good": in_tags(answer), "bad": in_tags(other)}
        question = wording.format(place=_PLACES[place], words=", ".join(words))
        return ask(question, answer, system=None, form="chat", metadata=metadata)
