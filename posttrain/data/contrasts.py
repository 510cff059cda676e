"""Pairs of a right and a wrong completion of one prompt, and older pairs mixed among new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from launch.streams import key, keys
from posttrain.data.preference_files import Preference
from posttrain.data.tasks.base import Prompt
from posttrain.rewards.base import Sample

__all__ = [
    "COUNTED",
    "Contrasts",
    "check_replay",
    "contrast",
    "contrast_row",
    "preferences_of",
    "with_replay",
]

T = TypeVar("T")

COUNTED = ("prompts", "one-sided", "pairs", "sampled", "right", "wrong", "truncated", "empty")
"""What is counted: prompts, those without a right or without a wrong completion, and pairs; all
completions, and which of them are right, wrong, cut off or without text."""


@dataclass(frozen=True, slots=True)
class Contrasts:
    """What was paired of one prompt's completions."""

    pairs: tuple[tuple[int, int], ...]
    """Indices of a right and of a wrong completion; none comes twice."""
    counts: Mapping[str, int]
    """By the names of ``COUNTED``; ``prompts`` is 1."""


def contrast(
    samples: Sequence[Sample],
    scores: Tensor | Sequence[float],
    *,
    most: int = 1,
    seed: int = 0,
    right: float = 1.0,
) -> Contrasts:
    """Pair right completions of a prompt with wrong ones.

    What was cut off is left out, since a file of preferences shows it as ended; so are empty
    completions and, on either side, all but the first of equal ones. Which of them are paired is
    keyed by seed, prompt and completion.

    >>> texts = ["4", "5", "4", "six"]
    >>> samples = [Sample(prompt="2 + 2", completion=text, answer="4") for text in texts]
    >>> found = contrast(samples, [1, 0, 1, 0], most=9)
    >>> len(found.pairs), found.pairs[0][0], found.pairs[0][1] in (1, 3)
    (1, 0, True)
    >>> found.counts["right"], found.counts["wrong"], found.counts["one-sided"]
    (2, 2, 0)

    Args:
        samples: All of one prompt.
        scores: One number each.
        most: Most pairs.
        seed: Of the choice.
        right: Least score of a right completion.
    """
    marks = [float(mark) for mark in scores]
    counts = dict.fromkeys(COUNTED, 0) | {"prompts": 1, "sampled": len(samples)}
    sides: dict[str, dict[str, int]] = {"right": {}, "wrong": {}}
    for index, (sample, mark) in enumerate(zip(samples, marks, strict=True)):
        if sample.finish_reason == "length":
            counts["truncated"] += 1
        elif not sample.completion.strip():
            counts["empty"] += 1
        else:
            side = "right" if mark >= right else "wrong"
            counts[side] += 1
            sides[side].setdefault(sample.completion, index)
    chosen, rejected = (_shuffled(samples, side, seed) for side in sides.values())
    pairs = tuple(zip(chosen, rejected, strict=False))[:most]
    one_sided = not (chosen and rejected)
    return Contrasts(pairs, counts | {"one-sided": int(one_sided), "pairs": len(pairs)})


def with_replay(new: Sequence[T], earlier: Sequence[T], *, replay: float, seed: int) -> list[T]:
    """Return ``new`` and, after it, a share of what came before it, in its order.

    The share is of the whole mix: ``replay / (1 - replay)`` times as many as there are new ones,
    rounded, or all that there are. Which they are is keyed by seed and place.

    >>> [len(with_replay("a" * 9, "b" * n, replay=0.1, seed=0)) for n in (0, 1, 5)]
    [9, 10, 10]

    Raises:
        ValueError: The share is not in [0, 1).
    """
    check_replay(replay)
    count = min(len(earlier), round(len(new) * replay / (1 - replay)))
    draws = keys(seed, "replay", 0, range(len(earlier)))
    kept = sorted(range(len(earlier)), key=lambda place: draws[place])[:count]
    return [*new, *(earlier[place] for place in sorted(kept))]


def check_replay(replay: float) -> None:
    """Raise ValueError unless the share is in [0, 1)."""
    if not 0 <= replay < 1:
        raise ValueError(
            f"replay={replay}: give the share of earlier pairs in what the reward model learns "
            "from, 0 or more and less than 1"
        )


def contrast_row(prompt: Prompt, chosen: str, rejected: str) -> dict[str, Any]:
    """Return a pair as a line of a file of preferences, such as ``reward-model`` reads.

    Raises:
        ValueError: The prompt is text, which such a file cannot hold.
    """
    if prompt.messages is None:
        raise ValueError("the prompt is text: a file of preferences holds chats")
    asked = [dict(message) for message in prompt.messages]
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def preferences_of(rows: Sequence[Mapping[str, Any]]) -> list[Preference]:
    """Return rows of ``contrast_row`` as preferences."""
    return [
        Preference(
            row["prompt"],
            {"role": "assistant", "content": row["chosen"]},
            {"role": "assistant", "content": row["rejected"]},
        )
        for row in rows
    ]


def _shuffled(samples: Sequence[Sample], side: Mapping[str, int], seed: int) -> list[int]:
    def draw(text: str) -> tuple[int, str]:
        return key(seed, f"contrast/{samples[side[text]].prompt}/{text}"), text

    return [side[text] for text in sorted(side, key=draw)]
