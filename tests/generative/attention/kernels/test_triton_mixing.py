"""Kernels of FLASH's mixed chunk attention against the twin in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.attention import gau
from generative.attention.kernels.flash_mixing import flash_mixing

pytestmark = pytest.mark.gpu


def draw(device: torch.device, b: int, t: int, s: int, e: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(t)
    return [torch.randn(b, t, n, generator=g).to(device) for n in (s, s, s, s, e)]


def both(given: list[Tensor], dtype: torch.dtype, **settings: object) -> list[list[Tensor]]:
    """Return outputs and gradients of the kernel in ``dtype`` and of the twin in float64."""
    found = []
    for mixing, kind in ((flash_mixing, dtype), (gau.flash_mixing, torch.float64)):
        inputs = [x.to(dtype).to(kind).requires_grad_() for x in given]
        out = mixing(*inputs, causal=True, **settings)
        g = torch.Generator().manual_seed(1)
        weights = torch.randn(out.shape, generator=g).to(out.device, dtype).to(kind)
        gradients = torch.autograd.grad(out, inputs, weights, materialize_grads=True)
        found.append([out.detach(), *gradients])
    return found


@pytest.mark.parametrize(
    ("sizes", "chunk"),
    [
        ((1, 1, 1, 1), 1),
        ((2, 9, 3, 5), 4),
        ((1, 20, 4, 4), 50),  # one chunk
        ((1, 100, 20, 40), 40),  # two tiles a chunk, a last chunk of 20, two slices of values
        ((1, 70, 8, 8), 35),  # tiles that reach into the next chunk
    ],
    ids=str,
)
def test_float32_equals_the_twin(
    device: torch.device, sizes: tuple[int, int, int, int], chunk: int
) -> None:
    found = both(draw(device, *sizes), torch.float32, chunk=chunk)
    for x, y in zip(*found, strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_the_twin_of_the_same_rounded_inputs(
    device: torch.device, dtype: torch.dtype
) -> None:
    # Weights, their gradients and (in bfloat16) states are rounded once before they are
    # multiplied, results once more: u = eps / 2 each of terms of random sign, whose sum has about
    # the norm of the terms. Within a factor of two: 4 u.
    u = torch.finfo(dtype).eps / 2
    given = draw(device, 1, 300, 16, 24)
    ours, truth = both(given, dtype, chunk=140, lin_scale=0.02)
    for x, y in zip(ours, truth, strict=True):
        assert x.dtype == dtype
        assert (x.double() - y).norm() <= 4 * u * y.norm()


def test_scales_and_masks_equal_the_twin_and_masked_keys_may_hold_anything(
    device: torch.device,
) -> None:
    given = draw(device, 2, 30, 4, 4)
    attend = torch.arange(60, device=device).view(2, 1, 1, 30) % 3 > 0
    settings = {"chunk": 8, "attend": attend, "quad_scale": 0.3, "lin_scale": 0.7}
    found = both(given, torch.float32, **settings)
    for x, y in zip(*found, strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))
    for i in (1, 3, 4):
        given[i] = torch.where(attend[:, 0].mT, given[i], torch.nan)
    for x, y in zip(both(given, torch.float32, **settings)[0], found[0], strict=True):
        assert torch.equal(x, y)


def test_outputs_before_a_change_are_the_same_bits(device: torch.device) -> None:
    given = draw(device, 1, 90, 4, 4)
    first = flash_mixing(*given, chunk=40, causal=True)
    for x in given:
        x[:, 50:] += 1.0
    second = flash_mixing(*given, chunk=40, causal=True)
    assert torch.equal(first[:, :50], second[:, :50])
    assert not torch.equal(first[:, 50:], second[:, 50:])
