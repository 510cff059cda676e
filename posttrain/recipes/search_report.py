"""Accuracy against tokens: what each search buys for what it spends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from posttrain.eval import Evaluation, Interval, gain_with_interval, mean_with_interval
from posttrain.eval.pass_at_k import maj_at_k
from posttrain.eval.ranking import auc
from posttrain.recipes.scorers import Reduce
from posttrain.recipes.search_jobs import picked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawn", "Point", "account", "at_equal_tokens", "auc_within", "compared", "draw_points"]


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A search with a budget, on N problems."""

    search: str
    budget: str
    """Such as ``n=8``."""
    correct: Tensor
    """``(N,)`` float64, 1 where the answer is right."""
    tokens: Tensor
    """``(N,)`` int64, all that the policy drew."""

    @property
    def spent(self) -> float:
        """Mean tokens of a problem."""
        return self.tokens.double().mean().item()

    def row(self) -> dict[str, str | float | Interval]:
        """Return a row of a table."""
        accuracy = mean_with_interval(self.correct)
        return {
            "search": self.search,
            "budget": self.budget,
            "tokens": self.spent,
            "accuracy": accuracy,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """S completions of each of N problems, with the probabilities of their steps."""

    gold: Sequence[str]
    answers: Sequence[Sequence[str | None]]
    correct: Tensor
    """``(N, S)`` bool."""
    lengths: Tensor
    """``(N, S)`` int64 tokens."""
    steps: Sequence[Sequence[Sequence[float]]]

    @classmethod
    def of(cls, found: Evaluation, steps: Sequence[Sequence[Sequence[float]]]) -> Self:
        """Return what an evaluation drew."""
        gold = [row[0].answer for row in found.samples]
        return cls(gold, found.answers, found.correct, found.lengths, steps)

    def rows(self) -> list[dict[str, Any]]:
        """Return a line of JSON for each problem; ``read`` takes them back."""
        columns = (self.gold, self.answers, self.correct.tolist(), self.lengths.tolist())
        return [
            {"answer": gold, "answers": list(own), "correct": right, "tokens": lengths, "steps": p}
            for gold, own, right, lengths, p in zip(*columns, self.steps, strict=True)
        ]

    @classmethod
    def read(cls, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Return what ``rows`` gave."""
        return cls(
            [row["answer"] for row in rows],
            [row["answers"] for row in rows],
            torch.tensor([row["correct"] for row in rows]),
            torch.tensor([row["tokens"] for row in rows]),
            [row["steps"] for row in rows],
        )

    def majority(self, n: int) -> Point:
        """Return the vote of the first n completions."""
        right = maj_at_k(self.answers, self.gold, n)
        return Point("maj@n", f"n={n}", right, self.lengths[:, :n].sum(1))

    def best_of(self, n: int, reduce: Reduce, name: str) -> Point:
        """Return the best of the first n completions by their steps."""
        scores = [[reduce(steps) for steps in row[:n]] for row in self.steps]
        right = picked(scores, self.correct, n)
        return Point(name, f"n={n}", right, self.lengths[:, :n].sum(1))


def auc_within(drawn: Drawn, reduce: Reduce) -> Interval | None:
    """Return how well scores tell right completions from wrong ones of the same problem.

    The mean of the problems' AUC, over problems that have both; None if none has. It is what best
    of n lives on: an AUC over all completions also rises with knowing which problems are hard.
    """
    found = []
    for row, right in zip(drawn.steps, drawn.correct, strict=True):
        if 0 < int(right.sum()) < len(right):
            found.append(auc(torch.tensor([reduce(steps) for steps in row]), right))
    return mean_with_interval(torch.tensor(found)) if found else None


def at_equal_tokens(lengths: Tensor, spent: float) -> int:
    """Return the least n whose n completions take at least ``spent`` tokens on average.

    So the vote that a search is compared with has never had less. If all S completions take less,
    it is S.

    Args:
        lengths: ``(N, S)`` tokens of each completion.
        spent: Mean tokens of a problem.

    >>> lengths = torch.tensor([[10, 10, 10], [20, 20, 20]])
    >>> at_equal_tokens(lengths, 15.0), at_equal_tokens(lengths, 15.5), at_equal_tokens(lengths, 99)
    (1, 2, 3)
    """
    means = lengths.double().mean(0).cumsum(0)
    return min(int((means < spent).sum()) + 1, lengths.shape[1])


def compared(drawn: Drawn, points: Sequence[Point]) -> list[dict[str, str | float | Interval]]:
    """Return a row for each point that is no vote: its accuracy, and the gain over a vote.

    The vote is that of ``at_equal_tokens``, on the same problems.
    """
    rows: list[dict[str, str | float | Interval]] = []
    for point in points:
        n = at_equal_tokens(drawn.lengths, point.spent)
        vote = drawn.majority(n)
        gain = gain_with_interval(vote.correct, point.correct)
        less = vote.spent < point.spent * (1 - 1e-9)
        rows.append(
            {
                **point.row(),
                "vote": f"maj@{n}",
                "its tokens": vote.spent,
                "its accuracy": mean_with_interval(vote.correct),
                "difference": gain,
                "verdict": f"{gain.verdict}, with more tokens" if less else gain.verdict,
            }
        )
    return rows


def account(
    rows: Sequence[Mapping[str, str | float | Interval]],
    steps_auc: str,
    within: Interval | None,
    samples: int,
) -> str:
    """Return in words what was compared, and what came of it."""
    lines = [
        f"The process reward model tells held-out steps apart with an AUC of {steps_auc}. Right "
        "completions of a problem it tells from wrong ones of the same problem with an AUC of "
        f"{within or 'no known value'}, by the last step. Tokens are all that the policy drew for "
        "a problem, whether they are part of the answer or not, on average; what the process "
        "reward model read is not among them.",
        "Each search is compared with the vote of the least number of completions that take at "
        f"least as many tokens (at most {samples} were drawn), on the same problems. A difference "
        "is called a gain or a loss if its 95% interval over paired problems does not hold 0.",
    ]
    for search in dict.fromkeys(str(row["search"]) for row in rows):
        own = [row for row in rows if row["search"] == search]
        said = [
            f"{row['budget']} {float(row['difference']):+.3f} ({row['verdict']})" for row in own
        ]
        lines.append(f"{search} against the vote: {'; '.join(said)}.")
    return "\n\n".join(lines)


def draw_points(points: Sequence[Point]) -> Figure:
    """Draw accuracy with its interval over mean tokens of a problem, a line for each search."""
    from launch.ranges import draw_tradeoff

    lines: dict[str, list[tuple[float, tuple[float, float, float]]]] = {}
    for point in points:
        found = mean_with_interval(point.correct)
        place = (point.spent, (found.mean, found.low, found.high))
        lines.setdefault(point.search, []).append(place)
    return draw_tradeoff(
        {name: sorted(places) for name, places in lines.items()},
        across="tokens drawn for a problem",
        title="Accuracy",
    )
