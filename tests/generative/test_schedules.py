"""The warm-up schedule of 2017, by hand."""

import pytest

from generative.schedules import InverseRoot


def test_rises_linearly_and_falls_with_the_root() -> None:
    schedule = InverseRoot(width=4, warmup=4)  # 4^-1/2 = 1/2; w^-3/2 = 1/8
    rates = [schedule(done, 100) for done in (0, 1, 2, 3, 8, 15)]
    assert rates == pytest.approx([1 / 16, 2 / 16, 3 / 16, 1 / 4, 1 / 6, 1 / 8], abs=1e-15)


def test_the_papers_greatest_rate() -> None:
    schedule = InverseRoot()
    rates = [schedule(done, 0) for done in range(8_000)]
    assert max(range(8_000), key=rates.__getitem__) == 3_999
    assert rates[3_999] == pytest.approx((512 * 4_000) ** -0.5)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="warmup=0: give at least 1"):
        InverseRoot(warmup=0)
