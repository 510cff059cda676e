"""Beam search over steps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from launch import streams
from posttrain.search.best_of_n import Scores, finite_scores

__all__ = ["Beams", "Steps", "beam_search"]

S = TypeVar("S", bound=Hashable)


class Steps(Protocol[S]):
    """Continues states by one step each. States are values, such as tuples of tokens."""

    def propose(
        self, states: Sequence[S], count: int, *, seeds: Sequence[int]
    ) -> Sequence[Sequence[S]]:
        """Return ``count`` continuations of each state; a state's depend on it and its seed."""
        ...

    def is_terminal(self, state: S, /) -> bool:
        """Tell whether nothing follows."""
        ...


@dataclass(frozen=True, slots=True)
class Beams(Generic[S]):
    """The states that a beam search ended with, best first."""

    states: tuple[S, ...]
    """Terminal ones; if none was reached, those that were kept last."""
    scores: tuple[float, ...]
    proposed: int
    """Steps drawn in all."""
    finished: bool
    """Whether ``states`` are terminal."""

    @property
    def best(self) -> S:
        """The state of the highest score."""
        return self.states[0]


def beam_search(
    root: S,
    problem: Steps[S],
    score: Scores[S],
    *,
    width: int,
    expansions: int,
    max_steps: int,
    seed: int,
) -> Beams[S]:
    """Keep the ``width`` best states, step by step (Snell et al. 2024, arXiv:2408.03314, 5.2).

    The root gets ``width * expansions`` steps, later each kept state ``expansions``; equal states
    are one. A terminal state keeps its place in the beam and is not continued; the search ends
    when the whole beam is terminal. Of equal scores, what was proposed first is kept. With
    ``width=1`` it is greedy; with all of it kept and ``max_steps`` enough it is exhaustive.

    Args:
        root: Where to begin.
        problem: Proposes steps.
        score: How good each state is: the score of its last step by a process reward model, or
            any reduction over its steps.
        width: States kept, at least 1.
        expansions: Steps drawn from each, at least 1.
        max_steps: Most steps.
        seed: Step i of the search continues the k-th state by ``(seed, "beam", i, k)``.

    Raises:
        ValueError: A count below 1, a terminal root, or scores that are not finite.
    """
    for name, value in (("width", width), ("expansions", expansions), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    if problem.is_terminal(root):
        raise ValueError(f"the root {root!r} is terminal: there is nothing to search")
    beam: list[tuple[float, S]] = []
    alive, proposed, count = [root], 0, width * expansions
    for step in range(max_steps):
        seeds = streams.keys(seed, "beam", step, range(len(alive)))
        drawn = [state for row in problem.propose(alive, count, seeds=seeds) for state in row]
        proposed += len(alive) * count
        kept = {state: value for value, state in beam if problem.is_terminal(state)}
        new = list(dict.fromkeys(state for state in drawn if state not in kept))
        pool = [(value, state) for state, value in kept.items()]
        pool += list(zip(finite_scores(score, new), new, strict=True))
        beam = sorted(pool, key=lambda pair: -pair[0])[:width]  # stable: the first of equals
        alive = [state for _, state in beam if not problem.is_terminal(state)]
        count = expansions
        if not alive:
            break
    ended = [pair for pair in beam if problem.is_terminal(pair[1])]
    chosen = ended or beam
    return Beams(
        states=tuple(state for _, state in chosen),
        scores=tuple(value for value, _ in chosen),
        proposed=proposed,
        finished=bool(ended),
    )
