"""Exact values of the preference objectives on one pair, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.data.preferences import PreferenceBatch
from posttrain.objectives import GRPO, needs_reference, needs_reference_point
from posttrain.objectives.preference import DPO, IPO, KTO, ORPO, SimPO, kto_reference_point

# Chosen: two tokens, log p = -1.0 (mean -0.5), reference -2.0: r = 1.
# Rejected: one token, log p = -2.0, reference -1.5: r = -0.5.  So h = 1.5.
MASK = torch.tensor([[False, True, True], [False, True, False]])
LOG_PROBS = torch.tensor([[9.0, -0.4, -0.6], [9.0, -2.0, 9.0]], dtype=torch.float64)
REF = torch.tensor([[9.0, -0.5, -1.5], [9.0, -1.5, 9.0]], dtype=torch.float64)


def batch(reference_point: Tensor | None = None, ref: Tensor | None = REF) -> PreferenceBatch:
    return PreferenceBatch(torch.zeros(2, 3, dtype=torch.int64), MASK, ref, reference_point)


def near(expected: float | list[float]) -> object:
    return pytest.approx(expected, rel=1e-13)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_is_the_logistic_loss_of_the_margin_of_summed_log_ratios() -> None:
    assert DPO(beta=2.0)(LOG_PROBS, batch()).item() == near(-math.log(sigmoid(2 * 1.5)))
    assert DPO().denominator(batch()) == 1


def test_cdpo_mixes_in_the_wrong_label() -> None:
    expected = -0.9 * math.log(sigmoid(0.15)) - 0.1 * math.log(sigmoid(-0.15))
    assert DPO(beta=0.1, label_smoothing=0.1)(LOG_PROBS, batch()).item() == near(expected)


def test_gradient_of_dpo_is_beta_times_the_probability_of_the_wrong_order() -> None:
    log_probs = LOG_PROBS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(DPO(beta=0.1)(log_probs, batch()), log_probs)
    weight = 0.1 * sigmoid(-0.15)
    expected = torch.tensor([[0, -weight, -weight], [0, weight, 0]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_ipo_draws_the_margin_to_one_over_twice_beta() -> None:
    assert IPO(beta=0.25)(LOG_PROBS, batch()).item() == near((1.5 - 2) ** 2)
    assert IPO(beta=1 / 3)(LOG_PROBS, batch()).item() == pytest.approx(0, abs=1e-24)


def test_simpo_compares_mean_log_probabilities_with_a_margin() -> None:
    # 2 (-0.5 + 2) - 1 = 2
    objective = SimPO(beta=2.0, gamma=1.0)
    assert objective(LOG_PROBS, batch(ref=None)).item() == near(-math.log(sigmoid(2.0)))


def test_orpo_adds_the_odds_ratio_to_the_likelihood() -> None:
    chosen, rejected = math.exp(-0.5), math.exp(-2.0)
    log_odds = math.log(chosen / (1 - chosen)) - math.log(rejected / (1 - rejected))
    expected = 0.5 - 0.3 * math.log(sigmoid(log_odds))
    assert ORPO(beta=0.3)(LOG_PROBS, batch(ref=None)).item() == near(expected)


def test_kto_judges_each_completion_against_the_reference_point() -> None:
    # r = 1 and -0.5
    plain = (2 * (1 - sigmoid(0.5 * 1)) + 3 * (1 - sigmoid(0.5 * 0.5))) / 2
    objective = KTO(beta=0.5, chosen=2.0, rejected=3.0)
    assert objective(LOG_PROBS, batch()).item() == near(plain)
    shifted = (2 * (1 - sigmoid(0.5 * 0.6)) + 3 * (1 - sigmoid(0.5 * 0.9))) / 2
    point = torch.full((2,), 0.4, dtype=torch.float64, requires_grad=True)
    loss = objective(LOG_PROBS.clone().requires_grad_(), batch(point))
    assert loss.item() == near(shifted)
    loss.backward()
    assert point.grad is None


def test_kto_reference_point_is_a_mean_over_rows_and_never_negative() -> None:
    # r = 1 and -0.5: mean 0.25; a row without tokens does not count
    mask = torch.cat([MASK, torch.zeros(1, 3, dtype=torch.bool)])
    log_probs, ref = (torch.cat([x, torch.full((1, 3), math.nan)]) for x in (LOG_PROBS, REF))
    assert kto_reference_point(log_probs, ref, mask).item() == near(0.25)
    assert kto_reference_point(ref, log_probs, mask) == 0
    assert kto_reference_point(ref[2:], ref[2:], mask[2:]) == 0


def test_defaults_are_those_of_the_papers() -> None:
    assert DPO() == DPO(beta=0.1, label_smoothing=0.0)
    assert SimPO() == SimPO(beta=2.5, gamma=1.375)
    assert ORPO() == ORPO(beta=0.1)
    assert KTO() == KTO(beta=0.1, chosen=1.0, rejected=1.0)


def test_those_with_a_reference_say_so_and_refuse_a_batch_without() -> None:
    for objective in (DPO(), IPO(), KTO()):
        assert needs_reference(objective)
        with pytest.raises(ValueError, match=r"ref_log_probs=None.*SimPO or ORPO"):
            objective(LOG_PROBS, batch(ref=None))
    for free in (SimPO(), ORPO(), GRPO()):
        assert not needs_reference(free)
    assert needs_reference_point(KTO())
    assert not any(map(needs_reference_point, (DPO(), IPO(), SimPO(), ORPO(), GRPO())))


@pytest.mark.parametrize(
    ("make", "settings", "match"),
    [
        (DPO, {"beta": 0.0}, "beta=0.0"),
        (DPO, {"label_smoothing": 0.5}, "label_smoothing=0.5"),
        (IPO, {"beta": math.inf}, "beta=inf"),
        (SimPO, {"gamma": -1.0}, "gamma=-1.0"),
        (ORPO, {"beta": -1.0}, "beta=-1.0"),
        (KTO, {"rejected": -1.0}, "rejected=-1.0"),
    ],
)
def test_settings_that_prefer_nothing_are_refused(
    make: type[DPO], settings: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make(**settings)


def test_rewards_are_what_each_loss_compares() -> None:
    def log_odds(mean: float) -> float:
        return mean - math.log(1 - math.exp(mean))

    for objective in (DPO(beta=2.0), IPO(beta=2.0), KTO(beta=2.0)):
        assert objective.rewards(LOG_PROBS, batch()).tolist() == near([2.0, -1.0])
    assert SimPO(beta=2.0).rewards(LOG_PROBS, batch(ref=None)).tolist() == near([-1.0, -4.0])
    expected = [log_odds(-0.5), log_odds(-2.0)]
    assert ORPO(beta=2.0).rewards(LOG_PROBS, batch(ref=None)).tolist() == near(expected)
