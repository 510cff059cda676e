"""Recipes: functions without arguments that return a Job, found by name.

A recipe is named by an entry point of the group ``monro.recipes``, so that other packages can add
theirs, or by ``package.module:function``.
"""

from __future__ import annotations

import ast
import importlib.util
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launch.conversion import load_object
from launch.errors import UsageError
from launch.spelling import did_you_mean

if TYPE_CHECKING:
    from launch.runtime import Runtime, RuntimeConfig

__all__ = ["Job", "Recipe", "find", "recipes"]

GROUP = "monro.recipes"
RESERVED = ("config", "output", "resume", "overwrite", "processes", "help")


class Job(Protocol):
    """A frozen dataclass: the complete config of a run, and the run itself."""

    @property
    def seed(self) -> int:
        """Of every random stream."""
        ...

    @property
    def trackers(self) -> tuple[str, ...]:
        """Accelerate's trackers, such as ``"tensorboard"``."""
        ...

    @property
    def runtime(self) -> RuntimeConfig:
        """How the run uses the machine."""
        ...

    @property
    def leaves_run(self) -> bool:
        """Whether a run folder is made without ``--output``; a class variable."""
        ...

    def check(self) -> None:
        """Raise ValueError for everything wrong that can be seen before any work; cheap."""
        ...

    def run(self, run: Runtime) -> None:
        """Do the work."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """A name and where its function stands."""

    name: str
    target: str
    """``package.module:function``."""

    @property
    def summary(self) -> str:
        """The first line of the function's docstring, read without importing its module."""
        module, _, function = self.target.partition(":")
        return _summary(module, function)

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return self.name.rpartition(":")[2].replace("/", "-")

    def load(self) -> Job:
        """Import and call the recipe.

        Raises:
            UsageError: It cannot be imported, or does not return a Job.
        """
        function = load_object(self.target, f"recipe {self.name}")
        try:
            job = function()
        except TypeError as error:
            if traceback.extract_tb(error.__traceback__)[-1].name != "load":
                raise
            raise UsageError(
                f"recipe {self.name}: {self.target} cannot be called without arguments ({error})"
            ) from None
        _check_job(job, self.name)
        return job


def _check_job(job: object, name: str) -> None:
    wanted = ("seed", "trackers", "runtime", "leaves_run", "check", "run")
    absent = [member for member in wanted if not hasattr(job, member)]
    if not is_dataclass(job) or isinstance(job, type) or absent:
        what = f"without {', '.join(absent)}" if absent else "that is no dataclass"
        raise UsageError(
            f"recipe {name}: it returned a {type(job).__name__} {what}; a recipe returns a Job, "
            "see launch.recipe.Job"
        )
    taken = [f.name for f in fields(job) if f.name in RESERVED]
    if taken:
        raise UsageError(
            f"recipe {name}: its config has the key {taken[0]}, which is a flag of monro run"
        )


def recipes() -> Mapping[str, Recipe]:
    """Return the recipes that are installed, by name."""
    found: dict[str, Recipe] = {}
    for point in _entry_points():
        found.setdefault(point.name, Recipe(point.name, point.value))
    return found


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def find(name: str) -> Recipe:
    """Return the recipe of this name, or at ``package.module:function``.

    Raises:
        UsageError: There is none; names the nearest one.
    """
    known = recipes()
    if name in known:
        targets = {point.value for point in _entry_points() if point.name == name}
        if len(targets) > 1:
            raise UsageError(
                f"several packages have a recipe {name}: name one as {' or '.join(sorted(targets))}"
            )
        return known[name]
    if ":" in name:
        return Recipe(name, name)
    close = did_you_mean(name, known)
    hint = close or "; `monro list` shows them, and package.module:function names your own"
    raise UsageError(f"unknown recipe {name}{hint}")


def _summary(module: str, function: str, depth: int = 3) -> str:
    """Return the first line of a function's docstring, following imports a few modules far."""
    tree = _parse(module)
    if tree is None:
        return f"({module} cannot be read)"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.ImportFrom) and node.module and depth and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == function:
                    return _summary(node.module, alias.name, depth - 1)
    return ""


def _parse(module: str) -> ast.Module | None:
    """Parse a module's source, importing no more than the packages that hold it."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        return ast.parse(Path(spec.origin).read_bytes())
    except (ImportError, SyntaxError, ValueError, OSError):
        return None
