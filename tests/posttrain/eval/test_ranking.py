import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from posttrain.eval import auc, auc_with_interval


def test_area_of_hand_worked_ranking() -> None:
    # Of the 2 * 3 pairs, .9 beats all 3; .4 beats .1, ties with .4 and loses to .6: 3 + 1.5 of 6
    scores = torch.tensor([0.9, 0.4, 0.1, 0.4, 0.6])
    assert auc(scores, torch.tensor([1.0, 0.75, 0.0, 0.5, 0.25])) == 0.75


@given(seed=st.integers(0, 999), count=st.integers(2, 40), ties=st.booleans())
def test_area_is_that_of_sklearn(seed: int, count: int, ties: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, generator=g)
    scores = scores.round() if ties else scores
    labels = torch.randint(2, (count,), generator=g)
    labels[:2] = torch.tensor([0, 1])
    found = auc(scores, labels)
    assert found == pytest.approx(roc_auc_score(labels.numpy(), scores.numpy()), abs=1e-12)
    assert found + auc(-scores, labels) == pytest.approx(1)


def test_interval_covers_the_area_and_is_wider_where_items_are_copies() -> None:
    g = torch.Generator().manual_seed(0)
    labels = (torch.arange(200) % 2).float()
    scores = labels + 1.5 * torch.randn(200, generator=g)
    alone = auc_with_interval(scores, labels, torch.arange(200))
    assert alone.low < alone.mean < alone.high
    assert alone.mean == auc(scores, labels)
    # Each item four times is no more evidence: groups of copies keep the interval as it was.
    copies = auc_with_interval(scores.repeat(4), labels.repeat(4), torch.arange(200).repeat(4))
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    naive = auc_with_interval(scores.repeat(4), labels.repeat(4), torch.arange(800))
    assert naive.high - naive.low < 0.7 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([0.1, 0.2], [1, 1], "2 of 2 items are right"),
        ([], [], "0 of 0 items are right"),
        ([0.1, float("nan")], [0, 1], "a score is not finite"),
        ([0.1], [0, 1], r"scores have shape \(1,\) and labels \(2,\)"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    scores: list[float], labels: list[int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        auc(torch.tensor(scores), torch.tensor(labels))
