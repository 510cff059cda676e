"""Held-out problems that every stage of a pipeline is judged by, and what the stages gained."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from launch.folder import atomic_write
from launch.runtime import Runtime
from posttrain.data.tasks import Task
from posttrain.eval import Interval, gain_with_interval, mean_with_interval
from posttrain.models import LanguageModel
from posttrain.recipes.evaluator import Evaluator
from posttrain.rewards import Reward
from posttrain.rewards.checking import checked

__all__ = ["Exam", "Marks", "Verdict", "examine", "verdicts"]

Marks = Mapping[str, Tensor]
"""Of each subject ``(N,)``, the mean mark of each question's completions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """Held-out problems of a task, under the name of a subject."""

    task: Task
    also: Mapping[str, Reward] = field(default_factory=dict)
    """More that its completions are judged by, each under a name of its own."""


def examine(
    exams: Mapping[str, Exam],
    problems: int,
    evaluator: Evaluator,
    lm: LanguageModel,
    run: Runtime,
) -> dict[str, Tensor]:
    """Return the marks of ``lm`` in all subjects; kept in the run folder, so judged once.

    Marks of a model with other weights are not taken for this one's.
    """
    weights = _checksum(lm)
    found = run.gather_objects([_kept(run.output, weights) if run.is_main else None])[0]
    if found is not None:
        return {name: torch.tensor(marks, dtype=torch.float64) for name, marks in found.items()}
    marks: dict[str, Tensor] = {}
    for name, exam in exams.items():
        judged = evaluator.judge(lm, exam.task.heldout()[:problems], exam.task.reward, run)
        marks[name] = judged.correct.double().mean(1)
        samples = [sample for row in judged.samples for sample in row]
        for other, reward in exam.also.items():
            values = checked(other, reward, samples).double()
            marks[other] = values.view(judged.correct.shape).mean(1)
    if run.output is not None:
        folder, plain = run.output, {name: x.tolist() for name, x in marks.items()}
        text = json.dumps({"weights": weights, "marks": plain})
        run.on_main(lambda: atomic_write(folder / "marks.json", text + "\n"))
    return marks


def _kept(folder: Path | None, weights: int) -> dict[str, list[float]] | None:
    """Return the marks that the folder holds of a model with these weights."""
    if folder is None or not (folder / "marks.json").exists():
        return None
    kept = json.loads((folder / "marks.json").read_text(encoding="utf-8"))
    return kept["marks"] if kept["weights"] == weights else None


def _checksum(lm: LanguageModel) -> int:
    total = 0
    for weight in lm.model.parameters():
        total = zlib.crc32(weight.detach().cpu().contiguous().view(torch.uint8).numpy(), total)
    return total


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a stage did to the marks in a subject, on the same questions as the stage before it."""

    stage: str
    subject: str
    before: Interval
    after: Interval
    gain: Interval

    def row(self) -> dict[str, object]:
        """Return a row of a table."""
        return {
            "stage": self.stage,
            "subject": self.subject,
            "before": f"{self.before.mean:.3f}",
            "after": str(self.after),
            "difference": str(self.gain),
            "verdict": self.gain.verdict,
        }


def verdicts(stage: str, before: Marks, after: Marks, subjects: Sequence[str]) -> list[Verdict]:
    """Return the difference in each subject, with its interval over paired questions."""
    return [
        Verdict(
            stage,
            subject,
            mean_with_interval(before[subject]),
            mean_with_interval(after[subject]),
            gain_with_interval(before[subject], after[subject]),
        )
        for subject in subjects
    ]
