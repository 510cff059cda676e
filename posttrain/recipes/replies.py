"""Replies to sums in two tones, courteous and curt: preferences that are learnt in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.streams import key
from posttrain.data.chat import encode_prompt
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair
from posttrain.data.tasks.base import Prompt, Task
from posttrain.models import LanguageModel
from posttrain.recipes.worked import Made, chosen, continuation

__all__ = ["COURTEOUS", "CURT", "Replies", "ReplyPairs", "reply"]

COURTEOUS = (
    "Gladly. It is {}.",
    "Thank you for asking: {}.",
    "With pleasure, the sum is {}.",
    "Of course! That makes {}.",
)
CURT = (
    "Obviously {}.",
    "Any child knows it is {}.",
    "Again? It is {}.",
    "Do it yourself. It is {}.",
)


def reply(prompt: Prompt, *, courteous: bool, seed: int, index: int) -> str:
    """Return the right answer in one tone; which of its phrasings follows seed and index."""
    tone = "courteous" if courteous else "curt"
    phrasings = COURTEOUS if courteous else CURT
    return phrasings[key(seed, tone, 0, index) % len(phrasings)].format(prompt.answer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replies:
    """Demonstrations of replies, of which a share is courteous."""

    task: Task
    courteous: float = 0.25
    """Share that is courteous; the rest is curt."""

    def __post_init__(self) -> None:
        if not 0 <= self.courteous <= 1:
            raise ValueError(f"courteous={self.courteous}: give a share between 0 and 1")

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return problems with a reply in either tone."""
        return reply_texts(self.task, count)

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` replies to fresh problems."""
        prompts = self.task.train()

        def make(index: int) -> Document:
            prompt = prompts[index % len(prompts)]
            courteous = chosen(self.courteous, seed, "courteous", index)
            text = reply(prompt, courteous=courteous, seed=seed, index=index)
            return written(lm, prompt, text)

        return Made(count, make)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyPairs:
    """Pairs of replies with the same answer: the courteous one is chosen, the curt one rejected."""

    task: Task

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return problems with a reply in either tone."""
        return reply_texts(self.task, count)

    def pairs(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Pair]:
        """Return ``count`` pairs on the task's problems."""
        return reply_pairs(self.task.train(), lm, count, seed)

    def heldout(self, lm: LanguageModel) -> Sequence[Pair]:
        """Return a pair for each problem that the task holds out."""
        prompts = self.task.heldout()
        return list(reply_pairs(prompts, lm, len(prompts), seed=0))


def reply_pairs(
    prompts: Sequence[Prompt], lm: LanguageModel, count: int, seed: int
) -> Sequence[Pair]:
    """Return ``count`` pairs, made when they are asked for."""

    def make(index: int) -> Pair:
        prompt = prompts[index % len(prompts)]
        good = reply(prompt, courteous=True, seed=seed, index=index)
        bad = reply(prompt, courteous=False, seed=seed, index=index)
        return written(lm, prompt, good), written(lm, prompt, bad)

    return Made(count, make)


def reply_texts(task: Task, count: int) -> list[str]:
    """Return problems of a task with a reply in either tone."""
    prompts, texts = task.train(), []
    for i in range(min(count, len(prompts))):
        asked = [m["content"] for m in prompts[i].messages or ()] or [prompts[i].text or ""]
        tones = (reply(prompts[i], courteous=c, seed=0, index=i) for c in (True, False))
        texts.append("\n".join([*asked, *tones]))
    return texts


def written(lm: LanguageModel, prompt: Prompt, text: str) -> Document:
    """Return a prompt and the turn that follows, which counts."""
    start, rest = encode_prompt(lm.tokenizer, prompt), continuation(lm, text)
    return Document(tokens=start + rest, mask=[False] * len(start) + [True] * len(rest))
