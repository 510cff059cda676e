from __future__ import annotations

import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from launch import recipe
from launch.errors import UsageError
from launch.recipe import find, recipes

SOURCE = '''
"""Recipes for tests."""
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Job:
    seed: int = 0
    trackers: tuple[str, ...] = ()
    runtime: None = None
    leaves_run: ClassVar[bool] = True
    def check(self) -> None: ...
    def run(self, run) -> None: ...

@dataclass(frozen=True)
class Reserved(Job):
    output: str = ""

def good():
    """Train a thing.

    At length.
    """
    return Job()

def bare():
    return Job()

def needs(x):
    return Job()

def fails_inside():
    return len(3)

def number():
    return 3

def reserved():
    return Reserved()
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of recipes, a fresh one for each test."""
    name = f"recipes_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / f"{name}_again.py").write_text(f"from {name} import good as better\n")
    (tmp_path / f"{name}_broken.py").write_text("import no_such_module\ndef good(): ...\n")
    (tmp_path / f"{name}_unreadable.py").write_text("def good(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_recipe_is_found_by_module_and_function(package: str) -> None:
    found = find(f"{package}:good")
    assert found.load().seed == 0
    assert found.folder == "good"


def test_a_summary_is_read_without_importing(package: str) -> None:
    assert find(f"{package}:good").summary == "Train a thing."
    assert find(f"{package}:bare").summary == ""
    assert find(f"{package}:absent").summary == ""
    assert find(f"{package}_again:better").summary == "Train a thing."
    assert find(f"{package}_broken:good").summary == ""
    assert (
        find("no_such_package.recipes:good").summary == "(no_such_package.recipes cannot be read)"
    )
    assert find(f"{package}_unreadable:good").summary == f"({package}_unreadable cannot be read)"
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("god", "{p} has no god; did you mean good?"),
        ("needs", "{p}:needs cannot be called without arguments"),
        ("number", "it returned a int without seed"),
        ("Job", None),
        ("reserved", "its config has the key output, which is a flag of monro run"),
    ],
)
def test_a_recipe_that_is_none_is_named(package: str, function: str, message: str | None) -> None:
    if message is None:  # a class without required fields is as good as a function
        assert find(f"{package}:{function}").load().seed == 0
        return
    with pytest.raises(UsageError) as caught:
        find(f"{package}:{function}").load()
    assert str(caught.value).startswith(f"recipe {package}:{function}: ")
    assert message.format(p=package) in str(caught.value)


def test_an_error_inside_a_recipe_is_no_usage_error(package: str) -> None:
    with pytest.raises(TypeError, match="has no len"):
        find(f"{package}:fails_inside").load()


def test_a_failing_import_is_one_line_that_names_the_recipe(package: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(f"{package}_broken:good").load()
    assert str(caught.value) == (
        f"recipe {package}_broken:good: {package}_broken cannot be imported "
        "(ModuleNotFoundError: No module named 'no_such_module')"
    )
    with pytest.raises(UsageError, match="SyntaxError"):
        find(f"{package}_unreadable:good").load()


def points(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[str, str]) -> None:
    made = [EntryPoint(name, value, recipe.GROUP) for name, value in pairs]
    monkeypatch.setattr(recipe, "_entry_points", lambda: made)


def test_entry_points_give_short_names(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, ("train", f"{package}:good"), ("other", f"{package}:bare"))
    assert list(recipes()) == ["train", "other"]
    assert find("train").summary == "Train a thing."
    with pytest.raises(UsageError, match=r"^unknown recipe trian; did you mean train\?$"):
        find("trian")
    with pytest.raises(UsageError, match=r"^unknown recipe qqq; `monro list` shows them"):
        find("qqq")


def test_a_name_that_two_packages_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, ("train", "b:x"), ("train", "a:x"))
    with pytest.raises(UsageError, match=r"name one as a:x or b:x$"):
        find("train")
    points(monkeypatch, ("train", "a:x"), ("train", "a:x"))  # one package, seen twice on the path
    assert find("train").target == "a:x"


def test_the_recipes_of_this_repository_are_installed() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = textwrap.dedent(text.partition('[project.entry-points."monro.recipes"]\n')[2])
    named = [line.partition(" = ")[0] for line in section.partition("\n\n")[0].splitlines()]
    assert set(named) <= set(recipes())
    assert {"r1-mini", "sft-mini", "grpo-mini", "eval", "chat"} <= set(named)
