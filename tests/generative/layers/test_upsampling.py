from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from generative.layers import upsampling as up


def some(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


# --- nothing to learn ---------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_nearest_copies_pixels_and_keeps_means(factor: int) -> None:
    x = some(2, 3, 4, 5)
    y = up.nearest(x, factor)
    assert y.shape == (2, 3, 4 * factor, 5 * factor)
    for i, j in itertools.product(range(factor), repeat=2):
        assert torch.equal(y[..., i::factor, j::factor], x)
    torch.testing.assert_close(y.mean((-2, -1)), x.mean((-2, -1)), rtol=0, atol=1e-15)
    assert torch.equal(y, F.interpolate(x, scale_factor=factor, mode="nearest"))


def coordinates(n: int, factor: int, *, align_corners: bool) -> Tensor:
    i = torch.arange(n * factor, dtype=torch.float64)
    return i * (n - 1) / (n * factor - 1) if align_corners else (i + 0.5) / factor - 0.5


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_bilinear_is_exact_on_ramps(factor: int, align_corners: bool) -> None:
    y, x = (torch.arange(n, dtype=torch.float64) for n in (5, 6))
    ramp = (3 * y[:, None] - 2 * x + 1)[None, None]
    found = up.bilinear(ramp, factor, align_corners=align_corners)[0, 0]
    at_y = coordinates(5, factor, align_corners=align_corners)
    at_x = coordinates(6, factor, align_corners=align_corners)
    # At the border the last pixel is repeated, so the coordinate stops there.
    expected = 3 * at_y.clamp(0, 4)[:, None] - 2 * at_x.clamp(0, 5) + 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inside = (at_y >= 0) & (at_y <= 4)
    assert bool(inside.all()) == (align_corners or factor == 1)


def test_bilinear_is_torchs_and_keeps_means_unless_corners_are_aligned() -> None:
    x = some(2, 3, 4, 5)
    for align_corners in (False, True):
        y = up.bilinear(x, 3, align_corners=align_corners)
        theirs = F.interpolate(x, (12, 15), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(y, theirs, rtol=0, atol=1e-12)
        gap = (y.mean((-2, -1)) - x.mean((-2, -1))).abs().max()
        assert gap > 1e-3 if align_corners else gap < 1e-15


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_is_its_formula_and_has_an_inverse(factor: int) -> None:
    x = some(2, 2 * factor**2, 3, 4)
    y = up.pixel_shuffle(x, factor)
    for c, i, j in itertools.product(range(2), range(factor), range(factor)):
        channel = c * factor**2 + i * factor + j
        assert torch.equal(y[:, c, i::factor, j::factor], x[:, channel])
    assert torch.equal(up.pixel_unshuffle(y, factor), x)
    z = some(2, 3, 3 * factor, 4 * factor)
    assert torch.equal(up.pixel_shuffle(up.pixel_unshuffle(z, factor), factor), z)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 9)])
def test_unpooling_puts_maxima_back(height: int, width: int) -> None:
    x = some(2, 3, height, width).abs() + 0.1
    maxima, indices = up.max_pool(x, 2)
    y = up.max_unpool(maxima, indices, 2, size=(height, width))
    kept = y != 0
    assert torch.equal(y[kept], x[kept])  # where they were, and zeros elsewhere
    assert int(kept.sum()) == maxima.numel()
    assert torch.equal(up.max_pool(y, 2)[0], maxima)
    theirs = F.max_unpool2d(maxima, indices, 2, output_size=(height, width))
    assert torch.equal(y, theirs)
    if height % 2 == 0:
        assert torch.equal(up.max_unpool(maxima, indices, 2), y)


def test_unpooling_is_the_gradient_of_pooling() -> None:
    x, weights = some(2, 3, 6, 6).requires_grad_(), some(2, 3, 3, 3, seed=1)
    maxima, indices = up.max_pool(x, 2)
    (gradient,) = torch.autograd.grad(maxima, x, weights)
    assert torch.equal(gradient, up.max_unpool(weights, indices, 2))


# --- transposed convolution and its checkerboard ------------------------------------------------

SETTINGS = [(3, 1, 0), (3, 2, 0), (3, 2, 1), (4, 2, 1), (2, 3, 0), (5, 3, 2)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), SETTINGS)
@pytest.mark.parametrize(("height", "width"), [(7, 8), (9, 10), (11, 12)])
def test_transposed_convolution_is_the_adjoint(
    kernel: int, stride: int, padding: int, height: int, width: int
) -> None:
    u, weight = some(2, 4, height, width), some(3, 4, kernel, kernel + 1, seed=1)
    convolved = F.conv2d(u, weight, stride=stride, padding=padding)
    x = some(*convolved.shape, seed=2)
    y = up.transposed_convolution(x, weight, stride=stride, padding=padding, size=(height, width))
    torch.testing.assert_close((convolved * x).sum(), (u * y).sum(), rtol=1e-12, atol=1e-12)
    bias = some(4, seed=3)
    least = up.transposed_convolution(x, weight, bias, stride=stride, padding=padding)
    theirs = F.conv_transpose2d(x, weight, bias, stride=stride, padding=padding)
    assert torch.equal(least, theirs)
    rows, columns = least.shape[2:]
    torch.testing.assert_close(y[..., :rows, :columns] + bias[:, None, None], least)


@pytest.mark.parametrize(("kernel", "stride", "padding"), SETTINGS)
def test_overlap_counts_are_counted(kernel: int, stride: int, padding: int) -> None:
    counts = up.overlap_counts((4, 5), kernel=kernel, stride=stride, padding=padding)
    x = torch.ones(1, 1, 4, 5, dtype=torch.float64)
    ones = torch.ones(1, 1, kernel, kernel, dtype=torch.float64)
    expected = up.transposed_convolution(x, ones, stride=stride, padding=padding)[0, 0]
    assert torch.equal(counts.double(), expected)


@pytest.mark.parametrize("kernel", range(1, 7))
@pytest.mark.parametrize("stride", range(1, 4))
def test_overlap_is_even_inside_exactly_if_the_stride_divides_the_kernel(
    kernel: int, stride: int
) -> None:
    counts = up.overlap_counts((9, 9), kernel=kernel, stride=stride)
    inside = counts[kernel:-kernel, kernel:-kernel]
    assert torch.equal(inside[stride:], inside[:-stride])  # the period is the stride
    even = bool((inside == inside[0, 0]).all())
    assert even == (kernel % stride == 0)
    if even:
        assert inside[0, 0] == (kernel // stride) ** 2


def phases(x: Tensor, factor: int) -> Tensor:
    """Return how far the means of the pixels of a square are apart, away from the border."""
    inside = x[..., 4 * factor : -4 * factor, 4 * factor : -4 * factor]
    means = up.pixel_unshuffle(inside, factor).mean((-2, -1)).unflatten(1, (-1, factor**2))
    return means.amax(-1) - means.amin(-1)


@pytest.mark.parametrize("factor", [2, 3])
def test_layers_begin_without_a_checkerboard_where_a_transposed_convolution_has_one(
    factor: int,
) -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 6, 12, 12, dtype=torch.float64)
    layers: list[torch.nn.Module] = [
        up.ResizeConvolution(6, 5, factor=factor),
        up.ResizeConvolution(6, 5, factor=factor, kernel=5, resize=up.bilinear),
        up.SubPixelConvolution(6, 5, factor=factor),
    ]
    for layer in layers:
        y = layer.double()(x)
        assert y.shape == (1, 5, 12 * factor, 12 * factor)
        assert phases(y, factor).max() < 1e-14
        assert y.std() > 0.01
    weight = some(6, 5, factor + 1, factor + 1)
    board = up.transposed_convolution(x, weight, stride=factor, size=(12 * factor + 1,) * 2)
    assert phases(board[..., :-1, :-1], factor).min() > 0.1


def test_sub_pixel_convolution_begins_as_a_convolution_and_nearest() -> None:
    torch.manual_seed(0)
    layer = up.SubPixelConvolution(3, 2, factor=2).double()
    x = some(2, 3, 5, 6)
    low = F.conv2d(x, layer.convolution.weight[::4], layer.convolution.bias[::4], padding="same")
    torch.testing.assert_close(layer(x), up.nearest(low, 2))
    # The pixels of a square are parameters of their own: a step tells them apart.
    (layer(x) * some(2, 2, 10, 12, seed=1)).sum().backward()
    gradient = layer.convolution.weight.grad
    assert gradient is not None
    assert (gradient[0] - gradient[1]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    x = some(1, 4, 4, 4).to(dtype)
    maxima, indices = up.max_pool(x, 2)
    weight = some(4, 2, 3, 3).to(dtype)
    for y in (
        up.nearest(x, 2),
        up.bilinear(x, 2),
        up.pixel_shuffle(x, 2),
        up.max_unpool(maxima, indices, 2),
        up.transposed_convolution(x, weight, stride=2),
    ):
        assert y.dtype == dtype
        assert y.isfinite().all()


# --- bad input ----------------------------------------------------------------------------------

IMAGE = torch.zeros(1, 6, 4, 5)


@pytest.mark.parametrize("factor", [0, -1, 1.5, True])
def test_factor_is_a_whole_number_from_1_up(factor: int) -> None:
    for function in (up.nearest, up.bilinear, up.pixel_shuffle, up.pixel_unshuffle, up.max_pool):
        with pytest.raises(ValueError, match=f"factor={factor}, expected a whole number"):
            function(IMAGE, factor)
        with pytest.raises(ValueError, match=r"x has shape \(4, 5\), expected \(B, C, Y, X\)"):
            function(IMAGE[0, 0], 2)


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"x has 6 channels, expected a multiple of .* 4"):
        up.pixel_shuffle(IMAGE, 2)
    with pytest.raises(ValueError, match=r"x is 4 x 5 pixels, expected multiples of factor=2"):
        up.pixel_unshuffle(IMAGE, 2)
    with pytest.raises(ValueError, match=r"x is 4 x 5 pixels, less than factor=5"):
        up.max_pool(IMAGE, 5)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 6, 3, 3\), expected \(6, C_out"):
        up.transposed_convolution(IMAGE, torch.zeros(2, 6, 3, 3))
    weight = torch.zeros(6, 2, 3, 3)
    with pytest.raises(ValueError, match="stride=0"):
        up.transposed_convolution(IMAGE, weight, stride=0)
    with pytest.raises(ValueError, match=r"size=\(9, 13\), expected 9 to 10 by 11 to 12"):
        up.transposed_convolution(IMAGE, weight, stride=2, size=(9, 13))
    with pytest.raises(ValueError, match=r"padding=9 leave -12 pixels"):
        up.transposed_convolution(IMAGE, weight, padding=9)
    with pytest.raises(ValueError, match="kernel=0"):
        up.overlap_counts((2, 2), kernel=0, stride=2)
    maxima, indices = up.max_pool(IMAGE, 2)
    with pytest.raises(ValueError, match=r"size=\(6, 5\), expected 4 to 5 by 4 to 5"):
        up.max_unpool(maxima, indices, 2, size=(6, 5))
    with pytest.raises(ValueError, match=r"indices has shape \(1, 6, 2, 2\) and dtype torch.int32"):
        up.max_unpool(maxima, indices.int(), 2)
    with pytest.raises(RuntimeError, match="invalid max index"):
        up.max_unpool(maxima, indices + 100, 2)
