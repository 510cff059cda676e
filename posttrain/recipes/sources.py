"""Where a job's model and its demonstrations come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from launch.errors import UsageError
from launch.replacing import folder_to_read
from posttrain.data.chat import encode_chats
from posttrain.data.conversations import load_conversations
from posttrain.data.packing import Document
from posttrain.data.preference_files import encode_pairs, load_preferences
from posttrain.data.preferences import Pair
from posttrain.data.tasks.base import Task
from posttrain.models import (
    LanguageModel,
    check_model_folder,
    load_model,
    tiny_model,
    train_tokenizer,
)
from posttrain.recipes.worked import Mixture, demonstrations, raw_lines, response

__all__ = [
    "ChatFile",
    "DocumentSource",
    "FromScratch",
    "ModelSource",
    "PairFile",
    "PairSource",
    "Pretrained",
    "RawLines",
    "WorkedSums",
    "check_heldout",
    "check_share",
    "heldout_lines",
    "parse_documents",
    "parse_model",
    "parse_pairs",
]


class ModelSource(Protocol):
    """Gives a job its model."""

    def check(self) -> None:
        """Raise UsageError for what can be seen without loading weights."""
        ...

    def load(self, texts: Sequence[str], seed: int) -> LanguageModel:
        """Return model and tokenizer; ``texts`` and ``seed`` are for one made from nothing."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """A local Hugging Face folder or a hub id."""

    path: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def check(self) -> None:
        """Look at the folder's files; weights are not read."""
        if not self.path:
            raise UsageError("no model is given: add --model FOLDER (or a hub id)")
        if folder_to_read(Path(self.path)).exists():
            check_model_folder(Path(self.path))

    def load(self, texts: Sequence[str], seed: int) -> LanguageModel:
        """Return the checkpoint; ``texts`` and ``seed`` are not needed."""
        return load_model(self.path, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class FromScratch:
    """A small Llama with random weights, and a tokenizer trained on the task's own text."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    vocabulary: int = 256
    """Most tokens the tokenizer may have."""
    texts: int = 2_000
    """Examples that the tokenizer learns from."""
    tags: tuple[str, ...] = ()
    """More tags that are tokens of their own, such as those of a tool."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "vocabulary", "texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} with heads={self.heads}: each head needs the same even "
                "number of features, because rotary positions turn them in pairs"
            )

    def check(self) -> None:
        """Nothing can be missing."""

    def load(self, texts: Sequence[str], seed: int) -> LanguageModel:
        """Return a model whose weights depend on ``seed`` alone."""
        tokenizer = train_tokenizer(texts[: self.texts], vocabulary=self.vocabulary, tags=self.tags)
        return tiny_model(
            tokenizer, layers=self.layers, width=self.width, heads=self.heads, seed=seed
        )


class DocumentSource(Protocol):
    """Gives supervised training its documents."""

    def check(self) -> None:
        """Raise UsageError for what can be seen before any work."""
        ...

    def texts(self, count: int) -> list[str]:
        """Return texts that a tokenizer made from nothing learns from."""
        ...

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return the documents, ``count`` of them where they are made on the fly."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFile:
    """Conversations in a JSONL file: ``messages``, or ``prompt`` and ``completion``, a line."""

    path: str = ""

    def check(self) -> None:
        """Read the whole file, so that a line that does not parse is named before any work."""
        if not self.path:
            raise UsageError("no data is given: add --data FILE.jsonl")
        load_conversations(Path(self.path))

    def texts(self, count: int) -> list[str]:
        """Return the contents of the first conversations."""
        chats = load_conversations(Path(self.path))[:count]
        return [str(message["content"]) for chat in chats for message in chat]

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return each conversation under the model's chat template."""
        return encode_chats(lm.tokenizer, load_conversations(Path(self.path)))

    def chats(self, count: int, seed: int) -> list[list[dict[str, str]]]:
        """Return the first ``count`` conversations, or all there are."""
        return load_conversations(Path(self.path))[:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkedSums:
    """Demonstrations of a chain-sum task, of which part reasons."""

    task: Task
    mixture: Mixture = field(default_factory=Mixture)

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return problems with their worked responses."""
        return worked_texts(self.task, count)

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` demonstrations on fresh problems."""
        return demonstrations(self.task.train(), lm, self.mixture, count, seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class RawLines:
    """Worked lines of a chain-sum task as plain text, for a base model."""

    task: Task
    tagged: float = 0.1
    """Share written in the ``<think>``, ``<answer>`` format."""

    def check(self) -> None:
        """Nothing can be missing."""

    def texts(self, count: int) -> list[str]:
        """Return problems with their worked responses."""
        return worked_texts(self.task, count)

    def documents(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Document]:
        """Return ``count`` texts on fresh problems."""
        return raw_lines(self.task.train(), lm, self.tagged, count, seed)


class PairSource(Protocol):
    """Gives preference training its pairs."""

    def check(self) -> None:
        """Raise UsageError for what can be seen before any work."""
        ...

    def texts(self, count: int) -> list[str]:
        """Return texts that a tokenizer made from nothing learns from."""
        ...

    def pairs(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Pair]:
        """Return pairs to learn from, ``count`` of them where they are made on the fly."""
        ...

    def heldout(self, lm: LanguageModel) -> Sequence[Pair]:
        """Return pairs to judge by, none of which is learnt from; there may be none."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFile:
    """A JSONL file with ``prompt`` (or ``messages``), ``chosen`` and ``rejected`` in each line."""

    path: str = ""
    heldout_share: float = 0.0
    """Share of the lines, the last ones, that is judged by and not learnt from."""

    def __post_init__(self) -> None:
        check_share(self.heldout_share)

    def check(self) -> None:
        """Read the whole file, so that a line that does not parse is named before any work."""
        if not self.path:
            raise UsageError("no data is given: add --data FILE.jsonl")
        lines = len(load_preferences(self.path))
        check_heldout(self.path, lines, self.heldout_share)

    def texts(self, count: int) -> list[str]:
        """Return the contents of the first chats."""
        found = load_preferences(self.path)[:count]
        return [m["content"] for x in found for m in (*x.prompt, x.chosen, x.rejected)]

    def pairs(self, lm: LanguageModel, count: int, seed: int) -> Sequence[Pair]:
        """Return each line under the model's chat template, but for those held out."""
        found = load_preferences(self.path)
        return encode_pairs(
            lm.tokenizer, found[: len(found) - heldout_lines(len(found), self.heldout_share)]
        )

    def heldout(self, lm: LanguageModel) -> Sequence[Pair]:
        """Return the last lines."""
        found = load_preferences(self.path)
        return encode_pairs(
            lm.tokenizer, found[len(found) - heldout_lines(len(found), self.heldout_share) :]
        )


def check_share(share: float) -> None:
    """Refuse a share of the lines that cannot be held out."""
    if not 0 <= share < 1:
        raise ValueError(f"heldout_share={share}: give a share of 0 or more and less than 1")


def heldout_lines(lines: int, share: float) -> int:
    """Return how many lines of a file are held out: its last ones, and never all."""
    return min(lines - 1, round(share * lines))


def check_heldout(path: str, lines: int, share: float) -> None:
    """Raise UsageError if a share is to be held out that is no line of the file."""
    if share and not heldout_lines(lines, share):
        raise UsageError(
            f"heldout_share={share} of the {lines} lines of {path} is no line: nothing would be "
            "judged; give a larger share, or 0 to hold none out"
        )


def worked_texts(task: Task, count: int) -> list[str]:
    """Return problems of a chain-sum task with their worked responses."""
    prompts, texts = task.train(), []
    for i in range(min(count, len(prompts))):
        asked = [m["content"] for m in prompts[i].messages or ()] or [prompts[i].text or ""]
        texts.append("\n".join([*asked, response(prompts[i], reasons=True)]))
    return texts


def parse_model(text: str) -> ModelSource:
    """Read ``--model TEXT``: a folder or a hub id."""
    return Pretrained(path=text)


def parse_documents(text: str) -> DocumentSource:
    """Read ``--data TEXT``: a JSONL file of conversations."""
    return ChatFile(path=text)


def parse_pairs(text: str) -> PairSource:
    """Read ``--data TEXT``: a JSONL file of preferences."""
    return PairFile(path=text)
