from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import policy_metrics, policy_statistics
from posttrain.rollout.batch import RolloutBatch


def make(ratios: Tensor, advantages: Tensor, mask: Tensor, **fields: Tensor) -> RolloutBatch:
    return RolloutBatch(
        tokens=torch.zeros_like(ratios, dtype=torch.int64),
        mask=mask,
        old_log_probs=-ratios.log(),
        advantages=advantages,
        **fields,
    )


def test_sums_of_hand_worked_tokens() -> None:
    # w = 1/2 with A < 0 twice, 2 with A < 0, 2 with A > 0 twice; the last token does not count.
    ratios = torch.tensor([[0.5, 0.5, 2.0, 2.0, 2.0, 4.0]])
    advantages = torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, math.nan]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    log_probs = torch.full((1, 6), 0.25).log()
    batch = replace(
        make(ratios, advantages, mask, ref_log_probs=torch.full((1, 6), 0.125).log()),
        old_log_probs=log_probs - ratios.log(),
    )
    sums = policy_statistics(log_probs, batch, clip_low=0.4, clip_high=0.9)
    assert sums["tokens"] == 5
    assert sums["clipped_low"] == 2  # A < 0 and w = 1/2 < .6, twice
    assert sums["clipped_high"] == 2  # A > 0 and w = 2 > 1.9, twice
    metrics = policy_metrics(sums)
    assert metrics["clip_fraction"].item() == pytest.approx(0.8)
    assert metrics["clip_fraction/low"].item() == pytest.approx(0.4)
    assert metrics["clip_fraction/high"].item() == pytest.approx(0.4)
    assert metrics["ratio/mean"].item() == pytest.approx((2 * 0.5 + 3 * 2) / 5)
    # k3 of KL(old || policy), (w - 1) - log w: twice log 2 - 1/2, three times 1 - log 2
    log2 = math.log(2)
    assert metrics["kl/old"].item() == pytest.approx((2 * (log2 - 0.5) + 3 * (1 - log2)) / 5)
    # k3 of KL(policy || reference) with r = 1/2: log 2 - 1/2
    assert metrics["kl/ref"].item() == pytest.approx(log2 - 0.5)
    assert not any(value.requires_grad for value in metrics.values())


def test_quantiles_of_the_ratio_are_right_to_a_thousandth() -> None:
    ratios = torch.linspace(0.5, 1.5, 1001).reshape(7, 143)
    everything = torch.ones(7, 143, dtype=torch.bool)
    sums = policy_statistics(
        torch.zeros(7, 143), make(ratios, torch.zeros(7, 143), everything), 0.2, 0.2
    )
    metrics = policy_metrics(sums)
    for name, expected in (("ratio/p01", 0.51), ("ratio/p50", 1.0), ("ratio/p99", 1.49)):
        assert metrics[name].item() == pytest.approx(expected, rel=1e-3)


def test_ratio_of_1_everywhere_is_exactly_1_in_every_figure() -> None:
    ones = torch.ones(3, 4)
    sums = policy_statistics(torch.zeros(3, 4), make(ones, ones, ones.bool()), 0.2, 0.2)
    metrics = policy_metrics(sums)
    assert {metrics[f"ratio/{name}"].item() for name in ("mean", "p01", "p50", "p99")} == {1.0}
    assert metrics["clip_fraction"] == metrics["kl/old"] == 0.0
    assert "kl/ref" not in metrics


@given(seed=st.integers(0, 999), size=st.integers(1, 5))
def test_statistics_add_up_over_micro_batches(seed: int, size: int) -> None:
    g = torch.Generator().manual_seed(seed)
    ratios = torch.randn(5, 6, generator=g, dtype=torch.float64).mul(0.3).exp()
    mask = torch.rand(5, 6, generator=g) < 0.5
    advantages = torch.randn(5, 6, generator=g, dtype=torch.float64)
    log_probs = torch.where(mask, 0.0, math.nan).double()
    batch = make(ratios, advantages, mask, ref_log_probs=ratios.log())
    whole = policy_statistics(log_probs, batch, 0.2, 0.28)
    parts = [
        policy_statistics(x, part, 0.2, 0.28)
        for x, part in zip(log_probs.split(size), batch.split(size), strict=True)
    ]
    for name, expected in whole.items():
        total = torch.stack([part[name] for part in parts]).sum(0)
        torch.testing.assert_close(total, expected)
        assert expected.isfinite().all()


def test_nothing_counted_gives_zeros() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    nan = torch.full((2, 3), math.nan)
    for log_probs, mask in ((nan, nothing), (nan[:0], nothing[:0])):
        batch = make(log_probs, log_probs, mask)
        metrics = policy_metrics(policy_statistics(log_probs, batch, 0.2, 0.2))
        assert all(value == 0 for value in metrics.values())


def test_ratios_out_of_range_fall_into_the_outermost_bins() -> None:
    ratios = torch.tensor([[1e-30, 1e30]])
    both = torch.ones(1, 2, dtype=torch.bool)
    metrics = policy_metrics(
        policy_statistics(torch.zeros(1, 2), make(ratios, both.float(), both), 0.2, 0.2)
    )
    assert metrics["ratio/p01"].item() == pytest.approx(math.exp(-2))
    assert metrics["ratio/p99"].item() == pytest.approx(math.exp(2))
