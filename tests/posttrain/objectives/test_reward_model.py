import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.data.preferences import PreferenceBatch
from posttrain.objectives import BradleyTerry


def batch_of(pairs: int, margin: Tensor | None = None) -> PreferenceBatch:
    rows = 2 * pairs
    return PreferenceBatch(
        torch.zeros(rows, 2).long(), torch.tensor([[False, True]] * rows), margin=margin
    )


def test_loss_of_hand_worked_pairs() -> None:
    # log(1 + e^-1) = 0.313261688 for a margin of 1, log(1 + e^2) = 2.126928011 for -2
    scores = torch.tensor([1.5, 0.5, -1.0, 1.0]).double()
    assert BradleyTerry()(scores, batch_of(2)).item() == pytest.approx(2.440189699, abs=1e-9)
    # centring adds 0.25 * ((1.5 + 0.5)^2 + (-1 + 1)^2) = 1
    centred = BradleyTerry(centring=0.25)(scores, batch_of(2)).item()
    assert centred == pytest.approx(3.440189699, abs=1e-9)
    assert BradleyTerry().denominator(batch_of(2)) == 2


def test_margin_is_what_chosen_has_to_win_by() -> None:
    # The first pair wins by 1 and has to by 1: log 2. The second has no margin: log(1 + e^2).
    margin = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    loss = BradleyTerry()(torch.tensor([1.5, 0.5, -1.0, 1.0]).double(), batch_of(2, margin))
    assert loss.item() == pytest.approx(math.log(2) + 2.126928011, abs=1e-9)


def test_gradient_raises_chosen_and_lowers_rejected_by_what_is_not_yet_believed() -> None:
    scores = torch.zeros(2, requires_grad=True)
    BradleyTerry()(scores, batch_of(1)).backward()  # 1 - sigmoid(0) = 1/2
    torch.testing.assert_close(scores.grad, torch.tensor([-0.5, 0.5]), rtol=0, atol=0)


@given(shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_a_constant_added_to_all_scores_changes_nothing_without_centring(
    shift: float, seed: int
) -> None:
    scores = torch.randn(6, generator=torch.Generator().manual_seed(seed)).double()
    loss = BradleyTerry()(scores, batch_of(3))
    torch.testing.assert_close(BradleyTerry()(scores + shift, batch_of(3)), loss)


def test_negative_centring_is_refused() -> None:
    with pytest.raises(ValueError, match=r"centring=-1: a weight is finite and 0 or more"):
        BradleyTerry(centring=-1)
