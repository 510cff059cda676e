"""Demonstrations for sums: worked step by step inside ``<think>``, or answered at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from launch.streams import key
from posttrain.data.chat import encode_prompt
from posttrain.data.packing import Document
from posttrain.data.tasks.asking import in_tags
from posttrain.data.tasks.base import Prompt
from posttrain.models import LanguageModel

__all__ = ["Made", "Mixture", "demonstrations", "raw_lines", "response", "worked_sum"]

T = TypeVar("T")


def worked_sum(expression: str) -> str:
    r"""Return the sum worked from left to right, a line for each operation.

    >>> worked_sum("8 - 0 - 7 + 13")
    '8 - 0 = 8\n8 - 7 = 1\n1 + 13 = 14'
    """
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {after}")
        total = after
    return "\n".join(lines)


def response(prompt: Prompt, *, reasons: bool) -> str:
    """Return a right response; both kinds are well formed, so only accuracy tells them apart."""
    thought = worked_sum(str(prompt.metadata["expression"])) if reasons else ""
    return in_tags(prompt.answer, thought)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Which demonstrations reason: all of the first part, and a share of the rest."""

    first: float = 0.75
    """Share of the documents that come first; every one of them reasons."""
    reasoning: float = 0.35
    """Share that reasons among those that follow."""

    def __post_init__(self) -> None:
        for name in ("first", "reasoning"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a share between 0 and 1")


class Made(Sequence[T]):
    """``count`` documents, or pairs of them, each made when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._size, self.make = count, make

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not 0 <= index < self._size:
            raise IndexError(f"document {index} of {self._size}")
        return self.make(index)


def chosen(share: float, seed: int, name: str, index: int) -> bool:
    """Return whether item ``index`` is among a share of all; keyed, so that it always is."""
    return random.Random(key(seed, name, 0, index)).random() < share


def demonstrations(
    prompts: Sequence[Prompt], lm: LanguageModel, mixture: Mixture, count: int, seed: int
) -> Sequence[Document]:
    """Return ``count`` chats, in the order of training, of which the mixture's share reasons.

    They equal ``encode_chat`` of the same turns; prompt and turn are encoded apart, for speed.

    Args:
        prompts: Problems whose metadata has the ``expression``.
        lm: Its tokenizer and chat template.
        mixture: Which of them reason.
        count: How many.
        seed: Which of the mixed part reason.
    """

    def make(index: int) -> Document:
        prompt = prompts[index % len(prompts)]
        first = index < mixture.first * count
        reasons = first or chosen(mixture.reasoning, seed, "reasons", index)
        start = encode_prompt(lm.tokenizer, prompt)
        rest = continuation(lm, response(prompt, reasons=reasons))
        return Document(tokens=start + rest, mask=[False] * len(start) + [True] * len(rest))

    return Made(count, make)


def continuation(lm: LanguageModel, text: str) -> list[int]:
    """Return the tokens of a turn as the model itself would write it, stop token included."""
    return [*lm.tokenizer.encode(text, add_special_tokens=False), lm.stop_tokens[0]]


def raw_lines(
    prompts: Sequence[Prompt], lm: LanguageModel, tagged: float, count: int, seed: int
) -> Sequence[Document]:
    """Return ``count`` texts of worked lines for a base model, a share of them in tags.

    Every token counts, the prompt's too, as in pretraining. Prompt and rest are encoded apart, as
    they are when the model generates.
    """

    def make(index: int) -> Document:
        prompt = prompts[index % len(prompts)]
        thought = worked_sum(str(prompt.metadata["expression"]))
        text = f"\n{thought}\n{prompt.answer}"
        if chosen(tagged, seed, "tagged", index):
            text = response(prompt, reasons=True)
        tokens = encode_prompt(lm.tokenizer, prompt) + continuation(lm, text)
        return Document(tokens=tokens, mask=[True] * len(tokens))

    return Made(count, make)
