from __future__ import annotations

import math

import pytest
import torch

from posttrain.objectives import DAPO, GRPO, SFT, DrGRPO, Objective, clip_limits, needs_reference
from posttrain.objectives.base import count_rows, counted


def test_rows_without_a_counted_token_are_not_counted() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]]).bool()
    assert count_rows(mask) == 2
    assert count_rows(mask[:0]) == 0


def test_counted_keeps_the_type_and_replaces_what_is_masked() -> None:
    values = torch.tensor([[math.nan, 2.0]], dtype=torch.float64)
    kept = counted(values, torch.tensor([[False, True]]))
    torch.testing.assert_close(kept, torch.tensor([[0.0, 2.0]]).double(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("objective", "limits", "reference"),
    [
        (DAPO(), (0.2, 0.28), False),
        (GRPO(clip_low=0.1), (0.1, 0.2), False),
        (DrGRPO(4, clip_high=0.5, kl_weight=1e-9), (0.2, 0.5), True),
        (SFT(), (math.inf, math.inf), False),
    ],
)
def test_trainer_asks_an_objective_for_its_limits_and_its_reference(
    objective: Objective, limits: tuple[float, float], reference: bool
) -> None:
    assert clip_limits(objective) == limits
    assert needs_reference(objective) is reference
