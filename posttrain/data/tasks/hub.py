"""Questions and answers from any data set that ``datasets`` can load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launch.errors import UsageError
from launch.spelling import did_you_mean
from posttrain.data.tasks.asking import (
    REASONING,
    Form,
    Lazily,
    ask,
    fill,
    final_answer,
    is_heldout,
)
from posttrain.data.tasks.base import Prompt
from posttrain.rewards import AnswerReward, Reward, parse_reward

__all__ = ["HubDataset"]

_FILES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
}


class _Rows(Protocol):
    """What is used of a ``datasets.Dataset``."""

    column_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...  # noqa: ANN401 - a row, or a column


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A task from a data set's name on the hub, a file (parquet, csv, json) or a local folder.

    A folder holds data files, or what ``save_to_disk`` wrote. Rows are read when they are asked
    for. The gold answer is what stands after ``####``, or the whole answer.
    """

    name: str
    config: str | None = None
    """The data set's configuration, such as ``main`` for ``openai/gsm8k``."""
    split: str = "train"
    heldout_split: str | None = None
    """A split of its own to hold out, such as ``test``; its questions are taken out of training."""
    heldout_share: float = 0.0
    """Without such a split: the share of questions to hold out, chosen by a hash of each."""
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the answer: text or a number."""
    asked: str = "{question}"
    """What the model reads; any column may stand in braces."""
    system: str | None = REASONING
    """How to answer: the chat's system message, or a paragraph before the text."""
    form: Form = "chat"
    reward: Reward = field(default_factory=AnswerReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        if self.form not in ("chat", "text"):
            raise ValueError(f"form={self.form!r}: expected chat or text")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share}: expected at least 0, below 1")
        if self.heldout_split is not None and self.heldout_share:
            raise ValueError("give heldout_split or heldout_share, not both")

    def train(self) -> Sequence[Prompt]:
        """Return the problems of ``split`` that are not held out, in their order.

        Raises:
            UsageError: It cannot be loaded, lacks a column, or nothing is left to train on.
        """
        rows = self._load(self.split)
        questions = self._questions(rows)
        if self.heldout_split is not None:
            held = set(self._questions(self._load(self.heldout_split)))
            kept = [i for i, question in enumerate(questions) if question not in held]
        else:
            kept = [i for i, q in enumerate(questions) if not is_heldout(q, self.heldout_share)]
        if not kept:
            raise UsageError(f"{self.name}: all {len(rows)} questions are held out from training")
        return self._prompts(rows, kept)

    def heldout(self) -> Sequence[Prompt]:
        """Return the problems that are held out, in their order; there may be none."""
        if self.heldout_split is not None:
            rows = self._load(self.heldout_split)
            return self._prompts(rows, range(len(rows)))
        if not self.heldout_share:
            return []
        rows = self._load(self.split)
        questions = self._questions(rows)
        kept = [i for i, q in enumerate(questions) if is_heldout(q, self.heldout_share)]
        return self._prompts(rows, kept)

    def _load(self, split: str) -> _Rows:
        try:
            import datasets
        except ImportError as error:
            raise UsageError(
                f"{self.name} needs the package datasets: pip install datasets, or use a JSONL file"
            ) from error
        path = Path(self.name)
        try:
            rows: _Rows = _load(datasets, self.name, path, self.config, split)
        except Exception as error:  # datasets raises what its readers and the network raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"{self.name}, split {split}, cannot be loaded ({reason})") from error
        for column in (self.question, self.answer):
            if column not in rows.column_names:
                names = ", ".join(rows.column_names)
                near = did_you_mean(column, rows.column_names)
                raise UsageError(f"{self.name} has no column {column!r}{near} (columns: {names})")
        if not len(rows):
            raise UsageError(f"{self.name}, split {split}, is empty")
        return rows

    def _questions(self, rows: _Rows) -> list[str]:
        return [str(question) for question in rows[self.question]]

    def _prompts(self, rows: _Rows, kept: Sequence[int]) -> Sequence[Prompt]:
        def make(index: int) -> Prompt:
            return self._prompt(rows[kept[index]], kept[index])

        return Lazily(len(kept), make)

    def _prompt(self, row: Mapping[str, Any], index: int) -> Prompt:
        where = f"{self.name}, row {index}"
        question, answer = row[self.question], row[self.answer]
        if question is None or answer is None:
            raise UsageError(f"{where}: the question or the answer is missing")
        text = fill(self.asked, {**row, "question": question}, where)
        gold, metadata = final_answer(str(answer)), {"row": index}
        return ask(text, gold, system=self.system, form=self.form, metadata=metadata)


def _load(datasets: Any, name: str, path: Path, config: str | None, split: str) -> Any:  # noqa: ANN401 - the module and its Dataset
    if path.is_file():
        kind = _FILES.get(path.suffix)
        if kind is None:
            raise ValueError(f"files of kind {path.suffix!r}; known are {', '.join(_FILES)}")
        return datasets.load_dataset(kind, data_files={split: name}, split=split)
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(name)[split]
    if (path / "state.json").is_file():
        return datasets.load_from_disk(name)
    return datasets.load_dataset(name, config, split=split)
