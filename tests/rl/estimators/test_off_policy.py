from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.estimators import (
    emphasis,
    lambda_returns,
    q_sigma_returns,
    retrace,
    tree_backup,
    vtrace,
)

NAN, INF = torch.nan, torch.inf
seeds = st.integers(0, 2**16)


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def episodes(seed: int, *, length: int = 6) -> dict[str, Tensor]:
    """Return random steps with terminals and truncations inside, in float64."""
    g = torch.Generator().manual_seed(seed)

    def draw(make: Callable[..., Tensor]) -> Tensor:
        return make(2, 3, length, generator=g, dtype=torch.float64)

    kind = torch.rand(2, 3, length, generator=g)
    return {
        "rewards": draw(torch.randn),
        "values": draw(torch.randn),
        "next_values": draw(torch.randn),
        "discounts": torch.where(kind < 0.2, 0.0, 0.9).double(),
        "traces": torch.where(kind < 0.4, 0.0, 0.8).double(),
        "ratios": 3 * draw(torch.rand),
        "probabilities": draw(torch.rand),
    }


def take(x: dict[str, Tensor], *names: str) -> tuple[Tensor, ...]:
    return tuple(x[name] for name in names)


STEPS = ("rewards", "values", "next_values", "discounts", "traces")
ESTIMATES: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "vtrace-targets": lambda x: vtrace(*take(x, *STEPS, "ratios"), clip_rho=2.0).targets,
    "vtrace-advantages": lambda x: vtrace(*take(x, *STEPS, "ratios"), clip_c=0.5).advantages,
    "retrace": lambda x: retrace(*take(x, *STEPS, "ratios")),
    "tree-backup": lambda x: tree_backup(*take(x, *STEPS, "probabilities")),
    "q-sigma": lambda x: q_sigma_returns(*take(x, *STEPS, "ratios", "probabilities"), 0.25),
    "emphasis": lambda x: emphasis(
        *take(x, "discounts", "ratios"), trace=0.25, ends=x["traces"] == 0
    ),
}
every_estimate = pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)

# One segment of five steps: step 1 is truncated, step 3 terminal, the last cut off by the end.
REWARDS = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
Q_VALUES = torch.tensor([2.0, 2.0, 6.0, 4.0, 8.0])
NEXT_EXPECTED = torch.tensor([2.0, 4.0, 6.0, 100.0, 8.0])
DISCOUNTS = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.5])
TRACES = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
RATIOS = torch.tensor([9.0, 0.5, 9.0, 2.0, 9.0])
PROBABILITIES = torch.tensor([0.9, 0.25, 0.9, 0.5, 0.9])
SEGMENT = (REWARDS, Q_VALUES, NEXT_EXPECTED, DISCOUNTS)


# --- worked by hand ---------------------------------------------------------------------------


def test_vtrace_of_hand_worked_segment() -> None:
    # rho = (.5, 1, 1, .25); steps: goes on, truncated, terminal, last
    # delta = .5 (1 + 4/2 - 2), 2 + 8/2 - 4, 4 - 2, .25 (8 + 16/2 - 4) = .5, 2, 2, 3
    # v_0 = 2 + .5 + .5 * .5 (6 - 4);  A_0 = .5 (1 + 6/2 - 2); the other A are their delta
    rewards, values = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2.0, 4.0, 2.0, 4.0])
    next_values = torch.tensor([4.0, 8.0, 100.0, 16.0])
    discounts, traces = torch.tensor([0.5, 0.5, 0.0, 0.5]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    ratios = torch.tensor([0.5, 2.0, 4.0, 0.25])
    steps = (rewards, values, next_values, discounts)
    targets, advantages = vtrace(*steps, traces, ratios)
    equal(targets, torch.tensor([3.0, 6.0, 4.0, 7.0]))
    equal(advantages, torch.tensor([1.0, 2.0, 2.0, 3.0]))
    # lambda = 1/2: v_0 = 2 + .5 + .5 * .25 (6 - 4);  A_0 = .5 (1 + (6 + 4)/2 / 2 - 2)
    targets, advantages = vtrace(*steps, traces / 2, ratios)
    equal(targets, torch.tensor([2.75, 6.0, 4.0, 7.0]))
    equal(advantages, torch.tensor([0.75, 2.0, 2.0, 3.0]))
    # rho = (.5, 2, 2, .25), c_0 = .25: v_0 = 2.5 + .5 * .25 (8 - 4);  A_0 = .5 (1 + 8/2 - 2)
    targets, advantages = vtrace(*steps, traces, ratios, clip_rho=2.0, clip_c=0.25)
    equal(targets, torch.tensor([3.0, 8.0, 6.0, 7.0]))
    equal(advantages, torch.tensor([1.5, 4.0, 4.0, 3.0]))


def test_retrace_of_hand_worked_segment() -> None:
    # G_4 = 16 + 8/2;  G_3 = 8;  G_2 = 4 + 6/2 + (8 - 4)/2;  G_1 = 2 + 4/2
    # G_0 = 1 + 2/2 + .5 * .5 (4 - 2)
    equal(retrace(*SEGMENT, TRACES, RATIOS), torch.tensor([2.5, 4.0, 9.0, 8.0, 20.0]))
    equal(retrace(*SEGMENT, TRACES / 2, RATIOS), torch.tensor([2.25, 4.0, 8.0, 8.0, 20.0]))


def test_tree_backup_of_hand_worked_segment() -> None:
    # G_2 = 7 + .5 * .5 (8 - 4);  G_0 = 2 + .5 * .25 (4 - 2)
    returns = tree_backup(*SEGMENT, TRACES, PROBABILITIES)
    equal(returns, torch.tensor([2.25, 4.0, 8.0, 8.0, 20.0]))


def test_q_sigma_of_hand_worked_segment() -> None:
    # sigma = 1/2: c_1 = 3/8, c_3 = 5/4: G_0 = 2 + .5 * 3/8 * 2;  G_2 = 7 + .5 * 5/4 * 4
    returns = q_sigma_returns(*SEGMENT, TRACES, RATIOS, PROBABILITIES, 0.5)
    equal(returns, torch.tensor([2.375, 4.0, 9.5, 8.0, 20.0]))
    # step 1 sampled, step 3 expected: c_1 = 1/2, c_3 = 1/2
    sigma = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    returns = q_sigma_returns(*SEGMENT, TRACES, RATIOS, PROBABILITIES, sigma)
    equal(returns, torch.tensor([2.5, 4.0, 8.0, 8.0, 20.0]))


def test_emphasis_of_hand_worked_segment() -> None:
    # F = 1, 1 + .5 * 2, again 1, 1 + .5 * 1, again 1 after the terminal;  M = (1 + F) / 2
    ratios, ends = torch.tensor([2.0, 4.0, 1.0, 8.0, 1.0]), torch.zeros(5, dtype=torch.bool)
    ends[1] = True
    weights = emphasis(DISCOUNTS, ratios, trace=0.5, ends=ends)
    equal(weights, torch.tensor([1.0, 1.5, 1.0, 1.25, 1.0]))
    # not begun again: F_2 = 1 + .5 * 4 * 2, F_3 = 1 + .5 * 5
    weights = emphasis(DISCOUNTS, ratios, trace=0.0)
    equal(weights, torch.tensor([1.0, 2.0, 5.0, 3.5, 1.0]))
    # interest (1, 0, 2, 0, 0): F = 1, .5 * 2, 2, .5 * 2, 0;  trace (0, 0, 1/2, 1/2, 0)
    interest, trace = torch.tensor([1.0, 0, 2, 0, 0]), torch.tensor([0.0, 0, 0.5, 0.5, 0])
    weights = emphasis(DISCOUNTS, ratios, trace=trace, interest=interest, ends=ends)
    equal(weights, torch.tensor([1.0, 1.0, 2.0, 0.5, 0.0]))


# --- laws -------------------------------------------------------------------------------------


def consistent(seed: int) -> dict[str, Tensor]:
    """Return episodes where ``next_values`` within a segment is ``values`` of the next step."""
    x = episodes(seed)
    goes_on = (x["traces"] != 0)[..., :-1]
    x["next_values"][..., :-1] = torch.where(
        goes_on, x["values"][..., 1:], x["next_values"][..., :-1]
    )
    return x


@given(seed=seeds)
def test_vtrace_on_policy_gives_lambda_returns(seed: int) -> None:
    x = {**consistent(seed), "ratios": torch.ones(2, 3, 6)}
    returns = lambda_returns(*take(x, "rewards", "discounts", "next_values", "traces"))
    targets, advantages = vtrace(*take(x, *STEPS, "ratios"))
    close(targets, returns)
    close(advantages, returns - x["values"])


@given(seed=seeds, clip_rho=st.sampled_from([0.5, 1.0, INF]), clip_c=st.sampled_from([0.5, INF]))
def test_vtrace_is_the_sum_and_the_recursion_of_the_paper(
    seed: int, clip_rho: float, clip_c: float
) -> None:
    # eq. 1: V + sum_k (prod_{t <= i < k} discount_i c_i) delta_k;  then A of section 4.2
    x = {name: field[0, 0].tolist() for name, field in consistent(seed).items()}
    r, values, next_values, discounts, traces, ratios = (x[k] for k in (*STEPS, "ratios"))
    targets, advantages = vtrace(
        *take(consistent(seed), *STEPS, "ratios"), clip_rho=clip_rho, clip_c=clip_c
    )
    rho = [min(clip_rho, ratio) for ratio in ratios]
    expected = []
    for t in range(6):
        total, weight = values[t], 1.0
        for k in range(t, 6):
            total += weight * rho[k] * (r[k] + discounts[k] * next_values[k] - values[k])
            weight *= discounts[k] * traces[k] * min(clip_c, ratios[k])
        expected.append(total)
        assert targets[0, 0, t].item() == pytest.approx(total, rel=1e-12, abs=1e-12)
    for t in range(6):
        trace = traces[t] if t < 5 else 0.0
        ahead = (trace * expected[t + 1] if trace else 0) + (1 - trace) * next_values[t]
        advantage = rho[t] * (r[t] + discounts[t] * ahead - values[t])
        assert advantages[0, 0, t].item() == pytest.approx(advantage, rel=1e-12, abs=1e-12)


@given(seed=seeds, clip_rho=st.sampled_from([0.5, 1.0, INF]), clip_c=st.sampled_from([0.5, INF]))
def test_vtrace_is_its_recursion_whatever_the_values_of_the_states_reached(
    seed: int, clip_rho: float, clip_c: float
) -> None:
    # v_t - V_t = delta_t + discount_t trace_t c_t (v_{t+1} - V_{t+1}); a truncated step's
    # next_values are not the next step's values, and nothing comes to it from there
    steps = take(episodes(seed), *STEPS, "ratios")
    r, values, next_values, discounts, traces, ratios = (x[0, 0].tolist() for x in steps)
    expected, correction, ahead = [0.0] * 6, 0.0, next_values[5]
    gains = [0.0] * 6
    for t in reversed(range(6)):
        rho, c = min(clip_rho, ratios[t]), min(clip_c, ratios[t])
        trace = traces[t] if t < 5 else 0.0
        gains[t] = rho * (
            r[t] + discounts[t] * (trace * ahead + (1 - trace) * next_values[t]) - values[t]
        )
        delta = rho * (r[t] + discounts[t] * next_values[t] - values[t])
        correction = delta + discounts[t] * trace * c * correction
        expected[t] = ahead = values[t] + correction
    targets, advantages = vtrace(*steps, clip_rho=clip_rho, clip_c=clip_c)
    assert targets[0, 0].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert advantages[0, 0].tolist() == pytest.approx(gains, rel=1e-12, abs=1e-12)


def test_vtrace_of_hand_worked_segments_cut_in_two_places() -> None:
    # two segments of 2 and a last step; V' = 8 after a truncation, where the next V is 2
    # delta = 1 + 2/2 - 2, 1 + 8/2 - 2;  v_1 = 2 + 3, v_0 = 2 + 0 + .5 * 3;  A_0 = 1 + 5/2 - 2
    one, two = torch.ones(5), torch.full((5,), 2.0)
    next_values, traces = torch.tensor([2.0, 8, 2, 8, 4]), torch.tensor([1.0, 0, 1, 0, 1])
    v = vtrace(one, two, next_values, one / 2, traces, one)
    equal(v.targets, torch.tensor([3.5, 5.0, 3.5, 5.0, 3.0]))
    equal(v.advantages, torch.tensor([1.5, 3.0, 1.5, 3.0, 1.0]))


@given(seed=seeds)
def test_action_value_returns_are_the_sums_of_their_corrections(seed: int) -> None:
    # Munos et al., eq. 3: Q + sum_k (prod_{t < i <= k} discount_{i-1} trace_{i-1} c_i) delta_k
    x = episodes(seed)
    r, q, expected_next, discounts, traces = take(x, *STEPS)
    deltas = r + discounts * expected_next - q
    coefficients = {
        "retrace": x["ratios"].clamp(max=1),
        "tree-backup": x["probabilities"],
        "q-sigma": 0.25 * x["ratios"] + 0.75 * x["probabilities"],
    }
    for name, c in coefficients.items():
        passed_on = discounts[..., :-1] * traces[..., :-1] * c[..., 1:]
        sums = [
            sum(passed_on[..., t:k].prod(-1) * deltas[..., k] for k in range(t, 6))
            for t in range(6)
        ]
        close(ESTIMATES[name](x), q + torch.stack(sums, -1))  # type: ignore[arg-type]  # no int


@given(seed=seeds)
def test_q_sigma_lies_between_tree_backup_and_importance_sampling(seed: int) -> None:
    x = episodes(seed)
    steps, ratios, p = take(x, *STEPS), x["ratios"], x["probabilities"]
    equal(q_sigma_returns(*steps, ratios, p, 0.0), tree_backup(*steps, p))
    small = ratios / 3
    equal(q_sigma_returns(*steps, small, p, 1.0), retrace(*steps, small))
    # Ratios of 1 and more count as 1: the returns of expected Sarsa(lambda).
    equal(retrace(*steps, ratios + 1), retrace(*steps, torch.ones_like(ratios)))
    half = q_sigma_returns(*steps, ratios, p, 0.5)
    equal(half, q_sigma_returns(*steps, ratios, p, torch.full_like(ratios, 0.5)))
    equal(half, q_sigma_returns(*steps, ratios, p, torch.tensor(0.5)))


class Tree:
    """All paths through three binary choices: reward, pi and mu depend on the path so far."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.gamma = 0.9
        shapes = [(2,) * depth for depth in (1, 2, 3)]
        self.rewards, self.q = (
            [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes] for _ in range(2)
        )
        self.pi, self.mu = (
            [torch.randn(s, generator=g, dtype=torch.float64).softmax(-1) for s in shapes]
            for _ in range(2)
        )
        true_q = [self.rewards[2]]
        for depth in (1, 0):
            future = (self.pi[depth + 1] * true_q[0]).sum(-1)
            true_q.insert(0, self.rewards[depth] + self.gamma * future)
        self.true_q = true_q

    def paths(self, q: list[Tensor]) -> dict[str, Tensor]:
        """Return the eight paths as rows, with the values that ``q`` says."""
        rows = list(itertools.product((0, 1), repeat=3))

        def along(tables: list[Tensor]) -> Tensor:
            return torch.stack(
                [torch.stack([tables[t][row[: t + 1]] for t in range(3)]) for row in rows]
            )

        v = [(self.pi[t] * q[t]).sum(-1) for t in range(3)]
        values = torch.stack([torch.stack([v[t][row[:t]] for t in range(3)]) for row in rows])
        pi, mu = along(self.pi), along(self.mu)
        discounts = torch.tensor([self.gamma, self.gamma, 0.0], dtype=torch.float64)
        return {
            "rewards": along(self.rewards),
            "q_values": along(q),
            "values": values,
            "next_values": torch.cat([values[:, 1:], torch.full((8, 1), NAN)], 1),
            "discounts": discounts.expand(8, 3),
            "traces": torch.ones(8, 3, dtype=torch.float64),
            "ratios": pi / mu,
            "probabilities": pi,
            "mu": mu,
        }


Q_STEPS = ("rewards", "q_values", "next_values", "discounts", "traces")


@given(seed=seeds)
def test_importance_sampling_is_unbiased_whatever_the_values_say(seed: int) -> None:
    tree = Tree(seed)
    x = tree.paths(tree.q)
    # Under mu, given the first action, q-sigma with sigma = 1 is Q^pi in the mean.
    returns = q_sigma_returns(*take(x, *Q_STEPS, "ratios", "probabilities"), 1.0)[:, 0]
    chance = x["mu"][:, 1:].prod(1)
    close((chance * returns).view(2, 4).sum(1), tree.true_q[0])
    # Without limits V-trace's target is V^pi in the mean; its advantages ratio * (Q^pi - V).
    v = vtrace(*take(x, *STEPS, "ratios"), clip_rho=INF, clip_c=INF)
    chance = x["mu"].prod(1)
    close((chance * v.targets[:, 0]).sum(), (tree.pi[0] * tree.true_q[0]).sum())
    gain = (chance * v.advantages[:, 0]).view(2, 4).sum(1) / tree.mu[0]
    close(gain, tree.pi[0] / tree.mu[0] * (tree.true_q[0] - x["values"][0, 0]))


@given(seed=seeds)
def test_true_values_are_a_fixed_point_of_every_method(seed: int) -> None:
    tree = Tree(seed)
    x = tree.paths(tree.true_q)
    steps, ratios, p = take(x, *Q_STEPS), x["ratios"], x["probabilities"]
    close(retrace(*steps, ratios), x["q_values"])
    close(tree_backup(*steps, p), x["q_values"])
    close(q_sigma_returns(*steps, ratios, p, 0.5), x["q_values"])


@given(seed=seeds)
def test_emphasis_is_the_sum_of_discounted_interest(seed: int) -> None:
    x = episodes(seed)
    interest, ends = x["probabilities"], x["traces"] == 0
    passed_on = x["discounts"] * x["ratios"] * ~ends
    sums = [
        sum(passed_on[..., k:t].prod(-1) * interest[..., k] for k in range(t + 1)) for t in range(6)
    ]
    follow_on = torch.stack(sums, -1)  # type: ignore[arg-type]  # no sum is empty, none an int
    discounts, ratios = take(x, "discounts", "ratios")
    for trace in (0.0, 0.3, 1.0):
        weights = emphasis(discounts, ratios, trace=trace, interest=interest, ends=ends)
        close(weights, trace * interest + (1 - trace) * follow_on)


@every_estimate
@settings(max_examples=20)  # of six estimates each
@given(seed=seeds, cut=st.integers(1, 5))
def test_nothing_leaks_across_a_truncation(
    estimate: Callable[[dict[str, Tensor]], Tensor], seed: int, cut: int
) -> None:
    x = episodes(seed)
    x["traces"][..., cut - 1] = 0.0
    parts = [
        estimate({name: field[..., rows] for name, field in x.items()})
        for rows in (slice(cut), slice(cut, 6))
    ]
    equal(estimate(x), torch.cat(parts, -1))


@every_estimate
@settings(max_examples=20)  # of six estimates each
@given(seed=seeds)
def test_leading_axes_do_not_mix(
    estimate: Callable[[dict[str, Tensor]], Tensor], seed: int
) -> None:
    x = episodes(seed)
    equal(estimate(x)[1, 2], estimate({name: field[1, 2] for name, field in x.items()}))


@every_estimate
def test_results_carry_no_gradient_and_keep_type_and_axes(
    estimate: Callable[[dict[str, Tensor]], Tensor],
) -> None:
    x = {name: field.requires_grad_() for name, field in episodes(0).items()}
    result = estimate(x)
    assert (result.shape, result.dtype, result.requires_grad) == ((2, 3, 6), torch.float64, False)
    assert estimate({name: field[..., :0] for name, field in x.items()}).shape == (2, 3, 0)


@every_estimate
@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_cut_off_counts_for_nothing(
    estimate: Callable[[dict[str, Tensor]], Tensor], bad: float
) -> None:
    x = episodes(0)
    x["traces"][..., 2] = 0.0
    x["discounts"][..., 2] = 0.0
    clean = estimate(x)
    forwards = estimate is not ESTIMATES["emphasis"]
    for name in ("rewards", "values", "ratios", "probabilities"):
        # a backward estimate must not see what follows the cut, emphasis not what precedes it
        x[name][..., slice(3, None) if forwards else slice(3)] = bad
    x["next_values"][..., 2] = bad
    seen = slice(3) if forwards else slice(3, None)
    equal(estimate(x)[..., seen], clean[..., seen])


@pytest.mark.parametrize("bad", [NAN, INF])
def test_step_of_ratio_0_teaches_nothing_of_itself(bad: float) -> None:
    one, next_values = torch.ones(2), torch.tensor([bad, 1.0])
    v = vtrace(one, 2 * one, next_values, one / 2, one, torch.tensor([0.0, 1.0]))
    equal(v.targets, torch.tensor([2.0, 1.5]))  # delta = 0, 1 + 1/2 - 2; c_0 = 0
    equal(v.advantages, torch.tensor([0.0, -0.5]))


def test_infinite_ratio_at_a_limit_of_infinity_stays_where_it_is() -> None:
    one = torch.ones(3)
    ratios, traces = torch.tensor([1.0, 2.0, INF]), torch.tensor([1.0, 0.0, 1.0])
    v = vtrace(one, one, one, one, traces, ratios, clip_rho=INF, clip_c=INF)
    # delta = 1, 2, inf: v_1 = 1 + 2, v_0 = 1 + 1 + 2
    equal(v.targets, torch.tensor([4.0, 3.0, INF]))
    equal(v.advantages, torch.tensor([3.0, 2.0, INF]))


# --- what is refused --------------------------------------------------------------------------


FIELDS: dict[str, tuple[str, ...]] = {
    "vtrace-targets": (*STEPS[1:], "ratios"),
    "retrace": (*STEPS[1:], "ratios"),
    "tree-backup": (*STEPS[1:], "probabilities"),
    "q-sigma": (*STEPS[1:], "ratios", "probabilities"),
    "emphasis": ("ratios", "traces"),
}


@pytest.mark.parametrize(
    ("name", "field"), [(n, f) for n, fields in FIELDS.items() for f in fields]
)
def test_unequal_shapes_are_refused(name: str, field: str) -> None:
    x = episodes(0)
    with pytest.raises(ValueError, match=r"of shape \(3, 6\) for .* of shape \(2, 3, 6\)"):
        ESTIMATES[name]({**x, field: x[field][0]})


def test_numbers_for_each_step_have_its_shape() -> None:
    one = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"sigma of shape \(3,\) for ratios of shape \(2, 3\)"):
        q_sigma_returns(one, one, one, one, one, one, one, torch.ones(3))
    with pytest.raises(ValueError, match=r"interest of shape \(3,\) for ratios of shape \(2, 3\)"):
        emphasis(one, one, trace=0.0, interest=torch.ones(3))
    with pytest.raises(ValueError, match=r"ends of shape \(3,\) for discounts of shape \(2, 3\)"):
        emphasis(one, one, trace=0.0, ends=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="last axis is time"):
        emphasis(one[0, 0], one[0, 0], trace=0.0)


@pytest.mark.parametrize("number", [-0.5, 1.5, NAN])
def test_sigma_and_trace_lie_between_0_and_1(number: float) -> None:
    one = torch.ones(2)
    for x in (number, torch.tensor([0.0, number])):
        with pytest.raises(ValueError, match=r"sigma .* between 0 and 1"):
            q_sigma_returns(one, one, one, one, one, one, one, x)
        with pytest.raises(ValueError, match=r"trace .* between 0 and 1"):
            emphasis(one, one, trace=x)
        if not number > 0:
            with pytest.raises(ValueError, match=r"interest .* between 0 and inf"):
                emphasis(one, one, trace=0.0, interest=x)


@pytest.mark.parametrize("limit", [-1.0, NAN])
def test_limits_of_the_ratio_are_not_negative(limit: float) -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match=f"clip_rho={limit}: .* 0 or more"):
        vtrace(one, one, one, one, one, one, clip_rho=limit)
    with pytest.raises(ValueError, match=f"clip_c={limit}: .* 0 or more"):
        vtrace(one, one, one, one, one, one, clip_c=limit)


def test_ends_are_bool_so_that_traces_are_not_taken_for_them() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match=r"ends of torch\.float32: give bool"):
        emphasis(one, one, trace=0.0, ends=one)


def test_number_of_each_step_keeps_its_digits() -> None:
    one = torch.ones(1, dtype=torch.float64)
    weight = emphasis(one, one, trace=0.1, interest=0.3)
    assert math.isclose(weight.item(), 0.3, rel_tol=1e-15)
