"""Blackjack's exact model, by gymnasium's rules (Sutton & Barto 2018, example 5.1).

The table that a learner sees has 704 states, ``(sum * 11 + dealer) * 2 + usable``. A hand of ace
and ten dealt at the start, a natural, can pay differently from a 21 drawn later, though both look
the same; so the exact model adds ten states, ``704 + dealer - 1``, for these.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from rl.outcomes import Outcome

__all__ = [
    "OBSERVED_STATES",
    "STATES",
    "blackjack_outcomes",
    "blackjack_start",
    "blackjack_state",
    "observed_states",
]

OBSERVED_STATES = 32 * 11 * 2
"""States that an observation can tell apart."""
STATES = OBSERVED_STATES + 10
"""States of the exact model, the natural starts last."""
CARDS = {card: (4 if card == 10 else 1) / 13 for card in range(1, 11)}
"""Probability of each value; the deck is infinite, an ace counts 1 here."""

STICK, HIT = 0, 1
Hand = tuple[int, bool]  # sum with every ace as 1; whether there is an ace


def blackjack_state(player_sum: int, dealer: int, usable: int) -> int:
    """Return the state of an observation (player's sum, dealer's card, usable ace).

    >>> blackjack_state(21, 10, 1)
    483
    """
    return (player_sum * 11 + dealer) * 2 + usable


def observed_states() -> NDArray[np.int64]:
    """Return ``(STATES,)``, the state that a learner sees: naturals look like any other 21."""
    naturals = [blackjack_state(21, dealer, 1) for dealer in range(1, 11)]
    return np.append(np.arange(OBSERVED_STATES), naturals)


def blackjack_outcomes(*, natural: bool, sab: bool) -> list[list[list[Outcome]]]:
    """Return ``table[state][action]``, lists of (probability, next state, reward, terminated).

    Actions are stick (0) and hit (1). States that no game reaches end at once and pay nothing.

    Args:
        natural: A win with a natural pays 1.5 (ignored under ``sab``).
        sab: A natural beats everything but a natural of the dealer (Sutton & Barto's rules).
    """
    nothing = [(1.0, 0, 0.0, True)]
    table: list[list[list[Outcome]]] = [[nothing, nothing] for _ in range(STATES)]
    for dealer in range(1, 11):
        for total, ace in _hands():
            state = _state((total, ace), dealer)
            payoffs = _payoffs(_score((total, ace)), dealer)
            table[state] = [_ends(state, payoffs), _hit(state, (total, ace), dealer)]
        state = OBSERVED_STATES + dealer - 1
        payoffs = _natural_payoffs(dealer, natural=natural, sab=sab)
        table[state] = [_ends(state, payoffs), _hit(state, (11, True), dealer)]
    return table


def blackjack_start() -> NDArray[np.float64]:
    """Return the ``(STATES,)`` distribution of the first state: naturals have their own."""
    start = np.zeros(STATES)
    for dealer, shown in CARDS.items():
        for first, one in CARDS.items():
            for second, other in CARDS.items():
                natural = {first, second} == {1, 10}
                hand = (first + second, 1 in (first, second))
                state = OBSERVED_STATES + dealer - 1 if natural else _state(hand, dealer)
                start[state] += shown * one * other
    return start


def _hands() -> list[Hand]:
    """Return the hands that are not bust: from two cards on, an ace can be among them."""
    return [(t, False) for t in range(4, 22)] + [(t, True) for t in range(2, 22)]


def _score(hand: Hand) -> int:
    """Return the sum as the game counts it; 0 for a bust hand."""
    total, ace = hand
    if ace and total + 10 <= 21:
        return total + 10
    return total if total <= 21 else 0


def _add(hand: Hand, card: int) -> Hand:
    return hand[0] + card, hand[1] or card == 1


def _state(hand: Hand, dealer: int) -> int:
    return blackjack_state(_score(hand), dealer, int(hand[1] and hand[0] <= 11))


def _hit(state: int, hand: Hand, dealer: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for card, probability in CARDS.items():
        drawn = _add(hand, card)
        bust = _score(drawn) == 0
        following = state if bust else _state(drawn, dealer)
        outcomes.append((probability, following, -1.0 if bust else 0.0, bust))
    return outcomes


def _ends(state: int, payoffs: dict[float, float]) -> list[Outcome]:
    return [(p, state, reward, True) for reward, p in payoffs.items() if p > 0]


@cache
def _dealer_scores(hand: Hand) -> dict[int, float]:
    """Return the distribution of the dealer's score, who draws until it is 17 or more."""
    if _score(hand) >= 17 or hand[0] > 21:
        return {_score(hand): 1.0}
    scores: dict[int, float] = {}
    for card, probability in CARDS.items():
        for score, chance in _dealer_scores(_add(hand, card)).items():
            scores[score] = scores.get(score, 0.0) + probability * chance
    return scores


def _payoffs(player: int, dealer: int) -> dict[float, float]:
    """Return the probability of each reward for sticking with a sum of ``player``."""
    payoffs = {-1.0: 0.0, 0.0: 0.0, 1.0: 0.0}
    for score, probability in _dealer_scores((dealer, dealer == 1)).items():
        payoffs[float(np.sign(player - score))] += probability
    return payoffs


def _natural_payoffs(dealer: int, *, natural: bool, sab: bool) -> dict[float, float]:
    payoffs = _payoffs(21, dealer)
    if sab:
        also_natural = {1: CARDS[10], 10: CARDS[1]}.get(dealer, 0.0)
        return {0.0: also_natural, 1.0: 1.0 - also_natural}
    if natural:
        payoffs[1.5] = payoffs.pop(1.0)
    return payoffs
