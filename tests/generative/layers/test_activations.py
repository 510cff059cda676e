from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from generative.layers import activations as act

Activation = Callable[[Tensor], Tensor]
E1 = math.e

# Formulas in the plainest form, right where exp does not overflow.
FORMULAS: dict[str, tuple[Activation, Activation]] = {
    "sigmoid": (act.sigmoid, lambda x: 1 / (1 + (-x).exp())),
    "tanh": (act.tanh, lambda x: 2 / (1 + (-2 * x).exp()) - 1),
    "relu": (act.relu, lambda x: torch.where(x > 0, x, 0)),
    "leaky_relu": (lambda x: act.leaky_relu(x, 0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
    "prelu": (lambda x: act.prelu(x, 0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
    "elu": (lambda x: act.elu(x, 1.5), lambda x: torch.where(x > 0, x, 1.5 * (x.exp() - 1))),
    # Klambauer et al., eq. 14: alpha_01 and lambda_01 to the digits of their code.
    "selu": (
        act.selu,
        lambda x: (
            1.0507009873554804934193349852946
            * torch.where(x > 0, x, 1.6732632423543772848170429916717 * (x.exp() - 1))
        ),
    ),
    "gelu": (act.gelu, lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
    "gelu_tanh": (
        act.gelu_tanh,
        lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "silu": (act.silu, lambda x: x / (1 + (-x).exp())),
    "swish": (lambda x: act.swish(x, 1.7), lambda x: x / (1 + (-1.7 * x).exp())),
    "mish": (act.mish, lambda x: x * torch.tanh(torch.log(1 + x.exp()))),
    "squared_relu": (act.squared_relu, lambda x: torch.where(x > 0, x * x, 0)),
    "softplus": (act.softplus, lambda x: torch.log(1 + x.exp())),
}
# torch's own, to be met to the last digit but rounding.
TORCH: dict[str, tuple[Activation, Activation]] = {
    "sigmoid": (act.sigmoid, torch.sigmoid),
    "tanh": (act.tanh, torch.tanh),
    "relu": (act.relu, F.relu),
    "leaky_relu": (act.leaky_relu, F.leaky_relu),
    "prelu": (lambda x: act.prelu(x, 0.3), lambda x: F.prelu(x, x.new_tensor([0.3]))),
    "elu": (act.elu, F.elu),
    "selu": (act.selu, F.selu),
    "gelu": (act.gelu, F.gelu),
    "gelu_tanh": (act.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (act.silu, F.silu),
    "swish": (act.swish, F.silu),
    "mish": (act.mish, F.mish),
    "squared_relu": (act.squared_relu, lambda x: F.relu(x) ** 2),
    "softplus": (act.softplus, F.softplus),
    "glu": (act.glu, F.glu),
    "reglu": (act.reglu, lambda x: x[..., :3] * F.relu(x[..., 3:])),
    "geglu": (act.geglu, lambda x: x[..., :3] * F.gelu(x[..., 3:])),
    "swiglu": (act.swiglu, lambda x: x[..., :3] * F.silu(x[..., 3:])),
}
# Value and derivative at 1 and at -1, from the closed forms with e = exp(1).
SIGMOID = E1 / (1 + E1)
PHI = (1 + math.erf(math.sqrt(0.5))) / 2
DENSITY = math.exp(-0.5) / math.sqrt(2 * math.pi)
BY_HAND: dict[str, tuple[Activation, float, float, float, float]] = {
    "threshold": (act.threshold, 1.0, 0.0, 0.0, 0.0),
    "relu": (act.relu, 1.0, 1.0, 0.0, 0.0),
    "leaky_relu": (lambda x: act.leaky_relu(x, 0.25), 1.0, 1.0, -0.25, 0.25),
    "elu": (lambda x: act.elu(x, 2.0), 1.0, 1.0, 2 / E1 - 2, 2 / E1),
    "silu": (
        act.silu,
        SIGMOID,
        SIGMOID + SIGMOID * (1 - SIGMOID),
        SIGMOID - 1,
        1 - SIGMOID - SIGMOID * (1 - SIGMOID),
    ),
    "gelu": (act.gelu, PHI, PHI + DENSITY, PHI - 1, 1 - PHI - DENSITY),
    "softplus": (act.softplus, math.log(1 + E1), SIGMOID, math.log(1 + 1 / E1), 1 - SIGMOID),
    "squared_relu": (act.squared_relu, 1.0, 2.0, 0.0, 0.0),
}


def both(function: Activation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values and, weighing them unevenly, the gradient."""
    x = x.detach().requires_grad_()
    values = function(x)
    weights = torch.linspace(0.5, 1.5, values.numel(), dtype=x.dtype).view(values.shape)
    (gradient,) = torch.autograd.grad(values, x, weights)
    return values.detach(), gradient


def some(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_is_its_formula(name: str) -> None:
    ours, formula = FORMULAS[name]
    x = some(7, 5)
    for found, expected in zip(both(ours, x), both(formula, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TORCH)
def test_activation_is_torchs(name: str) -> None:
    ours, theirs = TORCH[name]
    x = torch.cat((some(9, 6), torch.zeros(1, 6, dtype=torch.float64)))
    for found, expected in zip(both(ours, x), both(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BY_HAND)
def test_values_and_derivatives_worked_by_hand(name: str) -> None:
    function, *expected = BY_HAND[name]
    x = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    y = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    found = torch.stack((y[0], slope[0], y[1], slope[1]))
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


# What f(x) / x (f(x) for bounded ones) and f' become far to the left and to the right.
TAILS: dict[str, tuple[Activation, float, float]] = {
    "threshold": (act.threshold, 0, 0),
    "sigmoid": (act.sigmoid, 0, 0),
    "tanh": (act.tanh, 0, 0),
    "relu": (act.relu, 0, 1),
    "leaky_relu": (lambda x: act.leaky_relu(x, 0.25), 0.25, 1),
    "elu": (act.elu, 0, 1),
    "selu": (act.selu, 0, 1.0507009873554805),
    "gelu": (act.gelu, 0, 1),
    "gelu_tanh": (act.gelu_tanh, 0, 1),
    "silu": (act.silu, 0, 1),
    "swish": (lambda x: act.swish(x, 1.5), 0, 1),
    "mish": (act.mish, 0, 1),
    "softplus": (act.softplus, 0, 1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TAILS)
def test_derivatives_of_large_inputs_are_those_of_the_tails(name: str, dtype: torch.dtype) -> None:
    function, left, right = TAILS[name]
    for size in (50.0, 1e3, 6e4, *([1e18] if dtype.itemsize > 2 else [])):
        x = torch.tensor([-size, size], dtype=dtype, requires_grad=True)
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert y.dtype == slope.dtype == dtype
        assert y.isfinite().all()
        expected = torch.tensor([left, right], dtype=dtype)
        torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_half_precision_is_the_exact_value_rounded(name: str, dtype: torch.dtype) -> None:
    ours, _ = FORMULAS[name]
    x = torch.linspace(-6, 6, 97).to(dtype)
    exact = ours(x.double())
    # swish multiplies two rounded numbers: two roundings more than one, relative 3 eps / 2.
    bound = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours(x).double(), exact, rtol=bound, atol=bound * 1e-2)


@pytest.mark.parametrize("gated", [act.glu, act.reglu, act.geglu, act.swiglu])
def test_gated_activations_take_the_first_half_and_gate_by_the_second(gated: Activation) -> None:
    # The first half (2, 3) is multiplied, whatever its sign; the gate of 40 is 1 or 40.
    gate = 1.0 if gated is act.glu else 40.0
    x = torch.tensor([[2.0, -3.0, 40.0, 40.0]], dtype=torch.float64)
    expected = torch.tensor([[2 * gate, -3 * gate]], dtype=torch.float64)
    torch.testing.assert_close(gated(x), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\).*even last axis"):
        gated(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="even last axis"):
        gated(torch.tensor(1.0))


@pytest.mark.parametrize("gated", [act.glu, act.reglu, act.geglu, act.swiglu])
def test_gates_of_large_inputs_stay_finite(gated: Activation) -> None:
    for dtype in (torch.float16, torch.float64):
        x = torch.tensor([1.0, 1.0, -3e4, 3e4], dtype=dtype)  # weighed by up to 1.5
        values, gradient = both(gated, x)
        assert values.isfinite().all()
        assert gradient.isfinite().all()


def test_threshold_passes_zeros_so_that_layers_above_it_learn() -> None:
    x = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    (act.threshold(x) @ weight).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0, 0.0]]
    assert weight.grad.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 3, 2, 2)])
def test_prelu_has_one_slope_or_one_for_each_channel_of_axis_1(shape: tuple[int, ...]) -> None:
    x = some(*shape)
    shared = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for slope in (shared, shared.view(1), 0.3):
        torch.testing.assert_close(act.prelu(x, slope), torch.where(x > 0, x, 0.3 * x))
    (gradient,) = torch.autograd.grad(act.prelu(x, shared).sum(), shared)
    torch.testing.assert_close(gradient, x.clamp(max=0).sum())
    if len(shape) > 1:
        slopes = torch.tensor([0.1, -0.2, 3.0], dtype=torch.float64, requires_grad=True)
        along = slopes.view(3, *(1 for _ in shape[2:]))
        found = act.prelu(x, slopes)
        torch.testing.assert_close(found, torch.where(x > 0, x, along * x))
        (gradient,) = torch.autograd.grad(found.sum(), slopes)
        rest = [axis for axis in range(len(shape)) if axis != 1]
        torch.testing.assert_close(gradient, x.clamp(max=0).sum(rest))


@pytest.mark.parametrize(
    ("shape", "slopes"), [((4, 3), (4,)), ((3,), (3,)), ((4, 3), (1, 3)), ((2, 5, 3), (3,))]
)
def test_prelu_names_a_slope_that_fits_no_channels(
    shape: tuple[int, ...], slopes: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"slope has shape .* axis 1"):
        act.prelu(torch.zeros(shape), torch.zeros(slopes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_learnt_number_of_float32_leaves_the_dtype_of_x(dtype: torch.dtype) -> None:
    x, learnt = torch.tensor([-2.0, 3.0], dtype=dtype), torch.tensor([0.5], requires_grad=True)
    for activation, gradient in ((act.prelu, -2.0), (act.swish, None)):
        found = activation(x, learnt)
        assert found.dtype == dtype
        torch.testing.assert_close(found, activation(x, 0.5))
        (slope,) = torch.autograd.grad(found.sum(), learnt)
        assert slope.dtype == torch.float32
        assert gradient is None or slope.item() == gradient


def test_swish_learns_its_beta_and_has_its_limits() -> None:
    x = some(50)
    beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(act.swish, (x.requires_grad_(), beta))
    torch.testing.assert_close(act.swish(x, 0.0), x / 2)
    torch.testing.assert_close(act.swish(x, 1e6), act.relu(x), rtol=0, atol=1e-6)


def test_selu_keeps_mean_0_and_variance_1() -> None:
    # Klambauer et al. 2017, section 2: the fixed point, by quadrature over a standard normal.
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    weight = (-x.square() / 2).exp() / math.sqrt(2 * math.pi) * (x[1] - x[0])
    y = act.selu(x)
    assert abs(float((weight * y).sum())) < 1e-7
    assert abs(float((weight * y.square()).sum()) - 1) < 1e-7


def test_gelu_tanh_is_near_gelu() -> None:
    x = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    gap = (act.gelu_tanh(x) - act.gelu(x)).abs().max()
    assert 4e-4 < gap < 5e-4


def test_softplus_is_exact_also_where_torch_takes_the_identity() -> None:
    x = torch.linspace(-60, 60, 12_001, dtype=torch.float64)
    exact = torch.logaddexp(x, torch.zeros_like(x))
    torch.testing.assert_close(act.softplus(x), exact, rtol=1e-14, atol=0)
    assert (F.softplus(x) - exact).abs().max() > 1e-9
