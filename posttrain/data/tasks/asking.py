"""How a problem is put to the model, and which problems are held out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, overload

from launch.errors import UsageError
from launch.spelling import did_you_mean
from posttrain.data.tasks.base import Prompt

__all__ = [
    "REASONING",
    "Form",
    "Lazily",
    "ask",
    "check_sizes",
    "fill",
    "final_answer",
    "in_tags",
    "is_heldout",
]

Form = Literal["chat", "text"]
"""``"chat"``: messages for a chat template; ``"text"``: plain text that a base model continues."""

REASONING = (
    "Work the problem out before you answer. Write all of your reasoning between <think> and "
    "</think>, then write only the final answer between <answer> and </answer>, and nothing else."
)
"""Asks for the format that ``AnswerReward`` and ``FormatReward`` pay for, in our own words; the
idea is DeepSeek-R1-Zero's (Guo et al. 2025, arXiv:2501.12948, table 1)."""

_NAME = re.compile(r"\{(\w+)\}")


def fill(template: str, values: Mapping[str, object], where: str) -> str:
    """Put values in place of their names in braces; other braces stay.

    >>> fill("{question} = {?}", {"question": "1 + 1"}, "the task")
    '1 + 1 = {?}'

    Raises:
        UsageError: A name has no value.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            known = ", ".join(map(str, values))
            near = did_you_mean(name, map(str, values))
            raise UsageError(f"{where}: nothing is called {{{name}}}{near} (there are: {known})")
        return str(values[name])

    return _NAME.sub(value, template)


def ask(
    text: str, answer: str, *, system: str | None, form: Form, metadata: Mapping[str, Any]
) -> Prompt:
    """Return a problem as a chat, or as text with the system's words in a paragraph before it."""
    if form == "chat":
        user = {"role": "user", "content": text}
        first = () if system is None else ({"role": "system", "content": system},)
        return Prompt(messages=(*first, user), answer=answer, metadata=metadata)
    whole = text if system is None else f"{system}\n\n{text}"
    return Prompt(text=whole, answer=answer, metadata=metadata)


def final_answer(text: str) -> str:
    r"""Return what stands after the last ``####``, as in GSM8K; without one, all of it.

    >>> final_answer("6 * 7 = 42\n#### 42")
    '42'
    """
    return text.rpartition("####")[2].strip()


def is_heldout(question: str, share: float) -> bool:
    """Decide by a hash of the question, so that it does not depend on what else there is.

    >>> [is_heldout(f"{i} + {i}", 0.25) for i in range(6)]
    [True, True, False, False, False, False]
    """
    digest = blake2b(question.encode(errors="surrogatepass"), digest_size=8, key=b"held out")
    return int.from_bytes(digest.digest(), "big") < share * 2**64


def in_tags(answer: str, thought: str = "") -> str:
    r"""Return a whole reply, in the format that ``FormatReward`` pays for.

    >>> in_tags("4", "2 + 2 = 4")
    '<think>2 + 2 = 4</think>\n<answer>4</answer>'
    """
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


def check_sizes(size: int, heldout_size: int) -> None:
    """Raise ValueError unless there is a problem to train on, and no negative number held out."""
    if size < 1 or heldout_size < 0:
        raise ValueError(
            f"size={size}, heldout_size={heldout_size}: expected at least 1 problem "
            "to train on and no negative number held out"
        )


@dataclass(frozen=True, slots=True)
class Lazily(Sequence[Prompt]):
    """A sequence that makes its prompts when they are asked for."""

    size: int
    make: Callable[[int], Prompt]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        places = range(self.size)[index]
        if isinstance(places, range):
            return Lazily(len(places), lambda i: self.make(places[i]))
        return self.make(places)
