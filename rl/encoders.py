"""Encoders: from observations of any space to one vector of features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rl.layers import Initialisation, build_conv, build_linear
from rl.observations import TensorObservations
from rl.spaces import Space

__all__ = [
    "Concatenation",
    "Encoder",
    "OneHot",
    "Pixels",
    "Vector",
    "build_encoder",
    "is_pixels",
]

SMALLEST_IMAGE = 36  # of which three convolutions leave one place


class Encoder(nn.Module):
    """Turns a batch of observations into ``(B, features)``, float32."""

    features: int


class Vector(Encoder):
    """Numbers as they are, flattened."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.features = math.prod(shape)

    def forward(self, observations: Tensor) -> Tensor:
        """Return ``(B, features)`` for ``(B, *shape)``."""
        return observations.reshape(len(observations), self.features).float()


class OneHot(Encoder):
    """A Discrete or MultiDiscrete observation as one 1 for each of its numbers.

    >>> OneHot([2, 3])(torch.tensor([[1, 0]]))
    tensor([[0., 1., 1., 0., 0.]])
    """

    column: Tensor
    value: Tensor

    def __init__(self, counts: Sequence[int], starts: Sequence[int] | None = None) -> None:
        super().__init__()
        starts = [0] * len(counts) if starts is None else starts
        self.features = sum(counts)
        columns = [column for column, count in enumerate(counts) for _ in range(count)]
        values = [
            start + i for start, count in zip(starts, counts, strict=True) for i in range(count)
        ]
        self.register_buffer("column", torch.tensor(columns), persistent=False)
        self.register_buffer("value", torch.tensor(values), persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Return ``(B, features)`` for ``(B,)`` or ``(B, *shape)`` whole numbers."""
        numbers = observations.unsqueeze(-1).flatten(1)
        return (numbers[:, self.column] == self.value).float()


class Pixels(Encoder):
    """The convolutions of DQN (Mnih et al. 2015, doi:10.1038/nature14236, Methods).

    32 filters of 8x8 with stride 4, 64 of 4x4 with stride 2, 64 of 3x3 with stride 1, 512 units,
    rectified; pixels are divided by 255.

    Args:
        shape: ``(Y, X)``, ``(C, Y, X)`` or ``(Y, X, C)`` (of first and last axis the smaller one
            holds the channels), or ``(stack, Y, X, C)`` as gymnasium stacks colour frames.
        initialisation: Of every layer.
        generator: What it draws from.
    """

    def __init__(
        self, shape: Sequence[int], initialisation: Initialisation, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.features = 512
        self.axes = _channels_first(shape)
        channels, height, width = _image_size(shape)
        for size, stride in ((8, 4), (4, 2), (3, 1)):
            height, width = (height - size) // stride + 1, (width - size) // stride + 1
        self.layers = nn.Sequential(
            build_conv(channels, 32, 8, 4, initialisation, generator),
            nn.ReLU(),
            build_conv(32, 64, 4, 2, initialisation, generator),
            nn.ReLU(),
            build_conv(64, 64, 3, 1, initialisation, generator),
            nn.ReLU(),
            nn.Flatten(),
            build_linear(64 * height * width, 512, initialisation, generator),
            nn.ReLU(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Return ``(B, 512)`` for ``(B, *shape)`` in uint8."""
        images = observations.permute(0, *(axis + 1 for axis in self.axes))
        return self.layers(images.unsqueeze(1).flatten(1, -3).float() / 255)


class Concatenation(Encoder):
    """The parts of a Dict or Tuple observation side by side, in the space's order."""

    def __init__(self, names: Sequence[str | int], parts: Sequence[Encoder]) -> None:
        super().__init__()
        self.names, self.parts = list(names), nn.ModuleList(parts)
        self.features = sum(part.features for part in parts)

    def forward(self, observations: TensorObservations) -> Tensor:
        """Return ``(B, features)``."""
        pairs = zip(self.parts, self.names, strict=True)
        return torch.cat([part(observations[name]) for part, name in pairs], dim=1)  # type: ignore[index]  # a name for a dict, a place for a tuple


def build_encoder(
    space: Space, initialisation: Initialisation, generator: torch.Generator
) -> Encoder:
    """Return the encoder for a space.

    A Box is taken as it is, an image (see ``is_pixels``) through convolutions, Discrete and
    MultiDiscrete as one-hot, MultiBinary as 0 and 1, Dict and Tuple part by part.

    Raises:
        ValueError: No encoder reads this space; says what does.
    """
    from gymnasium import spaces

    if is_pixels(space):
        return Pixels(space.shape, initialisation, generator)
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return Vector(space.shape)
    if isinstance(space, spaces.Discrete):
        return OneHot([int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return OneHot(space.nvec.ravel().tolist(), space.start.ravel().tolist())
    if isinstance(space, spaces.Dict):
        parts = [build_encoder(part, initialisation, generator) for part in space.spaces.values()]
        return Concatenation(list(space.spaces), parts)
    if isinstance(space, spaces.Tuple):
        parts = [build_encoder(part, initialisation, generator) for part in space.spaces]
        return Concatenation(range(len(parts)), parts)
    raise ValueError(
        f"no network reads observations of {space}: expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, Dict or Tuple. Wrap the environment so that it gives one of these"
    )


def is_pixels(space: Space) -> bool:
    """Return whether a space holds images: a uint8 Box of 2 to 4 axes, 36 x 36 or larger.

    Smaller ones, such as the cells of a grid, are read as plain numbers.
    """
    from gymnasium import spaces

    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return 2 <= len(space.shape) <= 4 and min(_image_size(space.shape)[1:]) >= SMALLEST_IMAGE


def _channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the order of axes that puts channels (and the stack) before height and width."""
    if len(shape) == 4:
        return (0, 3, 1, 2)
    if len(shape) == 3 and shape[2] <= shape[0]:
        return (2, 0, 1)
    return tuple(range(len(shape)))


def _image_size(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width."""
    *channels, height, width = (shape[axis] for axis in _channels_first(shape))
    return math.prod(channels), height, width
