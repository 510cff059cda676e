from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.objectives.mismatch import IcePop, MaskedImportance, Mismatch, TruncatedImportance

# Row 0: one prompt token, then ratios 1/4, 4, 2: product 2, geometric mean 2^(1/3).
# Row 1: ratio 8 alone.  Row 2: padding.
MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
RATIOS = torch.tensor([[9, 0.25, 4, 2], [9, 8, 9, 9], [9, 9, 9, 9]]).double()
ENGINE = torch.where(MASK, -3.0, math.nan).double()
OLD = torch.where(MASK, -3.0 + RATIOS.log(), math.inf)


def weights(mismatch: Mismatch) -> list[list[float]]:
    found = mismatch(OLD.clone().requires_grad_(), ENGINE, MASK)
    assert not found.requires_grad
    assert found.shape == MASK.shape
    return found.tolist()


def row(*values: float) -> object:
    return pytest.approx(list(values))


def test_truncated_importance_caps_the_ratio() -> None:
    assert weights(TruncatedImportance(2.0)) == [
        row(0, 0.25, 2, 2),
        row(0, 2, 0, 0),
        row(0, 0, 0, 0),
    ]
    assert weights(TruncatedImportance(3.0, level="sequence")) == [
        row(0, 2, 2, 2), row(0, 3, 0, 0), row(0, 0, 0, 0),
    ]  # fmt: skip
    mean = 2 ** (1 / 3)
    assert weights(TruncatedImportance(cap=3.0, level="geometric")) == [
        row(0, mean, mean, mean), row(0, 3, 0, 0), row(0, 0, 0, 0),
    ]  # fmt: skip


def test_masked_importance_leaves_out_what_is_above_the_cap() -> None:
    assert weights(MaskedImportance(3.0)) == [row(0, 0.25, 0, 2), row(0, 0, 0, 0), row(0, 0, 0, 0)]
    assert weights(MaskedImportance(3.0, level="sequence"))[0] == row(0, 2, 2, 2)
    assert weights(MaskedImportance(1.9, level="sequence"))[0] == row(0, 0, 0, 0)
    assert weights(MaskedImportance(1.9, level="geometric"))[0][1] == pytest.approx(2 ** (1 / 3))


def test_icepop_leaves_out_both_sides() -> None:
    assert weights(IcePop(0.5, 5.0)) == [row(0, 0, 4, 2), row(0, 0, 0, 0), row(0, 0, 0, 0)]
    assert weights(IcePop(low=0.2, high=9.0)) == [
        row(0, 0.25, 4, 2), row(0, 8, 0, 0), row(0, 0, 0, 0),
    ]  # fmt: skip
    assert weights(IcePop(0.5, 5.0, level="sequence"))[0] == row(0, 2, 2, 2)


ALL = [
    TruncatedImportance(2.0),
    MaskedImportance(2.0),
    IcePop(0.5, 2.0),
    TruncatedImportance(2.0, "sequence"),
    MaskedImportance(2.0, "geometric"),
    IcePop(0.5, 2.0, "sequence"),
]


@pytest.mark.parametrize("mismatch", ALL, ids=str)
def test_an_engine_that_agrees_gives_weights_of_exactly_1(mismatch: Mismatch) -> None:
    found = mismatch(ENGINE, ENGINE, MASK)
    torch.testing.assert_close(found, MASK.double(), rtol=0, atol=0)


@pytest.mark.parametrize("mismatch", ALL, ids=str)
def test_ratios_out_of_range_give_finite_weights(mismatch: Mismatch) -> None:
    far = torch.where(MASK, 900.0, 0.0).double()
    for old in (far, -far):
        assert mismatch(old, torch.zeros_like(old), MASK).isfinite().all()
    assert mismatch(OLD[:0], ENGINE[:0], MASK[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TruncatedImportance(0.5), "within 0.0 and 0.5: the range has to hold 1"),
        (lambda: MaskedImportance(math.nan), "within 0.0 and nan"),
        (lambda: IcePop(1.5, 2.0), "within 1.5 and 2.0"),
        (lambda: IcePop(0.5, 5.0, level="row"), r"level='row' is unknown"),
    ],
)
def test_ranges_that_hold_no_agreement_are_refused(make: type[Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
