from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from generative.attention.naive import softmax_attention
from generative.attention.softmax import attention, attention_backend


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_is_added_and_learns(causal: bool, masked: bool) -> None:
    q, k, v = draws(2, 4, 6, 3), draws(2, 2, 6, 3, seed=1), draws(2, 2, 6, 3, seed=2)
    bias = draws(4, 6, 6, seed=3).requires_grad_()
    attend = torch.arange(6) != 2 if masked else None
    found, expected = (
        form(q, k, v, attend=attend, causal=causal, bias=bias)
        for form in (attention, softmax_attention)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    one, other = (torch.autograd.grad(x.square().sum(), bias)[0] for x in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert one.ne(0).any()


@pytest.mark.parametrize("form", [attention, softmax_attention])
def test_a_bias_of_minus_infinity_is_a_mask(form: Callable[..., Tensor]) -> None:
    q, k, v = (draws(1, 2, 4, 3, seed=seed).requires_grad_() for seed in range(3))
    seen = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    bias = torch.zeros(4, 4, dtype=torch.float64).masked_fill(~seen, -torch.inf).requires_grad_()
    out = form(q, k, v, bias=bias)
    torch.testing.assert_close(out, softmax_attention(q, k, v, attend=seen))
    assert out[:, :, 1].eq(0).all()
    for gradient in torch.autograd.grad(out.square().sum(), (q, k, v, bias)):
        assert gradient.isfinite().all()


def test_the_backend_is_torchs_choice() -> None:
    q, k = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 8, 16)
    assert attention_backend(q, k, k) == SDPBackend.FLASH_ATTENTION
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_backend(q, k, k) == SDPBackend.MATH
    # On the CPU a bias that learns has no fused kernel.
    bias = torch.zeros(8, 8, requires_grad=True)
    assert attention_backend(q, k, k, bias=bias) == SDPBackend.MATH
    # It takes what attention takes.
    everything = {"attend": bias == 0, "causal": True, "bias": bias, "scale": -0.5}
    assert attention_backend(q, k, k, **everything) == SDPBackend.MATH
    with pytest.raises(ValueError, match="scale is nan"):
        attention_backend(q, k, k, scale=torch.nan)


def test_masks_groups_and_widths_keep_the_fused_kernel() -> None:
    q, k = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 8, 16)
    attend = torch.ones(8, dtype=torch.bool)
    for width in (8, 24):
        v = torch.zeros(1, 2, 8, width)
        for causal in (False, True):
            found = attention_backend(q, k, v, attend=attend, causal=causal)
            assert found == SDPBackend.FLASH_ATTENTION
