"""Kernel against twin. The truth is the twin in float64, which no kernel takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.attention.kernels.cross_entropy import linear_cross_entropy_and_normaliser
from generative.attention.kernels.dispatch import on_kernels
from generative.attention.kernels.margin_softmax import margin_softmax

pytestmark = pytest.mark.gpu


def rows(device: torch.device, *, n: int, d: int, v: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(n + v)
    hidden = torch.randn(n, d, generator=g)
    weight = torch.randn(v, d, generator=g)
    bias = torch.randn(v, generator=g)
    labels = torch.randint(0, v, (n,), generator=g)
    labels[0], labels[-1] = 0, v - 1
    mask = torch.rand(n, generator=g) > 0.2
    return tuple(x.to(device) for x in (hidden, weight, bias, labels, mask))


def outcome(found: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs and the gradients of a sum with unequal weights."""
    whole = sum(
        ((x * torch.arange(1, len(x) + 1, device=x.device).to(x)).sum() * (i + 1))
        for i, x in enumerate(found)
    )
    return [*(x.detach() for x in found), *torch.autograd.grad(whole, inputs)]


def losses(given: tuple[Tensor, ...], dtype: torch.dtype, *, biased: bool) -> list[Tensor]:
    hidden, weight, bias, labels, mask = given
    inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)][: 2 + biased]
    found = linear_cross_entropy_and_normaliser(
        inputs[0],
        inputs[1],
        labels,
        bias=inputs[2] if biased else None,
        mask=mask,
        scale=0.7,
        chunk=3,
    )
    return outcome(found, inputs)


@pytest.mark.parametrize(("n", "d", "v"), [(7, 5, 33), (1, 3, 1), (4, 2, 64), (3, 2, 5000)])
@pytest.mark.parametrize("biased", [False, True])
def test_float32_equals_the_twin(
    device: torch.device, n: int, d: int, v: int, biased: bool
) -> None:
    given = rows(device, n=n, d=d, v=v)
    assert on_kernels(*given[:3])
    ours = losses(given, torch.float32, biased=biased)
    truth = losses(given, torch.float64, biased=biased)
    for x, y in zip(ours, truth, strict=True):
        assert x.dtype == torch.float32
        scale = max(1.0, float(y.abs().max()))
        assert (x - y).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_the_twin_of_the_same_rounded_inputs(
    device: torch.device, dtype: torch.dtype
) -> None:
    # Logits are below 16 here and are rounded to half an ulp, so each is off by at most 16 u,
    # u = eps / 2; scaled by .7. A log-sum-exp moves by no more than its logits, a loss by twice
    # that. A probability p moves by a factor exp(+-2 x that); the gradients sum such errors.
    given = tuple(x.to(dtype) if x.is_floating_point() else x for x in rows(device, n=7, d=5, v=33))
    assert (given[0] @ given[1].t()).abs().max() < 16
    off = 0.7 * 16 * torch.finfo(dtype).eps / 2
    ours = losses(given, dtype, biased=True)
    truth = losses(given, torch.float64, biased=True)
    assert [x.dtype for x in ours[:2]] == [torch.float32] * 2
    assert (ours[0] - truth[0]).abs().max() <= 2 * off
    assert (ours[1] - truth[1]).abs().max() <= off
    for x, y in zip(ours[2:], truth[2:], strict=True):
        assert x.dtype == dtype
        assert (x.double() - y).norm() <= 3 * off * y.norm()


@pytest.mark.parametrize(("angle", "cosine"), [(0.0, 0.35), (0.5, 0.0), (3.0, 0.1)])
def test_margins_equal_the_twin(device: torch.device, angle: float, cosine: float) -> None:
    hidden, weight, _, labels, mask = rows(device, n=7, d=5, v=33)

    def found(dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
        loss = margin_softmax(
            *inputs, labels, scale=16.0, angle=angle, cosine=cosine, mask=mask, chunk=3
        )
        return outcome((loss,), inputs)

    for x, y in zip(found(torch.float32), found(torch.float64), strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))


def test_a_huge_logit_neither_overflows_nor_leaks(device: torch.device) -> None:
    # Logits 1e4 and -1e4: the losses are 0 and 2e4, the normalisers 1e4.
    hidden = torch.full((2, 1), 1e4, device=device)
    weight = torch.tensor([[1.0], [-1.0]], device=device)
    labels = torch.tensor([0, 1], device=device)
    found = linear_cross_entropy_and_normaliser(hidden, weight, labels)
    assert found[0].tolist() == [0.0, 2e4]
    assert found[1].tolist() == [1e4, 1e4]
