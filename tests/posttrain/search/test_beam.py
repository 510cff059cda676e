from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from posttrain.search.beam import Beams, beam_search

LETTERS = "ab"
DEPTH = 3


class Words:
    """States are words; ``count`` continuations are the alphabet's letters, again and again."""

    def __init__(self, ends: Sequence[str] = ()) -> None:
        self.ends = ends
        self.asked: list[list[str]] = []

    def propose(
        self, states: Sequence[str], count: int, *, seeds: Sequence[int]
    ) -> list[list[str]]:
        assert len(seeds) == len(set(seeds)) == len(states)
        self.asked.append(list(states))
        return [[state + LETTERS[i % len(LETTERS)] for i in range(count)] for state in states]

    def is_terminal(self, state: str, /) -> bool:
        return len(state) == DEPTH or state in self.ends


def by(table: dict[str, float]) -> object:
    return lambda states: [table.get(state, 0.0) for state in states]


TABLE = {"a": 0.9, "b": 0.5, "aa": 0.1, "ab": 0.2, "ba": 0.6, "bb": 0.4, "bab": 0.8, "baa": 0.7}


def test_beam_of_hand_worked_words() -> None:
    # a .9, b .5 stay; of aa .1, ab .2, ba .6, bb .4 stay ba and bb; of baa .7, bab .8, bba, bbb 0
    # stay bab and baa. Drawn: 2 * 2, then twice 2 * 2.
    words = Words()
    found = beam_search("", words, by(TABLE), width=2, expansions=2, max_steps=9, seed=0)  # type: ignore[arg-type]  # a lambda
    assert found == Beams(("bab", "baa"), (0.8, 0.7), 12, True)
    assert found.best == "bab"
    assert words.asked == [[""], ["a", "b"], ["ba", "bb"]]


def test_width_of_one_is_greedy() -> None:
    found = beam_search("", Words(), by(TABLE), width=1, expansions=2, max_steps=9, seed=0)  # type: ignore[arg-type]  # a lambda
    assert found.best.startswith("ab")


def test_terminal_state_keeps_its_place_and_is_not_continued() -> None:
    words = Words(ends=["a"])
    found = beam_search("", words, by(TABLE), width=2, expansions=2, max_steps=9, seed=0)  # type: ignore[arg-type]  # a lambda
    assert found.states == ("a", "bab")
    assert words.asked == [[""], ["b"], ["ba"]]


def test_wide_beam_finds_the_best_of_all_words() -> None:
    draws = random.Random(0)
    for _ in range(20):
        table = {
            "".join(word): draws.random()
            for n in (1, 2, 3)
            for word in itertools.product(LETTERS, repeat=n)
        }
        found = beam_search("", Words(), by(table), width=8, expansions=2, max_steps=9, seed=0)  # type: ignore[arg-type]  # a lambda
        assert found.best == max((w for w in table if len(w) == DEPTH), key=lambda w: table[w])


def test_search_that_ends_before_any_state_does_gives_what_it_kept() -> None:
    found = beam_search("", Words(), by(TABLE), width=2, expansions=2, max_steps=1, seed=0)  # type: ignore[arg-type]  # a lambda
    assert found == Beams(("a", "b"), (0.9, 0.5), 4, False)


def test_equal_states_take_one_place() -> None:
    found = beam_search("", Words(), by(TABLE), width=3, expansions=4, max_steps=1, seed=0)  # type: ignore[arg-type]  # a lambda
    assert found.states == ("a", "b")
    assert found.proposed == 12


@pytest.mark.parametrize("name", ["width", "expansions", "max_steps"])
def test_counts_below_one_are_refused(name: str) -> None:
    how = {"width": 1, "expansions": 1, "max_steps": 1, "seed": 0} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0"):
        beam_search("", Words(), by(TABLE), **how)  # type: ignore[arg-type]  # a dict of all


def test_terminal_root_is_refused() -> None:
    with pytest.raises(ValueError, match="terminal"):
        beam_search("aaa", Words(), by({}), width=1, expansions=1, max_steps=1, seed=0)  # type: ignore[arg-type]  # a lambda
