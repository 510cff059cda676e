"""Rejection sampling: which of a model's completions become training data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from launch.spelling import nearest
from launch.streams import key
from posttrain.rewards.base import Sample
from posttrain.rewards.language import SCRIPTS, words_by_script

__all__ = ["Filter", "OneScript", "Selection", "Within", "merge", "select"]

_TAG = re.compile(r"</?(think|answer)>")


class Filter(Protocol):
    """Looks at a right completion and says whether it is fit to be learnt from."""

    @property
    def reason(self) -> str:
        """What completions that it drops are counted as, such as ``"mixed language"``."""
        ...

    def __call__(self, sample: Sample, /) -> bool:
        """Return True to keep the completion."""
        ...


@dataclass(frozen=True, slots=True)
class OneScript:
    """Keeps what is written in one script; DeepSeek-R1 drops thoughts in mixed languages.

    Numbers, signs and the tags of the answer format are no words; a completion without any word
    mixes nothing, so it stays.

    >>> keep = OneScript("latin")
    >>> [keep(Sample(prompt="", completion=text, answer="")) for text in ("so 4", "so 四", "2+2=4")]
    [True, False, True]
    """

    script: str
    """One of ``posttrain.rewards.language.SCRIPTS``, such as ``"latin"`` or ``"han"``."""
    least: float = 1.0
    """Least share of words in the script."""

    def __post_init__(self) -> None:
        if self.script not in SCRIPTS:
            near = nearest(str(self.script), SCRIPTS)
            hint = f"did you mean {near}?" if near else f"expected one of {', '.join(SCRIPTS)}"
            raise ValueError(f"unknown script {self.script!r}: {hint}")
        if not 0 < self.least <= 1:
            raise ValueError(f"least={self.least}: give a share above 0, at most 1")

    @property
    def reason(self) -> str:
        """``"mixed language"``."""
        return "mixed language"

    def __call__(self, sample: Sample, /) -> bool:
        """Return whether the whole completion keeps to the script."""
        words = list(words_by_script(_TAG.sub(" ", sample.completion)))
        hits = sum(word in SCRIPTS[self.script] for word in words)
        return hits >= self.least * len(words)


@dataclass(frozen=True, slots=True)
class Within:
    """Keeps completions of at most so many tokens, the stop token included.

    >>> Within(2)(Sample(prompt="", completion="4", answer="4", tokens=(7, 8, 9)))
    False
    """

    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: a completion has at least one token")

    @property
    def reason(self) -> str:
        """``"too long"``."""
        return "too long"

    def __call__(self, sample: Sample, /) -> bool:
        """Return whether the completion is short enough."""
        return len(sample.tokens) <= self.max_tokens


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept, in order of the samples, and what became of the rest."""

    kept: tuple[int, ...]
    """Indices of the samples."""
    counts: Mapping[str, int]
    """``sampled``, what was dropped by reason, ``kept``; the parts add up to ``sampled``."""


def select(
    samples: Sequence[Sample],
    scores: Tensor | Sequence[float],
    *,
    most_per_prompt: int,
    seed: int,
    keep: Sequence[Filter] = (),
    right: float = 1.0,
) -> Selection:
    """Return the right, distinct completions, at most ``most_per_prompt`` of each prompt.

    DeepSeek-R1's rejection sampling (Guo et al. 2025, arXiv:2501.12948, section 2.3.3). A sample
    is dropped for the first of these reasons: ``truncated`` (it did not stop by itself), ``wrong``
    (its score is below ``right``), ``empty`` (no text), the filters in their order, ``duplicate``
    (a sample before it has the same prompt and the same words), ``over cap``.

    Which of a prompt's completions stay under the cap follows from the seed and their texts alone:
    neither the order of the samples, nor the other prompts, nor how the samples are divided into
    calls (``merge``) changes it.

    Args:
        samples: Of any prompts, which their text tells apart.
        scores: ``(B,)``, one for each sample.
        most_per_prompt: The cap.
        seed: Of the choice under the cap.
        keep: What a right completion has to pass besides.
        right: Least score of a right completion.

    Raises:
        ValueError: The scores do not match the samples, or the cap is below 1.
    """
    marks = scores.tolist() if isinstance(scores, Tensor) else [float(x) for x in scores]
    if len(marks) != len(samples) or any(isinstance(mark, list) for mark in marks):
        raise ValueError(
            f"got {len(samples)} samples, but scores of {len(marks)}: expected one number for each"
        )
    if most_per_prompt < 1:
        raise ValueError(f"most_per_prompt={most_per_prompt}: give at least 1")
    counts = Counter({"sampled": len(samples), "truncated": 0, "wrong": 0, "empty": 0})
    counts.update({name.reason: 0 for name in keep} | {"duplicate": 0, "over cap": 0})
    by_prompt: dict[str, dict[str, int]] = {}
    for index, (sample, mark) in enumerate(zip(samples, marks, strict=True)):
        reason = _unfit(sample, mark >= right, keep)
        alike = by_prompt.setdefault(sample.prompt, {})
        text = " ".join(sample.completion.split())
        if reason is None and text in alike:
            reason = "duplicate"
        if reason is None:
            alike[text] = index
        else:
            counts[reason] += 1
    kept: list[int] = []
    for prompt, alike in by_prompt.items():
        draws = {text: key(seed, f"rejection/{prompt}/{text}") for text in alike}
        stay = sorted(alike, key=lambda text: (draws[text], text))[:most_per_prompt]
        counts["over cap"] += len(alike) - len(stay)
        kept += [alike[text] for text in stay]
    counts["kept"] = len(kept)
    return Selection(tuple(sorted(kept)), dict(counts))


def merge(first: Mapping[str, int], then: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of samples that were selected in parts and once more together.

    Args:
        first: The sum of the counts of the parts.
        then: Of the selection among all that the parts kept.

    >>> merge({"sampled": 9, "wrong": 2, "kept": 7}, {"sampled": 7, "over cap": 3, "kept": 4})
    {'sampled': 9, 'wrong': 2, 'kept': 4, 'over cap': 3}
    """
    names = dict.fromkeys([*first, *then])
    total = {name: first.get(name, 0) + then.get(name, 0) for name in names}
    return total | {"sampled": first["sampled"], "kept": then["kept"]}


def _unfit(sample: Sample, is_right: bool, keep: Sequence[Filter]) -> str | None:
    """Return why a sample is no training data by itself; None if it is."""
    if sample.finish_reason == "length":
        return "truncated"
    if not is_right:
        return "wrong"
    if not sample.completion.strip():
        return "empty"
    return next((passes.reason for passes in keep if not passes(sample)), None)
