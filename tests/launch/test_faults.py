from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.faults import clear_stale_locks, tell_once

BUILDER = """
import sys, time
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
assert baton.try_acquire()
print("up", flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_builders_lock_goes_with_the_builder_and_not_before(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    other = tmp_path / "blocked"
    other.write_text("")
    words = [sys.executable, "-c", BUILDER, str(lock)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"up\n"
        assert clear_stale_locks(tmp_path) == []
        builder.send_signal(signal.SIGKILL)
    assert lock.exists()
    assert clear_stale_locks(tmp_path) == [lock]
    assert (lock.exists(), other.exists()) == (False, True)
    assert clear_stale_locks(tmp_path / "none") == []


def test_of_several_ranks_the_first_tells_its_traceback_and_a_peer_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once("Traceback\nValueError: 3\n", tmp_path, 1, usage=False)
    assert capsys.readouterr().err == "rank 1 | Traceback\nrank 1 | ValueError: 3\n"
    tell_once("Traceback\nValueError: 3\n", tmp_path, 1, usage=False)  # closing, it comes again
    assert capsys.readouterr().err == ""
    for _ in range(2):
        tell_once("Traceback\nRuntimeError: gone\n", tmp_path, 0, usage=False)
    assert capsys.readouterr().err == "monro: rank 0 ended as well: RuntimeError: gone\n"
    for rank in (0, 1):
        tell_once("no model", tmp_path, rank, usage=True)
    assert capsys.readouterr().err == "monro: no model\n"
