"""Runs killed at any step and resumed equal runs never stopped, bit for bit."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from warm import Warm

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


@dataclass(frozen=True)
class Runs:
    """Starts runs with imports done."""

    warmed: Warm

    def start(
        self, recipe: str, output: Path, *more: str, cold: bool = False
    ) -> subprocess.Popen[str]:
        """Start a run in a session of its own; ``cold``: as a user does."""
        python = sys.executable if cold else self.warmed.python
        return subprocess.Popen(
            [python, "-m", "launch", "run", recipe, "--output", output, *SHORT[recipe], *more],
            env=os.environ | {"OMP_NUM_THREADS": "1"} if cold else self.warmed.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, recipe: str, output: Path, *more: str, cold: bool = False) -> None:
        """Run to the end."""
        process = self.start(recipe, output, *more, cold=cold)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out[-2000:] + err[-3000:]


@pytest.fixture(scope="module")
def runs(warmed: Warm) -> Runs:
    return Runs(warmed)


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
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, runs: Runs
) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp("whole") / "run"
    runs.finish(request.param, output, cold=True)
    return request.param, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "kills"),
    [("sft-mini", (1, 4, 8)), ("grpo-mini", (4,)), (DPO, (5,))],
    indirect=["whole"],
)
def test_run_killed_at_steps_and_resumed_equals_one_never_stopped(
    whole: tuple[str, Path], kills: tuple[int, ...], tmp_path: Path, runs: Runs
) -> None:
    recipe, expected = whole
    for step in kills:
        process = runs.start(recipe, tmp_path / "run", "--resume")
        wait_for_steps(tmp_path / "run", step, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    runs.finish(recipe, tmp_path / "run", "--resume")
    assert_equal_runs(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["sft-mini"], indirect=True)
def test_sigterm_finishes_the_step_saves_and_exits_with_143(
    whole: tuple[str, Path], tmp_path: Path, runs: Runs
) -> None:
    recipe, expected = whole
    process = runs.start(recipe, tmp_path / "run")
    wait_for_steps(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    done = len(records(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:08d}" / "COMPLETE").exists()
    runs.finish(recipe, tmp_path / "run", "--resume")
    assert_equal_runs(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["sft-mini", "grpo-mini", DPO])
def test_two_processes_killed_and_resumed_equal_two_never_stopped(
    recipe: str, tmp_path: Path, runs: Runs
) -> None:
    two = ("--processes", "2")
    if recipe == "grpo-mini":
        two += ("--prompts_per_step", "3")  # one process gets one prompt, the other two
    if recipe == DPO:  # the reference point is of all three pairs
        two += ("--pairs_per_step", "3", "--objective", "posttrain.objectives:KTO")
    runs.finish(recipe, tmp_path / "whole", *two, cold=True)
    process = runs.start(recipe, tmp_path / "cut", *two, cold=True)
    wait_for_steps(tmp_path / "cut", 4, process)
    process.kill()  # the parent alone: its children must not go on behind its back
    process.communicate()
    runs.finish(recipe, tmp_path / "cut", *two, "--resume")
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
    runs.finish(recipe, tmp_path / "one", *two[2:])
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "whole"), strict=True):
        assert a.keys() == b.keys()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", AGENTS)
def test_agent_killed_at_moments_drawn_at_random_equals_one_never_stopped(
    recipe: str, tmp_path: Path, runs: Runs
) -> None:
    draws = random.Random(recipe)
    began = time.monotonic()
    runs.finish(recipe, tmp_path / "whole", cold=True)
    took = time.monotonic() - began
    for _ in range(2):  # also before there is a folder, or while the report is made
        process = runs.start(recipe, tmp_path / "cut", "--resume")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=draws.uniform(0.3, 1.0) * took)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    runs.finish(recipe, tmp_path / "cut", "--resume")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.distributed
def test_ppo_on_two_processes_gives_the_figures_of_one(tmp_path: Path, runs: Runs) -> None:
    runs.finish("ppo-cartpole", tmp_path / "one")
    runs.finish("ppo-cartpole", tmp_path / "two", "--processes", "2")
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
    tmp_path: Path, runs: Runs
) -> None:
    two = ("--processes", "2", "--envs", "2")
    runs.finish("dqn-cartpole", tmp_path / "whole", *two, cold=True)
    process = runs.start("dqn-cartpole", tmp_path / "cut", *two, cold=True)
    wait_for_steps(tmp_path / "cut", 4, process)
    process.kill()
    process.communicate()
    runs.finish("dqn-cartpole", tmp_path / "cut", *two, "--resume")
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
