from __future__ import annotations

import math

import pytest

from launch.documents import read_document, write_document, write_line
from launch.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("-1.e+3", -1000.0),
        (".5E2", 50.0),
        ("1e", "1e"),
        ("2024-01-01", "2024-01-01"),
        (".inf", math.inf),
        ("a:b", "a:b"),
        ("{_type: a.b:C, x: 1}", {"_type": "a.b:C", "x": 1}),
        ("a: {<<: {b: 1}, c: 2}", {"a": {"b": 1, "c": 2}}),
        ("", None),
    ],
)
def test_what_is_read(text: str, expected: object) -> None:
    assert read_document(text, source="x") == expected


@pytest.mark.parametrize(
    "text", ["yes", "1e-4", "null", "2024-01-01", "", " x ", "a: b", "# x", "\x85", "a\nb", "007"]
)
def test_text_stays_text(text: str) -> None:
    assert read_document(write_document({"a": [text]}), source="x") == {"a": [text]}
    assert read_document(write_line(text), source="x") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"^f\.yaml, line 3: duplicate key a$"),
        ("a: [1", r"^f\.yaml, line 1: "),
        ("a: !python/object:os.system x", r"^f\.yaml, line 1: could not determine a constructor"),
        ("? [1]\n: 2", r"^f\.yaml, line 1: found unhashable key"),
        ("a: \x01", r"^f\.yaml: this is no YAML: "),
    ],
)
def test_what_does_not_parse_names_file_and_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_document(text, source="f.yaml")
