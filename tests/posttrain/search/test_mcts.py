from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.search.mcts import (
    Edge,
    Node,
    Search,
    Selection,
    grow,
    mcts,
    most_visited,
    puct,
    uct,
)

Path = tuple[str, ...]


@dataclass
class Tree:
    """States are paths of letters; those that lead nowhere are terminal."""

    values: dict[Path, float]
    priors: dict[Path, dict[str, float]]
    expanded: list[Path] = field(default_factory=list)
    evaluated: list[Path] = field(default_factory=list)

    def expand(self, state: Path, /) -> Sequence[tuple[str, float]]:
        self.expanded.append(state)
        return list(self.priors[state].items())

    def step(self, state: Path, action: str, /) -> Path:
        return (*state, action)

    def evaluate(self, state: Path, /) -> float:
        self.evaluated.append(state)
        return self.values[state]

    def is_terminal(self, state: Path, /) -> bool:
        return state not in self.priors


def bandit(**values: float) -> Tree:
    share = 1 / len(values)
    return Tree({(a,): v for a, v in values.items()}, {(): dict.fromkeys(values, share)})


def random_tree(seed: int, depth: int = 3, width: int = 3, scale: float = 1.0) -> Tree:
    """Leaves have random values, inner states the mean of a few leaves below: a fair guess."""
    draws = random.Random(seed)
    tree = Tree({}, {})

    def build(state: Path) -> list[float]:
        if len(state) == depth:
            tree.values[state] = scale * draws.random()
            return [tree.values[state]]
        letters = "abcdef"[: draws.randint(2, width)]
        tree.priors[state] = {a: 1 / len(letters) for a in letters}
        leaves = [value for a in letters for value in build((*state, a))]
        tree.values[state] = sum(leaves) / len(leaves)
        return leaves

    build(())
    return tree


def best_leaf(tree: Tree) -> Path:
    leaves = [s for s in tree.values if s not in tree.priors]
    return max(leaves, key=lambda s: tree.values[s])


both = pytest.mark.parametrize("selection", [puct, uct])


def test_puct_of_hand_worked_bandit() -> None:
    # a pays 0 and has prior .6, b pays 1 and has .4; exploration 1, N = 1 + simulations so far.
    # 1: .6 against .4: a.  2: 0 + .6 sqrt(2) / 2 = .424 against .4 sqrt(2) = .566: b, and b again
    # until .3 sqrt(N) > 1 + .4 sqrt(N) / (1 + n_b) with n_b = N - 2: at N = 13 it is 1.0817 <
    # 1.1202, at N = 14 it is 1.1225 > 1.1151. So the 14th simulation is the second to take a.
    tree = Tree({("a",): 0.0, ("b",): 1.0}, {(): {"a": 0.6, "b": 0.4}})
    for simulations, visits in ((1, (1, 0)), (2, (1, 1)), (13, (1, 12)), (14, (2, 12))):
        found = mcts((), tree, simulations=simulations, exploration=1.0, seed=0)
        assert tuple(found.visits.values()) == visits
    assert found == Search("b", {"a": 2, "b": 12}, {"a": 0.0, "b": 1.0})


def test_uct_of_hand_worked_bandit() -> None:
    # Each of a = 0, b = 1 once; then a's sqrt(ln N / 1) against b's 1 + sqrt(ln N / n_b), N = 2 +
    # n_b. n_b = 5: 1.395 < 1.624. a's second turn: sqrt(ln N) (1 - 1 / sqrt(N - 2)) > 1, which
    # first holds at N = 8: 1.442 * .592 = .85; N = 9: 1.482 * .622 = .92; N = 10: 1.517 * .646 =
    # .98; N = 11: 1.549 * .667 = 1.03. So simulation 11 takes a.
    tree = bandit(a=0.0, b=1.0)
    for simulations, visits in ((2, (1, 1)), (10, (1, 9)), (11, (2, 9))):
        found = mcts((), tree, simulations=simulations, exploration=1.0, seed=0, selection=uct)
        assert tuple(found.visits.values()) == visits


def test_values_are_means_of_what_was_backed_up() -> None:
    # Greedy on a chain a -> a -> a: evaluations .2, .4, then the leaf's .9 again and again.
    values = {("a",): 0.2, ("a", "a"): 0.4, ("a", "a", "a"): 0.9}
    tree = Tree(values, {("a",) * n: {"a": 1.0} for n in range(3)})
    found = mcts((), tree, simulations=4, exploration=0.0, seed=0)
    assert found.visits == {"a": 4}
    assert found.values["a"] == pytest.approx((0.2 + 0.4 + 0.9 + 0.9) / 4, rel=1e-15)
    assert tree.evaluated == [("a",), ("a", "a"), ("a", "a", "a")]  # once each, the leaf too
    assert tree.expanded == [(), ("a",), ("a", "a")]


def test_a_state_is_expanded_only_when_it_is_met_again() -> None:
    tree = random_tree(0)
    mcts((), tree, simulations=1, exploration=1.0, seed=0)
    assert tree.expanded == [()]
    assert len(tree.evaluated) == 1


@both
@pytest.mark.parametrize("seed", range(20))
def test_known_optimum_is_found(selection: Selection, seed: int) -> None:
    tree = random_tree(seed)
    tree.values[best_leaf(tree)] += 0.1  # a margin: few simulations do not tell .91 from .92
    found = mcts((), tree, simulations=800, exploration=1.5, seed=seed, selection=selection)
    assert found.best_action == best_leaf(tree)[0]
    assert sum(found.visits.values()) == 800


@both
def test_optimum_behind_a_bad_first_look_is_found(selection: Selection) -> None:
    # b looks worst and leads to the best leaf; a looks best and leads nowhere.
    priors = {(): {"a": 0.8, "b": 0.2}, ("a",): {"x": 0.5, "y": 0.5}, ("b",): {"x": 0.7, "y": 0.3}}
    values = {("a",): 0.9, ("b",): 0.1, ("a", "x"): 0.3, ("a", "y"): 0.2}
    tree = Tree(values | {("b", "x"): 0.0, ("b", "y"): 1.0}, priors)
    found = mcts((), tree, simulations=300, exploration=1.0, seed=0, selection=selection)
    assert found.best_action == "b"


@both
@pytest.mark.parametrize(("factor", "offset"), [(1.0, -8.0), (1024.0, 0.0), (0.25, 2.0)])
def test_a_constant_does_not_matter_and_a_factor_belongs_to_the_exploration(
    selection: Selection, factor: float, offset: float
) -> None:
    # Values are multiples of 1/8, so that nothing is rounded before the means are taken.
    tree = random_tree(5)
    tree.values = {state: round(8 * value) / 8 for state, value in tree.values.items()}
    moved = Tree({s: factor * value + offset for s, value in tree.values.items()}, tree.priors)
    found = mcts((), tree, simulations=64, exploration=1.0, seed=3, selection=selection)
    again = mcts((), moved, simulations=64, exploration=factor, seed=3, selection=selection)
    assert again.visits == found.visits
    for action, value in found.values.items():
        assert again.values[action] == pytest.approx(factor * value + offset, rel=1e-12)


def twin(
    tree: Tree, simulations: int, exploration: float, rule: Selection, seed: int
) -> list[tuple[Path, float]]:
    """The same search without a tree: everything is counted anew from the list of what was done."""
    done: list[tuple[Path, float]] = []
    draws = random.Random(seed)

    def below(state: Path) -> list[float]:
        return [value for path, value in done if path[: len(state)] == state]

    for _ in range(simulations):
        state: Path = ()
        while not tree.is_terminal(state) and (state == () or below(state)):
            here, scores = below(state), {}
            for action, prior in tree.priors[state].items():
                through = below((*state, action))
                values = through or here
                value = sum(values) / len(values) if values else 0.0
                parents = len(here) + (state == ())  # the root has no visit of its own
                scores[action] = rule(value, len(through), prior, parents, exploration)
            best = [a for a in scores if scores[a] == max(scores.values())]
            state = (*state, best[0] if len(best) == 1 else draws.choice(best))
        done.append((state, tree.values[state]))
    return done


@both
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), simulations=st.integers(1, 40))
def test_search_equals_a_twin_that_keeps_no_tree(
    selection: Selection, seed: int, simulations: int
) -> None:
    # Values are multiples of 1/8, so that sums are exact in any order.
    tree = random_tree(seed)
    tree.values = {s: round(8 * v) / 8 for s, v in tree.values.items()}
    how = {"simulations": simulations, "exploration": 1.25, "seed": seed}
    found = mcts((), tree, **how, selection=selection)  # type: ignore[arg-type]  # a dict of all
    done = twin(tree, simulations, 1.25, selection, seed)
    firsts = [path[0] for path, _ in done]
    assert found.visits == {a: firsts.count(a) for a in tree.priors[()]}
    for action, visits in found.visits.items():
        total = sum(value for path, value in done if path[0] == action)
        assert (
            found.values[action] == total / visits if visits else math.isnan(found.values[action])
        )


def test_equal_seeds_give_equal_searches_and_seeds_decide_ties() -> None:
    tree = bandit(a=1.0, b=1.0, c=1.0)

    def searched(seed: int) -> Search[str]:
        return mcts((), tree, simulations=4, exploration=1.0, seed=seed)

    assert all(searched(seed) == searched(seed) for seed in range(5))
    assert len({searched(seed).best_action for seed in range(20)}) == 3


def test_best_action_of_equal_visits_has_the_higher_value() -> None:
    found = mcts((), bandit(a=0.0, b=1.0), simulations=2, exploration=9.0, seed=0, selection=uct)
    assert found.visits == {"a": 1, "b": 1}
    assert found.best_action == "b"


def test_action_that_was_never_taken_has_no_value() -> None:
    tree = Tree({("a",): 1.0, ("b",): 0.0}, {(): {"a": 1.0, "b": 0.0}})
    found = mcts((), tree, simulations=3, exploration=1.0, seed=0)
    assert found.visits == {"a": 3, "b": 0}
    assert math.isnan(found.values["b"])


def test_every_visit_of_a_node_is_its_own_or_a_childs() -> None:
    root = grow((), random_tree(1), simulations=200, exploration=1.0, seed=0)

    def check(node: Node[Path, str], own: int) -> None:
        below = [edge.node for edge in (node.edges or {}).values() if edge.node]
        if node.edges is not None:
            assert node.visits == own + sum(child.visits for child in below)
            total = own * (node.evaluation if own else 0) + sum(child.total for child in below)
            assert node.total == pytest.approx(total)
        for child in below:
            check(child, 1)

    check(root, 0)
    assert root.visits == 200


def test_dead_end_is_evaluated_again_and_again_like_a_terminal_state() -> None:
    tree = Tree({("a",): 0.5}, {(): {"a": 1.0}, ("a",): {}})
    found = mcts((), tree, simulations=5, exploration=1.0, seed=0)
    assert found == Search("a", {"a": 5}, {"a": 0.5})
    assert tree.expanded == [(), ("a",)]


def always(value: float) -> Callable[[float, int, float, int, float], float]:
    return lambda *_: value


@pytest.mark.parametrize(
    ("tree", "changes", "message"),
    [
        (Tree({(): 0.0}, {}), {}, r"the root \(\) is terminal"),
        (Tree({}, {(): {}}), {}, "gave no action for the root"),
        (bandit(a=1.0), {"simulations": 0}, "simulations=0"),
        (bandit(a=1.0), {"exploration": -1.0}, "exploration=-1.0"),
        (bandit(a=1.0), {"exploration": math.inf}, "exploration=inf"),
        (bandit(a=math.nan), {}, r"evaluate\(\('a',\)\) gave nan"),
        (Tree({("a",): 0.0}, {(): {"a": -0.5}}), {}, "'a' the prior -0.5"),
        (bandit(a=1.0), {"selection": always(math.nan)}, "no score that compares"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    tree: Tree, changes: dict[str, object], message: str
) -> None:
    how: dict[str, object] = {"simulations": 5, "exploration": 1.0, "seed": 0}
    with pytest.raises(ValueError, match=message):
        mcts((), tree, **(how | changes))  # type: ignore[arg-type]  # a dict of all


def test_an_action_that_comes_twice_is_refused() -> None:
    class Twice(Tree):
        def expand(self, state: Path, /) -> Sequence[tuple[str, float]]:
            return [("a", 0.5), ("a", 0.5)]

    with pytest.raises(ValueError, match="the action 'a' twice"):
        mcts((), Twice({}, {(): {}}), simulations=1, exploration=1.0, seed=0)


def test_the_most_visited_path_ends_where_the_tree_does() -> None:
    #      root: a 3 visits (a 2 of them, then nothing known), b 1; of equals the better value.
    def node(state: str, visits: int, total: float, **below: Node[str, str]) -> Node[str, str]:
        edges = {name: Edge(0.5, child) for name, child in below.items()} or None
        return Node(state, False, 0.0, visits=visits, total=total, edges=edges)

    worse, better = node("aa", 1, 0.25), node("ab", 1, 0.5)
    tree = node("", 4, 1.0, b=node("b", 1, 1.0), a=node("a", 3, 1.0, a=worse, b=better))
    tree.edges = (tree.edges or {}) | {"c": Edge(0.5)}  # never taken
    assert most_visited(tree) == "ab"
    assert most_visited(better) == "ab"
