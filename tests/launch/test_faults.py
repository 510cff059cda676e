from __future__ import annotations

from pathlib import Path

import pytest

from launch.faults import tell_once


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
