import math

import pytest
import torch
from torch import nn

from launch.schedule import Constant, Cosine, Linear, Schedule, set_learning_rate


def test_cosine_of_hand_worked_points() -> None:
    schedule = Cosine(warmup=4, final=0.1)
    # warm-up 1/5, 2/5, ... ; then cos(pi p) with p = (done - 4) / (13 - 1 - 4)
    factors = [schedule(done, 13) for done in range(13)]
    assert factors[:4] == [0.2, 0.4, 0.6, 0.8]
    assert factors[4] == 1.0
    assert math.isclose(factors[8], 0.1 + 0.9 / 2)
    assert math.isclose(factors[12], 0.1)


@pytest.mark.parametrize("schedule", [Constant(), Linear(final=0.3), Cosine(final=0.3)])
def test_schedule_in_samples_equals_schedule_in_updates(schedule: Schedule) -> None:
    # 64 samples an update: the same run counted in another unit, but for its last update
    assert schedule(0, 100) == schedule(0, 6400) == 1.0
    assert math.isclose(schedule(50, 101), schedule(50 * 64, 100 * 64 + 1))


@pytest.mark.parametrize("schedule", [Constant(warmup=3), Linear(warmup=3), Cosine(warmup=3)])
def test_schedule_stays_between_nothing_and_the_peak(schedule: Schedule) -> None:
    for total in (1, 2, 3, 4, 5, 50):
        for done in range(total + 3):
            assert 0 <= schedule(done, total) <= 1


def test_set_learning_rate_multiplies_the_peak_of_each_group() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5}])
    assert set_learning_rate(optimizer, 0.5) == 0.5
    assert set_learning_rate(optimizer, 0.25) == 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125]


def test_schedule_refuses_what_is_no_share() -> None:
    with pytest.raises(ValueError, match=r"final=1\.5: the last rate is a share of the peak"):
        Cosine(final=1.5)
    with pytest.raises(ValueError, match="warmup=-1"):
        Constant(warmup=-1)
