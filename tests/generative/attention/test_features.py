"""Feature maps: values, and what random features estimate."""

from __future__ import annotations

import pytest
import torch

from generative.attention.features import PositiveRandomFeatures, exp


def features(width: int, count: int, seed: int) -> PositiveRandomFeatures:
    return PositiveRandomFeatures(width, count, generator=torch.Generator().manual_seed(seed))


def test_random_features_estimate_the_weights_of_softmax_without_bias() -> None:
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 8, generator=g, dtype=torch.float64)
    estimates = torch.stack(
        [features(8, 16, seed)(q) @ features(8, 16, seed)(k) for seed in range(1000)]
    )
    expected = (q @ k / 8**0.5).exp()
    error = estimates.std() / 1000**0.5
    assert (estimates.mean() - expected).abs() < 3 * error
    assert error < 0.1 * expected


def test_directions_are_orthogonal_within_a_block_and_of_gaussian_length() -> None:
    directions = features(8, 12, seed=0).directions
    products = directions @ directions.t()
    for block in (products[:8, :8], products[8:, 8:]):
        off = block - block.diagonal().diag()
        torch.testing.assert_close(off, torch.zeros_like(off), rtol=0, atol=1e-12)
    lengths = torch.cat([features(8, 8, seed).directions.square().sum(1) for seed in range(300)])
    assert abs(float(lengths.mean()) - 8) < 0.3  # chi-squared with 8 degrees: 8 +- 4 / 49


def test_a_seed_draws_the_same_directions_again() -> None:
    assert torch.equal(features(4, 6, 3).directions, features(4, 6, 3).directions)
    assert not torch.equal(features(4, 6, 3).directions, features(4, 6, 4).directions)


def test_exponential_maps_are_exp_of_their_logs() -> None:
    x = torch.tensor([0.0, 1.0])
    assert torch.equal(exp(x), x.exp())
    many = features(2, 4, 0)
    assert torch.equal(many(x), many.log(x).exp())


def test_widths_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="drawn for width=4, but x has 3"):
        features(4, 6, 0)(torch.zeros(3))
    with pytest.raises(ValueError, match="features=0"):
        features(4, 0, 0)
