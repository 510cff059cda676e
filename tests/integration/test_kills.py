"""Ranks that are killed at random moments, again and again, under one supervisor.

``make kills`` does it a hundred times; by default it is a few.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
KILLS = int(os.environ.get("KILLS", "3"))
STEPS = str(10 * KILLS + 20)
MOMENTS = ("start", "start", "training", "saving")


def test_a_run_with_many_kills_ends_with_the_parameters_of_one_without(
    launches: Any,  # noqa: ANN401 a class of conftest.py
) -> None:
    words = ["--processes", "2", "--steps", STEPS, "--save_every", "2"]
    whole = launches.start(*words, output="whole")
    assert (launches.end(whole), whole.returncode) == ([], 0)

    draw = random.Random(0)
    words += ["--pause", "0.05", "--supervise", "--relaunches", str(KILLS)]
    folder = launches.folder / "out"
    restarts, waits = [], []
    killed = None
    with (launches.folder / "said").open("w") as said:
        run = launches.start(*words, stderr=said)
    for _ in range(KILLS):
        victim, moment = draw.randrange(2), draw.choice(MOMENTS)
        pid = launches.rank(victim, besides=killed)
        if moment == "start":
            time.sleep(draw.uniform(0, 3))
        else:
            _wait_for_progress(folder, run)
            time.sleep(draw.uniform(0, 0.5))
            if moment == "saving":
                _wait_for_saving(folder, run)
        assert run.poll() is None
        os.kill(pid, signal.SIGKILL)
        killed, at = pid, time.monotonic()
        launches.rank(victim, besides=pid)
        if moment != "start":  # there was progress, so the wait is that of a first relaunch
            waits.append(time.monotonic() - at)
            _wait_for_step(folder, run)
            restarts.append(time.monotonic() - at)
    run.wait(timeout=600)
    launches.none_left()
    lines = [x for x in (launches.folder / "said").read_text().splitlines() if "monro" in x]
    assert run.returncode == 0, lines
    assert sum("was killed by SIGKILL" in line for line in lines) == KILLS
    assert sum(line.startswith("monro: relaunch") for line in lines) == KILLS
    assert launches.result() == launches.result("whole")
    for name, seconds in (("new processes", waits), ("training", restarts)):
        median, longest = statistics.median(seconds), max(seconds)
        print(f"from a kill to {name}: median {median:.1f} s, longest {longest:.1f} s")
    assert max(waits) <= 10


def _wait_for_progress(output: Path, run: subprocess.Popen[str]) -> None:
    """Wait for a checkpoint that is not there yet."""
    before = set(output.glob("checkpoints/step-*/COMPLETE"))
    while run.poll() is None and set(output.glob("checkpoints/step-*/COMPLETE")) <= before:
        time.sleep(0.005)


def _wait_for_step(output: Path, run: subprocess.Popen[str]) -> None:
    """Wait until a record is added; a resumed run first writes the file anew."""
    last: tuple[int, int] | None = None
    while run.poll() is None:
        found = (output / "metrics.jsonl").stat()
        now = found.st_ino, found.st_size
        if last is not None and now[0] == last[0] and now[1] > last[1]:
            return
        last = now
        time.sleep(0.005)


def _wait_for_saving(output: Path, run: subprocess.Popen[str]) -> None:
    while run.poll() is None and not list(output.glob("checkpoints/.step-*.tmp")):
        time.sleep(0.0002)
