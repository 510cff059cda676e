"""Numbers in text, compared as exact rationals at any size."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Rational", "number_as_latex", "read_number"]

_DECIMAL = re.compile(
    r"(?P<sign>[+\-\u2212])?"
    r"(?:(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})++|[0-9]++)(?:\.(?P<places>[0-9]*+))?"
    r"|\.(?P<only_places>[0-9]++))"
    r"(?:[eE](?P<exponent>[+\-\u2212]?[0-9]++))?"
)
_CHUNK = 500  # digits; int() refuses strings beyond a limit that a user may set as low as 640


@dataclass(frozen=True, slots=True)
class Rational:
    """``sign * numerator / denominator * 10**exponent``; the powers of ten are never built.

    Numerator and denominator are digits without zeros at either end, so that two decimals are
    equal exactly when their fields are; zero has an empty numerator and exponent 0.
    """

    negative: bool
    numerator: str
    denominator: str
    exponent: int

    def equals(self, other: Rational) -> bool:
        """Tell whether both are the same rational number.

        >>> read_number("1e999999999").equals(read_number("10e999999998"))
        True
        >>> read_number("1/3").equals(read_number("0.333333"))
        False
        """
        if self.denominator == other.denominator:
            return self == other
        if not self.numerator or not other.numerator:
            return self.numerator == other.numerator
        if self.negative != other.negative:
            return False
        small, large = (self, other) if self.exponent <= other.exponent else (other, self)
        shift = large.exponent - small.exponent
        if shift > len(small.numerator) + len(large.denominator):
            return False  # the side with the power of ten has more digits than the other can have
        left = _integer(small.numerator) * _integer(large.denominator)
        right = _integer(large.numerator) * _integer(small.denominator)
        return left == right * 10**shift


def read_number(text: str) -> Rational | None:
    """Read a decimal or a fraction of two; None for everything else, ``1/0`` included.

    A decimal has, in this order, a sign, digits with or without thousands separators, a decimal
    point and an exponent, each but the digits optional. The time is linear in the length, apart
    from the arithmetic of fractions.

    >>> read_number("-1,234.50")
    Rational(negative=True, numerator='12345', denominator='1', exponent=-1)
    >>> read_number("12,34") is None
    True
    """
    parts = text.strip().split("/", 2)
    if len(parts) > 2:
        return None
    decimals = [_read_decimal(part.strip()) for part in parts]
    top = decimals[0]
    if top is None:
        return None
    if len(decimals) == 1:
        return top
    bottom = decimals[1]
    if bottom is None or not bottom.numerator:
        return None
    if not top.numerator:
        return top
    exponent = top.exponent - bottom.exponent
    negative = top.negative != bottom.negative
    return Rational(negative, top.numerator, bottom.numerator, exponent)


def number_as_latex(text: str) -> str:
    r"""Write a text that ``read_number`` accepts so that LaTeX means the same number.

    >>> number_as_latex("1,234.5e-7/3")
    '\\frac{1234.5 \\cdot 10^{-7}}{3}'
    """
    parts = []
    for part in text.replace(",", "").replace("\u2212", "-").split("/"):
        digits, _, exponent = part.strip().lower().partition("e")
        parts.append(rf"{digits} \cdot 10^{{{exponent}}}" if exponent else digits)
    return parts[0] if len(parts) == 1 else rf"\frac{{{parts[0]}}}{{{parts[1]}}}"


def _read_decimal(text: str) -> Rational | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    whole = (match["whole"] or "").replace(",", "")
    places = match["places"] or match["only_places"] or ""
    digits = (whole + places).lstrip("0")
    if not digits:
        return Rational(False, "", "1", 0)
    exponent = _signed(match["exponent"] or "0") - len(places)
    numerator = digits.rstrip("0")
    negative = match["sign"] not in (None, "+")
    return Rational(negative, numerator, "1", exponent + len(digits) - len(numerator))


def _signed(text: str) -> int:
    magnitude = _integer(text.lstrip("+-\u2212"))
    return magnitude if text[0] in "+0123456789" else -magnitude


def _integer(digits: str) -> int:
    """``int(digits)`` for any length, by halves."""
    if len(digits) <= _CHUNK:
        return int(digits)
    tail = len(digits) // 2
    return _integer(digits[:-tail]) * 10**tail + _integer(digits[-tail:])
