"""Training data from a search tree: values of steps, pairs of steps, whole trajectories."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from posttrain.search.mcts import Node

__all__ = ["StepPair", "StepRow", "Trajectory", "step_pairs", "step_rows", "trajectories"]

S = TypeVar("S")
A = TypeVar("A", bound=Hashable)


@dataclass(frozen=True, slots=True)
class StepRow(Generic[S, A]):
    """A step and how well it did: what a process reward model learns from."""

    state: S
    action: A
    value: float
    """Mean backed-up value of what the step leads to."""
    visits: int
    terminal: bool
    """Whether the step is the last one."""


@dataclass(frozen=True, slots=True)
class StepPair(Generic[S, A]):
    """Two steps from one state, the better one first."""

    state: S
    chosen: A
    rejected: A
    margin: float
    """Difference of their values."""


@dataclass(frozen=True, slots=True)
class Trajectory(Generic[S, A]):
    """A way from the root to a terminal state."""

    actions: tuple[A, ...]
    end: S
    evaluation: float
    """Of the terminal state."""
    value: float
    """Mean over the steps of their backed-up values."""


def step_rows(root: Node[S, A], *, min_visits: int = 1) -> list[StepRow[S, A]]:
    """Return every step visited at least ``min_visits`` times, parents before children.

    The value of a step is the mean that its simulations backed up (rStar-Math, Guan et al. 2025,
    arXiv:2501.04519, eq. 1 with terminal rewards as evaluations).
    """
    return [
        StepRow(node.state, action, child.value, child.visits, child.terminal)
        for node, action, child in _steps(root)
        if child.visits >= min_visits
    ]


def step_pairs(
    root: Node[S, A], *, min_visits: int = 1, min_margin: float = 0.0
) -> list[StepPair[S, A]]:
    """Return, for each state, its best and worst step, if their values differ by more.

    rStar-Math trains a process preference model on such pairs instead of the noisy values
    themselves (Guan et al. 2025, arXiv:2501.04519, section 3.3); it takes two steps of each side.

    Args:
        root: Of a tree that ``grow`` made.
        min_visits: Steps visited less often are left out.
        min_margin: Pairs whose values differ by no more than this are left out.
    """
    children: dict[int, tuple[S, list[tuple[float, A]]]] = {}
    for node, action, child in _steps(root):
        if child.visits >= min_visits:
            children.setdefault(id(node), (node.state, []))[1].append((child.value, action))
    pairs = []
    for state, steps in children.values():
        high, chosen = max(steps, key=lambda step: step[0])
        low, rejected = min(steps, key=lambda step: step[0])
        if high - low > min_margin:
            pairs.append(StepPair(state, chosen, rejected, high - low))
    return pairs


def trajectories(root: Node[S, A], *, min_evaluation: float) -> list[Trajectory[S, A]]:
    """Return the ways to terminal states that evaluate at least so, best mean step value first.

    The first of them is what rStar-Math fine-tunes its policy on.
    """
    found: list[Trajectory[S, A]] = []
    stack: list[tuple[Node[S, A], tuple[A, ...], tuple[float, ...]]] = [(root, (), ())]
    while stack:
        node, actions, values = stack.pop()
        if node.terminal and node.evaluation >= min_evaluation:
            mean = sum(values) / len(values)
            found.append(Trajectory(actions, node.state, node.evaluation, mean))
        for action, edge in reversed((node.edges or {}).items()):
            if edge.node is not None:
                stack.append((edge.node, (*actions, action), (*values, edge.node.value)))
    return sorted(found, key=lambda trajectory: -trajectory.value)


def _steps(root: Node[S, A]) -> Iterator[tuple[Node[S, A], A, Node[S, A]]]:
    """Yield (node, action, child) of every step that was taken, breadth first."""
    level = [root]
    while level:
        below = []
        for node in level:
            for action, edge in (node.edges or {}).items():
                if edge.node is not None:
                    yield node, action, edge.node
                    below.append(edge.node)
        level = below
