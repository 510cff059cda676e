"""Runs killed at any step and resumed equal runs never stopped, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

CLOCK = ("seconds", "speed/", "timeouts")
SHORT = {
    "sft-mini": ["--steps", "12"],
    "grpo-mini": ["--steps", "8", "--warm_up.training.steps", "40"],
}


def command(recipe: str, output: Path, *more: str) -> list[str]:
    monro = [sys.executable, "-m", "launch", "run", recipe, "--output", str(output)]
    return [*monro, *SHORT[recipe], "--save_every", "3", *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(arguments: list[str]) -> None:
    process = start(arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out[-2000:] + err[-3000:]


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines]


def wait_for_steps(output: Path, steps: int, process: subprocess.Popen[str]) -> None:
    path, deadline = output / "metrics.jsonl", time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {steps} steps were logged: {process.communicate()[1][-2000:]}")


def assert_equal_runs(a: Path, b: Path) -> None:
    assert records(a) == records(b)
    first, second = (load_file(x / "model" / "model.safetensors") for x in (a, b))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert weight.equal(second[name]), name


@pytest.fixture(scope="module", params=["sft-mini", "grpo-mini"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp("whole") / "run"
    finish(command(request.param, output))
    return request.param, output


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_run_killed_at_a_step_and_resumed_equals_one_never_stopped(
    whole: tuple[str, Path], steps: int, tmp_path: Path
) -> None:
    recipe, expected = whole
    process = start(command(recipe, tmp_path / "run"))
    wait_for_steps(tmp_path / "run", steps, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(command(recipe, tmp_path / "run", "--resume"))
    assert_equal_runs(tmp_path / "run", expected)


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_exits_with_143(
    whole: tuple[str, Path], tmp_path: Path
) -> None:
    recipe, expected = whole
    process = start(command(recipe, tmp_path / "run"))
    wait_for_steps(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    done = len(records(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:08d}" / "COMPLETE").exists()
    finish(command(recipe, tmp_path / "run", "--resume"))
    assert_equal_runs(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["sft-mini", "grpo-mini"])
def test_two_processes_killed_and_resumed_equal_two_never_stopped(
    recipe: str, tmp_path: Path
) -> None:
    two = ("--processes", "2")
    if recipe == "grpo-mini":
        two += ("--prompts_per_step", "3")  # one process gets one prompt, the other two
    finish(command(recipe, tmp_path / "whole", *two))
    process = start(command(recipe, tmp_path / "cut", *two))
    wait_for_steps(tmp_path / "cut", 4, process)
    process.kill()  # the parent alone: its children must not go on behind its back
    process.communicate()
    finish(command(recipe, tmp_path / "cut", *two, "--resume"))
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
    finish(command(recipe, tmp_path / "one", *two[2:]))
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "whole"), strict=True):
        assert a.keys() == b.keys()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-4)
