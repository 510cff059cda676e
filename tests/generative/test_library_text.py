"""The standard library as a corpus: the same on every call, split by files, capped in bytes."""

from pathlib import Path

import pytest
import torch

from generative.library_text import StandardLibrary, TextFile, parse_text
from launch.errors import UsageError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small library of 40 modules, with what is left out."""
    for i in range(40):
        (tmp_path / f"m{i}.py").write_text(f"x = {i}\n")
    for folder in ("test", "site-packages", "pack/tests", "config-3.11-linux"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "no.py").write_text("NO")
    (tmp_path / "pack" / "inner.py").write_text("yes\n")
    (tmp_path / "data.txt").write_text("NO")
    monkeypatch.setattr("generative.library_text._library", lambda: tmp_path)
    return tmp_path


def test_every_file_is_on_one_side_whole(library: Path) -> None:
    train, heldout = StandardLibrary().load()
    sides = [bytes(side.tolist()).decode().rstrip("\0").split("\0") for side in (train, heldout)]
    expected = {path.read_text() for path in library.glob("m*.py")} | {"yes\n"}
    assert sorted(sides[0] + sides[1]) == sorted(expected)
    assert 1 <= len(sides[1]) <= 10
    again = StandardLibrary().load()
    assert torch.equal(again[0], train)
    assert torch.equal(again[1], heldout)


def test_bytes_are_capped(library: Path) -> None:
    train, heldout = StandardLibrary(train_bytes=50, heldout_bytes=7).load()
    whole = StandardLibrary().load()
    assert torch.equal(train, whole[0][:50])
    assert torch.equal(heldout, whole[1][:7])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(200)) * 10)
    source = parse_text(str(path))
    assert source == TextFile(path=str(path))
    source.check()
    train, heldout = source.load()
    assert bytes(train.tolist()) + bytes(heldout.tolist()) == path.read_bytes()
    assert (len(train), len(heldout)) == (1_800, 200)
    assert parse_text("stdlib") == StandardLibrary()


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"none.txt is no file"):
        TextFile(path=str(tmp_path / "none.txt")).check()
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(UsageError, match="fewer than 1,000 bytes"):
        TextFile(path=str(tmp_path / "short.txt")).check()
    monkeypatch.setattr("generative.library_text._library", lambda: tmp_path)
    with pytest.raises(UsageError, match=r"has no \.py files"):
        StandardLibrary().check()
