"""The best of n completions of the user's own model, by the user's own reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from launch.config import resumable
from launch.errors import UsageError
from launch.folder import atomic_write
from launch.runtime import Runtime, RuntimeConfig
from posttrain.data.tasks import Task, parse_task
from posttrain.eval import Comparison, Evaluation, Interval, gain_with_interval, mean_with_interval
from posttrain.eval.pass_at_k import pass_at_k
from posttrain.recipes.evaluation import NOTHING_HELD_OUT, leave_table, questions
from posttrain.recipes.evaluator import Evaluator
from posttrain.recipes.jobs import check_form, given
from posttrain.recipes.scorers import Scorer, check_scorer, parse_scorer
from posttrain.recipes.sources import ModelSource, Pretrained, parse_model
from posttrain.rewards.checking import checked, reward_name
from posttrain.rollout import Sampling
from posttrain.search.best_of_n import best_index
from posttrain.vocabulary import folder_vocabulary, model_vocabulary

__all__ = ["BestOfNJob", "picked", "scored"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BestOfNJob:
    """Draw n completions of each held-out problem and keep the one that a reward model prefers."""

    leaves_run: ClassVar[bool] = True
    model: ModelSource = field(default_factory=Pretrained, metadata={"parse": parse_model})
    task: Task | None = field(default=None, metadata={"parse": parse_task})
    """A JSONL file of questions and answers, a reasoning-gym name, a hub id or module:Class."""
    scorer: Scorer | None = field(default=None, metadata={"parse": parse_scorer})
    """The folder of a reward model, or of a process reward model; of the latter,
    ``--scorer.reduce last``, ``minimum`` or ``product`` makes one score of those of the steps."""
    n: int = 8
    """Completions of each problem."""
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512))
    """The model's own stop tokens are used where none are given."""
    problems: int = 512
    """Held-out problems at the most; of a file that holds nothing out, its first ones."""
    batch: int = 64
    """Problems that the engine gets at once; memory only."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("n", "problems", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")

    def check(self) -> None:
        """Raise UsageError for what is missing, broken, or does not fit together."""
        self.model.check()
        prompts = questions(given(self.task))
        if not len(prompts):
            raise UsageError("the task has no problems: there is nothing to answer")
        check_form(self.model, given(self.task), prompts[0])
        path = self.model.path if isinstance(self.model, Pretrained) else None
        check_scorer(self._given_scorer(), None if path is None else folder_vocabulary(path))

    def _given_scorer(self) -> Scorer:
        if self.scorer is None:
            raise UsageError(
                "no scorer is given: add --scorer FOLDER, a reward model's. Make one with: "
                "monro run reward-model --model MODEL --data pairs.jsonl"
            )
        return self.scorer

    def run(self, run: Runtime) -> None:
        """Draw, score and pick; print the figures and leave them with the picks."""
        run.restore({})  # no checkpoint, only records to make again
        task, scorer = given(self.task), self._given_scorer()
        lm = self.model.load((), self.seed)
        check_scorer(scorer, model_vocabulary(lm))
        lm.model.to(run.device)
        prompts = questions(task)[: self.problems]
        if not len(task.heldout()):
            run.print(NOTHING_HELD_OUT)
            run.note("Problems to train on", NOTHING_HELD_OUT)
        judge = Evaluator(group_size=self.n, sampling=self.sampling, greedy=False, batch=self.batch)
        found = judge.judge(lm, prompts, task.reward, run)
        scores = scored(scorer, found, run)
        rows = figures(found, scores)
        table = Comparison(rows)
        leave_table(table, run)
        run.log(0, {str(row["pick"]): _number(row["accuracy"]) for row in rows})
        run.table(f"The best of {self.n} completions", table.texts())
        run.print(table.markdown())
        _leave_picks(found, scores, run)


def scored(scorer: Scorer, found: Evaluation, run: Runtime) -> Tensor:
    """Return ``(N, S)`` float32 scores of all completions, each scored once, by one call."""
    rows = [found.samples[i] for i in run.share(len(found.samples))]
    samples = [sample for row in rows for sample in row]
    mine = checked(reward_name(scorer), scorer, samples).tolist() if samples else []
    return torch.tensor(run.gather_objects(mine)).view(found.correct.shape)


def picked(scores: Sequence[Sequence[float]], correct: Tensor, n: int) -> Tensor:
    """Return ``(N,)`` float64: is the best of each question's first n completions correct?

    Args:
        scores: N times at least n numbers.
        correct: ``(N, S)`` bool.
        n: How many count.

    >>> picked([[0.1, 0.3, 0.3], [0.2, 0.1, 0.9]], torch.tensor([[0, 1, 0], [1, 0, 0]]) > 0, 2)
    tensor([1., 1.], dtype=torch.float64)
    """
    places = torch.tensor([best_index(row[:n]) for row in scores])
    return correct.gather(1, places[:, None]).squeeze(1).double()


def figures(found: Evaluation, scores: Tensor) -> list[dict[str, str | float | Interval]]:
    """Return a row for each way of choosing one of n completions, on the same completions.

    Tokens are those drawn for a problem, on average; what the scorer read is not among them. The
    differences are to the majority, where the task has answers to vote with, over paired problems.
    """
    count, n = found.correct.shape
    each = found.lengths.double()
    drawn = each.sum(1).mean().item()
    ones = pass_at_k(torch.full((count,), n), found.correct_counts, 1)
    majority = found.majority(n)
    best = picked(scores.tolist(), found.correct, n)
    ways: list[tuple[str, float, Tensor]] = [("pass@1", each.mean().item(), ones)]
    if majority is not None:
        ways.append((f"maj@{n}", drawn, majority))
    ways.append((f"best of {n}", drawn, best))
    ways.append((f"pass@{n} (oracle)", drawn, found.correct.any(1).double()))
    rows: list[dict[str, str | float | Interval]] = []
    for name, tokens, right in ways:
        row: dict[str, str | float | Interval] = {
            "pick": name,
            "accuracy": mean_with_interval(right),
            "tokens": tokens,
        }
        for other, values in (("pass@1", ones), (f"maj@{n}", majority)):
            if name.startswith("best") and values is not None:
                gain = gain_with_interval(values, right)
                row |= {f"over {other}": gain, f"verdict over {other}": gain.verdict}
        rows.append(row)
    return rows


def _number(value: str | float | Interval) -> float:
    return float(value)


def _leave_picks(found: Evaluation, scores: Tensor, run: Runtime) -> None:
    """Write ``picks.jsonl``, a line for each problem, and show the first ones."""
    rows = [_pick(found, index, row) for index, row in enumerate(scores.tolist())]
    shown = ("prompt", "completion", "answer", "reward")
    run.samples(0, [{name: row[name] for name in shown} for row in rows[:50]])
    if run.output is None:
        return
    folder, text = run.output, "".join(json.dumps(row) + "\n" for row in rows)
    run.on_main(lambda: atomic_write(folder / "picks.jsonl", text))
    run.print(f"The picks are in {folder / 'picks.jsonl'}.")


def _pick(found: Evaluation, question: int, scores: Sequence[float]) -> Mapping[str, object]:
    place = best_index(scores)
    sample = found.samples[question][place]
    return {
        "prompt": sample.prompt,
        "completion": sample.completion,
        "answer": sample.answer,
        "reward": float(found.correct[question, place]),
        "pick": place,
        "scores": list(scores),
        "correct": found.correct[question].tolist(),
        "tokens": found.lengths[question].tolist(),
    }
