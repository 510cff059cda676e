from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.supervise import back_off, relaunch, saved, supervise, words_of_launch


@pytest.mark.parametrize("code", [0, 2, 130, 143])
def test_success_usage_errors_and_signals_asked_for_are_not_followed_by_a_relaunch(
    code: int,
) -> None:
    assert relaunch(code, used=0, limit=3, progressed=True) is None


def test_relaunches_are_counted_up_to_the_limit_and_anew_after_progress() -> None:
    assert [relaunch(1, used=n, limit=2, progressed=False) for n in range(3)] == [1, 2, None]
    assert [relaunch(7, used=n, limit=2, progressed=True) for n in range(3)] == [1, 1, 1]
    assert relaunch(1, used=0, limit=0, progressed=True) is None


def test_the_wait_doubles_up_to_a_minute() -> None:
    assert [back_off(number) for number in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_relaunch_resumes_and_no_launch_supervises() -> None:
    given = ["sft", "--supervise", "--resume", "--relaunches=4", "--output", "o"]
    assert words_of_launch(given, again=False) == ["sft", "--resume", "--output", "o"]
    assert words_of_launch(given, again=True) == ["sft", "--output", "o", "--resume"]
    given = ["sft", "--overwrite", "--relaunches", "4", "--supervise"]
    assert words_of_launch(given, again=False) == ["sft", "--overwrite"]
    assert words_of_launch(given, again=True) == ["sft", "--resume"]


def checkpoint(output: Path, step: int, nanoseconds: int = 1, stage: str = "") -> Path:
    folder = output / stage / "checkpoints" / f"step-{step:08}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "COMPLETE").write_text("")
    os.utime(folder / "COMPLETE", ns=(nanoseconds, nanoseconds))
    return folder


def test_only_complete_checkpoints_count_also_those_of_stages(tmp_path: Path) -> None:
    assert saved(tmp_path / "none") == {}
    one, two = checkpoint(tmp_path, 2, 5), checkpoint(tmp_path, 4, 6, "first")
    (tmp_path / "checkpoints" / "step-00000009").mkdir()
    assert saved(tmp_path) == {one: 5, two: 6}


def test_a_run_is_launched_until_it_ends_or_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launches: list[list[str]] = []
    waits: list[float] = []

    def start(arguments: list[str], count: int, *, advice: str, alone: bool) -> int:
        launches.append(arguments)
        assert (count, alone) == (2, False)
        if len(launches) == 3:  # the third gets on
            checkpoint(tmp_path, 6)
        return 5

    monkeypatch.setattr("launch.processes.start", start)
    monkeypatch.setattr("time.sleep", waits.append)
    assert supervise(["toy", "--supervise"], 2, tmp_path, 2) == 5
    # 1 and 2 without progress, 1 after it, 2 without, and the limit is reached
    assert waits == [1, 2, 1, 2]
    assert launches == [["run", "toy"], *[["run", "toy", "--resume"]] * 4]
    assert capsys.readouterr().err.splitlines() == [
        "monro: relaunch 1 of 2 from the start in 1 s",
        "monro: relaunch 2 of 2 from the start in 2 s",
        "monro: relaunch 1 of 2 from step-00000006 in 1 s",
        "monro: relaunch 2 of 2 from step-00000006 in 2 s",
        "monro: not relaunched: --relaunches 2 without a new checkpoint are used up",
    ]
