"""How a batch is laid out changes no loss: held by every objective, so a new one adds its line.

Parts and their padding, junk where nothing counts, the order of rows, and the processes that hold
them: the loss and its gradient by what the model computed stay what they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.data.preferences import PreferenceBatch
from posttrain.data.step_labels import StepBatch
from posttrain.objectives import (
    CISPO,
    DAPO,
    DPO,
    GMPO,
    GRPO,
    GSPO,
    IPO,
    KTO,
    LUSPO,
    ORPO,
    SAPO,
    SFT,
    BradleyTerry,
    ClipCov,
    DrGRPO,
    ForwardKL,
    IcePop,
    JensenShannon,
    KLCov,
    MaskedImportance,
    Mismatch,
    Objective,
    PolicyGradient,
    ReverseKL,
    SampledReverseKL,
    SimPO,
    StepReward,
    TruncatedImportance,
    ValueLoss,
)
from posttrain.rollout.batch import RolloutBatch
from posttrain.trainers.updates import weighted
from rl.estimators import k1, k2

Batch = RolloutBatch | PreferenceBatch | StepBatch
JUNK = (math.nan, math.inf, -math.inf, 1e30, -1e30)


@dataclass(frozen=True)
class Weighed:
    """An objective whose advantages are weighed against the mismatch, as the trainer does it."""

    objective: Objective
    mismatch: Mismatch

    def denominator(self, batch: RolloutBatch) -> Tensor:
        return self.objective.denominator(batch)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        return self.objective(log_probs, weighted(self.mismatch, batch))


def rollouts(seed: int, *, by_token: bool = False) -> tuple[Tensor, RolloutBatch]:
    """Return log-probs and a batch, in float64: two prompt tokens, then ragged lengths."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = 6, 7
    place, lengths = torch.arange(columns), torch.randint(0, columns - 1, (rows, 1), generator=g)
    mask = (place >= 2) & (place < 2 + lengths)
    mask[0, 3] = True  # at least one row counts, whatever was drawn
    mask[:, 4] &= torch.rand(rows, generator=g) < 0.8  # a tool's token, within a completion

    def draw() -> Tensor:
        return -torch.rand(rows, columns, generator=g).double() * 2

    width = columns if by_token else 1
    advantages = torch.randn(rows, width, generator=g, dtype=torch.float64).expand(rows, columns)
    batch = RolloutBatch(
        tokens=torch.randint(9, (rows, columns), generator=g),
        mask=mask,
        old_log_probs=draw(),
        advantages=advantages,
        ref_log_probs=draw(),
        engine_log_probs=draw(),
        chosen=torch.rand(rows, columns, generator=g) < 0.3,
        values=draw(),
        returns=draw(),
    )
    return draw(), batch


def rollouts_by_token(seed: int) -> tuple[Tensor, RolloutBatch]:
    """Return rollouts whose advantages differ within a row, as with process supervision."""
    return rollouts(seed, by_token=True)


def preferences(seed: int) -> tuple[Tensor, PreferenceBatch]:
    """Return log-probs and three pairs, in float64."""
    log_probs, x = rollouts(seed)
    x = replace(x, mask=x.mask | (torch.arange(7) == 2))
    x.mask[5] = seed % 2 == 0  # in half the batches a pair that counts nowhere
    point = torch.full((6,), 0.25, dtype=torch.float64)
    margin = torch.rand(3, generator=torch.Generator().manual_seed(seed)).double()
    return log_probs, PreferenceBatch(
        x.tokens, x.mask, x.ref_log_probs, point, margin.repeat_interleave(2)
    )


def steps(seed: int) -> tuple[Tensor, StepBatch]:
    """Return scores and solutions with labels between 0 and 1, in float64."""
    scores, x = rollouts(seed)
    return scores + 1, StepBatch(tokens=x.tokens, mask=x.mask, labels=x.old_log_probs.exp())


def comparisons(seed: int) -> tuple[Tensor, PreferenceBatch]:
    """Return a score for each row and three pairs, in float64."""
    log_probs, batch = preferences(seed)
    return log_probs[:, 2], batch


class Case(NamedTuple):
    objective: Any
    """One that takes what ``make`` returns."""
    make: Callable[[int], tuple[Tensor, Batch]] = rollouts
    """From a seed: what the model computes, ``(B, T)`` or ``(B,)``, and the batch."""
    unit: int = 1
    """Rows that are never apart."""


POLICIES: dict[str, Objective] = {
    "grpo": GRPO(),
    "grpo-dual": GRPO(clip_low=0.1, clip_high=0.3, dual_clip=1.5),
    "grpo-k3": GRPO(kl_weight=0.1),
    "grpo-k1": GRPO(kl_weight=0.5, kl=k1),
    "dapo": DAPO(),
    "dr-grpo": DrGRPO(5),
    "dr-grpo-k2": DrGRPO(max_length=3, kl_weight=0.2, kl=k2, dual_clip=2.0),
    "gspo": GSPO(),
    "gspo-wide": GSPO(clip_low=0.3, clip_high=0.5),
    "luspo": LUSPO(clip_low=0.3, clip_high=0.5),
    "gmpo": GMPO(),
    "sapo": SAPO(),
    "cispo": CISPO(),
    "policy-gradient": PolicyGradient(),
    "clip-cov": ClipCov(),
    "kl-cov": KLCov(penalty=0.5),
    "sampled-reverse-kl": SampledReverseKL(),
    "tis": Weighed(GRPO(kl_weight=0.1), TruncatedImportance(1.5)),
    "tis-sequence": Weighed(DAPO(), TruncatedImportance(1.5, "sequence")),
    "mis-geometric": Weighed(GSPO(), MaskedImportance(1.5, "geometric")),
    "icepop": Weighed(CISPO(), IcePop(0.5, 2.0)),
    "icepop-sequence": Weighed(KLCov(), IcePop(0.2, 5.0, "sequence")),
}
CASES: dict[str, Case] = {
    **{name: Case(objective) for name, objective in POLICIES.items()},
    **{f"{name}-by-token": Case(x, rollouts_by_token) for name, x in POLICIES.items()},
    "sft": Case(SFT()),
    "value": Case(ValueLoss(clip=0.3)),
    "value-free": Case(ValueLoss(clip=None)),
    "reverse-kl": Case(ReverseKL()),
    "forward-kl": Case(ForwardKL()),
    "jensen-shannon": Case(JensenShannon(0.1)),
    "dpo": Case(DPO(), preferences, 2),
    "cdpo": Case(DPO(beta=0.5, label_smoothing=0.2), preferences, 2),
    "ipo": Case(IPO(), preferences, 2),
    "simpo": Case(SimPO(), preferences, 2),
    "orpo": Case(ORPO(beta=0.7), preferences, 2),
    "kto": Case(KTO(beta=0.3, chosen=1.0, rejected=1.3), preferences, 2),
    "step-reward": Case(StepReward(), steps),
    "bradley-terry": Case(BradleyTerry(centring=0.1), comparisons, 2),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
few = settings(max_examples=12)
seeds = st.integers(0, 999)


def fill(x: Tensor, junk: float) -> float:
    """Return what padding may hold: junk, or of integers and truth values what they can hold."""
    return junk if x.is_floating_point() else 1


def pad(x: Tensor, rows: int, columns: int, junk: float) -> Tensor:
    sides = (0, columns, 0, rows) if x.dim() == 2 else (0, rows)
    return torch.nn.functional.pad(x, sides, value=fill(x, junk))


def over_fields(batch: Batch, change: Callable[[Tensor], Tensor], mask: Tensor) -> Batch:
    """Return the batch with ``mask``, and with every other field that it has changed."""
    had = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(
        batch, **{k: change(v) for k, v in had.items() if v is not None and k != "mask"}, mask=mask
    )


def padded(x: Tensor, batch: Batch, rows: int, columns: int, junk: float) -> tuple[Tensor, Batch]:
    """Return inputs and batch with rows and columns in which nothing counts."""
    mask = torch.nn.functional.pad(batch.mask, (0, columns, 0, rows), value=False)
    wide = over_fields(batch, lambda field: pad(field, rows, columns, junk), mask)
    return pad(x, rows, columns, junk), wide


def loss_and_gradient(
    objective: Objective, x: Tensor, batch: Batch, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient by what the model computed."""
    leaf = x.clone().requires_grad_()
    loss = objective(leaf, batch) / scale
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def whole(case: Case, seed: int) -> tuple[Tensor, Batch, Tensor, Tensor]:
    x, batch = case.make(seed)
    loss, gradient = loss_and_gradient(
        case.objective, x, batch, case.objective.denominator(batch).clamp(min=1)
    )
    assert loss.isfinite()
    return x, batch, loss, gradient


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_case
@few
@given(
    seed=seeds,
    cut=st.integers(0, 6),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    rows=st.integers(0, 2),
    columns=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    junk=st.sampled_from(JUNK),
)
def test_processes_micro_batches_and_padding_change_nothing(
    case: Case,
    seed: int,
    cut: int,
    sizes: tuple[int, int],
    rows: int,
    columns: tuple[int, int],
    junk: float,
) -> None:
    # Two processes hold unequal shares, pad them differently, and split them differently. Either
    # may have nothing. What is summed over both is the denominator, the loss and the gradient.
    x, batch, loss, gradient = whole(case, seed)
    cut = min(cut, len(batch))
    held = [
        (x[: cut * case.unit], batch.rows(0, cut)),
        (x[cut * case.unit :], batch.rows(cut, len(batch))),
    ]
    held = [
        padded(*part, rows * case.unit, wider, junk)
        for part, wider in zip(held, columns, strict=True)
    ]
    scale = torch.stack([case.objective.denominator(part) for _, part in held]).sum().clamp(min=1)
    total, gradients = torch.zeros((), dtype=torch.float64), []
    for (share, part), size in zip(held, sizes, strict=True):
        mine = [torch.zeros_like(share[:0])]
        for piece, some in zip(share.split(size * case.unit), part.split(size), strict=False):
            of_piece, by_piece = loss_and_gradient(case.objective, piece, some, scale)
            total += of_piece
            mine.append(by_piece)
        gradients.append(torch.cat(mine))
    assert_same(total, loss)
    for found, expected in zip(
        gradients, (gradient[: cut * case.unit], gradient[cut * case.unit :]), strict=True
    ):
        kept = found[: len(expected)]
        kept, beyond = (kept, kept[:0]) if x.dim() == 1 else (kept[:, :7], kept[:, 7:])
        assert_same(kept, expected)
        assert not beyond.any()
        assert not found[len(expected) :].any()


@every_case
@few
@given(seed=seeds)
def test_order_of_rows_changes_nothing(case: Case, seed: int) -> None:
    x, batch, loss, gradient = whole(case, seed)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    rows = (case.unit * order[:, None] + torch.arange(case.unit)).flatten()
    turned = over_fields(batch, lambda field: field[rows], batch.mask[rows])
    after, gradient_after = loss_and_gradient(
        case.objective, x[rows], turned, case.objective.denominator(turned).clamp(min=1)
    )
    assert_same(after, loss)
    assert_same(gradient_after, gradient[rows])


@every_case
@pytest.mark.parametrize("junk", JUNK)
def test_what_is_masked_counts_for_nothing_in_any_field(case: Case, junk: float) -> None:
    x, batch, loss, gradient = whole(case, 1)
    rows = batch.mask.any(-1)

    def dirty(field: Tensor) -> Tensor:
        counts = batch.mask if field.dim() == 2 else rows
        return torch.where(counts, field, torch.full_like(field, fill(field, junk)))

    soiled = over_fields(batch, dirty, batch.mask)
    scale = case.objective.denominator(soiled).clamp(min=1)
    for inputs, some in ((dirty(x), batch), (x, soiled), (dirty(x), soiled)):
        after, gradient_after = loss_and_gradient(case.objective, inputs, some, scale)
        torch.testing.assert_close(after, loss, rtol=0, atol=0)
        torch.testing.assert_close(gradient_after, gradient, rtol=0, atol=0)
    assert (gradient[~(batch.mask if x.dim() == 2 else rows)] == 0).all()
