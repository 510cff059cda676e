from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.decoder_kernels import linear, outer, product, product_add, rms_norm, swiglu


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=dtype, requires_grad=True)


def readable_rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(5, 7, 3), (700, 96, 64), (700, 64, 96)])
def test_linear_equals_torch_in_outputs_and_gradients(
    rows: int, width: int, outputs: int, bias: bool
) -> None:
    x, weight = random(rows, width), random(outputs, width, seed=1)
    inputs = [x, weight, *([random(outputs, seed=2)] if bias else [])]
    above = random(rows, outputs, seed=3).detach()
    ours, theirs = linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, above),
        torch.autograd.grad(theirs, inputs, above),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_linear_leaves_frozen_weights_without_gradient() -> None:
    x, weight = random(4, 3), random(2, 3).detach()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, 3))


def test_product_and_outer_take_transposed_views() -> None:
    a, b = random(1000, 60).detach(), random(1000, 40, seed=1).detach()
    torch.testing.assert_close(product(a.t(), b.t()), a.t() @ b, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(outer(a, b), a.t() @ b, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(outer(b, a), b.t() @ a, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [3, 600])
def test_product_add_adds_a_layer(rows: int, bias: bool) -> None:
    layer = nn.Linear(64, 48, bias=bias)
    x, other = random(rows, 48).detach(), random(rows, 64, seed=1).detach()
    with torch.no_grad():
        torch.testing.assert_close(
            product_add(x, other, layer), x + layer(other), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("weight_shape", [(6,), (3, 6)])
def test_rms_norm_equals_its_readable_twin_and_passes_gradcheck(
    weight_shape: tuple[int, ...],
) -> None:
    x = random(4, 3, 6, dtype=torch.float64)
    weight = random(*weight_shape, seed=1, dtype=torch.float64)
    eps = torch.tensor(1e-2, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, weight, eps), readable_rms_norm(x, weight, eps))
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, eps), readable_rms_norm(x, weight, eps))
    assert torch.autograd.gradcheck(rms_norm, (x, weight, eps))


def test_swiglu_equals_its_readable_twin_and_passes_gradcheck() -> None:
    gate = random(3, 4, dtype=torch.float64)
    up = random(3, 4, seed=1, dtype=torch.float64)
    torch.testing.assert_close(swiglu(gate, up), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_linear_passes_gradcheck() -> None:
    inputs = [random(*s, seed=i, dtype=torch.float64) for i, s in enumerate([(3, 4), (2, 4), (2,)])]
    assert torch.autograd.gradcheck(linear, tuple(inputs))


def test_linear_follows_autocast() -> None:
    x, weight = random(600, 64), random(64, 64, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
