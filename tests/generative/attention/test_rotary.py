from __future__ import annotations

import pytest
import torch

from generative.attention.rotary import (
    apply_rotary,
    neighbours,
    rotary_frequencies,
    rotary_turns,
    turn,
)


def test_turn_of_neighbours_equals_the_half_split_twin() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 8, generator=g)
    turns = rotary_turns(torch.arange(5), torch.tensor([1.0, 0.3, 0.1, 0.03]))[:, None]
    order = neighbours(8)
    torch.testing.assert_close(turn(x[..., order], turns), apply_rotary(x, turns)[..., order])


def test_scores_depend_on_the_distance_alone() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=g)
    frequencies = torch.tensor([1.0, 0.3, 0.1, 0.03])
    turns = rotary_turns(torch.tensor([3, 7, 23, 27]), frequencies)
    a, b, c, d = turns
    near = turn(q, b) @ turn(k, a)
    far = turn(q, d) @ turn(k, c)
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)


def test_the_conjugate_turns_back_and_scaling_scales() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    turns = rotary_turns(torch.tensor(5), torch.tensor([1.0, 0.1]))
    torch.testing.assert_close(turn(turn(x, turns), turns.conj()), x)
    twice = rotary_turns(torch.tensor(5), torch.tensor([1.0, 0.1]), scaling=2.0)
    torch.testing.assert_close(turn(x, twice), 2 * turn(x, turns))


def test_turn_keeps_half_precision() -> None:
    x = torch.tensor([3.0, 4.0], dtype=torch.bfloat16)
    turned = turn(x, torch.tensor([1j]))
    assert turned.dtype == torch.bfloat16
    assert turned.tolist() == [-4.0, 3.0]


def test_frequencies_fall_by_powers_of_the_base() -> None:
    # 10,000^0, 10,000^(-2/8), ...
    torch.testing.assert_close(rotary_frequencies(8), torch.tensor([1.0, 0.1, 0.01, 0.001]))
    torch.testing.assert_close(rotary_frequencies(4, base=4.0), torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="width=5"):
        rotary_frequencies(5)
    with pytest.raises(ValueError, match="base=0"):
        rotary_frequencies(4, base=0)
