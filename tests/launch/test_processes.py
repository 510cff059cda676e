from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from launch import processes
from launch.errors import UsageError
from launch.faults import explain
from launch.processes import (
    check_devices,
    check_machine,
    check_shared_memory,
    is_worker,
    launched_processes,
    leave_error,
)

WORKER = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
MANY = {**ACCELERATE, "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "parent", "expected"),
    [
        ({}, "python -m pytest", None),
        ({"MASTER_PORT": "1"}, "srun --num_processes 8", None),
        (WORKER, "accelerate launch --num_processes 9", 3),
        (MANY, "python accelerate launch --cpu --num_processes 2 -m launch run x", 2),
        (MANY, "python accelerate launch --num-processes=4 --cpu -m launch run x", 4),
        (MANY, "python accelerate launch --config_file two.yaml -m launch run x", 2),
        (ACCELERATE, "python accelerate launch --cpu -m launch run x", 1),
        (ACCELERATE, "python accelerate launch --num_processes", None),
    ],
)
def test_how_many_processes_a_launcher_was_asked_for(
    environment: dict[str, str], parent: str, expected: int | None
) -> None:
    assert launched_processes(environment, parent.split()) == expected
    assert is_worker(environment) == (environment is WORKER)


def test_processes_are_at_least_one_and_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="give at least 1"):
        check_devices(0)
    monkeypatch.setattr(processes, "gpus", lambda: 1)
    check_devices(1)
    with pytest.raises(UsageError, match="has 1 GPU, and each process needs its own"):
        check_devices(2)
    monkeypatch.setattr(processes, "gpus", lambda: 0)
    check_devices(2)


def test_too_little_shared_memory_for_processes_with_gpus_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mebibyte = 2**20
    monkeypatch.setattr(processes, "gpus", lambda: 8)
    check_shared_memory(8, 512 * mebibyte)
    check_shared_memory(1, 0)
    said = "/dev/shm has 511 MiB free, and 8 processes with GPUs need 512 MiB, 64 each"
    with pytest.raises(UsageError, match=said):
        check_shared_memory(8, 512 * mebibyte - 1)
    monkeypatch.setenv("NCCL_SHM_DISABLE", "1")
    check_shared_memory(8, 0)
    monkeypatch.delenv("NCCL_SHM_DISABLE")
    monkeypatch.setattr(processes, "gpus", lambda: 0)
    check_shared_memory(8, 0)


def test_the_first_worker_of_a_machine_speaks_for_its_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = SimpleNamespace(free=0)
    monkeypatch.setattr(processes, "gpus", lambda: 8)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: full)
    check_machine({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    check_machine({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    check_machine({})
    with pytest.raises(UsageError, match="has 0 MiB free, and 2 processes with GPUs need 128 MiB"):
        check_machine({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="too little shared memory"):
        check_devices(2)


def test_an_error_is_left_for_the_parent_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not leave_error("x", usage=True)
    for name, value in WORKER.items():
        monkeypatch.setenv(name, value)
    assert not leave_error("x", usage=True)
    monkeypatch.setenv(processes.ERRORS, str(tmp_path))
    assert leave_error("a line", usage=True)
    assert leave_error("a traceback", usage=False)
    assert (tmp_path / "usage-1").read_text() == "a line"
    assert (tmp_path / "crash-1").read_text() == "a traceback"
    monkeypatch.setenv(processes.ERRORS, str(tmp_path / "gone"))
    assert not leave_error("x", usage=True)


LEAVING = """
import atexit
import sys

from launch.processes import leave


class Interpreter:
    def __del__(self, say=sys.stdout.write):
        say("taken down\\n")


interpreter = Interpreter()
atexit.register(print, "exit function")
leave(3)
print("went on")
"""


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [(WORKER, 3, "exit function\n"), ({}, 0, "went on\nexit function\ntaken down\n")],
)
def test_a_worker_leaves_without_taking_the_interpreter_down(
    environment: dict[str, str], code: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


@pytest.mark.parametrize(
    ("codes", "files", "expected", "text"),
    [
        ({0: 1, 1: -9}, {"crash-0": "peer is gone\n"}, 1, "monro: rank 1 was killed by SIGKILL"),
        ({0: -11, 1: -15}, {}, 1, "monro: rank 0 was killed by SIGSEGV. --resume goes on"),
        ({0: 2, 1: -15}, {"usage-0": "no model"}, 2, "monro: no model\n"),
        ({0: 2, 1: 2}, {"usage-0": "no model", "usage-1": "no model"}, 2, "monro: no model\n"),
        ({0: -15, 1: 1}, {"crash-1": "trace\n"}, 1, "trace\nmonro: rank 1 ended with exit co"),
        ({0: -6, 1: 1}, {"crash-1": "trace\n"}, 1, "trace\nmonro: rank 1 ended with exit co"),
        ({0: 7, 1: -15}, {}, 7, "monro: rank 0 ended with exit code 7\n"),
        ({0: 1, 1: 7}, {"crash-0": "peer is gone\n"}, 7, "monro: rank 1 ended with exit code 7\n"),
        ({0: 143, 1: 7}, {}, 7, "monro: rank 1 ended with exit code 7\n"),
        ({0: -40}, {}, 1, "monro: rank 0 was killed by signal 40. --resume"),
        ({0: 143, 1: 143}, {}, 143, ""),
    ],
)
def test_the_cause_of_a_failure_is_told_and_not_what_followed(
    codes: dict[int, int],
    files: dict[str, str],
    expected: int,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    advice = "--resume goes on from the last checkpoint"
    assert explain(codes, tmp_path, advice) == expected
    err = capsys.readouterr().err
    assert err.startswith(text)
    assert bool(err) == bool(text)


def test_of_two_tracebacks_the_first_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, age in (("crash-0", 5), ("crash-1", 9)):
        (tmp_path / name).write_text(f"{name}\n")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    explain({0: 1, 1: 1}, tmp_path, "")
    assert capsys.readouterr().err == "crash-1\nmonro: rank 1 ended with exit code 1\n"


def test_the_last_lines_of_a_rank_without_a_traceback_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (0, 1):
        log = tmp_path / f"logs/none_x/attempt_0/{rank}/stderr.log"
        log.parent.mkdir(parents=True)
        log.write_text("".join(f"{rank}: line {i}\n" for i in range(12)))
    assert explain({0: 1, 1: 7}, tmp_path, "") == 1  # no traceback of either: the lower rank
    said = [f"rank 0 | 0: line {i}" for i in range(2, 12)]
    assert capsys.readouterr().err.splitlines() == [
        *said,
        "monro: rank 0 ended with exit code 1",
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_worker_dies_with_its_launcher() -> None:
    worker = (
        "import time; from launch.processes import die_with_parent\n"
        "die_with_parent(); print('up', flush=True); time.sleep(60)\n"
    )
    launcher = (
        "import os, subprocess, sys, time\n"
        "os.environ['MONRO_PARENT'] = str(os.getpid())\n"
        f"child = subprocess.Popen([sys.executable, '-c', {worker!r}])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.stdout.readline() == b"up\n"
        process.kill()
        process.wait()
        end = time.monotonic() + 10
        while _is_alive(child):
            assert time.monotonic() < end
            time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


# -- two real processes --------------------------------------------------------------------------


TOY = '''
"""A recipe that trains one weight on as many rows as there are."""
from __future__ import annotations
import os, signal, sys, time
from dataclasses import dataclass, field
from typing import ClassVar
import torch
from launch.config import resumable
from launch.errors import UsageError
from launch.runtime import Runtime, RuntimeConfig

@dataclass(frozen=True, kw_only=True, slots=True)
class Toy:
    leaves_run: ClassVar[bool] = True
    steps: int = resumable(3)
    pause: float = resumable(0.0)
    save_every: int = resumable(0)
    fail: str = ""
    at: int = 0
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None: ...

    def harm(self, rank: int) -> None:
        """Do what the next word of `fail` says; after the last one, nothing."""
        words = self.fail.split()
        done = [os.path.exists(f"harmed-{i}") for i in range(len(words))].count(True)
        if done == len(words):
            return
        open(f"harmed-{done}", "x").close()
        print(f"rank {rank} is harmed", file=sys.stderr, flush=True)
        if words[done] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if words[done] == "raise":
            raise ArithmeticError("the loss is not a number")
        if words[done] == "exit":
            os._exit(7)

    def run(self, run: Runtime) -> None:
        if self.fail == "usage" and run.rank == 1:
            raise UsageError("the weights are corrupt")
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        model, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), 0.125))
        state = {"model": model, "optimizer": optimizer}
        for step in run.steps(self.steps, state=state, save_every=self.save_every):
            if step == self.at and run.rank == run.world_size - 1:
                self.harm(run.rank)
            run.backward(model(torch.ones(2, 1)[run.share(2)]).pow(2).sum())
            run.log(step, {"grad_norm": run.step(optimizer), "loss": run.loss})
            time.sleep(self.pause)

def toy() -> Toy:
    return Toy()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def monro(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "run", "toy:toy", "--output", "out", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def figures(folder: Path) -> list[tuple[float, ...]]:
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["grad_norm"], record["loss"]) for record in records]


# w = 1; loss = 2 w^2, gradient 4 w, w <- w - .125 * 4 w = w / 2
EXPECTED = [(1, 4.0, 2.0), (2, 2.0, 0.5), (3, 1.0, 0.125)]


@pytest.mark.distributed
def test_two_processes_give_the_same_figures_as_one(folder: Path) -> None:
    run = monro(folder, "--processes", "2")
    out, err = run.communicate(timeout=100)
    assert run.returncode == 0, err
    assert out.splitlines()[-1] == "out/report.html"
    assert figures(folder) == EXPECTED


@pytest.mark.distributed
def test_accelerate_launch_gives_the_same_figures(folder: Path) -> None:
    words = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
    run = subprocess.run(
        [sys.executable, "-m", *words.split(), "-m", "launch", "run", "toy:toy", "--output=out"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "out/report.html"
    assert figures(folder) == EXPECTED


@pytest.mark.distributed
def test_one_process_where_accelerate_was_asked_for_two_is_refused(folder: Path) -> None:
    words = "accelerate.commands.launch --cpu --num_processes 2"
    run = subprocess.run(
        [sys.executable, "-m", *words.split(), "-m", "launch", "run", "toy:toy", "--output=out"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode != 0
    assert "accelerate was asked for 2 processes and started one" in run.stderr
    assert not (folder / "out").exists()


@pytest.mark.distributed
def test_a_usage_error_in_a_worker_is_one_line_and_code_2(folder: Path) -> None:
    run = monro(folder, "--processes", "2", "--fail", "usage")
    out, err = run.communicate(timeout=100)
    assert (run.returncode, out, err) == (2, "", "monro: the weights are corrupt\n")


@pytest.mark.distributed
def test_a_killed_worker_is_named_and_ends_the_run(folder: Path) -> None:
    run = monro(folder, "--processes", "2", "--fail", "kill", "--at", "2")
    _, err = run.communicate(timeout=100)
    assert run.returncode == 1
    assert err.splitlines()[-1].startswith("monro: rank 1 was killed by SIGKILL")
    assert "Traceback" not in err


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_parent_saves_and_ends_all(folder: Path, number: signal.Signals) -> None:
    run = monro(folder, "--processes", "2", "--steps", "100000", "--pause", "0.01")
    _wait_for_a_step(folder)
    run.send_signal(number)
    _, err = run.communicate(timeout=100)
    assert run.returncode == 128 + number, err
    last = figures(folder)[-1][0]
    assert (folder / "out" / "checkpoints" / f"step-{int(last):08}" / "COMPLETE").exists()
    assert _runs_in(folder) == []


@pytest.mark.distributed
def test_no_worker_is_left_behind_when_the_parent_is_killed(folder: Path) -> None:
    run = monro(folder, "--processes", "2", "--steps", "100000", "--pause", "0.01")
    _wait_for_a_step(folder)
    assert len(_runs_in(folder)) == 3
    run.kill()
    run.communicate()
    end = time.monotonic() + 10
    while _runs_in(folder):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.distributed
def test_a_supervised_run_goes_on_after_faults_as_if_there_had_been_none(folder: Path) -> None:
    words = ["--processes", "2", "--steps", "8", "--save_every", "2"]
    run = monro(folder, *words, "--supervise", "--fail", "kill raise", "--at", "5")
    _, err = run.communicate(timeout=100)
    assert run.returncode == 0, err
    # After k steps w = 2^-k: exactly what a run without a fault logs.
    assert figures(folder) == [(k, 4 * 0.5 ** (k - 1), 2 * 0.25 ** (k - 1)) for k in range(1, 9)]
    weights = load_file(folder / "out" / "checkpoints" / "step-00000008" / "model.safetensors")
    assert weights["weight"].item() == 2**-8
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("monro")] == [
        "monro: rank 1 was killed by SIGKILL: is there enough memory?",
        "monro: relaunch 1 of 3 from step-00000004 in 1 s",
        "monro: rank 1 ended with exit code 1",
        "monro: relaunch 2 of 3 from step-00000004 in 2 s",
    ]
    assert lines.count("rank 1 | rank 1 is harmed") == 1  # of the one that left no traceback
    assert lines.count("ArithmeticError: the loss is not a number") == 1
    assert lines.count("Traceback (most recent call last):") == 1


@pytest.mark.parametrize("processes_", ["1", pytest.param("2", marks=pytest.mark.distributed)])
def test_a_supervised_run_that_is_told_to_stop_saves_and_is_not_relaunched(
    processes_: str, folder: Path
) -> None:
    words = ["--steps", "100000", "--pause", "0.01", "--supervise"]
    run = monro(folder, "--processes", processes_, *words)
    _wait_for_a_step(folder)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=100)
    assert run.returncode == 143, err
    assert "relaunch" not in err
    last = figures(folder)[-1][0]
    assert (folder / "out" / "checkpoints" / f"step-{int(last):08}" / "COMPLETE").exists()
    assert _runs_in(folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_between_two_launches_ends_the_run(folder: Path, number: signal.Signals) -> None:
    run = monro(folder, "--fail", "exit", "--at", "1", "--supervise")
    assert run.stderr is not None
    while "relaunch 1" not in run.stderr.readline():
        assert run.poll() is None
    run.send_signal(number)
    out, err = run.communicate(timeout=100)
    assert (run.returncode, out, err) == (128 + number, "", "")


def test_one_supervised_process_dies_with_its_launcher_and_is_replaced_when_it_dies(
    folder: Path,
) -> None:
    run = monro(folder, "--steps", "100000", "--pause", "0.01", "--save_every", "1", "--supervise")
    _wait_for_a_step(folder)
    (child,) = set(_runs_in(folder)) - {run.pid}
    os.kill(child, signal.SIGKILL)
    end = time.monotonic() + 60
    while not set(_runs_in(folder)) - {run.pid, child}:
        assert time.monotonic() < end
        time.sleep(0.05)
    run.kill()
    _, err = run.communicate()
    assert "monro: rank 0 was killed by SIGKILL" in err
    while _runs_in(folder):
        assert time.monotonic() < end
        time.sleep(0.05)


def _wait_for_a_step(folder: Path) -> None:
    end = time.monotonic() + 100
    while not (folder / "out" / "metrics.jsonl").exists() or not figures(folder):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs_in(folder: Path) -> list[int]:
    """Return the processes whose working folder this is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _is_alive(int(entry.name)):
            try:
                here = os.readlink(entry / "cwd")
            except OSError:  # ended, or another user's
                continue
            if here == str(folder):
                found.append(int(entry.name))
    return found
