"""What needs the whole batch gets it, however many processes hold it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from two_processes import on_two_processes
from warm import Warm

from launch.runtime import Runtime

FOLDER = Path(__file__).parent


def records(stage: Path) -> list[dict[str, float]]:
    lines = (stage / "metrics.jsonl").read_text().splitlines()
    clocks = ("seconds", "speed/", "timeouts")
    return [
        {name: x for name, x in json.loads(line).items() if not name.startswith(clocks)}
        for line in lines
    ]


def train_on_two_and_on_one(warmed: Warm, script: str, output: Path) -> ModuleType:
    """Run a script's ``train_all`` on two processes and in this one; return it as a module."""
    done = on_two_processes(warmed, FOLDER / script, str(output / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    name = script.removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, FOLDER / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    module.train_all(output / "one")
    return module


@pytest.mark.distributed
def test_two_processes_give_the_figures_of_one(tmp_path: Path, warmed: Warm) -> None:
    module = train_on_two_and_on_one(warmed, "whole_batch.py", tmp_path)
    for name in module.JOBS:
        one, two = (records(tmp_path / x / "stages" / name) for x in ("one", "two"))
        assert len(one) == len(two) == 3, name
        assert sum(record.get("groups/replaced", 0.0) for record in one) > 0
        assert (sum(record.get("tools/calls", 0.0) for record in one) > 0) == (name == "tools")
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5), name
    for micro_batch in (1, 3):
        with Runtime(output=tmp_path / str(micro_batch), seed=5) as run:
            module.train_each(run, micro_batch)
    for name in module.EACH:
        (whole,) = records(tmp_path / "one" / "stages" / f"each-{name}")
        assert whole["kl/old"] > 1e-5, name  # the second update's ratios are not 1
        for other in ("two", "1", "3"):
            (record,) = records(tmp_path / other / "stages" / f"each-{name}")
            assert record["loss"] == pytest.approx(whole["loss"], rel=1e-6, abs=1e-6), name
            assert record["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5), name


@pytest.mark.distributed
def test_pairs_on_two_processes_give_the_figures_of_one(tmp_path: Path, warmed: Warm) -> None:
    module = train_on_two_and_on_one(warmed, "preference_pairs.py", tmp_path)
    for name in module.JOBS:
        one, two = (records(tmp_path / x / "stages" / name) for x in ("one", "two"))
        assert len(one) == len(two) == 4, name
        assert ["heldout/ranking" in record for record in one] == [True, True, False, True]
        # No weight has moved yet: nothing but the order of additions differs.
        assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-6, abs=1e-6), name
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5), name
    for name in module.REWARDS:
        one, two = (records(tmp_path / x / "stages" / name) for x in ("one", "two"))
        assert len(one) == len(two) == 4, name
        assert ["heldout/loss" in record for record in one] == [True, True, False, True]
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5), name


@pytest.mark.distributed
def test_students_on_two_processes_have_the_figures_of_one(tmp_path: Path, warmed: Warm) -> None:
    module = train_on_two_and_on_one(warmed, "distill_students.py", tmp_path)
    for name in module.JOBS:
        one, two = (records(tmp_path / x / "stages" / name) for x in ("one", "two"))
        assert len(one) == len(two) == 3, name
        assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-6, abs=1e-6), name
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5), name


@pytest.mark.distributed
def test_critics_on_two_processes_give_the_figures_of_one(tmp_path: Path, warmed: Warm) -> None:
    module = train_on_two_and_on_one(warmed, "token_critics.py", tmp_path)
    for name in module.JOBS:
        one, two = (records(tmp_path / x / "stages" / name) for x in ("one", "two"))
        assert len(one) == len(two) == 4, name
        assert all(record["value/loss"] > 0 for record in one)
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5), name
