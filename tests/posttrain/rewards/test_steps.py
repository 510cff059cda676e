from __future__ import annotations

import pytest

from posttrain.rewards import RewardError, Sample
from posttrain.rewards.steps import step_tensors

SAMPLE = Sample(prompt="", completion="", answer="", tokens=(4, 5, 6))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "returned 0 lists for 1 samples"),
        ([[(1, 0.0), (1, 0.0)]], "ends that rise within it"),
        ([[(-1, 0.0)]], "ends that rise within it"),
        ([[(3, 0.0)]], "a completion of 3 tokens"),
        ([[(2, float("nan"))]], "finite rewards"),
    ],
)
def test_what_are_no_steps_of_the_completion_is_refused(
    found: list[list[tuple[int, float]]], message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        step_tensors(lambda samples: found, [SAMPLE])


def test_completions_without_steps_are_empty_rows() -> None:
    ends, rewards, mask = step_tensors(lambda samples: [[], []], [SAMPLE, SAMPLE])
    assert ends.shape == rewards.shape == mask.shape == (2, 1)
    assert not mask.any()
