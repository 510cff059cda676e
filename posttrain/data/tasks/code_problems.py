"""Programming problems with hidden tests, in a file of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from launch.errors import UsageError
from posttrain.data.json_lines import field_of, read_json_lines
from posttrain.data.tasks.asking import Form, ask, fill, is_heldout
from posttrain.data.tasks.base import Prompt
from posttrain.rewards import CodeReward, CodeTests, Reward, parse_reward

__all__ = ["CodeProblems"]

PROGRAMMING = (
    "Think the problem through between <think> and </think>. Then write one Python program that "
    "solves it, in a block that begins with ```python and ends with ```."
)


@dataclass(frozen=True, slots=True)
class CodeProblems:
    """Problems whose programs are run against hidden tests.

    A line has ``question`` and ``tests``, an object as ``CodeTests`` reads it: ``{"cases":
    [{"input": "1 2", "output": "3"}], "checks": "assert add(1, 2) == 3"}``, of which one key is
    enough. All programs run in a sandbox; see ``CodeReward``.
    """

    path: str
    asked: str = "{question}"
    """What the model reads; any key of a line may stand in braces."""
    system: str | None = PROGRAMMING
    """How to answer: the chat's system message, or a paragraph before the text."""
    form: Form = "chat"
    heldout_share: float = 0.0
    """Share of the problems to hold out, chosen by a hash of each question."""
    reward: Reward = field(default_factory=CodeReward, metadata={"parse": parse_reward})

    def __post_init__(self) -> None:
        if self.form not in ("chat", "text"):
            raise ValueError(f"form={self.form!r}: expected chat or text")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share}: expected at least 0, below 1")

    def train(self) -> Sequence[Prompt]:
        """Return the problems that are not held out, in the order of the file.

        Raises:
            UsageError: There are none, or a line is not as declared; the error names it.
        """
        rows = self._rows()
        kept = [p for question, p in rows if not is_heldout(question, self.heldout_share)]
        if not kept:
            raise UsageError(f"{self.path}: all {len(rows)} problems are held out from training")
        return kept

    def heldout(self) -> Sequence[Prompt]:
        """Return the problems that are held out, in the order of the file; there may be none."""
        return [p for question, p in self._rows() if is_heldout(question, self.heldout_share)]

    def _rows(self) -> list[tuple[str, Prompt]]:
        """Return (question, prompt) pairs."""
        pairs = []
        for number, row in read_json_lines(self.path):
            where = f"{self.path}, line {number}"
            question = field_of(row, "question", where)
            if not isinstance(question, str) or not question.strip():
                raise UsageError(f"{where}: 'question' is {question!r}, expected a question")
            try:
                tests = CodeTests.from_answer(json.dumps(field_of(row, "tests", where)))
            except ValueError as error:
                raise UsageError(f"{where}: {error}") from error
            text = fill(self.asked, {**row, "question": question}, where)
            prompt = ask(
                text,
                tests.to_answer(),
                system=self.system,
                form=self.form,
                metadata={"line": number},
            )
            pairs.append((question, prompt))
        return pairs
