# ruff: noqa: RUF001 - the Russian templates are meant to be Russian
"""Sums told in words, in English or in a second language, made by a seeded generator.

A second language beside the first is what a reward for keeping to the language needs: DeepSeek-R1
pays for the share of words in the language of the question (Guo et al. 2025, arXiv:2501.12948,
section 2.3.2). Russian differs from English in its script, so that a word's language can be seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from launch import streams
from posttrain.data.tasks.asking import REASONING, Form, Lazily, ask, check_sizes
from posttrain.data.tasks.base import Prompt
from posttrain.rewards import AnswerReward, Reward, parse_reward

__all__ = ["Language", "WordProblems"]

Language = Literal["english", "russian"]


@dataclass(frozen=True, slots=True)
class _Tales:
    """What a language tells: (text, sign) with {a}, {b} and {things} in braces."""

    system: str
    things: tuple[str, ...]
    train: tuple[tuple[str, str], ...]
    heldout: tuple[tuple[str, str], ...]


_ENGLISH = _Tales(
    system=REASONING,
    things=(
        *("apples", "books", "coins", "pencils", "stamps", "balloons", "sweets", "nuts"),
        *("tickets", "shells"),
    ),
    train=(
        ("A basket held {a} {things}. Then {b} more were put in. How many are in it now?", "+"),
        ("Anna had {a} {things}. She gave {b} to her brother. How many has she left?", "-"),
        ("A box holds {a} {things}. There are {b} such boxes. How many {things} is that?", "*"),
        ("A shop sold {a} {things} before noon and {b} after it. How many in all?", "+"),
        ("There were {a} {things} in a store. {b} were taken away. How many remain?", "-"),
        ("Each pupil brought {a} {things}. There were {b} pupils. How many {things}?", "*"),
    ),
    heldout=(
        ("Peter found {a} {things}, and Mary {b} more than he. How many did Mary find?", "+"),
        ("A sack has {a} {things} in it, of which {b} fall out. How many stay?", "-"),
        ("Tom buys {a} {things} a day for {b} days. How many does he buy?", "*"),
    ),
)
# Counts stand behind a colon, so that no noun has to agree with its number.
_RUSSIAN = _Tales(
    system=(
        "Реши задачу, прежде чем отвечать. Запиши все рассуждения по-русски между <think> и "
        "</think>, а затем только ответ между <answer> и </answer>, и больше ничего."
    ),
    things=(
        *("яблок", "книг", "монет", "карандашей", "марок", "шаров", "конфет", "орехов"),
        *("билетов", "ракушек"),
    ),
    train=(
        ("В корзине было {things}: {a}. Добавили ещё {b}. Сколько {things} стало?", "+"),
        ("У Анны было {things}: {a}. Она отдала брату {b}. Сколько {things} осталось?", "-"),
        ("В каждой коробке {things}: {a}. Коробок: {b}. Сколько всего {things}?", "*"),
        ("Утром продали {things}: {a}, а вечером ещё {b}. Сколько {things} продали?", "+"),
        ("На складе было {things}: {a}. Увезли {b}. Сколько {things} осталось?", "-"),
        ("Каждый ученик принёс {things}: {a}. Учеников: {b}. Сколько {things} принесли?", "*"),
    ),
    heldout=(
        ("Пётр нашёл {things}: {a}, а Мария на {b} больше. Сколько {things} нашла Мария?", "+"),
        ("В мешке {things}: {a}. Из него взяли {b}. Сколько {things} ещё в мешке?", "-"),
        ("Каждый день покупали {things}: {a}. Дней: {b}. Сколько всего {things} купили?", "*"),
    ),
)
_TALES: dict[str, _Tales] = {"english": _ENGLISH, "russian": _RUSSIAN}


@dataclass(frozen=True, slots=True)
class WordProblems:
    """One sum, difference or product a problem; held-out problems are told in other words.

    >>> prompt = WordProblems(form="text", system=None).train()[0]
    >>> prompt.text, prompt.answer
    ('A basket held 769 nuts. Then 15 more were put in. How many are in it now?', '784')
    """

    language: Language = "english"
    size: int = 20_000
    """Prompts to train on; i is made from ``(seed, i)`` alone."""
    heldout_size: int = 256
    largest: int = 999
    """Largest first number; the second has a digit less, or one."""
    seed: int = 0
    system: str | None = ""
    """How to answer; the empty text is the language's own, null is nothing."""
    form: Form = "chat"
    reward: Reward = field(default_factory=AnswerReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            known = " or ".join(get_args(Language))
            raise ValueError(f"language={self.language!r}: expected {known}")
        if self.form not in ("chat", "text"):
            raise ValueError(f"form={self.form!r}: expected chat or text")
        check_sizes(self.size, self.heldout_size)
        if self.largest < 20:
            raise ValueError(f"largest={self.largest}: give at least 20, or there are few problems")

    def train(self) -> Sequence[Prompt]:
        """Return ``size`` prompts, made when they are asked for."""
        told = _TALES[self.language].train
        return Lazily(self.size, lambda index: self._prompt("train", index, told))

    def heldout(self) -> Sequence[Prompt]:
        """Return ``heldout_size`` prompts in words that training never uses."""
        told = _TALES[self.language].heldout
        return Lazily(self.heldout_size, lambda index: self._prompt("heldout", index, told))

    def _prompt(self, part: str, index: int, told: Sequence[tuple[str, str]]) -> Prompt:
        tales = _TALES[self.language]
        draws = random.Random(streams.key(self.seed, f"word problems/{part}", 0, index))
        text, sign = draws.choice(told)
        b = draws.randint(2, max(9, self.largest // 10))
        a = draws.randint(b + 1, self.largest)
        answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
        question = text.format(a=a, b=b, things=draws.choice(tales.things))
        system = tales.system if self.system == "" else self.system
        metadata = {"language": self.language, "sign": sign}
        return ask(question, str(answer), system=system, form=self.form, metadata=metadata)
