"""Positions: the paper's sinusoids, and rotary scores that depend on distances alone."""

import math

import pytest
import torch

from generative.attention.positions import NoPositions, Rotary, sinusoidal_positions


def test_sinusoids_by_hand() -> None:
    # D = 4: frequencies 1 and 10000^(-1/2) = 1/100.
    found = sinusoidal_positions(torch.tensor([3]), 4)
    expected = [[math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-7)


def test_a_shift_of_sinusoids_is_one_rotation() -> None:
    # The paper's reason for them: PE(p + k) is linear in PE(p), whatever p.
    p = torch.arange(50)
    here, there = sinusoidal_positions(p, 8).double(), sinusoidal_positions(p + 7, 8).double()
    solved = torch.linalg.lstsq(here, there).solution
    torch.testing.assert_close(here @ solved, there, rtol=0, atol=1e-5)


def test_rotary_scores_depend_on_distances_alone() -> None:
    rotary = Rotary(base=100.0).build(2, 8)
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 1, 8, generator=g) for _ in range(2))
    scores = [
        (rotary.turn(q, torch.tensor([p + 3])) * rotary.turn(k, torch.tensor([p]))).sum(-1)
        for p in (0, 5, 40)
    ]
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[2], scores[0], rtol=0, atol=1e-5)
    apart = rotary.turn(q, torch.tensor([4])) * rotary.turn(k, torch.tensor([0]))
    assert (apart.sum(-1) - scores[0]).abs().min() > 1e-3


def test_none_change_nothing() -> None:
    none, x = NoPositions().build(2, 8), torch.ones(1, 2, 3, 8)
    assert none.turn(x, torch.arange(3)) is x
    assert none.bias(torch.arange(3), torch.arange(3)) is None


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="width=3"):
        sinusoidal_positions(torch.arange(2), 3)
    with pytest.raises(ValueError, match="head_size=5"):
        Rotary().build(2, 5)
    with pytest.raises(ValueError, match="base=0"):
        Rotary(base=0)
