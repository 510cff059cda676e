r"""Whether a completion's final answer is the right one.

The answer stands, after the last ``</think>``, in the last closed ``<answer>`` element, and in it
(or, without one, in that text) in the last closed ``\boxed{}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.rewards.base import Sample
from posttrain.rewards.judge import Verdict, judge_for
from posttrain.rewards.rational import number_as_latex, read_number

__all__ = ["AnswerReward", "answers_equal", "compare_answers", "extract_answer"]

_ANSWER_TAG = re.compile(r"<(/?)answer>")
_BRACE = re.compile(r"(?P<slashes>\\++)(?P<boxed>boxed\{)?|(?P<brace>[{}])")
_MATHEMATICAL = re.compile(r"[0-9\\^_{}=+*/<>|()\[\]%$]")
_OWN_DELIMITERS = re.compile(r"\$|\\\(|\\\[|\\boxed|\*\*")


@dataclass
class AnswerReward:
    """1 where the completion's answer equals the gold answer, else 0.

    An answer that takes longer to judge than ``seconds`` counts as wrong.
    """

    seconds: float = 5.0
    """Wall-clock limit of one comparison, from when a child process is ready for it."""
    timeouts: int = field(default=0, init=False, compare=False, repr=False)
    """Samples that hit the limit so far."""

    def __post_init__(self) -> None:
        _check_seconds(self.seconds)

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones."""
        rewards = torch.zeros(len(samples), dtype=torch.float32)
        found = [(row, extract_answer(sample.completion)) for row, sample in enumerate(samples)]
        rows = [(row, answer) for row, answer in found if answer is not None]
        pairs = [(answer, samples[row].answer) for row, answer in rows]
        verdicts = compare_answers(pairs, seconds=self.seconds)
        self.timeouts += verdicts.count(Verdict.TIMEOUT)
        for (row, _), verdict in zip(rows, verdicts, strict=True):
            rewards[row] = verdict is Verdict.EQUAL
        return rewards


def extract_answer(text: str) -> str | None:
    r"""Return the final answer in ``text``, stripped; None if there is none. Linear time.

    An ``<answer>`` reaches to the next ``</answer>``, and a later ``<answer>`` before that begins
    anew; of nested boxes the inner one counts. What is not closed is not there.

    >>> extract_answer(r"<think>\boxed{1}</think> so <answer>it is \boxed{\frac{1}{2}}</answer>")
    '\\frac{1}{2}'
    >>> extract_answer("<answer>3</answer> or <answer>4") == "3"
    True
    """
    text = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    element = _last_element(text)
    boxed = _last_boxed(text if element is None else element)
    answer = element if boxed is None else boxed
    return None if answer is None else answer.strip()


def answers_equal(answer: str, gold: str, *, seconds: float = 5.0) -> bool:
    r"""Tell whether two answers mean the same; False where that takes longer than ``seconds``.

    Two numbers are compared exactly; anything else as math-verify does, or as text. For many
    pairs use ``compare_answers``, which judges them side by side.

    >>> answers_equal("1,000", "1e3"), answers_equal("0.3333", "1/3")
    (True, False)
    """
    return compare_answers([(answer, gold)], seconds=seconds) == [Verdict.EQUAL]


def compare_answers(pairs: Sequence[tuple[str, str]], *, seconds: float = 5.0) -> list[Verdict]:
    """Compare (answer, gold) pairs; only those that are neither text nor numbers cost a process.

    Equal pairs are judged once. The verdicts are ``EQUAL``, ``DIFFERENT``, ``TIMEOUT`` and
    ``CRASH``; the last two are nobody's fault but count as wrong.
    """
    _check_seconds(seconds)
    verdicts: dict[tuple[str, str], Verdict | None] = {}
    for pair in pairs:
        if pair not in verdicts:
            verdicts[pair] = _compare_quickly(*pair)
    hard = [pair for pair, verdict in verdicts.items() if verdict is None]
    if hard:
        requests = [_as_mathematics(*pair) for pair in hard]
        verdicts.update(zip(hard, judge_for("math")(requests, seconds=seconds), strict=True))
    return [verdicts[pair] or Verdict.DIFFERENT for pair in pairs]


def _compare_quickly(answer: str, gold: str) -> Verdict | None:
    """Compare what needs no computer algebra; None for the rest."""
    answer, gold = answer.strip(), gold.strip()
    if answer == gold:
        return Verdict.EQUAL
    if not answer or not gold:
        return Verdict.DIFFERENT
    left, right = read_number(answer), read_number(gold)
    if left is not None and right is not None:
        return Verdict.EQUAL if left.equals(right) else Verdict.DIFFERENT
    words = max(len(answer), len(gold)) > 1
    if words and not _MATHEMATICAL.search(answer) and not _MATHEMATICAL.search(gold):
        return Verdict.DIFFERENT  # else "listen" and "silent" are equal products of letters
    return None


def _as_mathematics(answer: str, gold: str) -> tuple[str, str]:
    """Write both so that math-verify reads all of the text, and reads numbers as we do."""
    return _delimited(answer.strip()), _delimited(gold.strip())


def _delimited(text: str) -> str:
    if read_number(text) is not None:
        return f"${number_as_latex(text)}$"
    return text if _OWN_DELIMITERS.search(text) else f"${text}$"


def _last_element(text: str) -> str | None:
    """Return what stands in the last closed answer element."""
    start, element = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            element, start = (start, tag.start()), None
    return None if element is None else text[slice(*element)]


def _last_boxed(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}`` that is closed; ``\{`` is no brace."""
    opened: list[tuple[bool, int]] = []
    last: tuple[int, int] | None = None
    escaped = -1
    for token in _BRACE.finditer(text):
        if token["slashes"]:
            if token["boxed"]:
                opened.append((True, token.end()))
            elif len(token["slashes"]) % 2:
                escaped = token.end()
        elif token.start() == escaped:
            continue
        elif token["brace"] == "{":
            opened.append((False, token.end()))
        elif opened:
            boxed, start = opened.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, token.start())
    return None if last is None else text[slice(*last)]


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"seconds={seconds}: a comparison needs a limit that is positive and finite, such as 5"
        )
