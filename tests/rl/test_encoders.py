from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl.encoders import OneHot, Pixels, Vector, build_encoder, is_pixels
from rl.layers import UniformFanIn
from rl.observations import TensorObservations, to_tensors
from rl.spaces import Space, empty_rows


def encode(space: Space, observations: TensorObservations) -> torch.Tensor:
    encoder = build_encoder(space, UniformFanIn(), torch.Generator().manual_seed(0))
    features = encoder(observations)
    assert features.dtype == torch.float32
    assert features.shape[1] == encoder.features
    return features


def test_box_is_flattened_and_multi_binary_is_0_and_1() -> None:
    box = spaces.Box(-1.0, 1.0, (2, 2))
    assert encode(box, torch.arange(4.0).view(1, 2, 2)).tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert encode(spaces.MultiBinary(3), torch.tensor([[1, 0, 1]])).tolist() == [[1.0, 0.0, 1.0]]


def test_discrete_is_one_hot_from_its_start() -> None:
    space = spaces.Discrete(3, start=-1)
    assert encode(space, torch.tensor([-1, 1])).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_multi_discrete_is_one_hot_number_by_number() -> None:
    space = spaces.MultiDiscrete([[2, 3]], start=[[0, 5]])
    assert encode(space, torch.tensor([[[1, 5]]])).tolist() == [[0.0, 1.0, 1.0, 0.0, 0.0]]


def test_dict_is_read_in_the_order_of_the_space_and_tuple_by_place() -> None:
    parts = {"b": spaces.Box(0.0, 1.0, (1,)), "a": spaces.Discrete(2)}
    rows = {"b": torch.tensor([[0.5]]), "a": torch.tensor([1])}
    assert encode(spaces.Dict(parts), rows).tolist() == [[0.0, 1.0, 0.5]]
    pair = spaces.Tuple([parts["b"], spaces.Dict(parts)])
    assert encode(pair, (torch.tensor([[7.0]]), rows)).tolist() == [[7.0, 0.0, 1.0, 0.5]]


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ((84, 84, 3), True),
        ((4, 84, 84), True),
        ((36, 36), True),
        ((4, 96, 96, 3), True),
        ((35, 84, 3), False),
        ((7, 7, 3), False),
        ((128,), False),
    ],
)
def test_images_are_byte_boxes_that_the_convolutions_can_read(
    shape: tuple[int, ...], pixels: bool
) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    assert is_pixels(space) == pixels
    assert not is_pixels(spaces.Box(0.0, 1.0, shape))
    features = encode(space, to_tensors(empty_rows(space, 2)))
    assert features.shape == (2, 512 if pixels else np.prod(shape))


def test_channels_first_and_last_and_stacked_read_the_same_image() -> None:
    first, last = (
        Pixels(shape, UniformFanIn(), torch.Generator().manual_seed(0))
        for shape in ((6, 40, 44), (40, 44, 6))
    )
    stacked = Pixels((2, 40, 44, 3), UniformFanIn(), torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 6, 40, 44), generator=g, dtype=torch.uint8)
    features = first(image)
    assert (features > 0).any()
    assert torch.equal(last(image.permute(0, 2, 3, 1)), features)
    frames = image.view(2, 2, 3, 40, 44).permute(0, 1, 3, 4, 2)
    assert torch.equal(stacked(frames), features)


def test_pixels_are_shares_of_255() -> None:
    encoder = Pixels((36, 36), UniformFanIn(), torch.Generator().manual_seed(0))
    white = encoder(torch.full((1, 36, 36), 255, dtype=torch.uint8))
    torch.testing.assert_close(white, encoder.layers(torch.ones(1, 1, 36, 36)))


def test_space_without_an_encoder_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no network reads observations of Text.*expected Box"):
        build_encoder(spaces.Text(3), UniformFanIn(), torch.Generator())


def test_encoders_read_an_empty_batch() -> None:
    assert OneHot([2, 3])(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 5)
    assert Vector((2, 3))(torch.zeros(0, 2, 3)).shape == (0, 6)
