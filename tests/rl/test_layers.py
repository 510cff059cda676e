from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rl.layers import (
    DuelingHead,
    NoisyLinear,
    Orthogonal,
    UniformFanIn,
    build_activation,
    build_conv,
    build_linear,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_orthogonal_columns_have_the_gain_as_length_and_biases_are_0() -> None:
    layer = build_linear(3, 5, Orthogonal(gain=2.0), generator())
    torch.testing.assert_close(layer.weight.T @ layer.weight, 4 * torch.eye(3))
    assert (layer.bias == 0).all()


def test_last_layer_takes_the_gain_of_the_last() -> None:
    layer = build_linear(3, 2, Orthogonal(last_gain=0.5), generator(), last=True)
    torch.testing.assert_close(layer.weight @ layer.weight.T, 0.25 * torch.eye(2))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_uniform_fan_in_is_the_default_of_torch(kind: str) -> None:
    # The same draws in the same order give torch's own numbers.
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = nn.Linear(5, 4) if kind == "linear" else nn.Conv2d(2, 3, 4, 2)
    if kind == "linear":
        ours: nn.Module = build_linear(5, 4, UniformFanIn(), generator(7))
    else:
        ours = build_conv(2, 3, 4, 2, UniformFanIn(), generator(7))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_unknown_activation_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ValueError, match=r"activation='gelu' is unknown.*'tanh' or 'relu'"):
        build_activation("gelu")  # type: ignore[arg-type]  # on purpose


def test_noisy_linear_of_hand_worked_noise() -> None:
    layer = NoisyLinear(2, 1, generator())
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.fill_(3.0)
        layer.weight_sigma.copy_(torch.tensor([[1.0, 10.0]]))
        layer.bias_sigma.fill_(100.0)
        layer.noise_in.copy_(torch.tensor([2.0, -1.0]))
        layer.noise_out.fill_(3.0)
    # weight 1 + 1 * 3 * 2 = 7 and 2 + 10 * 3 * -1 = -28, bias 3 + 100 * 3 = 303
    assert layer(torch.ones(1, 2)).item() == 7 - 28 + 303
    assert layer.eval()(torch.ones(1, 2)).item() == 1 + 2 + 3


def test_noisy_linear_begins_within_the_bounds_of_the_paper_and_without_noise() -> None:
    layer = NoisyLinear(16, 64, generator(), sigma=0.5)
    assert layer.weight.abs().max() <= 1 / math.sqrt(16)
    assert (layer.weight_sigma == 0.5 / 4).all()
    assert (layer.bias_sigma == 0.5 / 4).all()
    x = torch.randn(3, 16, generator=generator())
    assert torch.equal(layer(x), layer.eval()(x))


def test_noise_is_the_signed_root_of_normals_and_depends_on_the_generator_alone() -> None:
    layer = NoisyLinear(3, 2, generator())
    layer.sample_noise(generator(5))
    draws = torch.randn(3, generator=(g := generator(5))), torch.randn(2, generator=g)
    for noise, normal in zip((layer.noise_in, layer.noise_out), draws, strict=True):
        torch.testing.assert_close(noise.square() * noise.sign(), normal)


def test_noise_has_a_gradient_into_its_deviation() -> None:
    layer = NoisyLinear(2, 1, generator())
    layer.sample_noise(generator(1))
    layer(torch.tensor([[1.0, 3.0]])).sum().backward()
    expected = layer.noise_out.outer(layer.noise_in) * torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(layer.weight_sigma.grad, expected)
    torch.testing.assert_close(layer.bias_sigma.grad, layer.noise_out)


def test_dueling_head_of_hand_worked_streams() -> None:
    # V = 10; A = (1, 2, 6), mean 3: Q = 10 + A - 3
    value, advantage = nn.Linear(1, 1), nn.Linear(1, 3)
    with torch.no_grad():
        value.weight.fill_(10.0), value.bias.zero_()
        advantage.weight.copy_(torch.tensor([[1.0], [2.0], [6.0]])), advantage.bias.zero_()
    head = DuelingHead(value, advantage, actions=3)
    assert head(torch.ones(1, 1)).tolist() == [[8.0, 9.0, 13.0]]


def test_dueling_head_of_atoms_centres_each_atom() -> None:
    # two actions of two atoms, action by action: A = ((1, 2), (3, 6)), means (2, 4), V = (10, 20)
    value, advantage = nn.Linear(1, 2), nn.Linear(1, 4)
    with torch.no_grad():
        value.weight.copy_(torch.tensor([[10.0], [20.0]])), value.bias.zero_()
        advantage.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [6.0]])), advantage.bias.zero_()
    head = DuelingHead(value, advantage, actions=2)
    assert head(torch.ones(1, 1)).tolist() == [[9.0, 18.0, 11.0, 22.0]]
