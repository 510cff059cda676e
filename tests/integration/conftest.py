"""Launches of the recipe ``harmed`` in a folder of their own, seen from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

HERE = Path(__file__).parent
TWO = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"


@dataclass
class Launches:
    folder: Path

    def start(
        self,
        *words: str,
        output: str = "out",
        accelerate: bool = False,
        size: int | None = None,
        stderr: IO[str] | int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Run the recipe; ``size``: the largest file in KiB, as on a full disk."""
        command = [sys.executable, *(["-m", *TWO.split()] if accelerate else [])]
        command += ["-m", "launch", "run", "harmed:harmed", "--output", output, *words]
        if size is not None:
            command = ["bash", "-c", f'ulimit -f {size}; exec "$@"', "limited", *command]
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
        )

    def end(self, process: subprocess.Popen[str]) -> list[str]:
        """Wait; return what was said besides the progress."""
        _, err = process.communicate(timeout=180)
        assert self.left() == []
        return [line for line in err.splitlines() if not line.startswith("training ")]

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that is alive."""
        found = {}
        for pid in self.left():
            try:
                variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
            except OSError:
                continue
            named = dict(word.partition("=")[::2] for word in variables)
            if "RANK" in named:
                found[int(named["RANK"])] = pid
        return found

    def rank(self, number: int, besides: int | None = None) -> int:
        """Wait for a rank to be there; return its process."""
        end = time.monotonic() + 100
        while True:
            pid = self.ranks().get(number)
            if pid not in (None, besides):
                return pid
            assert time.monotonic() < end
            time.sleep(0.01)

    def left(self) -> list[int]:
        """Return the processes that work in the folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                here = os.readlink(entry / "cwd")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # ended, or another user's
                continue
            if here == str(self.folder) and state != "Z":
                found.append(int(entry.name))
        return found

    def none_left(self) -> None:
        """Wait for all to end."""
        end = time.monotonic() + 10
        while self.left():
            assert time.monotonic() < end
            time.sleep(0.05)

    def steps(self, output: str = "out") -> list[int]:
        """Return the steps that have been logged."""
        path = self.folder / output / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    def wait_for(self, step: int) -> None:
        """Wait for a step to be logged."""
        end = time.monotonic() + 100
        while not self.steps() or self.steps()[-1] < step:
            assert time.monotonic() < end
            time.sleep(0.02)

    def result(self, output: str = "out") -> tuple[bytes, list[dict[str, float]]]:
        """Return the last parameters, and the records without what a launch measures."""
        last = max((self.folder / output / "checkpoints").glob("step-*"))
        lines = (self.folder / output / "metrics.jsonl").read_text().splitlines()
        of_launch = ("seconds", "speed/", "bytes/")
        records = [
            {k: v for k, v in json.loads(line).items() if not k.startswith(of_launch)}
            for line in lines
        ]
        return (last / "model.safetensors").read_bytes(), records


@pytest.fixture
def launches(tmp_path: Path) -> Launches:
    return Launches(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, float]]]:
    """Return the result of six steps of two processes."""
    whole = Launches(tmp_path_factory.mktemp("undisturbed"))
    process = whole.start("--processes", "2")
    assert (whole.end(process), process.returncode) == ([], 0)
    return whole.result()
