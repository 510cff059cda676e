"""Clip-Cov and KL-Cov: which tokens are chosen, and what becomes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.objectives import GRPO, ClipCov, KLCov, with_chosen
from posttrain.objectives.covariance import covariances
from posttrain.rollout.batch import RolloutBatch

# Four tokens in two rows: log-probs -1 -1 -3 -3 (mean -2), advantages 2 -2 2 -2 (mean 0):
# covariances 2 -2 -2 2. A fifth, masked, would change both means.
MASK = torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()
OLD = torch.tensor([[9, -1, -1], [-3, -3, math.nan]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[9.0, 2, -2], [2, -2, math.nan]], dtype=torch.float64)
COVARIANCES = torch.tensor([2.0, -2, -2, 2]).double()


def batch(chosen: Tensor | None = None) -> RolloutBatch:
    return RolloutBatch(
        tokens=torch.zeros(2, 3, dtype=torch.int64),
        mask=MASK,
        old_log_probs=OLD,
        advantages=ADVANTAGES,
        chosen=chosen,
    )


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_covariances_of_hand_worked_tokens() -> None:
    torch.testing.assert_close(
        covariances(OLD[MASK], ADVANTAGES[MASK]), COVARIANCES, rtol=0, atol=0
    )


def test_kl_cov_chooses_the_highest_and_at_least_one() -> None:
    log_probs, advantages = OLD[MASK], ADVANTAGES[MASK]
    assert KLCov(share=0.5).choose(log_probs, advantages, stream()).tolist() == [1, 0, 0, 1]
    assert KLCov(share=1e-9).choose(log_probs, advantages, stream()).tolist() == [1, 0, 0, 0]
    assert KLCov().choose(log_probs[:0], advantages[:0], stream()).shape == (0,)


def test_clip_cov_draws_a_share_of_those_between_its_limits() -> None:
    log_probs, advantages = OLD[MASK], ADVANTAGES[MASK]
    drawn = {
        tuple(ClipCov(share=0.25).choose(log_probs, advantages, stream(seed)).tolist())
        for seed in range(20)
    }
    assert drawn == {(True, False, False, False), (False, False, False, True)}
    both = ClipCov(share=1.0).choose(log_probs, advantages, stream())
    assert both.tolist() == [True, False, False, True]
    for low, high in ((2.0, 5.0), (1.0, 2.0)):  # the limits themselves are outside
        outside = ClipCov(share=1.0, cov_low=low, cov_high=high)
        assert not outside.choose(log_probs, advantages, stream()).any()


def test_chosen_tokens_are_spread_over_the_batch() -> None:
    chosen = with_chosen(KLCov(share=0.5), batch()).chosen
    assert chosen is not None
    assert chosen.tolist() == [[False, True, False], [False, True, False]]
    plain = batch()
    assert with_chosen(GRPO(), plain) is plain


def test_clip_cov_leaves_out_the_chosen_tokens() -> None:
    # ratio 2 everywhere, limits (1/2, 1.5): gains 1.5 * 2, 2 * -2, 1.5 * 2, 2 * -2
    log_probs = (OLD + math.log(2)).requires_grad_()
    b = batch(torch.tensor([[1, 1, 0], [0, 1, 1]]).bool())
    objective = ClipCov(clip_low=0.5, clip_high=0.5)
    loss = objective(log_probs, b)
    assert loss.item() == pytest.approx(-(-4 + 3))
    assert objective.denominator(b) == 4
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient.tolist() == [[0, 0, pytest.approx(4)], [0, 0, 0]]


def test_kl_cov_adds_a_divergence_where_tokens_are_chosen() -> None:
    # ratio 2: gains 4, -4, 4, -4, unclipped; k3 of KL(old || policy): (2 - 1) - log 2, twice
    b = batch(torch.tensor([[1, 1, 0], [0, 1, 1]]).bool())
    loss = KLCov(penalty=0.5)(OLD + math.log(2), b)
    assert loss.item() == pytest.approx(0.5 * 2 * (1 - math.log(2)))
    # its gradient in log w: w - 1 = 1, next to -w A
    log_probs = (OLD + math.log(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(KLCov(penalty=0.5)(log_probs, b), log_probs)
    assert gradient[MASK].tolist() == pytest.approx([-4 + 0.5, 4, -4, 4 + 0.5])


def test_defaults_are_those_of_the_paper() -> None:
    assert ClipCov() == ClipCov(share=2e-4, cov_low=1.0, cov_high=5.0)
    assert (KLCov().share, KLCov().penalty) == (2e-3, 1.0)


@pytest.mark.parametrize(
    ("make", "settings", "match"),
    [
        (ClipCov, {"share": 0.0}, "share=0.0"),
        (ClipCov, {"cov_low": 5.0}, "no covariance lies between"),
        (ClipCov, {"clip_low": -1.0}, "clip_low=-1.0"),
        (KLCov, {"share": 1.5}, "share=1.5"),
        (KLCov, {"penalty": -1.0}, "penalty=-1.0"),
    ],
)
def test_settings_that_choose_nothing_are_refused(
    make: type[KLCov], settings: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make(**settings)
