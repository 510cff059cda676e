import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.estimators import explained_variance, variance_sums


def test_explained_variance_of_hand_worked_values() -> None:
    # Targets 1, 3, 5, 7 have variance 5; errors 1, -1, 1, -1 about a mean of 0 have variance 1.
    targets = torch.tensor([1.0, 3.0, 5.0, 7.0])
    values = torch.tensor([0.0, 4.0, 4.0, 8.0])
    assert variance_sums(targets, values).tolist() == [4, 16, 84, 0, 4]
    assert explained_variance(variance_sums(targets, values)).item() == pytest.approx(0.8)


def test_values_that_are_off_by_a_constant_explain_everything() -> None:
    targets = torch.tensor([1.0, 3.0, 5.0])
    assert explained_variance(variance_sums(targets, targets - 7)).item() == 1.0


def test_equal_targets_and_no_targets_give_0() -> None:
    for targets in (torch.full((3,), 2.0), torch.zeros(0)):
        values = torch.arange(float(len(targets)))
        assert explained_variance(variance_sums(targets, values)).item() == 0.0


@given(seed=st.integers(0, 2**16), cut=st.integers(0, 9))
def test_sums_of_parts_add_up(seed: int, cut: int) -> None:
    targets, values = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed))
    parts = [variance_sums(targets[x], values[x]) for x in (slice(cut), slice(cut, 9))]
    torch.testing.assert_close(parts[0] + parts[1], variance_sums(targets, values))
