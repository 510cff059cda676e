r"""Upsampling of images ``(B, C, Y, X)``: by copies, by lines, by channels, learnt, and undone.

``nearest``, ``bilinear``, ``pixel_shuffle`` and ``max_unpool`` have nothing to learn.
``transposed_convolution`` has, and leaves a checkerboard where its kernel overlaps itself unevenly
(Odena et al. 2016, doi:10.23915/distill.00003): ``overlap_counts`` tells. ``ResizeConvolution`` and
``SubPixelConvolution`` are layers that begin without one. Where torch has a function, it is
torch's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ResizeConvolution",
    "SubPixelConvolution",
    "bilinear",
    "max_pool",
    "max_unpool",
    "nearest",
    "overlap_counts",
    "pixel_shuffle",
    "pixel_unshuffle",
    "transposed_convolution",
]


def nearest(x: Tensor, factor: int) -> Tensor:
    """Return each pixel ``factor`` x ``factor`` times, ``(B, C, factor Y, factor X)``.

    Means are those of ``x``. Averaging over blocks of ``factor`` undoes it.

    Raises:
        ValueError: ``x`` has not four axes, or ``factor`` is below 1; so for all functions here.

    >>> nearest(torch.tensor([[[[1.0, 2.0]]]]), 2)
    tensor([[[[1., 1., 2., 2.],
              [1., 1., 2., 2.]]]])
    """
    _check(x, factor)
    return F.interpolate(x, scale_factor=factor, mode="nearest")


def bilinear(x: Tensor, factor: int, *, align_corners: bool = False) -> Tensor:
    """Return ``x`` interpolated linearly along both axes, ``(B, C, factor Y, factor X)``.

    Args:
        x: ``(B, C, Y, X)``.
        factor: Of both axes.
        align_corners: False takes pixels for squares: output i is read at (i + 1/2) / factor - 1/2
            of the input, at the border from the last pixel; means are those of ``x``. True takes
            them for points whose corners stay where they are: output i is read at
            i (Y - 1) / (factor Y - 1), so how far apart outputs are depends on the size of ``x``.

    >>> bilinear(torch.tensor([[[[0.0, 4.0]]]]), 2)[0, 0, 0]
    tensor([0., 1., 3., 4.])
    >>> bilinear(torch.tensor([[[[0.0, 3.0]]]]), 2, align_corners=True)[0, 0, 0]
    tensor([0., 1., 2., 3.])
    """
    _check(x, factor)
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align_corners)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    r"""Return channels laid out as pixels (Shi et al. 2016, arXiv:1609.05158, eq. 4).

        y[c, f y + i, f x + j] = x[c f^2 + i f + j, y, x],   0 <= i, j < f = factor

    The order of the channels is torch's; the paper has c as the last of the three.

    Args:
        x: ``(B, C factor^2, Y, X)``.
        factor: Of both axes.

    Returns:
        ``(B, C, factor Y, factor X)``.

    Raises:
        ValueError: The channels are not a multiple of ``factor`` squared.

    >>> pixel_shuffle(torch.arange(4.0).view(1, 4, 1, 1), 2)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    _check(x, factor)
    if x.shape[1] % factor**2:
        raise ValueError(
            f"x has {x.shape[1]} channels, expected a multiple of factor^2 = {factor**2}: each "
            "pixel becomes a square. Make the layer before it as wide."
        )
    return F.pixel_shuffle(x, factor)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Return pixels laid out as channels, ``(B, C factor^2, Y / factor, X / factor)``.

    The inverse of ``pixel_shuffle``, both ways; nothing is lost, unlike by pooling.

    Raises:
        ValueError: Height or width of ``x`` is not a multiple of ``factor``.
    """
    _check(x, factor)
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"x is {x.shape[2]} x {x.shape[3]} pixels, expected multiples of factor={factor}: each "
            "square becomes a pixel. Pad x first."
        )
    return F.pixel_unshuffle(x, factor)


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    size: tuple[int, int] | None = None,
) -> Tensor:
    r"""Return the adjoint of a convolution (Zeiler et al. 2010; Long et al. 2015, arXiv:1411.4038).

        y[o, s p + j - padding] = sum over c, p, j of x[c, p] weight[c, o, j]

    in both axes: each pixel lays the kernel down, s = ``stride`` apart, and what overlaps adds up.
    With A = ``conv2d(., weight, stride=s, padding=padding)``, <A u, x> = <u, y>.

    Args:
        x: ``(B, C, Y, X)``.
        weight: ``(C, C_out, K_y, K_x)``.
        bias: ``(C_out,)``.
        stride: From one pixel's kernel to the next one's.
        padding: Rows and columns cut off on each side.
        size: ``(Y_out, X_out)``. A convolution of stride s takes s heights to one, so its adjoint
            has a choice: by default (Y - 1) s - 2 padding + K_y, and up to s - 1 more.

    Returns:
        ``(B, C_out, Y_out, X_out)``.

    Raises:
        ValueError: Shapes that do not fit, or a ``size`` that no input of the convolution has.

    >>> x, ones = torch.ones(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    >>> transposed_convolution(x, ones, stride=2)  # every other pixel is reached twice
    tensor([[[[1., 1., 2., 1., 2., 1., 1.]]]])
    """
    _check(x, stride, name="stride")
    if weight.dim() != 4 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected ({x.shape[1]}, C_out, K_y, K_x): "
            f"x has {x.shape[1]} channels, which come first in a transposed convolution"
        )
    lengths = [
        _length(n, k, stride, padding) for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)
    ]
    extra = [wanted - n for wanted, n in zip(size or lengths, lengths, strict=True)]
    if not all(0 <= e < stride for e in extra):
        raise ValueError(
            f"size={size}, expected {lengths[0]} to {lengths[0] + stride - 1} by {lengths[1]} to "
            f"{lengths[1] + stride - 1}: no other image becomes {x.shape[2]} x {x.shape[3]} pixels "
            f"by a convolution of stride {stride} with this kernel and padding"
        )
    return F.conv_transpose2d(x, weight, bias, stride=stride, padding=padding, output_padding=extra)


def overlap_counts(size: tuple[int, int], *, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Return how many kernels of a transposed convolution reach each pixel of its output.

    Away from the border it is the same everywhere where ``kernel`` is a multiple of ``stride``:
    (kernel / stride)^2. Else it repeats with period ``stride``, and that is the checkerboard.

    Args:
        size: ``(Y, X)`` of the input.
        kernel: Height and width of the kernel.
        stride: As in ``transposed_convolution``, and so is ``padding``.
        padding: Rows and columns cut off on each side.

    Returns:
        ``(Y_out, X_out)`` int64.

    >>> overlap_counts((2, 3), kernel=3, stride=2)
    tensor([[1, 1, 2, 1, 2, 1, 1],
            [1, 1, 2, 1, 2, 1, 1],
            [2, 2, 4, 2, 4, 2, 2],
            [1, 1, 2, 1, 2, 1, 1],
            [1, 1, 2, 1, 2, 1, 1]])
    """
    counts = []
    for n in size:
        length = _length(n, kernel, stride, padding)
        reached = torch.arange(n)[:, None] * stride + torch.arange(kernel) - padding
        reached = reached[(reached >= 0) & (reached < length)]
        counts.append(reached.bincount(minlength=length))
    return torch.outer(*counts)


def max_pool(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the largest of each ``factor`` x ``factor`` square, and where it was.

    Rows and columns that fill no square are left out.

    Returns:
        Two ``(B, C, Y // factor, X // factor)``: maxima, and their int64 indices into the Y X
        pixels of a channel, row by row.
    """
    _check(x, factor)
    if min(x.shape[2:]) < factor:
        raise ValueError(f"x is {x.shape[2]} x {x.shape[3]} pixels, less than factor={factor}")
    maxima, indices = F.max_pool2d(x, factor, return_indices=True)
    return maxima, indices


def max_unpool(
    x: Tensor, indices: Tensor, factor: int, *, size: tuple[int, int] | None = None
) -> Tensor:
    """Return pixels put back where their maxima were, zeros elsewhere (Zeiler and Fergus 2013).

    arXiv:1311.2901, section 2.1.

    Args:
        x: ``(B, C, Y, X)``.
        indices: The same shape, int64, of ``max_pool``.
        factor: As of ``max_pool``.
        size: Height and width of what was pooled, where they are no multiples of ``factor``.

    Returns:
        ``(B, C, *size)``, by default ``(B, C, factor Y, factor X)``.

    >>> maxima, indices = max_pool(torch.tensor([[[[1.0, 5.0, 2.0], [3.0, 4.0, 9.0]]]]), 2)
    >>> max_unpool(maxima, indices, 2, size=(2, 3))
    tensor([[[[0., 5., 0.],
              [0., 0., 0.]]]])
    """
    _check(x, factor)
    if indices.shape != x.shape or indices.dtype != torch.int64:
        raise ValueError(
            f"indices has shape {tuple(indices.shape)} and dtype {indices.dtype}, expected "
            f"{tuple(x.shape)} and int64, as max_pool returns them"
        )
    lengths = [n * factor for n in x.shape[2:]]
    if not all(0 <= n - least < factor for n, least in zip(size or lengths, lengths, strict=True)):
        raise ValueError(
            f"size={size}, expected {lengths[0]} to {lengths[0] + factor - 1} by {lengths[1]} to "
            f"{lengths[1] + factor - 1}: no other image is pooled to {x.shape[2]} x {x.shape[3]}"
        )
    return F.max_unpool2d(x, indices, [factor, factor], output_size=list(size or lengths))


class ResizeConvolution(nn.Module):
    """Enlarges by ``resize``, then convolves (Odena et al. 2016): no checkerboard by construction.

    A constant image stays constant away from the border, whatever the weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        factor: int = 2,
        kernel: int = 3,
        resize: Callable[[Tensor, int], Tensor] = nearest,
    ) -> None:
        """Make a layer from ``(B, in_channels, Y, X)``.

        Args:
            in_channels: Of the input.
            out_channels: Of the output.
            factor: Of both axes.
            kernel: Height and width, in pixels of the output.
            resize: ``nearest``, ``bilinear``, or any function of image and factor.
        """
        super().__init__()
        self.factor = factor
        self.resize = resize
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, out_channels, factor Y, factor X)``."""
        return self.convolution(self.resize(x, self.factor))


class SubPixelConvolution(nn.Module):
    """Convolves at the low resolution, then shuffles (Shi et al. 2016, arXiv:1609.05158).

    It has more parameters and less to compute than ``ResizeConvolution``. The weights of the pixels
    of a square begin equal (ICNR, Aitken et al. 2017, arXiv:1707.02937), so at first it is a
    convolution followed by ``nearest``, without a checkerboard; training may bring one about.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, factor: int = 2, kernel: int = 3
    ) -> None:
        """Make a layer from ``(B, in_channels, Y, X)``.

        Args:
            in_channels: Of the input.
            out_channels: Of the output.
            factor: Of both axes.
            kernel: Height and width, in pixels of the input.
        """
        super().__init__()
        self.factor = factor
        self.convolution = nn.Conv2d(in_channels, out_channels * factor**2, kernel, padding="same")
        with torch.no_grad():
            for parameter in self.convolution.parameters():
                first = parameter[:: factor**2]
                parameter.copy_(first.repeat_interleave(factor**2, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, out_channels, factor Y, factor X)``."""
        return pixel_shuffle(self.convolution(x), self.factor)


def _check(x: Tensor, factor: int, *, name: str = "factor") -> None:
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, C, Y, X)")
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"{name}={factor!r}, expected a whole number from 1 up")


def _length(n: int, kernel: int, stride: int, padding: int) -> int:
    """Return the height or width that a transposed convolution makes of ``n``."""
    length = (n - 1) * stride - 2 * padding + kernel
    if n < 1 or kernel < 1 or stride < 1 or padding < 0 or length < 1:
        raise ValueError(
            f"size {n}, kernel={kernel}, stride={stride}, padding={padding} leave {length} pixels, "
            "expected at least 1: (size - 1) stride - 2 padding + kernel"
        )
    return length
