from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launch.hang import WATCHER, Beat, is_watched, watched
from launch.runtime import RuntimeConfig
from launch.watcher import Watch, behind, patience

COLLECTIVE = """Thread 0x01 (most recent call first):
  File "/python3.11/selectors.py", line 9 in select
Current thread 0x02 (most recent call first):
  File "/site-packages/torch/distributed/distributed_c10d.py", line 3 in all_reduce
  File "/of/launch/backends.py", line 2 in all_reduce
"""
BACKWARD = """Current thread 0x02 (most recent call first):
  File "/site-packages/torch/autograd/graph.py", line 9 in _engine_run_backward
"""
SAVING = 'Thread 0x02 (most recent call first):\n  File "/of/launch/checkpoint.py", line 3 in s\n'
REWARD = """Thread 0x01 (most recent call first):
  File "/site-packages/torch/distributed/store.py", line 9 in wait
Thread 0x02 (most recent call first):
  File "/of/my/reward.py", line 3 in judge
  File "/site-packages/torch/distributed/distributed_c10d.py", line 3 in wrapper
"""


def beat(count: int, *, pid: int = 0, is_watched: bool = True, seconds: float = 2.0) -> Beat:
    return Beat(pid or os.getpid(), seconds, count, is_watched, 10 + count)


def test_a_stack_tells_who_waits_in_a_collective() -> None:
    assert [patience(x) for x in (COLLECTIVE, BACKWARD, SAVING, REWARD, "")] == [2, 2, 1, 0, 0]


@pytest.mark.parametrize(
    ("counts", "stacks", "stopped", "expected"),
    [
        ((3, 3), (COLLECTIVE, REWARD), set(), 1),
        ((3, 3), (REWARD, COLLECTIVE), set(), 0),
        ((3, 3), (SAVING, COLLECTIVE), set(), 0),
        ((4, 3), (REWARD, COLLECTIVE), set(), 1),  # has not yet begun the other's step
        ((3, 4), (REWARD, COLLECTIVE), {1}, 1),
        ((3, 3), (COLLECTIVE, COLLECTIVE), set(), 0),  # in two collectives, for instance
        ((3, 3), (COLLECTIVE, ""), set(), 1),  # does not answer
    ],
)
def test_the_rank_behind_is_the_one_that_the_others_wait_for(
    counts: tuple[int, ...], stacks: tuple[str, ...], stopped: set[int], expected: int
) -> None:
    beats = {rank: beat(count) for rank, count in enumerate(counts)}
    assert behind(beats, dict(enumerate(stacks)), stopped) == expected


def looks(folder: Path, *elapsed: float, seconds: float | None = None) -> list[bool]:
    watch = Watch(folder, seconds=seconds)
    return [watch.look(x) for x in elapsed]


def test_a_step_is_late_by_the_watchers_ticks_alone(tmp_path: Path) -> None:
    path = tmp_path / "beat-0"
    path.write_bytes(beat(1).line())
    os.utime(path, (0, 0))  # as by a clock that jumps
    # The first look only learns of the beat; then .9 + 1 < 2 < .9 + 1 + .2
    assert looks(tmp_path, 9.0, 0.9, 1.0, 0.2) == [False, False, False, True]
    watch = Watch(tmp_path)
    assert not any(watch.look(x) for x in (9.0, 1.9))
    path.write_bytes(beat(2).line())
    assert not any(watch.look(x) for x in (1.9, 1.9))
    assert watch.look(0.2)


def test_the_first_step_and_what_is_outside_of_loops_may_take_as_long_as_they_like(
    tmp_path: Path,
) -> None:
    (tmp_path / "beat-0").write_bytes(beat(1, is_watched=False).line())
    assert looks(tmp_path, 9.0, 9.0) == [False, False]


def test_a_step_that_was_left_by_a_death_is_no_hang(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    (tmp_path / "beat-0").write_bytes(beat(1).line())
    (tmp_path / "beat-1").write_bytes(beat(1, pid=gone.pid).line())
    assert looks(tmp_path, 9.0, 9.0) == [False, False]


def test_a_loop_beats_at_each_step_but_watches_none_before_its_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WATCHER, f"{os.getppid() + 1}:{tmp_path}")
    assert not is_watched()  # a word to another process
    monkeypatch.setenv(WATCHER, f"{os.getppid()}:{tmp_path}")
    assert is_watched()
    seen: list[tuple[int, bool]] = []

    def look() -> None:
        found = Beat.read(tmp_path / "beat-3")
        assert found is not None
        assert (found.pid, found.seconds) == (os.getpid(), 7.0)
        seen.append((found.step, found.watched))

    with watched(7.0, 3) as begin:
        for step in (5, 6):
            begin(step)
            look()
        with watched(7.0, 3) as inner:  # a stage, or a training within a step
            inner(1)
            look()
        look()
        begin(7)
        look()
    look()
    assert seen == [(5, False), (6, True), (1, False), (1, False), (7, True), (7, False)]
    with watched(None, 4) as begin:
        begin(1)
    assert not (tmp_path / "beat-4").exists()
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)


RANK = """
import sys, time
from launch.hang import watched
with watched(float(sys.argv[1]), int(sys.argv[2])) as begin:
    begin(1)
    begin(2)
    print("up", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int, float], subprocess.Popen[bytes]]]:
    monkeypatch.setenv(WATCHER, f"{os.getpid()}:{tmp_path}")
    with ExitStack() as stack:

        def start(number: int, seconds: float) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-c", RANK, str(seconds), str(number)]
            environment = {**os.environ, "RANK": str(number)}
            process = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            return process

        yield start


def test_a_stopped_rank_is_named_and_all_stacks_are_told_before_the_end(
    rank: Callable[[int, float], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    both = [rank(0, 5.0), rank(1, 5.0)]
    both[1].send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, both[1].pid, os.WSTOPPED | os.WNOWAIT)
    watch = Watch(tmp_path, parent=os.getpid(), seconds=5.0, advice="Look there.")
    assert [watch.look(x) for x in (0.5, 4.0)] == [False, False]
    assert watch.look(1.5)
    text = io.StringIO()
    watch.end(text)
    assert [process.wait(10) for process in both] == [-signal.SIGKILL] * 2
    assert watch.line == (
        "hang: rank 1 was stopped by a signal and did not end step 2 within 5 s: "
        "all ranks were ended with SIGKILL. Look there."
    )
    for number in (0, 1):
        rows = [x for x in text.getvalue().splitlines() if x.startswith(f"rank {number} | ")]
        assert rows[1].startswith(f'rank {number} |   File "<string>", line ')


def test_without_a_launcher_of_ours_a_process_watches_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RANK, "0.5", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 60  # not the 100 s of its sleep
    assert done.stderr.splitlines()[-1] == (
        "monro: hang: rank 0 did not end step 2 within 0.5 s: all ranks were ended with SIGKILL."
    )
    assert "line 8 in <module>" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_the_limit_is_a_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="hang_seconds="):
        RuntimeConfig(hang_seconds=seconds)
