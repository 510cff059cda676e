"""The contract of a preference objective, held by every one: a new one adds its line."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.data.preferences import PreferenceBatch
from posttrain.objectives.preference import DPO, IPO, KTO, ORPO, SimPO

Preference = DPO | IPO | KTO | ORPO | SimPO
OBJECTIVES: dict[str, Preference] = {
    "dpo": DPO(),
    "cdpo": DPO(beta=0.5, label_smoothing=0.2),
    "ipo": IPO(),
    "simpo": SimPO(),
    "orpo": ORPO(beta=0.7),
    "kto": KTO(beta=0.3, chosen=1.0, rejected=1.3),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
JUNK = (math.nan, math.inf, -math.inf, 1e30, -1e30)


def make(seed: int = 0, pairs: int = 4, columns: int = 6) -> tuple[Tensor, PreferenceBatch]:
    """Return current log-probs and a batch, in float64: one prompt token, then ragged lengths."""
    g = torch.Generator().manual_seed(seed)
    rows = 2 * pairs
    lengths = torch.randint(1, columns - 1, (rows, 1), generator=g)
    place = torch.arange(columns)
    mask = (place >= 1) & (place < 1 + lengths)

    def draw() -> Tensor:
        return torch.where(mask, -torch.rand(rows, columns, generator=g).double() * 2, 0.0)

    batch = PreferenceBatch(
        tokens=torch.randint(9, (rows, columns), generator=g),
        mask=mask,
        ref_log_probs=draw(),
        reference_point=torch.full((rows,), 0.25).double(),
    )
    return draw(), batch


def loss_and_gradient(
    objective: Preference, log_probs: Tensor, batch: PreferenceBatch
) -> tuple[Tensor, Tensor]:
    log_probs = log_probs.clone().requires_grad_()
    loss = objective(log_probs, batch) / objective.denominator(batch)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return loss.detach(), gradient


def pad(x: Tensor, rows: int, columns: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, columns, 0, rows), value=fill)


@every_objective
def test_both_parts_are_scalars_and_the_denominator_is_the_number_of_pairs(
    objective: Preference,
) -> None:
    log_probs, batch = make()
    assert objective(log_probs, batch).shape == objective.denominator(batch).shape == ()
    assert objective.denominator(batch) == 4


@every_objective
def test_pairs_with_an_empty_row_count_nowhere(objective: Preference) -> None:
    log_probs, batch = make()
    loss, gradient = loss_and_gradient(objective, log_probs[2:], batch.rows(1, 4))
    mask = batch.mask.clone()
    mask[1] = False
    half_empty = replace(batch, mask=mask)
    assert objective.denominator(half_empty) == 3
    after, gradient_after = loss_and_gradient(objective, log_probs, half_empty)
    torch.testing.assert_close(after, loss)
    torch.testing.assert_close(gradient_after[2:], gradient)
    assert (gradient_after[:2] == 0).all()


@every_objective
def test_nothing_counted_gives_zeros_that_can_be_backpropagated(objective: Preference) -> None:
    log_probs, batch = make()
    nothing = replace(batch, mask=torch.zeros_like(batch.mask))
    for part_log_probs, part in ((log_probs, nothing), (log_probs[:0], batch.empty())):
        leaf = part_log_probs.clone().requires_grad_()
        loss = objective(leaf, part)
        assert loss == 0
        assert objective.denominator(part) == 0
        loss.backward()
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


@every_objective
@given(seed=st.integers(0, 199), junk=st.sampled_from(JUNK))
def test_rewards_are_one_a_row_and_rise_with_its_counted_tokens_alone(
    objective: Preference, seed: int, junk: float
) -> None:
    log_probs, batch = make(seed)
    log_probs = torch.where(batch.mask, log_probs - 0.2, junk)
    rewards = objective.rewards(log_probs, batch)
    assert rewards.shape == (8,)
    (gradient,) = torch.autograd.grad(
        objective.rewards(log_probs.requires_grad_(), batch).sum(), log_probs
    )
    assert (gradient[batch.mask] > 0).all()
    assert (gradient[~batch.mask] == 0).all()
    parts = list(zip(log_probs.detach().split(4), batch.split(2), strict=True))
    torch.testing.assert_close(torch.cat([objective.rewards(*part) for part in parts]), rewards)


@every_objective
def test_chosen_tokens_are_raised_and_rejected_ones_lowered(objective: Preference) -> None:
    # At the reference itself, where no preference has been learnt yet.
    log_probs, batch = make()
    batch = replace(batch, ref_log_probs=log_probs)
    _, gradient = loss_and_gradient(objective, log_probs, batch)
    assert (gradient[::2][batch.mask[::2]] < 0).all()
    assert (gradient[1::2][batch.mask[1::2]] > 0).all()


@every_objective
@pytest.mark.parametrize("seed", range(3))
def test_gradient_agrees_with_finite_differences(objective: Preference, seed: int) -> None:
    log_probs, batch = make(seed)
    log_probs = torch.where(batch.mask, log_probs - 0.01, 0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x, batch), log_probs)


@every_objective
@pytest.mark.parametrize("far", [0.0, -1e-300, -900.0, -1e30])
def test_log_probs_at_the_ends_of_their_range_give_no_nan(
    objective: Preference, far: float
) -> None:
    log_probs, batch = make()
    for rows in (slice(0, None, 2), slice(1, None, 2), slice(None)):
        extreme = log_probs.clone()
        extreme[rows] = far
        loss, gradient = loss_and_gradient(objective, extreme, batch)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@every_objective
def test_log_probs_of_another_shape_are_refused_not_broadcast(objective: Preference) -> None:
    log_probs, batch = make()
    with pytest.raises(ValueError, match=r"shape \(8, 1\) for a mask of shape \(8, 6\)"):
        objective(log_probs[:, :1], batch)


@every_objective
def test_objectives_are_frozen_values(objective: Preference) -> None:
    assert replace(objective) == objective
    assert hash(objective) == hash(replace(objective))
