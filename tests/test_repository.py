"""The files around the sources: what they say agrees with what is there."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def test_citation_names_this_version_and_licence(project: dict[str, Any]) -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]
    assert citation["title"] == project["name"]
    assert {"cff-version", "message", "authors"} <= set(citation)


def test_changelog_begins_with_what_is_unreleased_and_uses_the_known_headings() -> None:
    text = read("CHANGELOG.md")
    versions = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)
    assert versions[0] == "Unreleased"
    headings = set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_constraints_pin_every_direct_dependency(project: dict[str, Any]) -> None:
    def plain(requirement: str) -> str:
        found = re.match(r"[\w.-]+", requirement)
        assert found, requirement
        return re.sub(r"[-_.]+", "-", found[0]).lower()

    pinned = {plain(line) for line in read("constraints.txt").splitlines() if "==" in line}
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert {plain(requirement) for requirement in wanted} - pinned == set()


def test_hooks_run_tools_of_the_environment_so_that_their_versions_are_pinned() -> None:
    config = yaml.safe_load(read(".pre-commit-config.yaml"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {"ruff", "ruff-format", "mypy", "whitespace", "large-files", "fast-tests"} == {
        hook["id"] for hook in hooks
    }
    targets = set(re.findall(r"^(\w+):", read("Makefile"), flags=re.MULTILINE))
    for hook in hooks:
        command = hook["entry"].split()
        assert command[0] in ("git", "bash", "make") or command[0].startswith(".venv/bin/")
        assert command[0] != "make" or command[1] in targets


def test_check_command_can_be_run_and_checks_everything() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make lint test" in read(".ci/run")


def test_no_file_names_an_absolute_path_of_one_machine() -> None:
    texts = [
        path
        for folder in ("launch", "rl", "posttrain", "generative", "tests", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".yaml", ".sh", ".toml")
    ]
    texts += [path for path in ROOT.glob("*") if path.is_file()]
    assert len(texts) > 50
    machine = re.compile(r"(?<![\w.])/(home|root|work|Users)/\w")
    found = [str(p.relative_to(ROOT)) for p in texts if machine.search(p.read_text("utf-8"))]
    assert found == []


def test_every_entry_point_names_a_module_that_is_there(project: dict[str, Any]) -> None:
    for target in project["entry-points"]["monro.recipes"].values():
        module, _, function = target.partition(":")
        tree = ast.parse(read(module.replace(".", "/") + ".py"))
        defined = {getattr(node, "name", "") for node in tree.body}
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        defined |= {alias.asname or alias.name for node in imports for alias in node.names}
        assert function in defined, target
