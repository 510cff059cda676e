"""The best of n samples, by a reward model or by the steps of a process reward model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = [
    "Best",
    "ByStep",
    "Samples",
    "Scores",
    "best_index",
    "best_of_n",
    "finite_scores",
    "last",
    "minimum",
    "product",
]

P = TypeVar("P", contravariant=True)
C = TypeVar("C")
D = TypeVar("D", covariant=True)
X = TypeVar("X", contravariant=True)


class Samples(Protocol[P, D]):
    """Draws completions."""

    def __call__(self, prompt: P, count: int, seed: int, /) -> Sequence[D]:
        """Return ``count`` completions of a prompt; equal seeds give equal ones."""
        ...


class Scores(Protocol[X]):
    """Tells how good each of some completions, or states, is; larger is better."""

    def __call__(self, items: Sequence[X], /) -> Sequence[float]:
        """Return one finite number for each."""
        ...


@dataclass(frozen=True, slots=True)
class Best(Generic[C]):
    """The completions, how they were scored, and which is best."""

    index: int
    """Of the highest score; of equal ones the first."""
    completions: tuple[C, ...]
    scores: tuple[float, ...]

    @property
    def completion(self) -> C:
        """The best completion."""
        return self.completions[self.index]

    @property
    def score(self) -> float:
        """Its score."""
        return self.scores[self.index]


def best_of_n(prompt: P, sample: Samples[P, C], score: Scores[C], *, n: int, seed: int) -> Best[C]:
    """Draw n completions and keep the one that scores best (Cobbe et al. 2021, arXiv:2110.14168).

        argmax_i score(y_i),  y_1 ... y_n ~ policy(. | prompt)

    Args:
        prompt: Whatever ``sample`` takes.
        sample: Draws the completions.
        score: A reward model, or ``ByStep`` over a process reward model.
        n: How many to draw, at least 1.
        seed: Of the draws.

    Raises:
        ValueError: n below 1, or a wrong number of completions or scores, or one not finite.

    >>> draw = lambda prompt, count, seed: [prompt + "!" * i for i in range(count)]
    >>> best_of_n("a", draw, lambda texts: [-abs(len(text) - 3) for text in texts], n=5, seed=0)
    Best(index=2, completions=('a', 'a!', 'a!!', 'a!!!', 'a!!!!'), scores=(-2.0, -1.0, 0.0, -1.0, \
-2.0))
    """
    if n < 1:
        raise ValueError(f"n={n}: at least one completion is needed")
    completions = tuple(sample(prompt, n, seed))
    if len(completions) != n:
        raise ValueError(f"the sampler gave {len(completions)} completions, expected n={n}")
    scores = finite_scores(score, completions)
    return Best(best_index(scores), completions, scores)


def best_index(scores: Sequence[float]) -> int:
    """Return the place of the highest score; of equal ones the first.

    >>> best_index([0.5, 1.0, 1.0])
    1
    """
    return max(range(len(scores)), key=lambda i: scores[i])


def finite_scores(score: Scores[X], items: Sequence[X]) -> tuple[float, ...]:
    """Return the scores of items, or raise ValueError if they are not one finite number each."""
    scores = tuple(float(value) for value in score(items))
    if len(scores) != len(items):
        raise ValueError(f"the scorer gave {len(scores)} scores for {len(items)} items")
    wrong = [i for i, value in enumerate(scores) if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"score {wrong[0]} is {scores[wrong[0]]}: expected finite numbers")
    return scores


@dataclass(frozen=True, slots=True)
class ByStep(Generic[C]):
    """Scores completions by their steps, as a process reward model does.

    Lightman et al. 2023 (arXiv:2305.20050, section 2.6) take the product, Wang et al. 2023
    (Math-Shepherd, arXiv:2312.08935, section 3.4) the minimum, Snell et al. 2024
    (arXiv:2408.03314, section 5.1) the last step.

    >>> prm = lambda completions: [[0.5, 1.0] for _ in completions]
    >>> [ByStep(prm, reduce)(["a"]) for reduce in (last, minimum, product)]
    [[1.0], [0.5], [0.5]]
    """

    step_scores: Callable[[Sequence[C]], Sequence[Sequence[float]]]
    """For each completion one number for each of its steps, such as P(the step is right)."""
    reduce: Callable[[Sequence[float]], float]
    """``last``, ``minimum``, ``product``, or a function of your own."""

    def __call__(self, completions: Sequence[C], /) -> Sequence[float]:
        """Return one score for each completion."""
        return [self.reduce(steps) for steps in self.step_scores(completions)]


def last(steps: Sequence[float]) -> float:
    """Return the last step's score.

    >>> last([0.5, 0.25])
    0.25
    """
    return _some(steps)[-1]


def minimum(steps: Sequence[float]) -> float:
    """Return the score of the weakest step.

    >>> minimum([0.5, 0.25, 1.0])
    0.25
    """
    return min(_some(steps))


def product(steps: Sequence[float]) -> float:
    """Return the probability that every step is right, if each score is that of one step.

    >>> product([0.5, 0.25])
    0.125
    """
    wrong = [i for i, score in enumerate(_some(steps)) if not 0 <= score <= 1]
    if wrong:
        raise ValueError(
            f"step {wrong[0]} has the score {steps[wrong[0]]}: a product needs probabilities in "
            "0..1; apply a sigmoid first"
        )
    return math.prod(steps)


def _some(steps: Sequence[float]) -> Sequence[float]:
    if not len(steps):
        raise ValueError("a completion has no step scores: a completion has at least one step")
    return steps
