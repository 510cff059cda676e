from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor, distributions

from rl.estimators import clipped_surrogate, entropy, squashed_gaussian_log_prob


def gradient(log_probs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    log_probs = log_probs.clone().requires_grad_()
    clipped_surrogate(log_probs, old, advantages, 0.25, 0.5).sum().backward()
    assert log_probs.grad is not None
    return log_probs.grad


# --- clipped surrogate ------------------------------------------------------------------------


def test_gain_of_hand_worked_ratios() -> None:
    # A = 2:  w = .5 -> 1;  1 -> 2;  1.5 -> 3;  4 -> cut off at 1.5 * 2
    # A = -2: w = .5 -> cut off at .75 * -2;  1 -> -2;  4 -> -8, a loss is not cut off above
    ratios = torch.tensor([0.5, 1.0, 1.5, 4.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    advantages = torch.tensor([2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    gains = clipped_surrogate(ratios.log(), torch.zeros(7).double(), advantages, 0.25, 0.5)
    expected = torch.tensor([1.0, 2.0, 3.0, 3.0, -1.5, -2.0, -8.0], dtype=torch.float64)
    torch.testing.assert_close(gains, expected, rtol=0, atol=2e-15)


def test_gradient_is_w_a_inside_the_limits_and_0_where_they_cut() -> None:
    ratios = torch.tensor([0.5, 1.0, 4.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    grad = gradient(ratios.log(), torch.zeros(6).double(), advantages)
    expected = torch.tensor([1.0, 2.0, 0.0, 0.0, -2.0, -8.0], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, rtol=0, atol=2e-15)


def test_gradient_at_ratio_1_is_exactly_the_advantage() -> None:
    log_probs = torch.tensor([-0.3, -11.0, -2.5, 0.0])
    advantages = torch.tensor([0.7, -1.3, 0.0, 1e-3])
    torch.testing.assert_close(
        gradient(log_probs, log_probs, advantages), advantages, rtol=0, atol=0
    )


def test_old_policy_and_advantages_get_no_gradient() -> None:
    log_probs = torch.zeros(2, requires_grad=True)
    advantages = torch.ones(2, requires_grad=True)
    clipped_surrogate(log_probs, log_probs, advantages, 0.2, 0.2).sum().backward()
    assert advantages.grad is None
    torch.testing.assert_close(log_probs.grad, torch.ones(2), rtol=0, atol=0)


def test_ratio_beyond_the_range_gives_no_nan() -> None:
    log_probs, old = torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([-500.0, -500.0, 0.0])
    advantages = torch.tensor([2.0, 0.0, 2.0])
    gains = clipped_surrogate(log_probs, old, advantages, 0.25, 0.5)
    torch.testing.assert_close(gains, torch.tensor([3.0, 0.0, 0.0]), rtol=0, atol=0)
    torch.testing.assert_close(gradient(log_probs, old, advantages), torch.zeros(3), rtol=0, atol=0)


def test_limits_of_infinity_cut_nothing() -> None:
    log_probs, advantages = torch.tensor([8.0, 0.0]).log(), torch.tensor([1.0, -1.0])
    gains = clipped_surrogate(log_probs, torch.zeros(2), advantages, math.inf, math.inf)
    torch.testing.assert_close(gains, torch.tensor([8.0, 0.0]), rtol=1e-6, atol=0)


@given(
    log_ratio=st.floats(-3, 3),
    advantage=st.floats(-5, 5),
    low=st.floats(0, 1),
    high=st.floats(0, 5),
)
def test_gain_is_the_definition_and_never_above_the_plain_one(
    log_ratio: float, advantage: float, low: float, high: float
) -> None:
    w = math.exp(log_ratio)
    cut = min(max(w, 1 - low), 1 + high)
    one = torch.tensor([log_ratio], dtype=torch.float64)
    gain = clipped_surrogate(
        one, torch.zeros(1).double(), torch.tensor([advantage]).double(), low, high
    )
    # the same formula in plain Python; the advantage rounded to float32 as it was passed
    a = torch.tensor([advantage]).double().item()
    assert math.isclose(gain.item(), min(w * a, cut * a), rel_tol=1e-12, abs_tol=1e-12)
    assert gain.item() <= w * a + 1e-12


# --- entropy ----------------------------------------------------------------------------------


def test_entropy_of_hand_worked_distributions() -> None:
    # (1/2, 1/4, 1/4): 1/2 log 2 + 1/2 log 4 = 1.5 log 2
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]], dtype=torch.float64).log()
    expected = torch.tensor([1.5 * math.log(2), math.log(3)], dtype=torch.float64)
    torch.testing.assert_close(entropy(logits), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(entropy(logits + 100), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4)])
def test_entropy_drops_the_last_axis(shape: tuple[int, ...]) -> None:
    assert entropy(torch.zeros(shape)).shape == shape[:-1]


def test_ruled_out_choices_add_nothing_and_get_no_gradient() -> None:
    kept = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    entropy(kept).backward()
    with_ruled_out = torch.tensor([0.3, -torch.inf, -1.2, 2.0, -torch.inf], dtype=torch.float64)
    with_ruled_out.requires_grad_()
    value = entropy(with_ruled_out)
    value.backward()
    torch.testing.assert_close(value, entropy(kept))
    assert with_ruled_out.grad is not None
    assert kept.grad is not None
    torch.testing.assert_close(with_ruled_out.grad[[0, 2, 3]], kept.grad)
    assert with_ruled_out.grad[[1, 4]].tolist() == [0.0, 0.0]


def test_entropy_of_a_certain_choice_is_0_also_when_others_underflow() -> None:
    for logits in ([0.0, -torch.inf], [0.0, -1e4], [7.0]):
        x = torch.tensor(logits, requires_grad=True)
        value = entropy(x)
        value.backward()
        assert value.item() == 0.0
        assert x.grad is not None
        assert x.grad.tolist() == [0.0] * len(logits)


def test_entropy_gradient_agrees_with_finite_differences() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(entropy, logits.requires_grad_())


# --- squashed Gaussian ------------------------------------------------------------------------


def test_squashed_log_prob_of_hand_worked_actions() -> None:
    # u = (0, 1), mean (0, 1), std (1, 2): -log(2 pi) - log 2, less log(1 - tanh(1)^2)
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    std = torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = -math.log(2 * math.pi) - math.log(2) - math.log(1 - math.tanh(1) ** 2)
    assert squashed_gaussian_log_prob(u, u, std.log()).item() == pytest.approx(expected, rel=1e-15)


@given(seed=st.integers(0, 2**16))
def test_squashed_log_prob_agrees_with_the_transformed_distribution(seed: int) -> None:
    u, mean, log_std = torch.randn(
        3, 2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    peer = distributions.TransformedDistribution(
        distributions.Independent(distributions.Normal(mean, log_std.exp()), 1),
        distributions.TanhTransform(cache_size=1),
    )
    # TanhTransform's own derivative is short of digits beyond |u| = 10, which is not reached here.
    action = peer.transforms[0](u)  # remembers u, so that no inverse is taken
    actual = squashed_gaussian_log_prob(u, mean, log_std)
    assert actual.shape == (2, 4)
    torch.testing.assert_close(actual, peer.log_prob(action), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.3), (-2.0, 1.5)])
def test_squashed_density_integrates_to_1(mean: float, std: float) -> None:
    def density(action: float) -> float:
        u = torch.tensor([math.atanh(action)], dtype=torch.float64)
        log_std = torch.full_like(u, std).log()
        return squashed_gaussian_log_prob(u, torch.full_like(u, mean), log_std).exp().item()

    total, error = integrate.quad(density, -1, 1, limit=200)
    assert error < 1e-6
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [5.0, 11.0, 20.0, 100.0, 1e4])
def test_squashed_log_prob_is_exact_and_even_far_out(size: float, dtype: torch.dtype) -> None:
    # log(1 - tanh(u)^2) = log 4 - 2 |u| - 2 log1p(exp(-2 |u|)); u at its mean, std 1
    slope = math.log(4) - 2 * size - 2 * math.log1p(math.exp(-2 * size))
    expected = torch.tensor([-math.log(2 * math.pi) / 2 - slope] * 2, dtype=dtype)
    u = torch.tensor([[size], [-size]], dtype=dtype).requires_grad_()
    log_probs = squashed_gaussian_log_prob(u, u.detach(), torch.zeros(1, dtype=dtype))
    torch.testing.assert_close(log_probs, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    log_probs.sum().backward()
    # At the mean the Gaussian is flat, and d/du -log(1 - tanh(u)^2) = 2 tanh(u).
    limit = torch.tensor([[2 * math.tanh(size)], [-2 * math.tanh(size)]], dtype=dtype)
    torch.testing.assert_close(u.grad, limit, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_squashed_gradient_agrees_with_finite_differences() -> None:
    g = torch.Generator().manual_seed(1)
    u, mean, log_std = torch.randn(3, 2, 3, generator=g, dtype=torch.float64)
    inputs = tuple(x.clone().requires_grad_() for x in (u, mean, log_std[0]))
    assert torch.autograd.gradcheck(squashed_gaussian_log_prob, inputs)
    assert torch.autograd.gradgradcheck(squashed_gaussian_log_prob, inputs)


@pytest.mark.parametrize(
    "shapes",
    [((4, 2), (4, 3), (4, 3)), ((4, 2), (4, 2), (4, 1)), ((4, 2), (3, 2), (2,)), ((),) * 3],
)
def test_squashed_log_prob_refuses_components_that_do_not_fit(
    shapes: tuple[tuple[int, ...], ...],
) -> None:
    u, mean, log_std = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="last axis holds the components") as refused:
        squashed_gaussian_log_prob(u, mean, log_std)
    assert ", ".join(map(str, shapes)) in str(refused.value)
