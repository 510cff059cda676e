"""Faults of one of two ranks, of the launcher and of the disk, seen from outside."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
TWO = ("--processes", "2")
Result = tuple[bytes, list[dict[str, float]]]


def said(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("monro")]


def test_faults_at_any_moment_are_told_and_the_result_is_that_of_a_run_without(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    undisturbed: Result,
) -> None:
    """In a year that changes: before the start, in a collective's peer, after the last step."""
    harm = "['exit:5:0','kill:0:1']"
    run = launches.start(*TWO, "--supervise", "--clock", "true", "--harm", harm)
    victim = launches.rank(1)
    os.kill(victim, signal.SIGKILL)
    at = time.monotonic()
    launches.rank(1, besides=victim)
    # Its peer waits in the rendezvous for the dead, deaf to the launcher's signal.
    assert time.monotonic() - at < 10
    lines = launches.end(run)
    assert run.returncode == 0, lines
    faults, relaunches = said(lines)[::2], said(lines)[1::2]
    assert faults == [
        "monro: rank 1 was killed by SIGKILL: is there enough memory?",
        "monro: rank 0 ended with exit code 7",
        "monro: rank 1 was killed by SIGKILL: is there enough memory?",
    ]
    assert [re.sub("[24] in", "N in", line) for line in relaunches] == [
        "monro: relaunch 1 of 3 from the start in 1 s",
        "monro: relaunch 1 of 3 from step-0000000N in 1 s",
        "monro: relaunch 1 of 3 from step-00000006 in 1 s",
    ]
    assert "rank 0 | rank 0: exit at step 5" in lines
    assert "rank 1 | rank 1: kill at step 0" in lines
    assert launches.result() == undisturbed


def test_under_accelerate_launch_an_error_is_told_once_with_its_rank(
    launches: Any,  # noqa: ANN401 a class of conftest.py
) -> None:
    run = launches.start("--harm", "['raise:3:1']", accelerate=True)
    lines = launches.end(run)
    assert run.returncode == 1
    assert lines.count("rank 1 | ArithmeticError: the loss is not a number") == 1
    assert sum("ArithmeticError: " in line for line in lines) == 1
    assert sum("rank 0 ended as well: " in line for line in lines) <= 1
    assert sum("rank 1 | Traceback" in line for line in lines) == 1
    assert not any("rank 0 | " in line for line in lines)  # which lost its peer


@pytest.mark.parametrize("supervise", [(), ("--supervise",)])
def test_sigterm_before_the_first_step_ends_the_run(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    supervise: tuple[str, ...],
) -> None:
    run = launches.start(*TWO, *supervise)
    launches.rank(1)
    run.send_signal(signal.SIGTERM)
    lines = launches.end(run)
    assert run.returncode == 143, lines
    assert said(lines) == []


def test_no_rank_outlives_a_supervisor_that_is_killed_before_they_have_begun(
    launches: Any,  # noqa: ANN401 a class of conftest.py
) -> None:
    run = launches.start(*TWO, "--supervise", "--steps", "100000", "--pause", "0.01")
    launches.rank(1)
    run.kill()
    run.communicate()
    launches.none_left()


def test_a_full_disk_ends_all_ranks_with_one_line_and_is_not_tried_again(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    undisturbed: Result,
) -> None:
    run = launches.start(*TWO, "--supervise", size=4)  # KiB: less than a random state
    lines = launches.end(run)
    assert run.returncode == 2
    (line,) = said(lines)
    assert line.startswith("monro: the checkpoint of step 2 could not be written (")
    run = launches.start(*TWO, "--resume")
    assert (launches.end(run), run.returncode) == ([], 0)
    assert launches.result() == undisturbed


def test_damaged_checkpoints_are_named_and_skipped_after_a_fault(
    launches: Any,  # noqa: ANN401 a class of conftest.py
    undisturbed: Result,
) -> None:
    """The newest lacks a byte of a file, the next has a bit flipped, the third lacks the file."""
    words = [*TWO, "--save_every", "1", "--runtime.keep", "4"]
    run = launches.start(*words, "--harm", "['kill:0:0']")
    launches.end(run)
    assert run.returncode == 1
    folders = [launches.folder / "out" / "checkpoints" / f"step-{n:08}" for n in (6, 5, 4, 3)]
    truncated, flipped, removed, whole = (folder / "model.safetensors" for folder in folders)
    truncated.write_bytes(truncated.read_bytes()[:-1])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    removed.unlink()
    assert whole.exists()
    run = launches.start(*words, "--resume")
    lines = launches.end(run)
    assert run.returncode == 0
    for line, folder in zip(lines, folders, strict=False):
        assert f"out/checkpoints/{folder.name} is skipped: model.safetensors " in line
    assert len(lines) == 3
    assert launches.result() == undisturbed
