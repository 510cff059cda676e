"""Laws of softmax attention. Every fast form equals the naive one, and what follows from masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from generative.attention.flash import flash_attention
from generative.attention.gau import squared_relu_attention
from generative.attention.naive import softmax_attention
from generative.attention.softmax import attention

Form = Callable[..., Tensor]
FAST: list[Form] = [attention, flash_attention]
EVERY: list[Form] = [softmax_attention, *FAST]
every_form = pytest.mark.parametrize("form", EVERY, ids=lambda form: form.__name__)
fast_form = pytest.mark.parametrize("form", FAST, ids=lambda form: form.__name__)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments in float64: heads in groups, widths that differ, masks of every shape."""
    rows, shared, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    queries, width, value_width = (
        draw(st.integers(1, 9)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
    )
    causal = draw(st.booleans())
    keys = queries if causal else draw(st.integers(1, 9))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    heads = shared * group
    made = {
        name: torch.randn(shape, generator=g, dtype=torch.float64)
        for name, shape in {
            "q": (rows, heads, queries, width),
            "k": (rows, shared, keys, width),
            "v": (rows, shared, keys, value_width),
        }.items()
    }
    full = (rows, heads, queries, keys)
    kept = [size if draw(st.booleans()) else 1 for size in full]
    attend = torch.rand(kept, generator=g) < draw(st.sampled_from((0.3, 0.8)))
    return {
        **made,
        "causal": causal,
        "scale": draw(st.sampled_from((None, 0.3, 0.0, -2.0))),
        "attend": draw(st.sampled_from((None, attend))),
    }


def outputs_and_gradients(form: Form, case: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """Return the output, and the gradients of a fixed weighting of it."""
    inputs = [case[name].to(dtype).requires_grad_() for name in ("q", "k", "v")]
    rest = {name: case[name] for name in ("attend", "causal", "scale")}
    out = form(*inputs, **rest)
    weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


@fast_form
@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_outputs_and_gradients_are_the_naive_ones(form: Form, case: dict[str, Any]) -> None:
    for dtype, close in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        expected = outputs_and_gradients(softmax_attention, case, dtype)
        found = outputs_and_gradients(form, case, dtype)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=close, atol=close)


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@every_form
@pytest.mark.parametrize("length", [5, 600])
def test_causal_outputs_before_a_change_are_the_same_bits(form: Form, length: int) -> None:
    q, k, v = (draws(1, 2, length, 8, seed=seed) for seed in range(3))
    before = form(q, k, v, causal=True)
    for i in (length - 1, length // 2):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, i:] = 100 * draws(1, 2, length - i, 8, seed=i)
        after = form(*changed, causal=True)
        assert torch.equal(after[:, :, :i], before[:, :, :i])
        assert not torch.equal(after[:, :, i], before[:, :, i])


@every_form
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("garbage", [3e38, torch.nan, torch.inf])
def test_what_stands_at_padding_never_matters(form: Form, causal: bool, garbage: float) -> None:
    lengths = torch.tensor([4, 7, 2])
    attend = (torch.arange(7) < lengths[:, None])[:, None, None]
    q, k, v = (draws(3, 2, 7, 4, seed=seed).requires_grad_() for seed in range(3))
    clean = form(q, k, v, attend=attend, causal=causal)
    expected = torch.autograd.grad(clean.sum(), (q, k, v))
    padding = ~attend[:, :, 0, :, None]
    dirty_k, dirty_v = (x.detach().masked_fill(padding, garbage).requires_grad_() for x in (k, v))
    out = form(q, dirty_k, dirty_v, attend=attend, causal=causal)
    assert torch.equal(out, clean)
    for one, other in zip(
        torch.autograd.grad(out.sum(), (q, dirty_k, dirty_v)), expected, strict=True
    ):
        assert torch.equal(one, other)
    # A row alone, cut to its length, is the same to rounding.
    alone = form(q[2:, :, :2], k[2:, :, :2], v[2:, :, :2], causal=causal)
    torch.testing.assert_close(alone, clean[2:, :, :2], rtol=1e-5, atol=1e-6)


@every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_may_look_nowhere_are_zero(form: Form, dtype: torch.dtype) -> None:
    q, k, v = (draws(2, 2, 5, 4, seed=seed).to(dtype).requires_grad_() for seed in range(3))
    for attend in (
        torch.tensor([False, True])[:, None, None, None],  # row 0 looks nowhere
        torch.arange(5)[:, None] % 2 == 0,  # odd queries look nowhere
        torch.arange(5) >= 2,  # with causal: queries 0 and 1 look nowhere
    ):
        out = form(q, k, v, attend=attend, causal=True)
        may = (attend & torch.ones(5, 5, dtype=torch.bool).tril()).any(-1)
        may = may[..., None].expand(2, 2, 5, 4)
        assert out.dtype == dtype
        assert out[~may].eq(0).all()
        assert out[may].ne(0).all()
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
        assert all(x.isfinite().all() for x in gradients)
        assert gradients[0][~may].eq(0).all()


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
@pytest.mark.parametrize("form", [*EVERY, squared_relu_attention], ids=lambda form: form.__name__)
def test_what_stands_at_queries_that_may_look_nowhere_never_matters(
    form: Form, garbage: float
) -> None:
    q, k, v = (draws(2, 2, 5, 4, seed=seed).requires_grad_() for seed in range(3))
    ahead = torch.tensor([[False, False, True, True, True], [True] * 5])[:, None, None]
    everywhere = ahead & torch.tensor([True, False, True, True, False])[:, None]
    for attend, causal in ((ahead, True), (everywhere, False), (everywhere, True)):
        past = torch.ones(5, 5, dtype=torch.bool).tril() if causal else True
        blind = ~(attend & past).any(-1)[..., None]
        dirty = q.detach().masked_fill(blind, garbage).requires_grad_()
        found = []
        for queries in (q, dirty):
            out = form(queries, k, v, attend=attend, causal=causal)
            found.append((out, *torch.autograd.grad(out.sum(), (queries, k, v))))
        for clean, other in zip(*found, strict=True):
            assert torch.equal(other, clean)


@every_form
def test_keys_in_another_order_change_nothing_and_queries_follow_theirs(form: Form) -> None:
    q, k, v = (draws(1, 2, 6, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    out = form(q, k, v)
    torch.testing.assert_close(form(q, k[:, :, order], v[:, :, order]), out)
    torch.testing.assert_close(form(q[:, :, order], k, v), out[:, :, order])


@fast_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(form: Form, dtype: torch.dtype) -> None:
    q, k, v = (draws(2, 4, 33, 16, seed=seed).to(dtype) for seed in range(3))
    expected = softmax_attention(q.float(), k.float(), v.float(), causal=True)
    out = form(q, k, v, causal=True)
    assert out.dtype == dtype
    # Outputs are at most max|v| < 4; half a unit in the last place of 8 bits at 4 is 2^-7.
    tolerance = {torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance)


@every_form
@pytest.mark.parametrize("causal", [False, True])
def test_derivatives_are_those_of_finite_differences(form: Form, causal: bool) -> None:
    q, k, v = (
        draws(1, heads, 4, 3, seed=heads, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    attend = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(
        lambda *x: form(*x, attend=attend, causal=causal, scale=0.7), (q, k, v)
    )


# Dynamo itself makes one while it traces its apply.
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
@every_form
@pytest.mark.parametrize("masked", [False, True])
def test_forms_compile_to_one_graph(form: Form, masked: bool) -> None:
    q, k, v = (draws(1, heads, 6, 8, seed=heads) for heads in (4, 2, 2))
    attend = torch.arange(6) != 1 if masked else None
    compiled = torch.compile(form, backend="eager", fullgraph=True)
    out = form(q, k, v, attend=attend, causal=True)
    assert torch.equal(compiled(q, k, v, attend=attend, causal=True), out)


@every_form
def test_shapes_follow_without_data(form: Form) -> None:
    q = torch.empty(2, 4, 5, 8, dtype=torch.bfloat16, device="meta")
    v = torch.empty(2, 2, 5, 3, dtype=torch.bfloat16, device="meta")
    out = form(q, q[:, :2], v, causal=True)
    assert (out.shape, out.dtype) == ((2, 4, 5, 3), torch.bfloat16)
