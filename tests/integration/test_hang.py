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


def test_a_hang_at_any_moment_is_ended_and_begun_again(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    undisturbed: Result,
) -> None:
    harm = "['sleep:4:1','stop:5:0']"
    run = launches.start("--processes", "2", "--supervise", *LIMIT, "--harm", harm)
    os.kill(launches.rank(1), signal.SIGSTOP)  # before it has begun
    lines = launches.end(run)
    assert run.returncode == 0, lines
    said = [line for line in lines if line.startswith("monro")]
    starts = [
        "monro: hang: rank 1 was stopped by a signal and stood still for 5 s",
        "monro: hang: rank 1 did not end step 4 within 5 s, and rank 0 waited for it: all ranks",
        "monro: hang: rank 0 was stopped by a signal and did not end step 5 within 5 s",
    ]
    for line, start in zip(said[::2], starts, strict=True):
        assert line.startswith(start)
    assert [line.partition(" from ")[0] for line in said[1::2]] == ["monro: relaunch 1 of 3"] * 3
    assert any("rank 0 | " in line and "_engine_run_backward" in line for line in lines)
    assert any("rank 1 | " in line and "in _harm" in line for line in lines)
    assert launches.result() == undisturbed


def test_a_rank_that_stands_still_after_the_last_step_is_told_of(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    undisturbed: Result,
) -> None:
    words = ["--processes", "2", "--supervise", *LIMIT, "--harm", "['stop:0:1']"]
    run = launches.start(*words)
    lines = launches.end(run)
    assert run.returncode == 0, lines
    said = [line for line in lines if line.startswith("monro")]
    assert said[0].startswith("monro: hang: rank 1 was stopped by a signal and stood still for 5 s")
    # It goes on to write its stack, and may be done before it is ended.
    assert len(said) == (1 if said[0].endswith("it went on, and the run has ended") else 2)
    assert launches.result() == undisturbed


def test_one_process_that_keeps_the_interpreters_lock_is_ended_with_code_1(
    launches: Any,  # noqa: ANN401 a class of conftest.py
) -> None:
    run = launches.start("--runtime.hang_seconds", "2", "--harm", "['busy:2:0']")
    lines = launches.end(run)
    assert run.returncode == 1
    assert lines[-1].startswith("monro: hang: rank 0 did not end step 2 within 2 s: all ranks")
    assert any("rank 0 | " in line and "in _harm" in line for line in lines)


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
