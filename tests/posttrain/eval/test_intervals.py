import math

import pytest
import torch
from scipy import stats

from posttrain.eval.intervals import Interval, _quantile, mean_with_interval


def test_interval_agrees_with_scipys_bootstrap() -> None:
    values = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    ours = mean_with_interval(values)
    theirs = stats.bootstrap(
        (values.numpy(),), lambda x, axis: x.mean(axis), n_resamples=10_000, method="percentile",
        random_state=1,
    ).confidence_interval  # fmt: skip
    assert ours.mean == pytest.approx(values.mean().item(), rel=1e-15)
    assert ours.low == pytest.approx(theirs.low, abs=0.002)  # the interval is 0.08 wide
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


def test_interval_of_shares_is_as_wide_as_the_binomial() -> None:
    # 512 questions, half of them right: 1.96 * sqrt(.25 / 512) = .0433 to each side.
    interval = mean_with_interval(torch.arange(512) % 2)
    assert interval.mean == 0.5
    assert interval.mean - interval.low == pytest.approx(0.0433, abs=0.002)
    assert interval.high - interval.mean == pytest.approx(0.0433, abs=0.002)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3.7])
def test_interval_of_equal_values_is_a_point(value: float) -> None:
    interval = mean_with_interval(torch.full((10,), value, dtype=torch.float64))
    assert interval.low == pytest.approx(value, rel=1e-15)
    assert interval.low <= interval.mean <= interval.high
    assert interval.high == pytest.approx(value, rel=1e-15)


def test_interval_is_the_same_for_the_same_seed_and_disturbs_no_global_stream() -> None:
    values = torch.linspace(0, 1, 100) ** 2
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = mean_with_interval(values, seed=1)
    assert first == mean_with_interval(values, seed=1)
    assert first != mean_with_interval(values, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_higher_level_gives_a_wider_interval() -> None:
    values = torch.arange(50) / 49
    narrow, wide = mean_with_interval(values, level=0.5), mean_with_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_many_questions_are_drawn_in_parts() -> None:
    interval = mean_with_interval(torch.arange(100_000) % 2, resamples=100)
    assert interval.mean == 0.5
    assert 0.49 < interval.low < 0.5 < interval.high < 0.51


def test_quantile_interpolates() -> None:
    ordered = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    assert [_quantile(ordered, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [
        0,
        0.5,
        1,
        2.5,
        4,
    ]


@pytest.mark.parametrize(
    ("values", "settings", "match"),
    [
        ([], {}, "at least one question"),
        ([[1.0]], {}, r"shape \(1, 1\)"),
        ([1.0, math.nan], {}, "nan in row 1"),
        ([math.inf], {}, "inf in row 0"),
        ([1.0], {"level": 1.0}, "level=1.0"),
        ([1.0], {"resamples": 0}, "resamples=0"),
    ],
)
def test_interval_names_what_is_wrong(
    values: list[float], settings: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        mean_with_interval(torch.tensor(values), **settings)  # type: ignore[arg-type]


def test_interval_reads_as_mean_and_bounds() -> None:
    interval = Interval(0.9484, 0.934, 0.9621)
    assert str(interval) == "0.948 [0.934, 0.962]"
    assert float(interval) == 0.9484
