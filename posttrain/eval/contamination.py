"""Whether held-out prompts were seen in training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Overlap", "contaminated"]

_WORD = re.compile(r"\w+|[-+*/^=<>%]")
"""Words and operators; other punctuation does not count, but ``1 + 2`` is not ``1 - 2``."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """A held-out prompt that shares text with training."""

    heldout: int
    """Index of the held-out prompt."""
    train: int
    """Index of the first prompt in training that shares an n-gram with it."""
    share: float
    """Part of its n-grams that stand somewhere in training; 1 if it stands there whole."""
    text: str
    """The first n-gram that both hold."""


def contaminated(
    train: Iterable[str], heldout: Sequence[str], *, n: int = 13, common: int = 10
) -> list[Overlap]:
    """Find held-out prompts that share an n-gram of words with one in training.

    The rule of Brown et al. 2020 (arXiv:2005.14165, appendix C): 13 words in a row, in lower case
    and without punctuation. A prompt of fewer than n words overlaps if it is the whole of one in
    training. n-grams that stand in more than ``common`` held-out prompts are the wording of the
    task, not of a question, and do not count.

    Args:
        train: Texts of the prompts to learn from; read once, so it may be long and lazy.
        heldout: Texts of the held-out prompts.
        n: Words in a row, at least 1.
        common: See above, at least 1.

    Returns:
        The overlaps, in the order of the held-out prompts.

    Raises:
        ValueError: No held-out prompt, or n or common below 1.

    >>> contaminated(["What is 3 + 4?", "And 5 + 6?"], ["what is 3 + 4", "What is 6 + 5?"])
    [Overlap(heldout=0, train=0, share=1.0, text='what is 3 + 4')]
    """
    for name, value in (("n", n), ("common", common)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    if not len(heldout):
        raise ValueError("got no held-out prompts: there is nothing that could be contaminated")
    owned = [_grams(text, n) for text in heldout]
    spread = Counter(gram for grams in owned for gram in grams)
    owned = [[gram for gram in grams if spread[gram] <= common] for grams in owned]
    wanted = {gram for grams in owned for gram in grams}
    first: dict[tuple[str, ...], int] = {}
    for index, text in enumerate(train):
        for gram in _grams(text, n):
            if gram in wanted:
                first.setdefault(gram, index)
    found = []
    for index, grams in enumerate(owned):
        seen = [gram for gram in grams if gram in first]
        if seen:
            gram = min(seen, key=lambda gram: first[gram])
            found.append(Overlap(index, first[gram], len(seen) / len(grams), " ".join(gram)))
    return found


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return a text's different n-grams in their order; of a short text, all of it as one."""
    words = _WORD.findall(text.lower())
    if not words:
        return []
    last = max(1, len(words) - n + 1)
    return list(dict.fromkeys(tuple(words[start : start + n]) for start in range(last)))
