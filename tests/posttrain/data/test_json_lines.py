from pathlib import Path

import pytest

from launch.errors import UsageError
from posttrain.data.json_lines import field_of, read_json_lines


def test_read_json_lines_numbers_lines_from_one_and_skips_blank_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n\r\n  \n{"b": 1}')  # BOM, U+2028
    assert list(read_json_lines(file)) == [(1, {"a": "\u2028"}), (4, {"b": 1})]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1', "not JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b'"a"', "str in place of an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "not JSON"),
    ],
)
def test_read_json_lines_names_file_and_line(tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"{}\n" + line + b"\n{}\n")
    with pytest.raises(UsageError, match=rf"a\.jsonl, line 2: .*{said}") as error:
        list(read_json_lines(file))
    assert "\n" not in str(error.value)


def test_read_json_lines_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    for name, said in (
        ("none.jsonl", "there is no file"),
        ("empty.jsonl", "is empty"),
        ("", "is a folder"),
    ):
        with pytest.raises(UsageError, match=said):
            list(read_json_lines(tmp_path / name))


def test_field_of_suggests_the_nearest_key() -> None:
    assert field_of({"answer": None}, "answer", "here") is None
    with pytest.raises(UsageError, match="here: there is no 'anser'; did you mean answer"):
        field_of({"answer": 1}, "anser", "here")
