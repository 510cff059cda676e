"""Exact values of the objectives beyond the clipped token surrogate, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posttrain.objectives import (
    CISPO,
    GMPO,
    GSPO,
    LUSPO,
    SAPO,
    Objective,
    PolicyGradient,
    clip_limits,
    clips_sequences,
    policy_metrics,
    policy_statistics,
)
from posttrain.rollout.batch import RolloutBatch

# Row 0: one prompt token, then two tokens.  Row 1: one token.  Row 2: padding.
#            ratios             advantages    geometric mean
#   row 0:   1    4             1    1        2
#   row 1:   1/2                -1            1/2
MASK = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 0]]).bool()
LOG_PROBS = torch.tensor([[1, 0.5, 1.0], [1, 0.25, 1], [1, 1, 1]], dtype=torch.float64).log()
OLD = torch.tensor([[1, 0.5, 0.25], [1, 0.5, 1], [1, 1, 1]], dtype=torch.float64).log()
ADVANTAGES = torch.tensor([[0, 1.0, 1], [0, -1, 0], [0, 0, 0]], dtype=torch.float64)


def batch(advantages: Tensor = ADVANTAGES) -> RolloutBatch:
    return RolloutBatch(
        tokens=torch.zeros(3, 3, dtype=torch.int64),
        mask=MASK,
        old_log_probs=OLD,
        advantages=advantages,
    )


def value(objective: Objective, b: RolloutBatch | None = None) -> float:
    b = batch() if b is None else b
    return (objective(LOG_PROBS, b) / objective.denominator(b)).item()


def gradient(objective: Objective, b: RolloutBatch | None = None) -> Tensor:
    log_probs = LOG_PROBS.clone().requires_grad_()
    objective(log_probs, batch() if b is None else b).backward()
    assert log_probs.grad is not None
    return log_probs.grad


def near(expected: float) -> object:
    return pytest.approx(expected, rel=1e-14)


def test_gspo_has_one_ratio_a_sequence_the_geometric_mean_of_its_tokens() -> None:
    # row 0: min(2, clip(2, .5, 3)) = 2;  row 1: A = -1, s = 1/2, limit 1/2: -1/2
    objective = GSPO(clip_low=0.5, clip_high=2.0)
    assert value(objective) == near(-(2 - 0.5) / 2)
    assert objective.denominator(batch()) == 2
    # d(-s A)/d log_prob_t = -s A / |o|, the same for both tokens of row 0
    assert gradient(objective)[0].tolist() == pytest.approx([0, -1, -1])


def test_gspo_cuts_a_whole_sequence_off() -> None:
    # row 0: s = 2 > 1.25: gain 1.25 and no gradient;  row 1: s = 1/2 < .75, A < 0: -.75
    objective = GSPO(clip_low=0.25, clip_high=0.25)
    assert value(objective) == near(-(1.25 - 0.75) / 2)
    assert (gradient(objective) == 0).all()


def test_luspo_weighs_each_sequence_by_its_length() -> None:
    # gains as in GSPO: 2 over two tokens, -1/2 over one
    objective = LUSPO(clip_low=0.5, clip_high=2.0)
    assert value(objective) == near(-(2 * 2 - 1 * 0.5) / 2)
    # every token moves the loss alike: -s A
    assert gradient(objective)[0].tolist() == pytest.approx([0, -2, -2])


def test_gmpo_clips_tokens_before_the_geometric_mean() -> None:
    # row 0: log-ratios 0 and log 4, cut at log 2.25: exp((0 + log 2.25) / 2) = 1.5
    # row 1: A < 0, log 1/2 cut at -log 4/3: 3/4
    objective = GMPO(clip_low=math.log(4 / 3), clip_high=math.log(2.25))
    assert value(objective) == near(-(1.5 - 0.75) / 2)
    # only the token within the limits has a gradient: -1.5 / 2
    torch.testing.assert_close(
        gradient(objective), torch.tensor([[0, -0.75, 0], [0, 0, 0], [0, 0, 0]]).double()
    )


def test_gmpo_does_not_cut_off_what_would_make_the_loss_larger() -> None:
    # A = -1 with a ratio of 4 keeps its gradient; A = 1 with 1/2 too: 2 and 1/2
    b = batch(-ADVANTAGES)
    assert value(GMPO(clip_low=0.1, clip_high=0.1), b) == near(-(-2 + 0.5) / 2)


def test_cispo_caps_the_weight_and_keeps_every_gradient() -> None:
    # weights: 1, min(4, 1.5), 1/2;  log-probs: log 1/2, log 1, log 1/4
    objective = CISPO(clip_high=0.5)
    assert value(objective) == near(-(math.log(0.5) + 1.5 * 0 - 0.5 * math.log(0.25)) / 3)
    torch.testing.assert_close(
        gradient(objective), torch.tensor([[0, -1, -1.5], [0, 0.5, 0], [0, 0, 0]]).double()
    )


def test_policy_gradient_sums_tokens_and_averages_sequences() -> None:
    assert value(PolicyGradient()) == near(-(math.log(0.5) + math.log(1.0) - math.log(0.25)) / 2)
    assert PolicyGradient().denominator(batch()) == 2
    torch.testing.assert_close(gradient(PolicyGradient()), -ADVANTAGES)


def test_sapo_passes_the_ratio_through_a_gate() -> None:
    # f = 4/tau sigmoid(tau (w - 1)):  tau = 2: w = 1: 1, w = 4: 2 sigmoid(6)
    # tau = 4 where A < 0: w = 1/2: sigmoid(-2)
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    objective = SAPO(temperature_positive=2.0, temperature_negative=4.0)
    assert value(objective) == near(-((1 + 2 * sigmoid(6)) / 2 - sigmoid(-2)) / 2)
    # 4 sigmoid'(tau (w - 1)) w A: at w = 1 it is A
    assert gradient(objective)[0, 1].item() == near(-0.5)
    assert gradient(objective)[1, 1].item() == near(4 * sigmoid(-2) * sigmoid(2) * 0.5)


def test_defaults_are_those_of_the_papers() -> None:
    assert GSPO() == GSPO(clip_low=3e-4, clip_high=4e-4)
    assert LUSPO() == LUSPO(clip_low=2e-3, clip_high=2.5e-3)
    assert GMPO() == GMPO(clip_low=0.4, clip_high=0.4)
    assert CISPO() == CISPO(clip_high=0.28)
    assert SAPO() == SAPO(temperature_positive=1.0, temperature_negative=1.05)


@pytest.mark.parametrize("objective", [GSPO(0.5, 2.0), LUSPO(0.5, 2.0), GMPO(2.0, 2.0)])
def test_weights_that_differ_within_a_sequence_are_averaged(objective: Objective) -> None:
    # Row 0 with advantages 2 and 0 is row 0 with 1 and 1.
    uneven = ADVANTAGES.clone()
    uneven[0] = torch.tensor([0.0, 2, 0])
    assert value(objective, batch(uneven)) == near(value(objective))


def test_clip_fraction_of_sequences_counts_all_tokens_of_those_cut_off() -> None:
    # Limits 1/4: row 0 (s = 2, two tokens) and row 1 (s = 1/2) are cut off. Limit 3: neither; a
    # token's own ratio of 4 would be.
    narrow, wide = GSPO(0.25, 0.25), GSPO(0.5, 2.5)
    assert clips_sequences(narrow)
    assert not clips_sequences(GMPO())
    for objective, expected in ((narrow, 1.0), (wide, 0.0)):
        sums = policy_statistics(
            LOG_PROBS, batch(), *clip_limits(objective), sequences=clips_sequences(objective)
        )
        assert policy_metrics(sums)["clip_fraction"].item() == expected
    sums = policy_statistics(LOG_PROBS, batch(), *clip_limits(wide))
    assert policy_metrics(sums)["clip_fraction/high"].item() == pytest.approx(1 / 3)


def test_gmpo_tells_its_limits_as_distances_of_the_ratio_from_1() -> None:
    assert clip_limits(GMPO(math.log(2), math.log(3))) == pytest.approx((0.5, 2.0))


@pytest.mark.parametrize(
    ("make", "settings", "match"),
    [
        (GSPO, {"clip_low": -1e-4}, "clip_low=-0.0001"),
        (LUSPO, {"clip_high": math.nan}, "clip_high=nan"),
        (GMPO, {"clip_low": -0.4}, "clip_low=-0.4"),
        (CISPO, {"clip_high": -0.1}, "clip_high=-0.1"),
        (SAPO, {"temperature_positive": 0.0}, "temperature_positive=0.0"),
        (SAPO, {"temperature_negative": math.inf}, "temperature_negative=inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    make: type[GSPO], settings: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make(**settings)


def test_advantages_get_no_gradient() -> None:
    for objective in (GSPO(0.5, 2.0), LUSPO(0.5, 2.0), GMPO(), CISPO(), SAPO(), PolicyGradient()):
        advantages = ADVANTAGES.clone().requires_grad_()
        log_probs = LOG_PROBS.clone().requires_grad_()
        objective(log_probs, replace(batch(), advantages=advantages)).backward()
        assert advantages.grad is None
