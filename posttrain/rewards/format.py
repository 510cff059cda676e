"""Whether a completion reasons, then answers, in the tags of DeepSeek-R1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.rewards.base import Sample

__all__ = ["FormatReward", "is_formatted"]

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class FormatReward:
    """1 where the completion is ``<think>A</think> <answer>B</answer>`` and nothing else."""

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones."""
        return torch.tensor([is_formatted(s.completion) for s in samples], dtype=torch.float32)


def is_formatted(text: str) -> bool:
    r"""Tell whether ``text`` has the format, in linear time.

    Around it there may be whitespace, and between the elements any amount of it, none included.
    The tags are case-sensitive, none of the four may stand inside A or B, and B is not blank.

    >>> is_formatted(" <think>1 + 1</think> <answer>2</answer>\n")
    True
    >>> is_formatted("<think>1 + 1</think> so <answer>2</answer>")
    False
    """
    text = text.strip()
    if not (text.startswith(_TAGS[0]) and text.endswith(_TAGS[3])):
        return False
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    _, _, rest = text.partition("</think>")
    between, tag, answer = rest.partition("<answer>")
    return bool(tag) and not between.strip() and bool(answer.removesuffix("</answer>").strip())
