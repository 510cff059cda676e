"""Questions and answers in a file of one JSON object a line, such as GSM8K's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.errors import UsageError
from posttrain.data.json_lines import field_of, read_json_lines
from posttrain.data.tasks.asking import REASONING, Form, ask, fill, final_answer, is_heldout
from posttrain.data.tasks.base import Prompt
from posttrain.rewards import AnswerReward, Reward, parse_reward

__all__ = ["JsonLines"]


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A task from a file. The gold answer is what stands after ``####``, or the whole answer.

    Without ``heldout_path`` and ``heldout_share`` all of it is for training, nothing is held out.
    """

    path: str
    question: str = "question"
    """Key of the question."""
    answer: str = "answer"
    """Key of the answer: text or a number."""
    asked: str = "{question}"
    """What the model reads; any key of a line may stand in braces."""
    system: str | None = REASONING
    """How to answer: the chat's system message, or a paragraph before the text."""
    form: Form = "chat"
    heldout_path: str | None = None
    """A second file with the held-out problems; its questions are taken out of training."""
    heldout_share: float = 0.0
    """Without a second file: the share of questions to hold out, chosen by a hash of each."""
    reward: Reward = field(default_factory=AnswerReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        if self.form not in ("chat", "text"):
            raise ValueError(f"form={self.form!r}: expected chat or text")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share}: expected at least 0, below 1")
        if self.heldout_path is not None and self.heldout_share:
            raise ValueError("give heldout_path or heldout_share, not both")

    def train(self) -> Sequence[Prompt]:
        """Return the problems that are not held out, in the order of the file.

        Raises:
            UsageError: There are none, or a line is not as declared; the error names it.
        """
        rows = self._rows(self.path)
        if self.heldout_path is not None:
            held = {question for question, _ in self._rows(self.heldout_path)}
            kept = [prompt for question, prompt in rows if question not in held]
        else:
            kept = [p for question, p in rows if not is_heldout(question, self.heldout_share)]
        if not kept:
            raise UsageError(f"{self.path}: all {len(rows)} questions are held out from training")
        return kept

    def heldout(self) -> Sequence[Prompt]:
        """Return the problems that are held out, in the order of their file; there may be none."""
        if self.heldout_path is not None:
            return [prompt for _, prompt in self._rows(self.heldout_path)]
        if not self.heldout_share:
            return []
        rows = self._rows(self.path)
        return [prompt for question, prompt in rows if is_heldout(question, self.heldout_share)]

    def _rows(self, path: str) -> list[tuple[str, Prompt]]:
        """Return (question, prompt) pairs."""
        pairs = []
        for number, row in read_json_lines(path):
            where = f"{path}, line {number}"
            question = field_of(row, self.question, where)
            if not isinstance(question, str) or not question.strip():
                raise UsageError(f"{where}: {self.question!r} is {question!r}, expected a question")
            gold = _gold(field_of(row, self.answer, where), self.answer, where)
            text = fill(self.asked, {**row, "question": question}, where)
            metadata = {"file": Path(path).name, "line": number}
            prompt = ask(text, gold, system=self.system, form=self.form, metadata=metadata)
            pairs.append((question, prompt))
        return pairs


def _gold(answer: Any, key: str, where: str) -> str:  # noqa: ANN401 - whatever JSON holds
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UsageError(
            f"{where}: {key!r} is {json.dumps(answer)[:80]}, expected text or a number"
        )
    gold = final_answer(answer) if isinstance(answer, str) else repr(answer)
    if not gold:
        raise UsageError(f"{where}: {key!r} is blank, expected the right answer")
    return gold
