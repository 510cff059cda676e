import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tools import Calculator, ToolOutput
from posttrain.tools.calculator import evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("34*57", "1938"),
        ("2 + 3 * 4", "14"),  # products before sums
        ("(2 + 3) * 4", "20"),
        ("10 - 4 - 3", "3"),  # from the left
        ("16 / 4 / 2", "2"),
        ("-2 * -3", "6"),
        ("2--3", "5"),
        ("-(1 + 2)", "-3"),
        ("1/3 + 1/6", "1/2"),
        ("0.1 + .2", "3/10"),  # not 0.30000000000000004
        ("4. / 8", "1/2"),
        (" 1\n+\t1 ", "2"),
        ("9" * 40 + "+1", "1" + "0" * 40),
    ],
)
def test_values_are_exact(expression: str, value: str) -> None:
    assert Calculator()(expression) == ToolOutput(value)


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("1+", "incomplete"),
        ("(", "incomplete"),
        ("1/0", "division by zero"),
        ("1/(2 - 4/2)", "division by zero"),
        ("(1", "missing )"),
        ("1)", "unexpected )"),
        ("()", "unexpected )"),
        ("1 2", "unexpected 2"),
        ("2(3)", "unexpected ("),
        ("*3", "unexpected *"),
        ("9**9**9", "unexpected *"),
        ("9e999999999", "unexpected e"),
        ("9^9", "unexpected ^"),
        ("__import__('os')", "unexpected _"),
        ("1,000", "unexpected ,"),
        ("6 \u00d7 7", "unexpected \\xd7"),
        ("\uff16*7", "unexpected \\uff16"),  # a digit elsewhere, to Python's int() too
        ("1" * 201, "more than 200 characters"),
    ],
)
def test_what_is_no_expression_is_an_error_in_text(expression: str, error: str) -> None:
    assert Calculator()(expression) == ToolOutput(f"error: {error}", failed=True)


def test_hostile_expressions_take_no_time_and_no_recursion() -> None:
    calculator = Calculator(max_characters=500)
    start = time.perf_counter()
    assert calculator("(" * 249 + "7" + ")" * 249).text == "7"
    assert calculator("-" * 499 + "7").text == "-7"  # an odd number of signs
    assert calculator("(" * 500).failed
    assert calculator("9*" * 249 + "9").text == str(9**250)
    assert calculator("1/7+" * 124 + "1/7").text == "125/7"
    assert calculator("9" * 250 + "*" + "9" * 249).text == str((10**250 - 1) * (10**249 - 1))
    assert time.perf_counter() - start < 1.0


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        max_leaves=12,
    )
)
def test_python_agrees(expression: str) -> None:
    assert evaluate(expression) == Fraction(eval(expression))


@pytest.mark.parametrize("length", [0, 501])
def test_a_bound_that_bounds_nothing_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"max_characters={length}: give 1 to 500"):
        Calculator(max_characters=length)
