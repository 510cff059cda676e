"""Monte Carlo tree search for one player, on a protocol of four methods."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = [
    "Edge",
    "Node",
    "Problem",
    "Search",
    "Selection",
    "grow",
    "mcts",
    "most_visited",
    "puct",
    "uct",
]

S = TypeVar("S")
A = TypeVar("A", bound=Hashable)

Selection = Callable[[float, int, float, int, float], float]
"""``(value, visits, prior, parent_visits, exploration) -> score``; the largest score is taken."""


class Problem(Protocol[S, A]):
    """What is searched. States are values: ``step`` returns a new one and changes nothing."""

    def expand(self, state: S, /) -> Sequence[tuple[A, float]]:
        """Return the actions with their priors; asked once a state, never of a terminal one."""
        ...

    def step(self, state: S, action: A, /) -> S:
        """Return the state that an action leads to."""
        ...

    def evaluate(self, state: S, /) -> float:
        """Return how good a state is; larger is better. Asked once a state, terminal or not."""
        ...

    def is_terminal(self, state: S, /) -> bool:
        """Tell whether nothing follows."""
        ...


def puct(value: float, visits: int, prior: float, parent_visits: int, exploration: float) -> float:
    """Predictor + UCT (Rosin 2011; Silver et al. 2017, arXiv:1712.01815).

        Q + exploration * prior * sqrt(N) / (1 + n)

    >>> puct(0.5, 3, 0.25, 16, 2.0)
    1.0
    """
    return value + exploration * prior * math.sqrt(parent_visits) / (1 + visits)


def uct(value: float, visits: int, prior: float, parent_visits: int, exploration: float) -> float:
    """UCB1 in trees (Kocsis and Szepesvari 2006), without priors; what is new comes first.

        Q + exploration * sqrt(ln N / n), or infinity where n = 0

    >>> uct(0.5, 4, 0.0, 1, 2.0), uct(0.5, 0, 0.0, 1, 2.0)
    (0.5, inf)
    """
    if not visits:
        return math.inf
    return value + exploration * math.sqrt(math.log(parent_visits) / visits)


@dataclass(slots=True, eq=False)
class Edge(Generic[S, A]):
    """An action that a node offers."""

    prior: float
    node: Node[S, A] | None = None
    """Where it leads; None until it is taken for the first time."""


@dataclass(slots=True, eq=False)
class Node(Generic[S, A]):
    """A state of the tree, with what was backed up through it."""

    state: S
    terminal: bool
    evaluation: float
    """``evaluate(state)``; NaN at the root, which is not evaluated."""
    visits: int = 0
    total: float = 0.0
    """Sum of the values backed up."""
    edges: dict[A, Edge[S, A]] | None = None
    """None until a simulation goes on from here."""

    @property
    def value(self) -> float:
        """Mean backed-up value; NaN before the first."""
        return self.total / self.visits if self.visits else math.nan


@dataclass(frozen=True, slots=True)
class Search(Generic[A]):
    """What a search found at its root."""

    best_action: A
    """Visited most; of several, the one of the highest value, then the first."""
    visits: dict[A, int]
    """By action, in the order of ``expand``; they sum to ``simulations``."""
    values: dict[A, float]
    """Mean backed-up value by action; NaN where it was never taken."""


def mcts(
    root: S,
    problem: Problem[S, A],
    *,
    simulations: int,
    exploration: float,
    seed: int,
    selection: Selection = puct,
) -> Search[A]:
    """Search from ``root`` and return the visits and values of its actions.

    Each simulation goes down by ``selection`` to a state that is new, or terminal, and adds its
    evaluation to everything on the way (Silver et al. 2017, arXiv:1712.01815; Coulom 2006). Where
    we differ, because one player's values may lie anywhere and an evaluation may be dear:

    - An action that was never taken has its parent's mean value, not 0, so that adding a constant
      to all values changes nothing.
    - N counts the node's own visit, ``N = 1 + sum_b n_b``, so the first choice at a node follows
      the priors instead of being a tie.
    - A state is expanded when it is reached for the second time, and evaluated once.

    Args:
        root: Where to begin; the root itself is not evaluated.
        problem: What is searched.
        simulations: How many, at least 1.
        exploration: Weight of the rule's second term, in units of value: 1 to 2 are usual where
            values lie in 0..1, and a hundred times that where they go up to 100.
        seed: Decides between equal scores, and nothing else.
        selection: ``puct``, ``uct``, or a function of your own.

    Raises:
        ValueError: The root is terminal or offers no action; a prior is negative or not finite; an
            action comes twice; an evaluation is not finite; a bad count or weight.
    """
    tree = grow(
        root,
        problem,
        simulations=simulations,
        exploration=exploration,
        seed=seed,
        selection=selection,
    )
    nodes = {action: edge.node for action, edge in (tree.edges or {}).items()}
    visits = {action: node.visits if node else 0 for action, node in nodes.items()}
    values = {action: node.value if node else math.nan for action, node in nodes.items()}
    best = max(visits, key=lambda action: (visits[action], values[action]))
    return Search(best, visits, values)


def grow(
    root: S,
    problem: Problem[S, A],
    *,
    simulations: int,
    exploration: float,
    seed: int,
    selection: Selection = puct,
) -> Node[S, A]:
    """Return the root of the tree that ``mcts`` sums up; the arguments are the same."""
    if simulations < 1:
        raise ValueError(f"simulations={simulations}: at least one is needed to tell actions apart")
    if not 0 <= exploration < math.inf:
        raise ValueError(f"exploration={exploration}: give a finite weight, at least 0")
    if problem.is_terminal(root):
        raise ValueError(f"the root {root!r} is terminal: there is no action to choose")
    tree: Node[S, A] = Node(root, False, math.nan, edges=_edges(problem, root))
    if not tree.edges:
        raise ValueError(f"expand() gave no action for the root {root!r}: there is none to choose")
    draws = random.Random(seed)
    for _ in range(simulations):
        path = [tree]
        while path[-1].edges is not None or _opens(problem, path):
            action, edge = _choose(path[-1], exploration, selection, draws)
            known, state = edge.node, path[-1].state
            edge.node = known or _reached(problem, problem.step(state, action))
            path.append(edge.node)
            if known is None:
                break
        for node in path:
            node.visits += 1
            node.total += path[-1].evaluation
    return tree


def most_visited(root: Node[S, A]) -> S:
    """Return the state at the end of the most visited actions, as far as the tree goes.

    Of equally visited actions the one of the higher value is followed, as ``mcts`` does at its
    root, then the first.
    """
    node = root
    while taken := [edge.node for edge in (node.edges or {}).values() if edge.node]:
        node = max(taken, key=lambda child: (child.visits, child.value))
    return node.state


def _opens(problem: Problem[S, A], path: list[Node[S, A]]) -> bool:
    """Expand the last node of a path if it is met again; False where nothing follows."""
    node = path[-1]
    if node.terminal:
        return False
    edges = _edges(problem, node.state)
    if not edges:  # a dead end counts as terminal from now on
        node.terminal = True
        return False
    node.edges = edges
    return True


def _edges(problem: Problem[S, A], state: S) -> dict[A, Edge[S, A]]:
    edges: dict[A, Edge[S, A]] = {}
    for action, prior in problem.expand(state):
        if action in edges:
            raise ValueError(f"expand({state!r}) gave the action {action!r} twice: merge them")
        if not 0 <= prior < math.inf:
            raise ValueError(
                f"expand({state!r}) gave the action {action!r} the prior {prior}: expected a "
                "finite number, at least 0"
            )
        edges[action] = Edge(prior)
    return edges


def _reached(problem: Problem[S, A], state: S) -> Node[S, A]:
    value = float(problem.evaluate(state))
    if not math.isfinite(value):
        raise ValueError(f"evaluate({state!r}) gave {value}: a mean needs finite numbers")
    return Node(state, problem.is_terminal(state), value)


def _choose(
    node: Node[S, A],
    exploration: float,
    selection: Selection,
    draws: random.Random,
) -> tuple[A, Edge[S, A]]:
    """Return the action of the largest score, and its edge."""
    assert node.edges is not None
    parent_visits = 1 + sum(edge.node.visits for edge in node.edges.values() if edge.node)
    own = node.value if node.visits else 0.0
    best, ties = -math.inf, list[tuple[A, Edge[S, A]]]()
    for action, edge in node.edges.items():
        taken = edge.node
        value = taken.value if taken else own
        visits = taken.visits if taken else 0
        score = selection(value, visits, edge.prior, parent_visits, exploration)
        if score > best:
            best, ties = score, [(action, edge)]
        elif score == best:
            ties.append((action, edge))
    if not ties:
        raise ValueError(f"{selection} gave no score that compares for the state {node.state!r}")
    return ties[0] if len(ties) == 1 else draws.choice(ties)
