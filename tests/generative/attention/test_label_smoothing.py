"""Label smoothing: by hand, and as torch has it."""

import math

import pytest
import torch
import torch.nn.functional as F

from generative.attention.label_smoothing import smoothed_cross_entropy


def test_by_hand() -> None:
    # p = (3/4, 1/4), label 0, eps = 1/2: -(1/2) ln(3/4) - (1/4)(ln(3/4) + ln(1/4))
    logits = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64)
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    loss = smoothed_cross_entropy(logits, torch.tensor(0), smoothing=0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_equals_torch(smoothing: float) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, (2, 5), generator=g)
    ours = smoothed_cross_entropy(logits, labels, smoothing=smoothing)
    theirs = F.cross_entropy(
        logits.transpose(1, 2), labels, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn(2, 5, generator=g, dtype=torch.float64)
    (got,) = torch.autograd.grad((ours * weights).sum(), logits)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"smoothing=1\.5"):
        smoothed_cross_entropy(torch.zeros(1, 2), torch.zeros(1).long(), smoothing=1.5)
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) for logits of shape \(1, 2\)"):
        smoothed_cross_entropy(torch.zeros(1, 2), torch.zeros(3).long())
