"""Blackjack's model against gymnasium's own rules, applied to hands of cards."""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.toy_text.blackjack import cmp, is_bust, is_natural, score, sum_hand, usable_ace

from rl.blackjack import CARDS, OBSERVED_STATES, blackjack_state
from rl.mdp import TabularMDP
from rl.planning import policy_evaluation, value_iteration

RULES = [(False, False), (True, False), (False, True), (True, True)]  # natural, sab
Cards = tuple[int, ...]


@cache
def dealt_out(dealer: Cards) -> dict[tuple[int, bool], float]:
    """Return the distribution of the dealer's score, and of whether it is a natural."""
    if sum_hand(list(dealer)) >= 17:
        return {(score(list(dealer)), is_natural(list(dealer))): 1.0}
    ends: dict[tuple[int, bool], float] = {}
    for card, p in CARDS.items():
        for end, chance in dealt_out(tuple(sorted((*dealer, card)))).items():
            ends[end] = ends.get(end, 0.0) + p * chance
    return ends


def reward_of_sticking(player: Cards, dealer: int, *, natural: bool, sab: bool) -> float:
    """Return the mean reward, by the lines of gymnasium's ``step``."""
    mean = 0.0
    for (dealer_score, dealer_natural), p in dealt_out((dealer,)).items():
        reward = cmp(score(list(player)), dealer_score)
        if sab and is_natural(list(player)) and not dealer_natural:
            reward = 1.0
        elif not sab and natural and is_natural(list(player)) and reward == 1.0:
            reward = 1.5
        mean += p * reward
    return mean


def best_game_value(*, natural: bool, sab: bool) -> float:
    @cache
    def value(player: Cards, dealer: int) -> float:
        if is_bust(list(player)):
            return -1.0
        hit = sum(p * value(tuple(sorted((*player, c))), dealer) for c, p in CARDS.items())
        return max(hit, reward_of_sticking(player, dealer, natural=natural, sab=sab))

    return sum(
        CARDS[dealer] * CARDS[a] * CARDS[b] * value(tuple(sorted((a, b))), dealer)
        for dealer, a, b in product(CARDS, repeat=3)
    )


@pytest.mark.parametrize(("natural", "sab"), RULES)
def test_best_game_value_is_that_of_playing_with_hands_of_cards(natural: bool, sab: bool) -> None:
    mdp = TabularMDP.from_env(gymnasium.make("Blackjack-v1", natural=natural, sab=sab))
    found = value_iteration(mdp, 1.0, tolerance=1e-14)
    expected = best_game_value(natural=natural, sab=sab)
    assert mdp.start @ found.values == pytest.approx(expected, rel=0, abs=1e-12)


def test_states_are_those_that_an_observation_has_and_ten_naturals() -> None:
    mdp = TabularMDP.from_env("Blackjack-v1")
    assert (mdp.states, mdp.actions) == (714, 2)
    assert blackjack_state(31, 10, 1) == OBSERVED_STATES - 1 == 703
    env = gymnasium.make("Blackjack-v1")
    for seed in range(200):
        (total, dealer, usable), _ = env.reset(seed=seed)
        natural = is_natural(env.unwrapped.player)
        state = 704 + dealer - 1 if natural else blackjack_state(total, dealer, usable)
        assert mdp.start[state] > 0
    # An ace and a ten, in either order: 2 * 1/13 * 4/13, beside each card of the dealer.
    assert mdp.start[704:].sum() == pytest.approx(8 / 169, rel=1e-14)
    assert mdp.start.sum() == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize(("natural", "sab"), RULES)
def test_naturals_differ_from_a_later_21_only_where_the_rules_say_so(
    natural: bool, sab: bool
) -> None:
    mdp = TabularMDP.from_env(gymnasium.make("Blackjack-v1", natural=natural, sab=sab))
    drawn = mdp.rewards[[blackjack_state(21, dealer, 1) for dealer in range(1, 11)], 0]
    dealt = mdp.rewards[704:, 0]
    assert (dealt > drawn).all() if natural or sab else (dealt == drawn).all()


def test_hitting_leads_where_gymnasium_goes() -> None:
    mdp = TabularMDP.from_env("Blackjack-v1")
    env = gymnasium.make("Blackjack-v1")
    checked = 0
    for seed in range(300):
        (total, dealer, usable), _ = env.reset(seed=seed)
        state = blackjack_state(total, dealer, usable)
        over = False
        while not over:
            (total, dealer, usable), _, over, _, _ = env.step(1)
            row = mdp.matrix[state * 2 + 1]
            if over:
                assert row.sum() < 1
                continue
            assert usable == usable_ace(env.unwrapped.player)
            state = blackjack_state(total, dealer, usable)
            assert row[state] > 0
            checked += 1
    assert checked > 200


def test_value_of_a_policy_is_the_mean_of_played_games() -> None:
    mdp = TabularMDP.from_env("Blackjack-v1")
    policy = value_iteration(mdp, 1.0).policy
    exact = mdp.start @ policy_evaluation(mdp, policy, 1.0).values
    env = gymnasium.make("Blackjack-v1")
    env.reset(seed=0)
    rewards = []
    for _ in range(10_000):
        (total, dealer, usable), _ = env.reset()
        over, reward = False, 0.0
        while not over:
            action = int(policy[blackjack_state(total, dealer, usable)])  # a natural's 21 as well
            (total, dealer, usable), reward, over, _, _ = env.step(action)
        rewards.append(reward)
    error = np.std(rewards) / math.sqrt(len(rewards))
    assert abs(np.mean(rewards) - exact) < 4 * error


def test_best_policy_is_that_of_sutton_and_barto() -> None:
    # Figure 5.2: without a usable ace stick on 17 or more against 7 to ace, on 13 or more against
    # 2 and 3, on 12 or more against 4 to 6; with one stick on 19 or more against 9, 10 and ace
    # (the leftmost notch, which Thorp's strategy lacks), else on 18 or more.
    policy = value_iteration("Blackjack-v1", 1.0).policy
    hard = [17, 13, 13, 12, 12, 12, 17, 17, 17, 17]
    soft = [19, 18, 18, 18, 18, 18, 18, 18, 19, 19]
    for dealer, (without, usable) in enumerate(zip(hard, soft, strict=True), start=1):
        for total in range(12, 22):
            assert policy[blackjack_state(total, dealer, 0)] == (total < without)
            assert policy[blackjack_state(total, dealer, 1)] == (total < usable)
