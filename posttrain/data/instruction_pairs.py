"""Preference pairs made by a program: of two answers, one meets every constraint of a request.

Which answer is better is known for certain, so a preference objective or a reward model can be held
to it. The texts mean nothing: what can be learnt from them is to keep to instructions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from launch import streams
from posttrain.data.tasks.base import Prompt
from posttrain.data.tasks.constraints import (
    AtLeastWords,
    AtMostWords,
    Avoids,
    Bullets,
    Constraint,
    EndsWith,
    InCase,
    Includes,
    NoCommas,
    Paragraphs,
    read_constraints,
)

__all__ = ["InstructionPair", "instruction_pairs"]

_FILLER = (
    *("there", "was", "once", "a", "thing", "that", "people", "would", "see", "and", "tell", "of"),
    *("it", "came", "with", "the", "day", "in", "an", "old", "way", "to", "many", "who", "asked"),
)


@dataclass(frozen=True, slots=True)
class InstructionPair:
    """Two answers to a prompt, the better one first."""

    prompt: Prompt
    chosen: str
    rejected: str
    broken: Constraint
    """The one constraint that ``rejected`` breaks."""

    def row(self) -> Mapping[str, object]:
        """Return ``prompt``, ``chosen`` and ``rejected`` as a line of JSON may hold them."""
        messages = self.prompt.messages
        asked = self.prompt.text if messages is None else [dict(message) for message in messages]
        return {"prompt": asked, "chosen": self.chosen, "rejected": self.rejected}


def instruction_pairs(prompts: Sequence[Prompt], *, seed: int) -> list[InstructionPair]:
    """Return a pair for each prompt of ``Instructions``; the i-th is drawn by ``(seed, i)``.

    Raises:
        ValueError: A prompt has no constraints in its answer.

    >>> from posttrain.data.tasks import Instructions
    >>> pair = instruction_pairs(Instructions(form="text").train()[:2], seed=0)[1]
    >>> pair.broken, len(pair.chosen.split()), len(pair.rejected.split())
    (AtLeastWords(count=70), 70, 31)
    """
    pairs = []
    for index, prompt in enumerate(prompts):
        draws = random.Random(streams.key(seed, "instruction pairs", 0, index))
        constraints = read_constraints(prompt.answer)
        broken = draws.choice(constraints)
        chosen = _written(constraints, draws)
        kept = [constraint for constraint in constraints if constraint is not broken]
        pairs.append(InstructionPair(prompt, chosen, _breaking(broken, kept, draws), broken))
    return pairs


def _breaking(broken: Constraint, kept: Sequence[Constraint], draws: random.Random) -> str:
    """Write an answer that meets all that is kept, and not the broken one."""
    match broken:
        case AtLeastWords(count=count):
            # Less than half, because what else is asked for takes up to seven words.
            return _written(kept, draws, words=count // 2 - 4)
        case AtMostWords(count=count):
            return _written(kept, draws, words=count + 8)
        case Avoids(word=word):
            return _written(kept, draws, added=word)
        case NoCommas():
            return _written(kept, draws, comma=True)
        case Bullets(count=count):
            return _written([*kept, Bullets(count + 1)], draws)
        case Paragraphs(count=count):
            return _written([*kept, Paragraphs(count + 1)], draws)
        case _:  # a word, a case or an end that is left out
            return _written(kept, draws)


def _written(
    constraints: Sequence[Constraint],
    draws: random.Random,
    *,
    words: int | None = None,
    added: str | None = None,
    comma: bool = False,
) -> str:
    """Write filler that meets constraints; ``words`` are those of the filler alone."""
    count, parts, joint, mark, end, case = draws.randint(8, 10), 1, " ", "", "", None
    wanted = [] if added is None else [added]
    for constraint in constraints:
        match constraint:
            case AtLeastWords(count=least):
                count = least + draws.randint(0, 5)
            case Includes(word=word, count=times):
                wanted += [word] * times
            case Bullets(count=lines):
                parts, joint, mark = lines, "\n", "* "
            case Paragraphs(count=paragraphs):
                parts, joint = paragraphs, "\n\n"
            case EndsWith(words=words_at_the_end):
                end = words_at_the_end
            case InCase(capital=capital):
                case = capital
            case _:
                pass
    text = [draws.choice(_FILLER) for _ in range(max(parts, count if words is None else words))]
    for word in wanted:
        text.insert(draws.randint(0, len(text)), word)
    if comma:
        text[0] += ","
    bounds = [len(text) * part // parts for part in range(parts + 1)]
    pieces = [" ".join(text[low:high]) for low, high in pairwise(bounds)]
    whole = joint.join(f"{mark}{piece.capitalize()}." for piece in pieces)
    whole = f"{whole} {end}" if end else whole
    if case is None:
        return whole
    return whole.upper() if case else whole.lower()
