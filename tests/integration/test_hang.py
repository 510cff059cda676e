"""Ranks that hang: told by name with all stacks, ended, and begun again under a supervisor."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
LIMIT = ("--runtime.hang_seconds", "5")
Result = tuple[bytes, list[dict[str, float]]]


def test_a_step_that_takes_too_long_is_ended_and_begun_again(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    undisturbed: Result,
) -> None:
    run = launches.start("--processes", "2", "--supervise", *LIMIT, "--harm", "['sleep:4:1']")
    lines = launches.end(run)
    assert run.returncode == 0, lines
    assert [line for line in lines if line.startswith("monro")] == [
        "monro: hang: rank 1 did not end step 4 within 5 s, and rank 0 waited for it: "
        "all ranks were ended with SIGKILL.",
        "monro: relaunch 1 of 3 from step-00000002 in 1 s",
    ]
    assert any("rank 0 | " in line and "_engine_run_backward" in line for line in lines)
    assert any("rank 1 | " in line and "in _harm" in line for line in lines)
    assert launches.result() == undisturbed


@pytest.mark.parametrize("moment", ["at its start", "in training", "after the last step"])
def test_a_rank_that_is_stopped_is_a_hang_at_any_moment(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    undisturbed: Result,
    moment: str,
) -> None:
    words = ["--processes", "2", "--supervise", *LIMIT, "--pause", "0.1"]
    if moment == "after the last step":
        words += ["--harm", "['stop:0:1']"]
    run = launches.start(*words)
    if moment == "at its start":
        os.kill(launches.rank(1), signal.SIGSTOP)
    elif moment == "in training":
        launches.wait_for(2)
        os.kill(launches.rank(1), signal.SIGSTOP)
    lines = launches.end(run)
    assert run.returncode == 0, lines
    hangs = [line for line in lines if "hang: rank 1 was stopped by a signal and " in line]
    assert len(hangs) == 1
    assert sum("relaunch 1 of 3" in line for line in lines) == 1
    assert launches.result() == undisturbed


def test_one_process_that_keeps_the_interpreters_lock_is_ended_with_code_1(
    launches: Any,  # noqa: ANN401 a class of conftest.py
) -> None:
    run = launches.start("--runtime.hang_seconds", "2", "--harm", "['busy:2:0']")
    lines = launches.end(run)
    assert run.returncode == 1
    assert lines[-1].startswith("monro: hang: rank 0 did not end step 2 within 2 s: all ranks")
    assert any("rank 0 | " in line and "in _harm" in line for line in lines)


def test_one_process_that_is_told_to_stop_is_not_in_the_way_of_its_watcher(
    launches: Any,  # noqa: ANN401 a class of conftest.py
) -> None:
    run = launches.start("--steps", "100000", "--pause", "0.01", *LIMIT)
    launches.wait_for(2)
    run.send_signal(signal.SIGTERM)
    launches.end(run)
    assert run.returncode == 143
    assert (launches.folder / f"out/checkpoints/step-{launches.steps()[-1]:08}/COMPLETE").exists()


def test_under_accelerate_launch_the_ranks_have_a_watcher_of_their_own(
    launches: Any,  # noqa: ANN401 a class of conftest.py
) -> None:
    words = ["--runtime.hang_seconds", "2", "--harm", "['sleep:3:1']"]
    began = time.monotonic()
    run = launches.start(*words, accelerate=True)
    _, err = run.communicate(timeout=180)
    assert run.returncode == 1
    assert time.monotonic() - began < 100
    assert "hang: rank 1 did not end step 3 within 2 s, and rank 0 waited for it" in err
    launches.none_left()
