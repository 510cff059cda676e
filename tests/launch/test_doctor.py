from __future__ import annotations

import importlib.metadata
import sys

import pytest

from launch import doctor as module
from launch.doctor import Finding, doctor, findings
from launch.recipe import Recipe


def test_this_machine_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    found = {finding.what: finding for finding in findings()}
    assert found["torch"].found == importlib.metadata.version("torch")
    assert found["recipes"].state == "good"
    assert [f for f in found.values() if f.state == "broken"] == []
    assert all(f.mend for f in found.values() if f.state != "good")
    assert doctor() == 0
    out = capsys.readouterr().out
    assert "transformers" in out
    assert out.splitlines()[-1] == "everything that is needed works"


def test_a_missing_package_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("torch", "deepspeed"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "transformers" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.what: finding for finding in module._packages()}
    assert found["torch"].state == "broken"
    assert found["torch"].mend.startswith("pip install 'torch")
    assert found["deepspeed"].state == "note"  # only some strategies need it
    assert found["transformers"].state == "note"  # there, but not of the range
    assert doctor() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "broken: torch"


def test_what_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert [f.state for f in module._torch()] == ["broken"]
    broken = {f.what for f in module._imports() if f.state == "broken"}
    assert "import accelerate" in broken


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> list[Finding]:
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(module, "_machine", fails)
    found = [f for f in findings() if f.what == "fails"]
    assert [(f.found, f.state) for f in found] == [("RuntimeError: no such thing", "broken")]


def test_a_recipe_whose_module_is_gone_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recipes", lambda: {"lost": Recipe("lost", "no_such_module:f")})
    assert [(f.found, f.state) for f in module._recipes()] == [("not found: lost", "broken")]
    monkeypatch.setattr(module, "recipes", dict)
    assert [f.state for f in module._recipes()] == ["broken"]
