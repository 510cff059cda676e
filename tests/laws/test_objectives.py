"""The contract of an objective, held by every one: a new one adds its line to OBJECTIVES."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import (
    CISPO,
    DAPO,
    GMPO,
    GRPO,
    GSPO,
    LUSPO,
    SAPO,
    SFT,
    ClipCov,
    DrGRPO,
    KLCov,
    Objective,
    PolicyGradient,
    SampledReverseKL,
    with_chosen,
)
from posttrain.rollout.batch import RolloutBatch
from rl.estimators import k1, k2

SURROGATES: dict[str, Objective] = {
    "grpo": GRPO(),
    "grpo-dual": GRPO(clip_low=0.1, clip_high=0.3, dual_clip=1.5),
    "dapo": DAPO(),
    "dr-grpo": DrGRPO(5),
    "gspo": GSPO(),
    "gspo-wide": GSPO(clip_low=0.3, clip_high=0.5),
    "luspo": LUSPO(clip_low=0.3, clip_high=0.5),
    "gmpo": GMPO(),
    "sapo": SAPO(),
    "cispo": CISPO(),
    "policy-gradient": PolicyGradient(),
    "sampled-reverse-kl": SampledReverseKL(),
}
WITH_KL: dict[str, Objective] = {
    "grpo-k1": GRPO(kl_weight=0.5, kl=k1),
    "grpo-k3": GRPO(kl_weight=0.1),
    "dr-grpo-k2": DrGRPO(max_length=3, kl_weight=0.2, kl=k2, dual_clip=2.0),
}
CHOOSERS: dict[str, Objective] = {
    "clip-cov": ClipCov(),
    "kl-cov": KLCov(penalty=0.5),
}
OBJECTIVES: dict[str, Objective] = {"sft": SFT(), **SURROGATES, **WITH_KL, **CHOOSERS}
# A weight that is held constant has no derivative, though the loss changes with it.
SMOOTH = {name: objective for name, objective in OBJECTIVES.items() if name != "cispo"}

every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
every_chooser = pytest.mark.parametrize("objective", CHOOSERS.values(), ids=CHOOSERS)
every_smooth = pytest.mark.parametrize("objective", SMOOTH.values(), ids=SMOOTH)
every_surrogate = pytest.mark.parametrize("objective", SURROGATES.values(), ids=SURROGATES)
JUNK = (math.nan, math.inf, -math.inf, 1e30, -1e30)


def make(seed: int = 0, rows: int = 5, columns: int = 7) -> tuple[Tensor, RolloutBatch]:
    """Return current log-probs and a batch, in float64: two prompt tokens, then ragged lengths."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, columns - 1, (rows, 1), generator=g)
    place = torch.arange(columns)
    mask = (place >= 2) & (place < 2 + lengths)

    def draw() -> Tensor:
        return torch.where(mask, -torch.rand(rows, columns, generator=g).double() * 2, 0.0)

    advantages = torch.randn(rows, 1, generator=g, dtype=torch.float64).expand(rows, columns)
    batch = RolloutBatch(
        tokens=torch.randint(9, (rows, columns), generator=g),
        mask=mask,
        old_log_probs=draw(),
        advantages=torch.where(mask, advantages, 0.0),
        ref_log_probs=draw(),
        chosen=torch.rand(rows, columns, generator=g) < 0.3,
    )
    return draw(), batch


def loss_and_gradient(
    objective: Objective, log_probs: Tensor, batch: RolloutBatch
) -> tuple[Tensor, Tensor]:
    log_probs = log_probs.clone().requires_grad_()
    loss = objective(log_probs, batch) / objective.denominator(batch)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return loss.detach(), gradient


def pad(x: Tensor, rows: int, columns: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, columns, 0, rows), value=fill)


@every_objective
def test_both_parts_are_scalars_and_the_denominator_asks_the_mask_alone(
    objective: Objective,
) -> None:
    log_probs, batch = make()
    assert objective(log_probs, batch).shape == objective.denominator(batch).shape == ()
    other = replace(batch, advantages=batch.advantages + 1, old_log_probs=batch.old_log_probs - 3)
    assert objective.denominator(other) == objective.denominator(batch) > 0


@every_objective
def test_nothing_counted_gives_zeros_that_can_be_backpropagated(objective: Objective) -> None:
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
        assert leaf.grad.shape == leaf.shape


@every_surrogate
def test_zero_advantages_give_no_gradient(objective: Objective) -> None:
    log_probs, batch = make()
    level = replace(batch, advantages=torch.zeros_like(batch.advantages))
    loss, gradient = loss_and_gradient(objective, log_probs, level)
    assert loss == 0
    assert (gradient == 0).all()


@every_surrogate
def test_gradient_at_ratio_1_is_the_policy_gradient(objective: Objective) -> None:
    # d/d log_prob of w A at w = 1 is A; the weights are those of SFT's plain log-likelihood.
    log_probs, batch = make()
    batch = replace(batch, old_log_probs=log_probs)
    _, gradient = loss_and_gradient(objective, log_probs, batch)
    _, of_ones = loss_and_gradient(
        objective, log_probs, replace(batch, advantages=batch.mask.double())
    )
    torch.testing.assert_close(gradient, of_ones * batch.advantages, rtol=1e-15, atol=0)
    assert (of_ones[batch.mask] < 0).all()


@every_smooth
@pytest.mark.parametrize("seed", range(3))
def test_gradient_agrees_with_finite_differences(objective: Objective, seed: int) -> None:
    log_probs, batch = make(seed)
    log_probs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x, batch), log_probs)


@every_objective
def test_ratio_beyond_the_range_gives_no_nan(objective: Objective) -> None:
    log_probs, batch = make()
    batch = replace(
        batch,
        old_log_probs=torch.where(batch.mask, -900.0, 0.0).double(),
        advantages=batch.advantages.abs(),
        ref_log_probs=log_probs,
    )
    loss, gradient = loss_and_gradient(objective, log_probs, batch)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@every_chooser
@given(seed=st.integers(0, 99), columns=st.integers(0, 3), first=st.integers(0, 5))
def test_chosen_tokens_follow_from_the_whole_batch_alone(
    objective: Objective, seed: int, columns: int, first: int
) -> None:
    # Two processes with unequal rows and padding choose what one process chooses.
    _, batch = make(seed)
    batch = replace(batch, chosen=None)

    def stream() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    whole = with_chosen(objective, batch, stream()).chosen
    assert whole is not None
    assert not (whole & ~batch.mask).any()
    parts = [batch.rows(0, first), batch.rows(first, 5)]
    parts[1] = RolloutBatch(
        tokens=pad(parts[1].tokens, 1, columns, 0),
        mask=pad(parts[1].mask, 1, columns, False),
        old_log_probs=pad(parts[1].old_log_probs, 1, columns, math.nan),
        advantages=pad(parts[1].advantages, 1, columns, math.nan),
    )
    # What ``gather`` returns, in the order in which it is asked: counts, log-probs, advantages.
    counts = torch.stack([part.mask.sum() for part in parts])
    fields = [
        torch.cat([getattr(part, name)[part.mask] for part in parts])
        for name in ("old_log_probs", "advantages")
    ]
    chosen = []
    for rank, part in enumerate(parts):
        answers = iter([counts, *fields])
        found = with_chosen(objective, part, stream(), gather=lambda _: next(answers), rank=rank)  # noqa: B023 called within the loop
        assert found.chosen is not None
        chosen.append(found.chosen)
    torch.testing.assert_close(chosen[0], whole[:first], rtol=0, atol=0)
    torch.testing.assert_close(chosen[1][: 5 - first, :7], whole[first:], rtol=0, atol=0)


@every_chooser
def test_chooser_refuses_a_batch_of_which_nothing_was_chosen(objective: Objective) -> None:
    log_probs, batch = make()
    with pytest.raises(ValueError, match=r"chosen=None: call .*with_chosen"):
        objective(log_probs, replace(batch, chosen=None))


@every_objective
def test_log_probs_of_another_shape_are_refused_not_broadcast(objective: Objective) -> None:
    log_probs, batch = make()
    with pytest.raises(ValueError, match=r"shape \(5, 1\) for a mask of shape \(5, 7\)"):
        objective(log_probs[:, :1], batch)


@every_objective
def test_objectives_are_frozen_values(objective: Objective) -> None:
    assert replace(objective) == objective  # type: ignore[type-var]  # every one is a dataclass
    assert hash(objective) == hash(replace(objective))  # type: ignore[type-var]  # the same
