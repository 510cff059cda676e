from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.objectives import SFT


@dataclass
class Row:
    mask: Tensor


def test_loss_is_the_mean_negative_log_likelihood_of_counted_tokens() -> None:
    batch = Row(mask=torch.tensor([[False, True, True], [False, True, False]]))
    log_probs = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -4.5, -9.0]])
    assert SFT()(log_probs, batch) == 7.5
    assert SFT().denominator(batch) == 3
    assert SFT()(log_probs, batch) / SFT().denominator(batch) == 2.5


def test_gradient_of_the_sum_is_minus_1_where_tokens_count() -> None:
    batch = Row(mask=torch.tensor([[False, True]]))
    log_probs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    SFT()(log_probs, batch).backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[0.0, -1.0]]), rtol=0, atol=0)
