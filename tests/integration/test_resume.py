"""Runs killed at any step and resumed equal runs never stopped, bit for bit."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

CLOCK = ("seconds", "speed/", "timeouts")
EVERY_THIRD = ["--save_every", "3"]
EVALUATED = ["--eval_every", "500", "--eval_episodes", "2"]
STARTED_EARLY = ["--learning_starts", "300"]
DPO = "posttrain.recipes.tiny:dpo_mini"
SHORT = {
    "sft-mini": ["--steps", "12", *EVERY_THIRD],
    "grpo-mini": ["--steps", "8", "--warm_up.training.steps", "40", *EVERY_THIRD],
    DPO: ["--steps", "12", "--warm_up.training.steps", "20", *EVERY_THIRD],
    # 8 records of 256 env steps, with a checkpoint after every third or second
    "ppo-cartpole": ["--env_steps", "2048", "--save_every", "768", *EVALUATED],
    "dqn-cartpole": ["--env_steps", "2048", "--save_every", "512", *EVALUATED, *STARTED_EARLY],
}
AGENTS = ["ppo-cartpole", "dqn-cartpole"]


def command(recipe: str, output: Path, *more: str) -> list[str]:
    monro = [sys.executable, "-m", "launch", "run", recipe, "--output", str(output)]
    return [*monro, *SHORT[recipe], *more]


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
    files = [x.relative_to(a) for x in a.glob("model/*.safetensors")]
    files += [x.relative_to(a) for x in a.glob("policy/*.safetensors")]
    last = max((a / "checkpoints").iterdir())
    files += [x.relative_to(a) for x in last.rglob("*.safetensors")]
    assert len(files) >= 2
    for file in files:
        first, second = (load_file(x / file) for x in (a, b))
        assert first.keys() == second.keys()
        for name, weight in first.items():
            assert weight.equal(second[name]), (file, name)


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp("whole") / "run"
    finish(command(request.param, output))
    return request.param, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "steps"),
    [("sft-mini", 1), ("sft-mini", 4), ("sft-mini", 5), ("grpo-mini", 4), (DPO, 5)],
    indirect=["whole"],
)
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
@pytest.mark.parametrize("whole", ["sft-mini"], indirect=True)
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
@pytest.mark.parametrize("recipe", ["sft-mini", "grpo-mini", DPO])
def test_two_processes_killed_and_resumed_equal_two_never_stopped(
    recipe: str, tmp_path: Path
) -> None:
    two = ("--processes", "2")
    if recipe == "grpo-mini":
        two += ("--prompts_per_step", "3")  # one process gets one prompt, the other two
    if recipe == DPO:  # the reference point is of all three pairs
        two += ("--pairs_per_step", "3", "--objective", "posttrain.objectives:KTO")
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", AGENTS)
def test_agent_killed_at_moments_drawn_at_random_equals_one_never_stopped(
    recipe: str, tmp_path: Path
) -> None:
    draws = random.Random(recipe)
    began = time.monotonic()
    finish(command(recipe, tmp_path / "whole"))
    took = time.monotonic() - began
    for _ in range(2):  # also before there is a folder, or while the report is made
        process = start(command(recipe, tmp_path / "cut", "--resume"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=draws.uniform(0.3, 1.0) * took)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(command(recipe, tmp_path / "cut", "--resume"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.distributed
def test_ppo_on_two_processes_gives_the_figures_of_one(tmp_path: Path) -> None:
    finish(command("ppo-cartpole", tmp_path / "one"))
    finish(command("ppo-cartpole", tmp_path / "two", "--processes", "2"))
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        counted = ("env_steps", "updates", "episode/return", "episode/length", "eval/return")
        for name in a.keys() & set(counted):
            assert a[name] == pytest.approx(b[name], rel=1e-6), name
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.distributed
def test_agent_on_two_processes_killed_and_resumed_equals_one_never_stopped(
    tmp_path: Path,
) -> None:
    two = ("--processes", "2", "--envs", "2")
    finish(command("dqn-cartpole", tmp_path / "whole", *two))
    process = start(command("dqn-cartpole", tmp_path / "cut", *two))
    wait_for_steps(tmp_path / "cut", 4, process)
    process.kill()
    process.communicate()
    finish(command("dqn-cartpole", tmp_path / "cut", *two, "--resume"))
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
