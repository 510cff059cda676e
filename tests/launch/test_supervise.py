from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.supervise import (
    back_off,
    begun,
    newest,
    relaunch,
    saved,
    supervise,
    words_of_launch,
)


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


def checkpoint(output: Path, step: int, seconds: int = 1, stage: str = "") -> Path:
    folder = output / stage / "checkpoints" / f"step-{step:08}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "COMPLETE").write_text("")
    os.utime(folder / "COMPLETE", (seconds, seconds))
    return folder


def test_only_complete_checkpoints_count_also_those_of_stages(tmp_path: Path) -> None:
    assert saved(tmp_path / "none") == {}
    one, two = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, stage="first")
    (tmp_path / "checkpoints" / "step-00000009").mkdir()
    assert saved(tmp_path) == {x: (x / "COMPLETE").stat().st_ino for x in (one, two)}
    one.rename(one.with_name("damaged-step-00000002"))
    assert set(saved(tmp_path)) == {two}


def test_the_newest_checkpoint_is_that_of_most_steps_whatever_the_clock_said(
    tmp_path: Path,
) -> None:
    checkpoint(tmp_path, 2, seconds=900)
    checkpoint(tmp_path, 4, seconds=30)
    assert newest(saved(tmp_path), {}) == "step-00000004"
    before = saved(tmp_path)
    checkpoint(tmp_path, 3, seconds=10, stage="second")  # the only one since then
    assert newest(saved(tmp_path), before) == "step-00000003"
    assert newest(saved(tmp_path), saved(tmp_path)) == "step-00000004"


def test_a_run_is_launched_until_it_ends_or_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launches: list[list[str]] = []
    waits: list[float] = []

    def start(arguments: list[str], count: int, **options: object) -> int:
        launches.append(arguments)
        assert (count, options["alone"], options["hang_seconds"]) == (2, False, 9.0)
        if len(launches) == 3:  # the third gets on
            checkpoint(tmp_path, 6)
        return 5

    monkeypatch.setattr("launch.processes.start", start)
    monkeypatch.setattr("time.sleep", waits.append)
    assert supervise(["toy", "--supervise"], 2, tmp_path, 2, 9.0) == 5
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


def test_a_run_is_overwritten_until_a_launch_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begun(tmp_path) == 0
    (tmp_path / "config.yaml").write_text("old")
    checkpoint(tmp_path, 8)
    launches: list[list[str]] = []

    def start(arguments: list[str], count: int, **options: object) -> int:
        launches.append(arguments[2:])
        if len(launches) == 2:  # the second sets the old run aside, as a claim does
            (tmp_path / "config.yaml").rename(tmp_path / "aside")
            (tmp_path / "config.yaml").write_text("new")
        return 1

    monkeypatch.setattr("launch.processes.start", start)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert supervise(["toy", "--overwrite"], 2, tmp_path, 2) == 1
    assert launches == [["--overwrite"], ["--overwrite"], ["--resume"]]
    assert capsys.readouterr().err.startswith("monro: relaunch 1 of 2 from the start in 1 s\n")
