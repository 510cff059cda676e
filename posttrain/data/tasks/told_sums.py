"""Chains of one-digit terms, worked step by step in the words of one of two languages.

A second language beside the first is what a reward for keeping to the language needs (DeepSeek-R1,
Guo et al. 2025, arXiv:2501.12948, section 2.3.2). Unlike the tales of ``WordProblems``, these can
be learnt by a model of some hundred thousand parameters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from launch import streams
from posttrain.data.tasks.asking import Lazily, ask, check_sizes, in_tags
from posttrain.data.tasks.base import Prompt
from posttrain.data.tasks.word_problems import Language
from posttrain.data.tasks.words import NAMES
from posttrain.rewards import AnswerReward, Reward, parse_reward

__all__ = ["ToldSums", "worked_words"]


@dataclass(frozen=True, slots=True)
class _Tongue:
    """How a language asks for a sum, and what it calls the signs."""

    plus: str
    minus: str
    gives: str
    names: tuple[str, ...]
    train: tuple[str, ...]
    heldout: tuple[str, ...]


# Names stand before a sum or not, so that sums begin at many places; a tiny model that always finds
# them in the same few would not find them in a wording that it has never seen.
_TONGUES: dict[str, _Tongue] = {
    "english": _Tongue(
        plus="plus",
        minus="minus",
        gives="is",
        names=NAMES,
        train=(
            "What is {sum}?",
            "How much is {sum}?",
            "Find the value of {sum}.",
            "Please add up {sum}.",
            "{name} asks what {sum} is.",
            "{name} wants to know how much {sum} is.",
            "Tell {name} what {sum} makes.",
            "Work out {sum} for {name}.",
            "I am {name}. Please work out {sum}.",
        ),
        heldout=(
            "{name} asks how much {sum} is.",
            "Please find the value of {sum}.",
            "Tell {name} what {sum} is.",
        ),
    ),
    "russian": _Tongue(
        plus="плюс",
        minus="минус",
        gives="будет",
        names=("Анна", "Иван", "Лев", "Мария", "Нина", "Олег", "Ольга", "Пётр"),
        train=(
            "Сколько будет {sum}?",
            "Чему равно {sum}?",
            "Найди значение {sum}.",
            "Прошу, вычисли {sum}.",
            "{name} спрашивает, сколько будет {sum}.",
            "{name} хочет знать, чему равно {sum}.",
            "{name} просит: посчитай {sum}.",
            "Меня зовут {name}. Прошу, вычисли {sum}.",
            "Посчитай, {name}, чему равно {sum}.",
        ),
        heldout=(
            "{name} спрашивает, чему равно {sum}.",
            "{name} хочет знать, сколько будет {sum}.",
            "Меня зовут {name}. Сколько будет {sum}?",
        ),
    ),
}


def worked_words(expression: str, language: Language) -> str:
    r"""Return a sum worked from left to right in words, a line for each operation.

    >>> worked_words("8 - 0 - 7 + 3", "english")
    '8 minus 0 is 8\n8 minus 7 is 1\n1 plus 3 is 4'
    >>> worked_words("2 - 5", "russian")
    '2 минус 5 будет -3'
    """
    tongue = _TONGUES[language]
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        word = tongue.plus if sign == "+" else tongue.minus
        lines.append(f"{total} {word} {term} {tongue.gives} {after}")
        total = after
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ToldSums:
    """Sums and differences of one-digit terms; held-out ones are asked for in other words.

    The metadata has the ``expression`` and two whole replies: ``good`` works the sum out in the
    task's language, ``bad`` guesses a number near the right one.

    >>> prompt = ToldSums(terms=(3, 3)).train()[0]
    >>> prompt.messages[0]["content"], prompt.answer
    ('Henry wants to know how much 9 - 8 + 7 is.', '8')
    """

    language: Language = "english"
    terms: tuple[int, int] = (4, 6)
    """Least and most terms of a sum."""
    size: int = 100_000
    """Prompts to train on; i is made from ``(seed, i)`` alone."""
    heldout_size: int = 512
    seed: int = 0
    reward: Reward = field(default_factory=AnswerReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            known = " or ".join(get_args(Language))
            raise ValueError(f"language={self.language!r}: expected {known}")
        least, most = self.terms
        if not 2 <= least <= most:
            raise ValueError(
                f"terms={self.terms}: expected the least and the most terms of a sum, at least 2"
            )
        check_sizes(self.size, self.heldout_size)

    def train(self) -> Sequence[Prompt]:
        """Return ``size`` prompts, made when they are asked for."""
        asked = _TONGUES[self.language].train
        return Lazily(self.size, lambda index: self._prompt("train", index, asked))

    def heldout(self) -> Sequence[Prompt]:
        """Return ``heldout_size`` prompts in wordings that training never uses."""
        asked = _TONGUES[self.language].heldout
        return Lazily(self.heldout_size, lambda index: self._prompt("heldout", index, asked))

    def _prompt(self, part: str, index: int, asked: Sequence[str]) -> Prompt:
        draws = random.Random(streams.key(self.seed, f"told sums/{part}", 0, index))
        numbers = [draws.randrange(10) for _ in range(draws.randint(*self.terms))]
        expression, total = str(numbers[0]), numbers[0]
        for number in numbers[1:]:
            adds = draws.random() < 0.5
            expression += f" {'+' if adds else '-'} {number}"
            total += number if adds else -number
        wording = draws.choice(asked)
        guess = total + draws.choice((-3, -2, -1, 1, 2, 3))
        metadata = {
            "expression": expression,
            "language": self.language,
            "wording": wording,
            "good": in_tags(str(total), worked_words(expression, self.language)),
            "bad": in_tags(str(guess)),
        }
        name = draws.choice(_TONGUES[self.language].names)
        question = wording.format(sum=expression, name=name)
        return ask(question, str(total), system=None, form="chat", metadata=metadata)
