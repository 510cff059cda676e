"""The answer that most samples agree on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posttrain.rewards.answer import answers_equal

__all__ = ["Vote", "self_consistency"]


@dataclass(frozen=True, slots=True)
class Vote:
    """How samples voted."""

    answer: str | None
    """First member of the winning cluster; None if no sample had an answer."""
    share: float
    """Weight of the winners over that of all samples, those without an answer included."""
    clusters: dict[str, float]
    """Weight of each cluster by its first member, in order of appearance."""
    unparseable: int
    """Samples without an answer."""


def self_consistency(
    answers: Sequence[str | None],
    *,
    weights: Sequence[float] | None = None,
    equal: Callable[[str, str], bool] = answers_equal,
) -> Vote:
    r"""Marginalise over reasoning (Wang et al. 2022, arXiv:2203.11171, section 2).

        answer = argmax_a sum_i weight_i * [answer_i = a]

    With weights from a reward model it is the weighted vote of Li et al. 2022
    (arXiv:2206.02336). Answers cluster as in ``maj_at_k``: each joins the first cluster whose
    first member it equals. Of equally heavy clusters the one seen first wins.

    Args:
        answers: Of n samples, such as ``extract_answer`` finds; None where there is none.
        weights: One for each sample, at least 0; 1 by default.
        equal: Tells whether an answer equals a cluster's first member.

    Raises:
        ValueError: No sample, or weights that do not match, are negative or not finite.

    >>> self_consistency(["7", "0.5", "1/2", None]).answer
    '0.5'
    >>> self_consistency(["7", "0.5", "1/2", None], weights=[0.9, 0.2, 0.3, 1.0])
    Vote(answer='7', share=0.375, clusters={'7': 0.9, '0.5': 0.5}, unparseable=1)
    """
    if not answers:
        raise ValueError("got no answers: a vote needs at least one sample")
    given = [1.0] * len(answers) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(answers):
        raise ValueError(f"got {len(given)} weights for {len(answers)} answers: give one for each")
    wrong = [row for row, weight in enumerate(given) if not 0 <= weight < math.inf]
    if wrong:
        raise ValueError(
            f"weight {wrong[0]} is {given[wrong[0]]}: expected a finite number, at least 0"
        )
    clusters: dict[str, float] = {}
    home: dict[str, str] = {}
    for answer, weight in zip(answers, given, strict=True):
        if answer is None:
            continue
        if answer not in home:
            home[answer] = next((head for head in clusters if equal(answer, head)), answer)
        clusters[home[answer]] = clusters.get(home[answer], 0.0) + weight
    winner = max(clusters, key=lambda head: clusters[head], default=None)
    total = math.fsum(given)
    share = clusters[winner] / total if winner is not None and total else 0.0
    return Vote(winner, share, clusters, sum(answer is None for answer in answers))
