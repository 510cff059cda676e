from __future__ import annotations

from posttrain.search.mcts import Edge, Node
from posttrain.search.tree_data import (
    StepPair,
    StepRow,
    Trajectory,
    step_pairs,
    step_rows,
    trajectories,
)


def leaf(state: str, value: float, visits: int = 1) -> Node[str, str]:
    return Node(state, True, value, visits, value * visits)


def tree() -> Node[str, str]:
    """From "" by a (then c or d, worth 1 and 0) or by b, worth 0.25; e was never taken."""
    c, d = leaf("ac", 1.0, 2), leaf("ad", 0.0)
    a = Node("a", False, 0.5, 4, 0.5 + 2.0 + 0.0, {"c": Edge(0.5, c), "d": Edge(0.5, d)})
    edges = {"a": Edge(0.4, a), "b": Edge(0.4, leaf("b", 0.25)), "e": Edge(0.2)}
    return Node("", False, float("nan"), 5, 2.75, edges)


def test_rows_of_hand_worked_tree() -> None:
    rows = step_rows(tree())
    assert rows == [
        StepRow("", "a", 0.625, 4, False),
        StepRow("", "b", 0.25, 1, True),
        StepRow("a", "c", 1.0, 2, True),
        StepRow("a", "d", 0.0, 1, True),
    ]
    assert step_rows(tree(), min_visits=2) == [rows[0], rows[2]]


def test_pairs_hold_the_best_and_the_worst_step_of_a_state() -> None:
    assert step_pairs(tree()) == [StepPair("", "a", "b", 0.375), StepPair("a", "c", "d", 1.0)]
    assert step_pairs(tree(), min_margin=0.375) == [StepPair("a", "c", "d", 1.0)]
    assert step_pairs(tree(), min_visits=2) == []


def test_trajectories_are_those_that_end_well_the_best_steps_first() -> None:
    assert trajectories(tree(), min_evaluation=1.0) == [
        Trajectory(("a", "c"), "ac", 1.0, (0.625 + 1.0) / 2)
    ]
    ends = [found.end for found in trajectories(tree(), min_evaluation=0.0)]
    assert ends == ["ac", "ad", "b"]  # .8125, .3125, .25
