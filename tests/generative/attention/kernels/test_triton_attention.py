"""Kernels against twins: softmax and squared ReLU, forward and backward.

The truth is plain attention in float64, which no kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import pytest
import torch
from torch import Tensor

from generative.attention import gau
from generative.attention.kernels.flash_attention import flash_attention
from generative.attention.kernels.squared_relu import squared_relu_attention
from generative.attention.naive import softmax_attention

pytestmark = pytest.mark.gpu

Attention = Callable[..., Tensor]


class Largest(AbstractContextManager["Largest"], Protocol):
    nbytes: int


PAIRS = [
    pytest.param(flash_attention, softmax_attention, id="softmax"),
    pytest.param(squared_relu_attention, gau.squared_relu_attention, id="squared_relu"),
]


def draw(device: torch.device, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g).to(device) for s in shapes]


def shapes(
    *, batch: int = 1, heads: int = 1, kv: int = 1, rows: int, columns: int, k: int, v: int
) -> tuple[tuple[int, ...], ...]:
    return ((batch, heads, rows, k), (batch, kv, columns, k), (batch, kv, columns, v))


def both(
    kernel: Attention, twin: Attention, given: list[Tensor], dtype: torch.dtype, **settings: object
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and gradients of the kernel in ``dtype`` and of the twin in float64."""
    found = []
    weights = None
    for attention, kind in ((kernel, dtype), (twin, torch.float64)):
        inputs = [x.to(dtype).to(kind).requires_grad_() for x in given]
        out = attention(*inputs, **settings)
        if weights is None:
            g = torch.Generator().manual_seed(1)
            weights = torch.randn(out.shape, generator=g).to(out)
        found.append([out.detach(), *torch.autograd.grad(out, inputs, weights.to(kind))])
    return found[0], found[1]


def mask(device: torch.device, *shape: int) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return (torch.rand(shape, generator=g) > 0.4).to(device)


SIZES = {
    "one tile": shapes(rows=5, columns=5, k=4, v=3),
    "odd, several tiles": shapes(rows=71, columns=71, k=16, v=20),
    "groups and rows": shapes(batch=2, heads=2, kv=1, rows=35, columns=35, k=8, v=8),
    "wide values": shapes(rows=33, columns=33, k=8, v=70),
}


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_float32_equals_the_twin(
    device: torch.device, kernel: Attention, twin: Attention, causal: bool, size: str
) -> None:
    given = draw(device, SIZES[size])
    for x, y in zip(*both(kernel, twin, given, torch.float32, causal=causal), strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
@pytest.mark.parametrize("causal", [False, True])
def test_masks_equal_the_twin_and_rows_that_look_nowhere_are_zero(
    device: torch.device, kernel: Attention, twin: Attention, causal: bool
) -> None:
    given = draw(device, shapes(heads=2, kv=1, rows=33, columns=33, k=8, v=8))
    whole, keys = mask(device, 33, 33), mask(device, 1, 2, 1, 33)
    whole[0] = False
    for attend in (whole, keys):
        found = both(kernel, twin, given, torch.float32, causal=causal, attend=attend)
        for x, y in zip(*found, strict=True):
            assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))
        if attend.ndim == 2:
            assert not found[0][0][..., 0, :].any()
            assert not found[0][1][..., 0, :].any()


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
def test_more_keys_than_queries(device: torch.device, kernel: Attention, twin: Attention) -> None:
    given = draw(device, shapes(rows=3, columns=50, k=8, v=8))
    attend = torch.ones(3, 50, dtype=torch.bool, device=device).tril(47)
    for settings in ({}, {"attend": attend}, {"scale": 0.3}):
        for x, y in zip(*both(kernel, twin, given, torch.float32, **settings), strict=True):
            assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_the_twin_of_the_same_rounded_inputs(
    device: torch.device, kernel: Attention, twin: Attention, dtype: torch.dtype
) -> None:
    # Weights (or their gradients) are rounded once before they are multiplied, results once more:
    # relative errors of u = eps / 2 each, of sums whose terms need not cancel. By norms, the sums
    # of rounded terms are off by u times the norm of the terms, which is within a factor of a few
    # of the norm of the sum for independent signs: 4 u of the norm in all, 8 for the gradients of
    # queries and keys, whose weights are products of rounded ones.
    u = torch.finfo(dtype).eps / 2
    given = draw(device, shapes(heads=2, rows=150, columns=150, k=16, v=32))
    ours, truth = both(kernel, twin, given, dtype, causal=True)
    for x, y, factor in zip(ours, truth, (4, 8, 8, 4), strict=True):
        assert x.dtype == dtype
        assert (x.double() - y).norm() <= factor * u * y.norm()


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
def test_causal_outputs_before_a_change_are_the_same_bits(
    device: torch.device, kernel: Attention, twin: Attention
) -> None:
    q, k, v = draw(device, shapes(rows=70, columns=70, k=8, v=8))
    first = kernel(q, k, v, causal=True)
    for x in (q, k, v):
        x[:, :, 50:] += 1.0
    second = kernel(q, k, v, causal=True)
    assert torch.equal(first[:, :, :50], second[:, :, :50])
    assert not torch.equal(first[:, :, 50:], second[:, :, 50:])


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
def test_keys_that_nobody_sees_may_hold_anything(
    device: torch.device, kernel: Attention, twin: Attention
) -> None:
    q, k, v = draw(device, shapes(rows=40, columns=40, k=8, v=8))
    attend = torch.arange(40, device=device) < 30
    clean = kernel(q, k, v, attend=attend)
    k[:, :, 30:], v[:, :, 30:] = torch.nan, torch.inf
    assert torch.equal(kernel(q, k, v, attend=attend), clean)


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
def test_queries_that_may_look_nowhere_may_hold_anything(
    device: torch.device, kernel: Attention, twin: Attention
) -> None:
    q, k, v = draw(device, shapes(rows=20, columns=20, k=8, v=8))
    attend = torch.arange(20, device=device) >= 6  # with causal, six queries see nothing
    found = []
    for garbage in (0.0, torch.nan):
        given = [q.clone(), k.clone(), v.clone()]
        given[0][:, :, :6] = garbage
        inputs = [x.requires_grad_() for x in given]
        out = kernel(*inputs, attend=attend, causal=True)
        found.append([out, *torch.autograd.grad(out.sum(), inputs)])
    for clean, other in zip(*found, strict=True):
        assert torch.equal(other, clean)


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    q, k, v = draw(device, shapes(rows=40, columns=40, k=8, v=8))
    ours, truth = both(flash_attention, softmax_attention, [100 * q, k, v], torch.float32)
    assert (ours[0] - truth[0]).abs().max() <= 1e-4  # scores of some 300, off by 2e-5 each


@pytest.mark.parametrize(("kernel", "twin"), PAIRS)
def test_no_tensor_of_queries_by_keys_exists(
    device: torch.device, kernel: Attention, twin: Attention, largest: Largest
) -> None:
    inputs = [x.requires_grad_() for x in draw(device, shapes(rows=65, columns=65, k=8, v=8))]
    with largest:
        out = kernel(*inputs, causal=True)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert largest.nbytes == 65 * 8 * 4  # of 65 * 65 * 4
