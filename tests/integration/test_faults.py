"""Runs that are harmed: by other runs, by the disk, by damaged checkpoints, by rounding."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from warm import Warm

pytestmark = pytest.mark.slow


def start(
    warmed: Warm, output: Path, *more: str, limit: int | None = None
) -> subprocess.Popen[str]:
    """Start a run; ``limit``: of a file's size, in blocks of 1,024 bytes: as a full disk."""
    python = [warmed.python]
    if limit is not None:  # which is this process's own
        python = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "limited", sys.executable]
    monro = [*python, "-m", "launch", "run", "sft-mini", "--output", str(output)]
    return subprocess.Popen(
        [*monro, "--steps", "8", "--save_every", "2", *more],
        env=warmed.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> list[str]:
    """Wait; return what was said on stderr besides the progress."""
    _, err = process.communicate(timeout=180)
    return [line for line in err.splitlines() if not line.startswith("training ")]


def records(output: Path) -> list[dict[str, float]]:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    clock = ("seconds", "speed/", "timeouts")
    return [
        {k: v for k, v in json.loads(x).items() if not k.startswith(clock)}
        for x in lines
        if x.endswith("}")
    ]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warmed: Warm) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    process = start(warmed, output)
    assert (end(process), process.returncode) == ([], 0)
    return output


def test_new_checkpoints_stay_although_a_damaged_one_has_a_higher_number(
    whole: Path, tmp_path: Path, warmed: Warm
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    oldest, newest = sorted((run / "checkpoints").iterdir())
    (newest / "model.safetensors").write_bytes(b"cut")
    process = start(warmed, run, "--resume")
    (said,) = end(process)
    assert said.startswith(
        f"warning: checkpoint {newest} is skipped: model.safetensors has 3 bytes"
    )
    assert process.returncode == 0
    assert names(run / "checkpoints") == [f"damaged-{newest.name}", oldest.name, newest.name]
    assert records(run) == records(whole)


def test_a_run_whose_checkpoints_are_all_damaged_ends_with_one_line(
    whole: Path, tmp_path: Path, warmed: Warm
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "model.safetensors").write_bytes(b"cut")
    process = start(warmed, run, "--resume")
    said = end(process)
    assert [line.startswith("warning: checkpoint ") for line in said] == [True, True, False]
    assert "has no whole checkpoint left" in said[-1]
    assert process.returncode == 2
    assert records(run) == records(whole)


def test_of_two_runs_that_start_in_one_folder_at_once_one_is_refused(
    whole: Path, tmp_path: Path, warmed: Warm
) -> None:
    both = [start(warmed, tmp_path / "run") for _ in range(2)]
    said = [line for process in both for line in end(process)]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert len(said) == 1
    assert "in use by another run" in said[0] or "holds a run" in said[0]
    assert records(tmp_path / "run") == records(whole)
    model = Path("model") / "model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (whole / model).read_bytes()


def test_checkpoint_that_does_not_fit_ends_the_run_with_one_line_and_leaves_it_whole(
    whole: Path, tmp_path: Path, warmed: Warm
) -> None:
    run = tmp_path / "run"
    process = start(warmed, run, limit=300)
    (said,) = end(process)
    assert process.returncode == 2
    assert said.startswith("monro: the checkpoint of step 2 could not be written (")
    assert len(records(run)) == 2
    assert names(run / "checkpoints") == []
    process = start(warmed, run, "--resume")
    assert (end(process), process.returncode) == ([], 0)
    assert records(run) == records(whole)


def test_metrics_that_do_not_fit_end_the_run_with_one_line(tmp_path: Path, warmed: Warm) -> None:
    run = tmp_path / "run"
    process = start(warmed, run, "--steps", "20", "--save_every", "0", limit=2)
    (said,) = end(process)
    assert process.returncode == 2
    assert said.startswith(f"monro: {run / 'metrics.jsonl'} cannot be written: ")
    assert "File too large" in said


def test_size_of_micro_batches_changes_figures_by_rounding_alone(
    whole: Path, tmp_path: Path, warmed: Warm
) -> None:
    process = start(warmed, tmp_path / "run", "--micro_batch", "3")
    assert (end(process), process.returncode) == ([], 0)
    for a, b in zip(records(whole), records(tmp_path / "run"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
