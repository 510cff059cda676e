"""Where the stages of DeepSeek-R1's pipeline get their documents and pairs, in miniature.

A task whose prompts carry whole replies (``good`` and ``bad`` in their metadata) becomes
demonstrations, text for a base model, or preferences; sources are mixed by weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from launch.errors import UsageError
from launch.streams import key
from posttrain.data.chat import encode_prompt
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair
from posttrain.data.tasks import Prompt, Task, ToldSums
from posttrain.data.tasks.asking import in_tags
from posttrain.data.tasks.mixture import check_weights, interleaved
from posttrain.data.tasks.told_sums import worked_words
from posttrain.models import LanguageModel
from posttrain.recipes.replies import written
from posttrain.recipes.sources import DocumentSource
from posttrain.recipes.worked import Made, chosen, continuation

__all__ = [
    "AnswerPairs",
    "Answers",
    "MixedChats",
    "MixedDocuments",
    "RawTexts",
    "ReplySource",
    "Thoughts",
]

_REPLY = re.compile(r"<think>(.*)</think>\n<answer>(.*)</answer>", re.DOTALL)


class ReplySource(DocumentSource, Protocol):
    """A document source that writes replies to a task's prompts, one at a time."""

    @property
    def task(self) -> Task:
        """The prompts that are replied to."""
        ...

    def reply(self, prompt: Prompt, seed: int, index: int) -> str:
        """Return the reply to the task's prompt ``index``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Demonstrations by a task's own replies, of which a share is good and the rest bad."""

    task: Task
    """Its prompts have the replies ``good`` and ``bad`` in their metadata."""
    right: float = 1.0
    """Share of the replies that are good."""

    def __post_init__(self) -> None:
        _check_share("right", self.right)

    def check(self) -> None:
        """Raise UsageError if the task's prompts carry no replies."""
        _check_replies(self.task)

    def texts(self, count: int) -> list[str]:
        """Return questions with both of their replies."""
        return _texts(self.task, count, _both)

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` chats; the reply counts."""
        return _chats(self, lm, count, seed)

    def reply(self, prompt: Prompt, seed: int, index: int) -> str:
        """Return the good reply or the bad one, by seed and index."""
        right = chosen(self.right, seed, "right", index)
        return str(prompt.metadata["good" if right else "bad"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Thoughts:
    """Demonstrations of told sums; all are right, a share of them is worked, in either language."""

    task: ToldSums
    reasons: float = 1.0
    """Share that is worked step by step; the others give the right answer at once."""
    foreign: float = 0.0
    """Share of the worked ones that is worked in the language that the question is not in."""

    def __post_init__(self) -> None:
        _check_share("reasons", self.reasons)
        _check_share("foreign", self.foreign)

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return questions, worked in both languages."""
        return _texts(self.task, count, lambda p: [_worked(p, f) for f in (False, True)])

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` chats; the reply counts."""
        return _chats(self, lm, count, seed)

    def reply(self, prompt: Prompt, seed: int, index: int) -> str:
        """Return a right reply; how it is found follows seed and index."""
        if not chosen(self.reasons, seed, "reasons", index):
            return in_tags(prompt.answer)
        return _worked(prompt, chosen(self.foreign, seed, "foreign", index))


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTexts:
    """Replies as plain text for a base model: a question, then its thought and answer, in lines.

    Every token counts, as in pretraining. A share is written as a chat, with template and tags, so
    that a base model has seen the format; the prompt's tokens are then those it is asked with.
    """

    replies: ReplySource
    tagged: float = 0.1
    """Share written as a chat, with ``<think>`` and ``<answer>``."""

    def __post_init__(self) -> None:
        _check_share("tagged", self.tagged)

    def check(self) -> None:
        """Check the replies' source."""
        self.replies.check()

    def texts(self, count: int) -> list[str]:
        """Return the texts of the replies' source."""
        return self.replies.texts(count)

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` texts that end with the stop token."""
        prompts = self.replies.task.train()

        def make(index: int) -> Document:
            prompt = prompts[index % len(prompts)]
            reply = self.replies.reply(prompt, seed, index)
            if chosen(self.tagged, seed, "tagged", index):
                tokens = encode_prompt(lm.tokenizer, prompt) + continuation(lm, reply)
            else:
                tokens = continuation(lm, running_text(prompt, reply))
            return Document(tokens=tokens, mask=[True] * len(tokens))

        return Made(count, make)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedDocuments:
    """Documents of several sources, in proportion to their weights in every stretch.

    Document i is of the source that lags furthest behind its share of the first i + 1; a source's
    own documents come in their order, again from the start when they are used up.
    """

    sources: Mapping[str, tuple[float, DocumentSource]]
    """Name to (weight, source); weights are positive and need not sum to 1."""

    def __post_init__(self) -> None:
        _check_sources(self.sources)

    def check(self) -> None:
        """Check each source."""
        for _, source in self.sources.values():
            source.check()

    def texts(self, count: int) -> list[str]:
        """Return ``count`` texts of all sources, in proportion; fewer if a source has fewer."""
        places, counts = self._places(count)
        sources = [source for _, source in self.sources.values()]
        texts = [source.texts(n) for source, n in zip(sources, counts, strict=True)]
        return [texts[part][i] for part, i in places if i < len(texts[part])]

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` documents, each made when it is asked for.

        A source's randomness is keyed by seed and name, so that sources do not choose alike.
        """
        places, counts = self._places(count)
        documents = [
            source.documents(lm, n, key(seed, f"mixed documents/{name}", 0, 0)) if n else []
            for (name, (_, source)), n in zip(self.sources.items(), counts, strict=True)
        ]
        for name, own, n in zip(self.sources, documents, counts, strict=True):
            if n and not len(own):
                raise ValueError(f"source {name} has no documents: leave it out")

        def make(index: int) -> Document:
            part, i = places[index]
            return documents[part][i % len(documents[part])]

        return Made(count, make)

    def _places(self, count: int) -> tuple[list[tuple[int, int]], list[int]]:
        """Return (source, index in it) of each document, and how many are of each source."""
        places = interleaved([float(weight) for weight, _ in self.sources.values()], count)
        counts = [0] * len(self.sources)
        for part, _ in places:
            counts[part] += 1
        return places, counts


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedChats:
    """Conversations with replies of several sources, in proportion to their weights."""

    sources: Mapping[str, tuple[float, ReplySource]]
    """Name to (weight, source); weights are positive and need not sum to 1."""

    def __post_init__(self) -> None:
        _check_sources(self.sources)

    def check(self) -> None:
        """Check each source."""
        for _, source in self.sources.values():
            source.check()

    def chats(self, count: int, seed: int) -> list[list[dict[str, str]]]:
        """Return ``count`` conversations of one question and its reply."""
        found: list[list[dict[str, str]]] = []
        sources = list(self.sources.items())
        prompts = [source.task.train() for _, (_, source) in sources]
        places = interleaved([float(weight) for _, (weight, _) in sources], count)
        for part, index in places:
            name, (_, source) = sources[part]
            prompt = prompts[part][index % len(prompts[part])]
            reply = source.reply(prompt, key(seed, f"mixed chats/{name}", 0, 0), index)
            asked = [dict(message) for message in prompt.messages or ()]
            found.append([*asked, {"role": "assistant", "content": reply}])
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerPairs:
    """Preferences by a task's own replies: the good one is chosen, the bad one rejected."""

    task: Task
    """Its prompts have the replies ``good`` and ``bad`` in their metadata."""

    def check(self) -> None:
        """Raise UsageError if the task's prompts carry no replies."""
        _check_replies(self.task)

    def texts(self, count: int) -> list[str]:
        """Return questions with both of their replies."""
        return _texts(self.task, count, _both)

    def pairs(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Pair]:
        """Return ``count`` pairs on the task's prompts; nothing about them is drawn."""
        return _pairs(self.task.train(), lm, count)

    def heldout(self, lm: LanguageModel) -> Sequence[Pair]:
        """Return a pair for each prompt that the task holds out."""
        prompts = self.task.heldout()
        return _pairs(prompts, lm, len(prompts))


def running_text(prompt: Prompt, reply: str) -> str:
    r"""Return question, thought and answer as lines without tags.

    >>> prompt = Prompt(messages=({"role": "user", "content": "What is 1 + 1?"},), answer="2")
    >>> running_text(prompt, "<think>1 plus 1 is 2</think>\n<answer>2</answer>")
    'What is 1 + 1?\n1 plus 1 is 2\n2'
    >>> running_text(prompt, "<think></think>\n<answer>2</answer>")
    'What is 1 + 1?\n2'
    """
    found = _REPLY.fullmatch(reply)
    parts = [reply] if found is None else [part for part in found.groups() if part]
    return "\n".join([*_asked(prompt), *parts])


def _check_sources(sources: Mapping[str, tuple[float, DocumentSource]]) -> None:
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError('a mixture needs sources, such as {"lists": (1.0, Answers(task=...))}')
    for name, pair in sources.items():
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"source {name}: expected (weight, source), got {pair!r}")
    check_weights({name: weight for name, (weight, _) in sources.items()}, kind="source")


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={share}: give a share between 0 and 1")


def _check_replies(task: Task) -> None:
    missing = [name for name in ("good", "bad") if name not in task.train()[0].metadata]
    if missing:
        raise UsageError(
            f"the prompts of {type(task).__name__} have no {' and no '.join(missing)} in their "
            "metadata: expected whole replies there, as Requests has them"
        )


def _asked(prompt: Prompt) -> list[str]:
    return [m["content"] for m in prompt.messages or ()] or [prompt.text or ""]


def _both(prompt: Prompt) -> list[str]:
    return [str(prompt.metadata["good"]), str(prompt.metadata["bad"])]


def _worked(prompt: Prompt, foreign: bool) -> str:
    """Return a right reply, worked in the language of the question or in the other one."""
    english = (prompt.metadata["language"] == "english") is not foreign
    expression = str(prompt.metadata["expression"])
    thought = worked_words(expression, "english" if english else "russian")
    return in_tags(prompt.answer, thought)


def _texts(task: Task, count: int, replies: Callable[[Prompt], list[str]]) -> list[str]:
    prompts = task.train()
    first = (prompts[i] for i in range(min(count, len(prompts))))
    return ["\n".join([*_asked(prompt), *replies(prompt)]) for prompt in first]


def _chats(source: ReplySource, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
    prompts = source.task.train()

    def make(index: int) -> Document:
        prompt = prompts[index % len(prompts)]
        return written(lm, prompt, source.reply(prompt, seed, index))

    return Made(count, make)


def _pairs(prompts: Sequence[Prompt], lm: LanguageModel, count: int) -> Sequence[Pair]:
    def make(index: int) -> Pair:
        prompt = prompts[index % len(prompts)]
        good, bad = _both(prompt)
        return written(lm, prompt, good), written(lm, prompt, bad)

    return Made(count, make)
