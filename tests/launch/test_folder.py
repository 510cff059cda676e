from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import folder
from launch.errors import UsageError
from launch.folder import atomic_write, check_claim, claim

CONFIG = "seed: 0\nsteps: 10\nruntime: {keep: 2}\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that holds a finished run, and something of the user's own."""
    path = tmp_path / "run"
    claim(path, CONFIG).close()
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    (path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (path / "checkpoints" / "step-00000001" / "COMPLETE").touch()
    (path / "model").mkdir()
    (path / "notes.txt").write_text("mine")
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(path.rglob("*"))}


def test_a_claim_makes_the_folder_and_its_config(tmp_path: Path) -> None:
    with claim(tmp_path / "a" / "b", CONFIG) as held:
        assert (tmp_path / "a" / "b" / "config.yaml").read_text() == CONFIG
        assert held.note == ""


@pytest.mark.parametrize("sign", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_a_folder_that_holds_a_run_is_not_written_to(tmp_path: Path, sign: str) -> None:
    (tmp_path / sign).mkdir() if sign == "checkpoints" else (tmp_path / sign).write_text("seed: 0")
    before = contents(tmp_path)
    for refuse in (claim, check_claim):
        with pytest.raises(UsageError, match=r"holds a run: add --resume .* --overwrite"):
            refuse(tmp_path, CONFIG)
    assert contents(tmp_path) == before


def test_a_folder_with_other_files_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, CONFIG).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_removes_what_a_run_makes_and_nothing_else(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    (run / "figures").symlink_to(elsewhere)
    claim(run, "seed: 1\n", overwrite=True).close()
    assert {p.name for p in run.iterdir()} == {"notes.txt", "config.yaml", ".lock"}
    assert (run / "config.yaml").read_text() == "seed: 1\n"
    assert (elsewhere / "weights").exists()


def test_resume_goes_on_with_the_same_config(run: Path) -> None:
    with claim(run, CONFIG, resume=True) as held:
        assert held.note == ""
    assert (run / "checkpoints" / "step-00000001" / "COMPLETE").exists()


def test_resume_takes_what_may_change_and_keeps_it(run: Path) -> None:
    new = "seed: 0\nsteps: 99\nruntime: {keep: 5}\n"
    claim(run, new, resume=True, resumable=frozenset({"steps", "runtime.keep"})).close()
    assert (run / "config.yaml").read_text() == new


def test_resume_refuses_a_changed_config_by_name(run: Path) -> None:
    before = contents(run)
    new = "seed: 1\nsteps: 99\nruntime: {keep: 5}\n"
    for refuse in (claim, check_claim):
        with pytest.raises(UsageError, match=r"this has changed: seed, runtime\.keep\. "):
            refuse(run, new, resume=True, resumable=frozenset({"steps"}))
    assert contents(run) == before


def test_resume_starts_anew_where_there_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "new"
    assert "starts anew" in check_claim(path, CONFIG, resume=True)
    assert not path.exists()
    with claim(path, CONFIG, resume=True) as held:
        assert held.note == f"nothing to resume in {path}: the run starts anew"


@pytest.mark.parametrize("config", [None, "a: [", "\xff"])
def test_resume_needs_a_readable_config(run: Path, config: str | None) -> None:
    (run / "config.yaml").unlink()
    if config is not None:
        (run / "config.yaml").write_bytes(config.encode("latin-1"))
    with pytest.raises(UsageError, match=r"config\.yaml"):
        claim(run, CONFIG, resume=True)


def test_both_flags_are_a_contradiction(run: Path) -> None:
    with pytest.raises(UsageError, match="give one of the two"):
        claim(run, CONFIG, resume=True, overwrite=True)


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_a_folder_in_use_is_refused_whatever_the_flags(
    tmp_path: Path, resume: bool, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_PATIENCE", 0.0)
    with claim(tmp_path, "") as held:
        for refuse in (claim, check_claim):
            with pytest.raises(UsageError, match=f"in use by another run .process {os.getpid()}"):
                refuse(tmp_path, CONFIG, resume=resume, overwrite=overwrite)
        held.close()
        claim(tmp_path, CONFIG, resume=resume, overwrite=overwrite).close()


def test_a_run_that_is_alive_is_in_use_and_does_not_just_hold_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_PATIENCE", 0.0)
    with claim(tmp_path, CONFIG):
        for refuse in (claim, check_claim):
            with pytest.raises(UsageError, match="in use by another run"):
                refuse(tmp_path, CONFIG)


def test_what_killed_processes_were_writing_is_removed_by_the_next_claim(run: Path) -> None:
    stage = run / "stages" / "1-sft"
    stage.mkdir(parents=True)
    left = [run / ".config.yaml.71.tmp", run / ".model.71.tmp" / "x", stage / ".config.yaml.7.tmp"]
    (run / ".model.71.tmp").mkdir()
    for path in left:
        path.touch()
    (run / ".mine.71.tmp").touch()
    with pytest.raises(UsageError, match="holds a run"):
        claim(run, CONFIG)
    assert all(path.exists() for path in left)
    claim(run, CONFIG, resume=True).close()
    assert not any(path.exists() for path in [*left, run / ".model.71.tmp"])
    assert (run / ".mine.71.tmp").exists()
    assert stage.exists()


def test_the_lock_dies_with_the_process_and_not_with_its_children(tmp_path: Path) -> None:
    script = (
        "import multiprocessing, os, pathlib, sys, time\n"
        "from launch.folder import claim\n"
        "held = claim(pathlib.Path(sys.argv[1]), '')\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "child.start()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with pytest.raises(UsageError, match="in use"):
            claim(tmp_path, "")
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        os.kill(child, 0)  # still there
        claim(tmp_path, "").close()
    finally:
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()


def _claim_and_hold(path: str, won: multiprocessing.Queue[bool], end: object) -> None:
    try:
        held = claim(Path(path), "seed: 0\n", overwrite=True)
    except UsageError:
        won.put(False)
        return
    won.put(True)
    end.wait()  # type: ignore[attr-defined]  # an Event
    held.close()


def test_of_many_that_claim_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    won, end = context.Queue(), context.Event()
    processes = [
        context.Process(target=_claim_and_hold, args=(str(tmp_path / "x"), won, end))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    results = [won.get(timeout=30) for _ in processes]
    end.set()
    for process in processes:
        process.join()
    assert sorted(results) == [False, False, False, True]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        for refuse in (claim, check_claim):
            with pytest.raises(UsageError, match=rf"{tmp_path}/file is a file$"):
                refuse(path, CONFIG)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^the output folder .* cannot be (made|used): File name"):
        claim(tmp_path / ("x" * 300), CONFIG)


def test_a_read_only_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="is read-only"):
        check_claim(tmp_path / "run", CONFIG)


def test_a_claim_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "atomic_write", full)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        claim(tmp_path / "a" / "b", CONFIG)
    assert not (tmp_path / "a").exists()


def test_discard_removes_only_what_the_claim_made(tmp_path: Path) -> None:
    claim(tmp_path / "a" / "b", CONFIG).discard()
    assert not (tmp_path / "a").exists()
    with claim(tmp_path / "c", CONFIG) as held:
        (tmp_path / "c" / "metrics.jsonl").touch()
        held.discard()
    assert (tmp_path / "c" / "config.yaml").exists()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").touch()
    claim(tmp_path / "d", CONFIG).discard()
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["notes.txt"]


def test_an_error_before_any_work_discards(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "a", CONFIG):
        raise KeyboardInterrupt
    assert not (tmp_path / "a").exists()


def test_discard_brings_an_overwritten_run_back(run: Path) -> None:
    before = contents(run)
    claim(run, "seed: 1\n", overwrite=True).discard()
    assert contents(run) == before


def test_an_overwritten_run_is_gone_once_work_begins(run: Path) -> None:
    with claim(run, "seed: 1\n", overwrite=True) as held:
        held.begin()
        (run / "metrics.jsonl").touch()
        held.discard()
        assert {p.name for p in run.iterdir()} == {
            "notes.txt",
            "config.yaml",
            "metrics.jsonl",
            ".lock",
        }


def test_discard_leaves_a_run_that_was_to_go_on(run: Path) -> None:
    before = contents(run)
    claim(run, CONFIG, resume=True).discard()
    assert contents(run) == before


def test_atomic_write_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "newer")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
