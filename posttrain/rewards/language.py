"""Whether a completion reasons in one language, told by the script it is written in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from launch.spelling import nearest
from posttrain.rewards.base import Sample

__all__ = ["SCRIPTS", "LanguageConsistency", "reasoning", "words_by_script"]

SCRIPTS: dict[str, frozenset[str]] = {
    "arabic": frozenset({"ARABIC"}),
    "cyrillic": frozenset({"CYRILLIC"}),
    "devanagari": frozenset({"DEVANAGARI"}),
    "greek": frozenset({"GREEK"}),
    "han": frozenset({"CJK"}),
    "hangul": frozenset({"HANGUL"}),
    "hebrew": frozenset({"HEBREW"}),
    "japanese": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "latin": frozenset({"LATIN"}),
    "thai": frozenset({"THAI"}),
}
"""Scripts by name, each as the first words of its characters' Unicode names."""

_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI"})
"""Written without spaces between words: each character counts as a word."""


@dataclass(frozen=True)
class LanguageConsistency:
    """Share of the reasoning's words in the target script (DeepSeek-R1, arXiv:2501.12948, 2.3.2).

    The reasoning is what stands inside ``<think>``. Numbers and signs are no words; reasoning
    without any word gets 0, so that there is nothing to gain by leaving it out. A script is not a
    language: English and French are both ``"latin"``.

    >>> both = Sample(prompt="", completion="<think>add 三 and four</think>4", answer="4")
    >>> LanguageConsistency("latin")([both])
    tensor([0.7500])
    """

    script: str
    """One of ``SCRIPTS``, such as ``"latin"`` or ``"han"``."""

    def __post_init__(self) -> None:
        if self.script not in SCRIPTS:
            near = nearest(str(self.script), SCRIPTS)
            hint = f"did you mean {near}?" if near else f"expected one of {', '.join(SCRIPTS)}"
            raise ValueError(f"unknown script {self.script!r}: {hint}")

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 between 0 and 1."""
        return torch.tensor([self._share(s.completion) for s in samples], dtype=torch.float32)

    def _share(self, completion: str) -> float:
        target, words = SCRIPTS[self.script], 0
        hits = 0
        for script in words_by_script(reasoning(completion)):
            words += 1
            hits += script in target
        return hits / words if words else 0.0


def reasoning(completion: str) -> str:
    """Return what stands inside the first think element.

    The prompt may have opened it already, as R1's template does, and a completion that was cut
    off does not close it. Without either tag all of the completion is reasoning.

    >>> reasoning("<think>one more</think><answer>2</answer>")
    'one more'
    >>> reasoning("one more</think>2"), reasoning("<think>one mo"), reasoning("two")
    ('one more', 'one mo', 'two')
    """
    before, opened, after = completion.partition("<think>")
    inside = after if opened and "</think>" not in before else completion
    return inside.partition("</think>")[0]


def words_by_script(text: str) -> Iterator[str]:
    """Yield the script of each word, in order and in linear time.

    A word is a run of letters of one script; where words are not spaced, it is one letter.

    >>> list(words_by_script("Add 3 和四, ok"))
    ['LATIN', 'CJK', 'CJK', 'LATIN']
    """
    previous = ""
    for character in text:
        script = _script(character)
        if script == "MARK":  # an accent belongs to the letter before it
            continue
        if script and (script != previous or script in _UNSPACED):
            yield script
        previous = script


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """Return the script of a letter, ``"MARK"`` for what combines with one, else ``""``."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return "MARK"
    if category[0] != "L":
        return ""
    first, _, rest = unicodedata.name(character, "UNKNOWN").partition(" ")
    # Such as FULLWIDTH LATIN CAPITAL LETTER A and HALFWIDTH KATAKANA LETTER A.
    return rest.partition(" ")[0] if first in ("FULLWIDTH", "HALFWIDTH") else first
