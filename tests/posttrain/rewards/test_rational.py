import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.rational import number_as_latex, read_number


def equal(left: str, right: str) -> bool:
    a, b = read_number(left), read_number(right)
    assert a is not None
    assert b is not None
    assert a.equals(b) == b.equals(a)
    return a.equals(b)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("42", " 42.0 "),
        ("+42", "0042"),
        ("-0", "0"),
        ("-0.000e99", "0/7"),
        ("1,234,567.50", "1234567.5"),
        ("1e3", "1,000"),
        ("1E+3", "1000"),
        ("\u22125", "-5"),
        ("12.5e-1", "1.25"),
        (".5", "1/2"),
        ("5.", "5"),
        ("2/4", "0.50"),
        ("-1/2", "1/-2"),
        ("1.5 / 3", "0.5"),
        ("1e5/1e3", "100"),
        ("1/3", "2/6"),
        ("1e999999999", "10e999999998"),
        ("1e-999999999/3", "10e-1000000000/3"),
    ],
)
def test_numbers_are_equal_however_they_are_written(left: str, right: str) -> None:
    assert equal(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1/3", "0.3333333333333333333333"),
        ("5", "-5"),
        ("0.1", "0.1000000000000000000000001"),
        ("1e999999999", "1e999999998"),
        ("1e999999999/7", "1e999999998/7"),
        ("1e999999999/7", "1/3"),
        ("0", "1e-999999999"),
        ("0/3", "1/3"),
    ],
)
def test_numbers_differ_by_the_least(left: str, right: str) -> None:
    assert not equal(left, right)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        ".",
        "e5",
        "1e",
        "1e5.5",
        "12,34",
        "1,2345",
        "1,23,456",
        "0,123",
        "1.234,5",
        "1 000",
        "1_000",
        "0x10",
        "--5",
        "1/0",
        "0/0",
        "1/2/3",
        "/2",
        "2/",
        "nan",
        "inf",
        "x",
        "\u0663",
        "5%",
        "$5",
    ],
)
def test_read_number_refuses_what_is_no_number(text: str) -> None:
    assert read_number(text) is None


def test_numbers_of_any_size_are_compared_at_once() -> None:
    digits = "9" * 100_000
    started = time.perf_counter()
    assert equal(digits, digits + ".0")
    assert not equal(digits, digits[:-1] + "8")
    assert equal(digits + "/7", digits + "0/70")
    assert equal(digits + "/3", "3" * 100_000)
    assert not equal(digits + "/7", digits + "/8")
    assert not equal("1e" + digits, "1e" + digits + "0")
    assert not equal("1e" + digits, "1/" + digits)
    assert read_number(digits + "x") is None
    assert read_number("5" + " " * 100_000 + "x") is None
    assert read_number("1," + "111," * 30_000) is None
    assert time.perf_counter() - started < 2


@given(
    st.fractions(max_denominator=10**6),
    st.fractions(max_denominator=10**6),
    st.integers(1, 10**6),
    st.integers(-30, 30),
)
def test_equality_is_that_of_fractions(
    a: Fraction, b: Fraction, factor: int, exponent: int
) -> None:
    assert equal(str(a), str(b)) == (a == b)
    stretched = f"{a.numerator * factor}e{exponent}/{a.denominator * factor}e{exponent}"
    assert equal(str(a), stretched)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(0, 5))
def test_decimals_equal_themselves_with_trailing_zeros(value: object, zeros: int) -> None:
    number = Fraction(str(value))
    assert equal(str(value), f"{number.numerator}/{number.denominator}")
    assert equal(f"{number.numerator}", f"{number.numerator:,}." + "0" * zeros)


def test_number_as_latex_keeps_sign_exponent_and_fraction() -> None:
    assert number_as_latex("-1,234.5E+2") == r"-1234.5 \cdot 10^{+2}"
    assert number_as_latex("\u22121 / 2") == r"\frac{-1}{2}"
