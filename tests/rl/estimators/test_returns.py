from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.estimators import (
    discounted_returns,
    generalized_advantages,
    lambda_returns,
    n_step_returns,
)

NAN, INF = torch.nan, torch.inf
seeds = st.integers(0, 2**16)


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def episodes(seed: int, *, lam: float, length: int = 7) -> dict[str, Tensor]:
    """Return random steps with terminals and truncations inside, in float64."""
    g = torch.Generator().manual_seed(seed)
    rewards, next_values = torch.randn(2, 2, 3, length, generator=g, dtype=torch.float64)
    kind = torch.rand(2, 3, length, generator=g)
    return {
        "rewards": rewards,
        "discounts": torch.where(kind < 0.2, 0.0, 0.9).double(),
        "next_values": next_values,
        "traces": torch.where(kind < 0.4, 0.0, lam).double(),
    }


# One segment of five steps: step 1 is truncated, step 3 terminal, the last cut off by the end.
REWARDS = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
DISCOUNTS = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.5])
NEXT_VALUES = torch.tensor([2.0, 4.0, 6.0, 100.0, 8.0])
GOES_ON = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])


# --- worked by hand ---------------------------------------------------------------------------


def test_lambda_returns_of_hand_worked_segment() -> None:
    # G_4 = 16 + 8/2;  G_3 = 8;  G_2 = 4 + (6 + 8)/2 / 2;  G_1 = 2 + 4/2;  G_0 = 1 + (2 + 4)/2 / 2
    returns = lambda_returns(REWARDS, DISCOUNTS, NEXT_VALUES, GOES_ON / 2)
    equal(returns, torch.tensor([2.5, 4.0, 7.5, 8.0, 20.0]))


def test_n_step_returns_of_hand_worked_segment() -> None:
    # n = 1: 1 + 2/2, 2 + 4/2, 4 + 6/2, 8, 16 + 8/2.  Two steps end at the truncation with 4 / 4 and
    # at the terminal with nothing: 1 + 2/2 + 4/4 and 4 + 8/2.
    steps = (REWARDS, DISCOUNTS, NEXT_VALUES, GOES_ON)
    equal(n_step_returns(*steps, 1), torch.tensor([2.0, 4.0, 7.0, 8.0, 20.0]))
    for n in (2, 3, 1000):
        equal(n_step_returns(*steps, n), torch.tensor([3.0, 4.0, 8.0, 8.0, 20.0]))


def test_n_step_returns_bootstrap_after_n_steps_and_at_the_end_of_the_tensor() -> None:
    # n = 2: 1 + 1/2 + v_1/4, 1 + 1/2 + v_2/4, 1 + 1/2 + v_3/4, then one step is left: 1 + v_3/2
    one, half = torch.ones(4), torch.full((4,), 0.5)
    next_values = torch.tensor([NAN, 4.0, 8.0, 16.0])
    returns = n_step_returns(one, half, next_values, one, 2)
    equal(returns, torch.tensor([2.5, 3.5, 5.5, 9.0]))


def test_discounted_returns_of_hand_worked_segment() -> None:
    # A truncation inside is folded into its reward, 2 + 4/2, with a discount of 0; bootstrap 8:
    # G_4 = 16 + 8/2;  G_3 = 8;  G_2 = 4 + 8/2;  G_1 = 4;  G_0 = 1 + 4/2
    rewards = torch.tensor([1.0, 4.0, 4.0, 8.0, 16.0])
    discounts = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.5])
    returns = discounted_returns(rewards, discounts, torch.tensor(8.0))
    equal(returns, torch.tensor([3.0, 4.0, 8.0, 8.0, 20.0]))
    equal(returns, lambda_returns(REWARDS, DISCOUNTS, NEXT_VALUES, GOES_ON))


# --- laws -------------------------------------------------------------------------------------


@given(seed=seeds)
def test_traces_of_1_give_the_discounted_rewards_and_of_0_one_step(seed: int) -> None:
    x = episodes(seed, lam=1.0)
    ones = torch.ones_like(x["rewards"])
    whole = discounted_returns(x["rewards"], x["discounts"], x["next_values"][..., -1])
    equal(lambda_returns(**{**x, "traces": ones}), whole)
    one_step = x["rewards"] + x["discounts"] * x["next_values"]
    equal(lambda_returns(**{**x, "traces": 0 * ones}), one_step)
    equal(n_step_returns(**x, n=1), one_step)


@given(seed=seeds)
def test_discounted_returns_are_the_sums_of_the_definition(seed: int) -> None:
    x = episodes(seed, lam=1.0)
    rewards, discounts, final = x["rewards"], x["discounts"], x["next_values"][..., -1]
    for t in range(7):
        expected = sum(
            discounts[..., t:k].prod(-1) * (rewards[..., k] if k < 7 else final)
            for k in range(t, 8)
        )
        actual = discounted_returns(rewards, discounts, final)[..., t]
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@given(seed=seeds, n=st.integers(1, 9))
def test_n_step_returns_are_the_sums_of_the_definition(seed: int, n: int) -> None:
    x = {name: field[0, 0] for name, field in episodes(seed, lam=1.0).items()}
    returns = n_step_returns(**x, n=n)
    for t in range(7):
        expected, weight, k = 0.0, 1.0, t
        while True:
            expected += weight * x["rewards"][k].item()
            weight *= x["discounts"][k].item()
            if k - t == n - 1 or k == 6 or x["traces"][k] == 0:
                break
            k += 1
        expected += weight * x["next_values"][k].item()
        assert returns[t].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(seed=seeds)
def test_many_steps_are_a_trace_of_1(seed: int) -> None:
    x = episodes(seed, lam=1.0)
    for n in (7, 8, 10**9):
        torch.testing.assert_close(n_step_returns(**x, n=n), lambda_returns(**x))


@given(seed=seeds, lam=st.sampled_from([0.0, 0.3, 1.0]))
def test_advantages_are_lambda_returns_less_the_values(seed: int, lam: float) -> None:
    x = episodes(seed, lam=lam)
    values = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    goes_on = (x["traces"] != 0)[..., :-1]
    # Within a segment the state that an action led to is the state of the next step.
    x["next_values"][..., :-1] = torch.where(goes_on, values[..., 1:], x["next_values"][..., :-1])
    advantages = generalized_advantages(values=values, **x)
    torch.testing.assert_close(lambda_returns(**x) - values, advantages)


@given(seed=seeds)
def test_lambda_returns_mix_the_n_step_returns(seed: int) -> None:
    # (1 - lambda) sum_n lambda^(n-1) G^n, the last one with what weight is left (eq. 12.3)
    x = episodes(seed, lam=1.0)
    mixed = sum(0.2 * 0.8 ** (n - 1) * n_step_returns(**x, n=n) for n in range(1, 7))
    mixed = mixed + 0.8**6 * n_step_returns(**x, n=7)
    torch.testing.assert_close(lambda_returns(**{**x, "traces": 0.8 * x["traces"]}), mixed)


ESTIMATES: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "lambda": lambda x: lambda_returns(**x),
    "n-step": lambda x: n_step_returns(**x, n=3),
    "discounted": lambda x: discounted_returns(
        x["rewards"], x["discounts"], x["next_values"][..., -1]
    ),
}
every_estimate = pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)


@pytest.mark.parametrize("name", ["lambda", "n-step"])
@given(seed=seeds, cut=st.integers(1, 6))
def test_returns_do_not_leak_across_a_truncation(name: str, seed: int, cut: int) -> None:
    x = episodes(seed, lam=1.0)
    x["traces"][..., cut - 1] = 0.0
    parts = [
        ESTIMATES[name]({k: v[..., rows] for k, v in x.items()})
        for rows in (slice(cut), slice(cut, 7))
    ]
    equal(ESTIMATES[name](x), torch.cat(parts, -1))


@every_estimate
@given(seed=seeds)
def test_leading_axes_do_not_mix(
    estimate: Callable[[dict[str, Tensor]], Tensor], seed: int
) -> None:
    x = episodes(seed, lam=1.0)
    whole = estimate(x)
    assert whole.shape == (2, 3, 7)
    equal(whole[1, 2], estimate({name: field[1, 2] for name, field in x.items()}))


@every_estimate
def test_returns_carry_no_gradient_and_keep_their_type(
    estimate: Callable[[dict[str, Tensor]], Tensor],
) -> None:
    x = {name: field.requires_grad_() for name, field in episodes(0, lam=1.0).items()}
    returns = estimate(x)
    assert (returns.dtype, returns.requires_grad) == (torch.float64, False)


def test_no_steps_give_no_returns() -> None:
    none = torch.zeros(2, 0)
    equal(discounted_returns(none, none, torch.zeros(2)), none)
    equal(lambda_returns(none, none, none, none), none)
    equal(n_step_returns(none, none, none, none, 3), none)


def test_integers_and_mixed_types_are_promoted() -> None:
    rewards = torch.tensor([1, 2])
    returns = discounted_returns(rewards, torch.tensor([1, 1]), torch.tensor(0))
    equal(returns, torch.tensor([3.0, 2.0]))
    gamma = torch.full((2,), 0.9, dtype=torch.float64)
    returns = lambda_returns(rewards, gamma, torch.ones(2), torch.tensor([True, False]))
    equal(returns, torch.tensor([1 + 0.9 * (2 + 0.9), 2 + 0.9], dtype=torch.float64))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_cut_off_counts_for_nothing(bad: float) -> None:
    # The terminal's next value, those that a trace of 1 leaves out, and what follows a cut.
    rewards, discounts = torch.tensor([1.0, 1.0, 1.0, bad]), torch.tensor([0.5, 0.0, 0.5, 0.5])
    next_values, traces = torch.tensor([bad, bad, 2.0, bad]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    expected = torch.tensor([1.5, 1.0, 2.0])
    equal(lambda_returns(rewards, discounts, next_values, traces)[:3], expected)
    equal(n_step_returns(rewards, discounts, next_values, traces, 2)[:3], expected)
    equal(discounted_returns(rewards, discounts, torch.tensor(1.0))[:2], torch.tensor([1.5, 1.0]))


# --- what is refused --------------------------------------------------------------------------


def test_unequal_shapes_are_refused() -> None:
    x = dict.fromkeys(("rewards", "discounts", "next_values", "traces"), torch.zeros(2, 3))
    for name in ("discounts", "next_values", "traces"):
        wrong = {**x, name: torch.zeros(3)}
        with pytest.raises(ValueError, match=rf"{name} of shape \(3,\) for rewards .*\(2, 3\)"):
            lambda_returns(**wrong)
        with pytest.raises(ValueError, match=rf"{name} of shape \(3,\) for rewards .*\(2, 3\)"):
            n_step_returns(**wrong, n=2)
    with pytest.raises(ValueError, match=r"bootstrap of shape \(2, 1\) .* shape \(2, 3\)"):
        discounted_returns(x["rewards"], x["discounts"], torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"discounts of shape \(3,\)"):
        discounted_returns(x["rewards"], torch.zeros(3), torch.zeros(2))
    number = torch.tensor(1.0)
    with pytest.raises(ValueError, match="last axis is time"):
        lambda_returns(number, number, number, number)
    with pytest.raises(ValueError, match="last axis is time"):
        discounted_returns(number, number, number)


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_n_is_a_whole_number_of_rewards(n: int) -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match=f"n={n}: .* use 1 or more"):
        n_step_returns(one, one, one, one, n)


@pytest.mark.parametrize("trace", [0.5, -1.0, 2.0, NAN])
def test_n_step_returns_refuse_a_lambda(trace: float) -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="take lambda_returns"):
        n_step_returns(one, one, one, torch.tensor([1.0, trace]), 2)
