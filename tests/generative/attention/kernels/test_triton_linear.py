"""Kernels of causal linear attention against the twin in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generative.attention.features import FeatureMap, elu_plus_one, relu
from generative.attention.kernels import _triton_linear
from generative.attention.kernels.linear_attention import causal_linear_attention

pytestmark = pytest.mark.gpu

Shape = tuple[int, int, int, int, int, int]  # B, H, H_kv, T, K, W


def draw(device: torch.device, shape: Shape) -> list[Tensor]:
    b, h, kv, t, k, w = shape
    g = torch.Generator().manual_seed(0)
    sizes = ((b, h, t, k), (b, kv, t, k), (b, kv, t, w))
    return [torch.randn(s, generator=g).to(device) for s in sizes]


def both(given: list[Tensor], dtype: torch.dtype, **settings: object) -> list[list[Tensor]]:
    """Return outputs and gradients of the kernel in ``dtype`` and of the twin in float64."""
    found = []
    for kind in (dtype, torch.float64):
        inputs = [x.to(dtype).to(kind).requires_grad_() for x in given]
        out = causal_linear_attention(*inputs, **settings)
        g = torch.Generator().manual_seed(1)
        weights = torch.randn(out.shape, generator=g).to(out.device, dtype).to(kind)
        found.append([out.detach(), *torch.autograd.grad(out, inputs, weights)])
    return found


def squares(x: Tensor) -> Tensor:
    """Features that the kernel does not know, one more than there were."""
    return torch.cat((x * x, torch.ones_like(x[..., :1])), -1)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into segments of 64 tokens, as long sequences are cut into longer ones."""
    plain = _triton_linear.causal_sums
    monkeypatch.setattr(
        _triton_linear, "causal_sums", lambda *x, **settings: plain(*x, **settings, segment=64)
    )


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("feature_map", [elu_plus_one, relu, squares])
@pytest.mark.parametrize("normalize", [False, True])
def test_float32_equals_the_twin(
    device: torch.device, feature_map: FeatureMap, normalize: bool
) -> None:
    given = draw(device, (1, 2, 1, 101, 5, 7))
    for x in given[:2]:
        x[..., 0] = 1.0  # no sum of weights is near 0: gradients of queries are divided by it
    found = both(given, torch.float32, feature_map=feature_map, normalize=normalize)
    for x, y in zip(*found, strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1, 1), (2, 1, 1, 9, 33, 40), (2, 4, 2, 33, 8, 8)], ids=str
)
def test_shapes_equal_the_twin(device: torch.device, shape: Shape) -> None:
    found = both(draw(device, shape), torch.float32, feature_map=elu_plus_one)
    for x, y in zip(*found, strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_the_twin_of_the_same_rounded_inputs(
    device: torch.device, dtype: torch.dtype
) -> None:
    # Features, weights and (in bfloat16) states are rounded once each before they are multiplied,
    # outputs once more: errors of u = eps / 2 relative to their terms, all positive but the
    # values. Sums of T terms of random sign are off by u times the norm of the terms. By norms
    # 2 u for features, u each for weights, states and outputs: at most 8 u with the normaliser's,
    # and twice that for gradients, of which g is rounded too.
    u = torch.finfo(dtype).eps / 2
    given = draw(device, (1, 2, 1, 150, 16, 24))
    ours, truth = both(given, dtype, feature_map=elu_plus_one)
    for x, y, factor in zip(ours, truth, (8, 16, 16, 16), strict=True):
        assert x.dtype == dtype
        assert (x.double() - y).norm() <= factor * u * y.norm()


def test_float16_states_do_not_overflow(device: torch.device) -> None:
    # Sums of 200 products of 30 x 30 pass 65,504; the mean is still 30.
    k = torch.full((1, 1, 200, 16), 30.0, device=device, dtype=torch.float16)
    out = causal_linear_attention(k, k, k, feature_map=relu)
    assert torch.equal(out, k)


@pytest.mark.parametrize("shared", [True, False])
def test_masked_keys_equal_the_twin_and_may_hold_anything(
    device: torch.device, shared: bool
) -> None:
    q, k, v = draw(device, (2, 2, 1, 40, 4, 4))
    attend = torch.arange(80, device=device).view(2, 1, 1, 40) % 3 > 0
    attend = attend if shared else torch.cat((attend, ~attend), 1)
    found = both([q, k, v], torch.float32, feature_map=elu_plus_one, attend=attend)
    for x, y in zip(*found, strict=True):
        assert (x - y).abs().max() <= 1e-5 * max(1.0, float(y.abs().max()))
    assert not found[0][0][0, 0, 0].any()  # token 0 sees token 0 alone, which is masked
    if shared:
        spoiled = [torch.where(attend.mT, x, torch.nan) for x in (k, v)]
        dirty, _ = both([q, *spoiled], torch.float32, feature_map=elu_plus_one, attend=attend)
        for x, y in zip(dirty, found[0], strict=True):
            assert torch.equal(x, y)


def test_a_query_without_weights_is_zero_with_zero_gradients(device: torch.device) -> None:
    q, k, v = draw(device, (1, 1, 1, 20, 4, 4))
    q[:, :, 7] = -1.0
    ours, _ = both([q, k, v], torch.float32, feature_map=relu)
    assert not ours[0][0, 0, 7].any()
    assert not ours[1][0, 0, 7].any()
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.usefixtures("short_segments")
def test_outputs_before_a_change_are_the_same_bits(device: torch.device) -> None:
    q, k, v = draw(device, (1, 1, 1, 140, 4, 4))
    first = causal_linear_attention(q, k, v, feature_map=elu_plus_one)
    for x in (q, k, v):
        x[:, :, 100:] += 1.0
    second = causal_linear_attention(q, k, v, feature_map=elu_plus_one)
    assert torch.equal(first[:, :, :100], second[:, :, :100])
    assert not torch.equal(first[:, :, 100:], second[:, :, 100:])
