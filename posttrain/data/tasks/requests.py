"""Requests about a thing, with a courteous reply and one that is curt or off the point."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launch import streams
from posttrain.data.tasks.asking import Lazily, ask, check_sizes, in_tags
from posttrain.data.tasks.base import Prompt
from posttrain.data.tasks.words import ADJECTIVES, NAMES, THINGS
from posttrain.rewards import Reward, Sample, parse_reward
from posttrain.rewards.answer import extract_answer

__all__ = ["HelpfulReward", "Requests"]

_OPENINGS = ("Gladly", "With pleasure", "Of course")
_COURTEOUS = (
    "Gladly. The {adjective} {thing} is here for you.",
    "With pleasure. Here is the {adjective} {thing}.",
    "Of course! The {adjective} {thing} is yours to see.",
)
_CURT = ("No idea.", "Look for it yourself.", "Why ask me?")
_TRAIN = (
    "{name} asks: tell me about the {adjective} {thing}.",
    "Please tell {name} of the {adjective} {thing}.",
    "Say a word on the {adjective} {thing} for {name}.",
    "{name} wants to see the {adjective} {thing}.",
    "I am {name}. Show me the {adjective} {thing}.",
    "{name} has a question about the {adjective} {thing}.",
    "Help {name} with the {adjective} {thing}.",
    "Find the {adjective} {thing} for {name}.",
    "Where is the {adjective} {thing} of {name}?",
    "{name} looks for the {adjective} {thing}.",
)
_HELDOUT = (
    "{name} asks for the {adjective} {thing}.",
    "Please show {name} the {adjective} {thing}.",
    "I am {name}. Where is the {adjective} {thing}?",
)


@dataclass(frozen=True, slots=True)
class HelpfulReward:
    """1 where the answer is courteous and to the point, else 0.

    It is so if it begins as a courteous reply does and names each word of the gold answer.

    >>> said = "<answer>Gladly. Here is the red kite.</answer>"
    >>> HelpfulReward()([Sample(prompt="", completion=said, answer="red kite")])
    tensor([1.])
    """

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones."""
        return torch.tensor([float(_helps(s)) for s in samples], dtype=torch.float32)


def _helps(sample: Sample) -> bool:
    said = extract_answer(sample.completion) or ""
    return said.startswith(_OPENINGS) and set(sample.answer.split()) <= set(
        re.findall(r"\w+", said)
    )


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests about one of many things; held-out ones are made in other wordings.

    The metadata has two whole replies: ``good`` is courteous and names the thing, ``bad`` is curt,
    or courteous about another thing.

    >>> prompt = Requests().train()[0]
    >>> prompt.messages[0]["content"], prompt.answer
    ('I am Mary. Show me the large rope.', 'large rope')
    """

    size: int = 100_000
    """Prompts to train on; i is made from ``(seed, i)`` alone."""
    heldout_size: int = 512
    seed: int = 0
    reward: Reward = field(default_factory=HelpfulReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        check_sizes(self.size, self.heldout_size)

    def train(self) -> Sequence[Prompt]:
        """Return ``size`` prompts, made when they are asked for."""
        return Lazily(self.size, lambda index: self._prompt("train", index, _TRAIN))

    def heldout(self) -> Sequence[Prompt]:
        """Return ``heldout_size`` prompts in wordings that training never uses."""
        return Lazily(self.heldout_size, lambda index: self._prompt("heldout", index, _HELDOUT))

    def _prompt(self, part: str, index: int, asked: Sequence[str]) -> Prompt:
        draws = random.Random(streams.key(self.seed, f"requests/{part}", 0, index))
        name, adjective = draws.choice(NAMES), draws.choice(ADJECTIVES)
        thing, other = draws.sample(THINGS, 2)
        wording, phrasing = draws.choice(asked), draws.choice(_COURTEOUS)
        off = draws.random() < 0.5
        bad = phrasing.format(adjective=adjective, thing=other) if off else draws.choice(_CURT)
        metadata = {
            "wording": wording,
            "good": in_tags(phrasing.format(adjective=adjective, thing=thing)),
            "bad": in_tags(bad),
        }
        question = wording.format(name=name, adjective=adjective, thing=thing)
        return ask(question, f"{adjective} {thing}", system=None, form="chat", metadata=metadata)
