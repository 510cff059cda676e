"""Evaluation of a model on a task's held-out problems, as a job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from launch.config import resumable
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig
from posttrain.data.tasks import Prompt, Task, parse_task
from posttrain.eval import Comparison, Evaluation, Interval, figures
from posttrain.eval.report import before_and_after
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.jobs import check_form, given
from posttrain.recipes.sources import ModelSource, Pretrained, parse_model

__all__ = ["EvalJob", "leave_table", "show_summary"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalJob(Evaluator):
    """pass@1, maj@k and pass@k with intervals over questions, on a task's held-out problems."""

    leaves_run: ClassVar[bool] = False
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """A JSONL file of questions and answers, a reasoning-gym name, a hub id or module:Class."""
    models: tuple[str, ...] = ()
    """More models, as folders or hub ids: every model is judged on every task, in one table."""
    tasks: tuple[str, ...] = ()
    """More tasks, by what ``task`` takes as text."""
    problems: int = 512
    """Held-out problems at the most; of a file that holds nothing out, its first ones."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Raise UsageError for a missing or broken model or task."""
        models = self._models()
        for model in models.values():
            model.check()
        if self.problems < 1:
            raise UsageError(f"problems={self.problems}: give at least 1")
        for name, task in self._tasks().items():
            prompts = questions(task)
            if not len(prompts):
                said = f"the task {name}" if self.tasks else "the task"
                raise UsageError(f"{said} has no problems: there is nothing to evaluate on")
            for model in models.values():
                check_form(model, task, prompts[0])

    def run(self, run: Runtime) -> None:
        """Evaluate and print the figures; with a run folder, also leave them there."""
        models, tasks = self._models(), self._tasks()
        one = len(models) == len(tasks) == 1
        rows = []
        for model_name, source in models.items():
            lm = source.load((), self.seed)
            lm.model.to(run.device)
            for task_name, task in tasks.items():
                prompts = questions(task)[: self.problems]
                if not len(task.heldout()):
                    run.print(NOTHING_HELD_OUT if one else f"{task_name}: {NOTHING_HELD_OUT}")
                    run.note("Problems to train on", NOTHING_HELD_OUT)
                found = self.judge(lm, prompts, task.reward, run)
                if one:
                    self._show(found, run)
                else:
                    title = {"model": model_name, "task": task_name}
                    samples = [sample_row(found, i) for i in range(min(10, len(prompts)))]
                    run.samples(0, [title | dict(sample) for sample in samples])
                rows.append(
                    {"model": model_name, "task": task_name, "problems": str(len(prompts))}
                    | figures(found, k=self.group_size)
                )
        table = Comparison(rows)
        leave_table(table, run)
        if not one:
            run.log(0, {f"{row['model']}/{row['task']}/avg": float(_average(row)) for row in rows})
            run.table("Models and tasks", table.texts())
            run.print(table.markdown())

    def _models(self) -> dict[str, ModelSource]:
        """Return all models by name; ``models`` alone will do."""
        alone = isinstance(self.model, Pretrained) and not self.model.path and bool(self.models)
        first: list[ModelSource] = [] if alone else [self.model]
        sources = [*first, *(parse_model(name) for name in self.models)]
        return _by_name([getattr(source, "path", "") or "model" for source in sources], sources)

    def _tasks(self) -> dict[str, Task]:
        """Return all tasks by name; ``tasks`` alone will do."""
        first = [] if self.task is None and self.tasks else [given(self.task)]
        named = [parse_task(name) for name in self.tasks]
        names = [getattr(task, "name", getattr(task, "path", "task")) for task in first]
        return _by_name([*map(str, names), *self.tasks], [*first, *named])

    def _show(self, found: Evaluation, run: Runtime) -> None:
        summary = found.summary(k=self.group_size)
        count = len(found.samples)
        run.log(0, {name: float(value) for name, value in summary.items()})
        run.table("Problems", before_and_after({"model": summary}))
        run.samples(0, [sample_row(found, i) for i in range(min(50, count))])
        show_summary(summary, f"{count} problems", run)


T = TypeVar("T")


def _by_name(names: Sequence[str], items: Sequence[T]) -> dict[str, T]:
    """Return items by name; those that share one get a number."""
    found: dict[str, T] = {}
    for name, item in zip(names, items, strict=True):
        number = sum(other == name or other.startswith(f"{name} #") for other in found) + 1
        found[name if number == 1 else f"{name} #{number}"] = item
    return found


def _average(row: Mapping[str, str | float | Interval]) -> float:
    return next(float(value) for name, value in row.items() if name.startswith("avg@"))


def leave_table(table: Comparison, run: Runtime) -> None:
    """Write a table as ``evaluation.md``, ``.csv`` and ``.html``, if there is a run folder."""
    folder = run.output
    if folder is None:
        return
    texts = {"md": table.markdown(), "csv": table.csv(), "html": table.html()}

    def write() -> None:
        for suffix, text in texts.items():
            (folder / f"evaluation.{suffix}").write_text(text + "\n", encoding="utf-8")

    run.on_main(write)


NOTHING_HELD_OUT = (
    "The task holds no problems out, so these are problems to train on: if the model was trained "
    "on them, the figures say little."
)


def questions(task: Task) -> Sequence[Prompt]:
    """Return the held-out problems; of a file that holds nothing out, all of them."""
    return task.heldout() or task.train()


def sample_row(found: Evaluation, question: int) -> Mapping[str, object]:
    """Return the first completion of a question as a record of ``samples.jsonl``."""
    sample = found.samples[question][0]
    return {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "answer": sample.answer,
        "reward": float(found.correct[question, 0]),
    }


def show_summary(summary: Mapping[str, float | Interval], title: str, run: Runtime) -> None:
    """Print a summary as a table, on the main process."""
    from rich.console import Console
    from rich.table import Table

    if not run.is_main:
        return
    table = Table("figure", "value", "95% interval", title=title)
    for name, value in summary.items():
        interval = f"{value.low:.3f} to {value.high:.3f}" if isinstance(value, Interval) else ""
        table.add_row(name, "-" if math.isnan(value) else f"{float(value):.3f}", interval)
    Console().print(table)
