"""Runs by the command line whose completions come from a server in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.cli import main
from posttrain.models import save_model, tiny_model, train_tokenizer

ROOT = Path(__file__).parents[3]
CLOCK = ("seconds", "speed/", "timeouts")
CONFIG = """
schedule: {_type: "launch.schedule:Constant"}
optimizer: {learning_rate: 0.01}
prompts_per_step: 5
group_size: 4
sampling: {max_tokens: 12}
samples_every: 0
"""


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def records(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        {k: x for k, x in json.loads(line).items() if not k.startswith(CLOCK)} for line in lines
    ]


@pytest.mark.distributed
def test_two_processes_train_on_a_server_as_one_does_on_none_until_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
    lm = tiny_model(train_tokenizer(texts), layers=1, width=16, heads=2, seed=1)
    save_model(lm.model, lm.tokenizer, tmp_path / "model")
    lines = [{"question": f"{a} plus 7 is", "answer": a + 7} for a in range(10)]
    task = tmp_path / "sums.jsonl"
    task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["run", "grpo", "--model", str(tmp_path / "model"), "--task", str(task)]
    given += ["--task.form", "text", "--reward", "served_rewards:digits"]
    (tmp_path / "served_rewards.py").write_text(
        "def digits(samples):\n"
        "    return [sum(c.isdigit() for c in s.completion) / 12 for s in samples]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(tmp_path))))
    with started(["posttrain.rollout.stand_in", str(tmp_path / "model"), "--port", "0"]) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        rollouts = {"urls": [url], "folder": str(tmp_path / "weights"), "retries": 2}
        (tmp_path / "served.yaml").write_text(f"{CONFIG}rollouts: {json.dumps(rollouts)}\n")
        more = ["--config", str(tmp_path / "served.yaml"), "--output", str(tmp_path / "served")]
        with started(["launch", *given, *more, "--processes", "2"]) as run:
            deadline = time.monotonic() + 240
            while len(records(tmp_path / "served")) < 3 and time.monotonic() < deadline:
                assert run.poll() is None, run.communicate()
                time.sleep(0.05)
            server.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            _, errors = run.communicate(timeout=60)
            assert time.monotonic() - killed < 15
    assert run.returncode == 2, errors
    told = [line for line in errors.splitlines() if line.startswith("monro: ")]
    assert len(told) == 1, errors
    assert re.search(rf"{re.escape(url)} did not answer (GET|POST) /\S+ \(.*go on with", told[0])
    assert "Traceback" not in errors
    (tmp_path / "local.yaml").write_text(CONFIG)
    more = ["--config", str(tmp_path / "local.yaml"), "--output", str(tmp_path / "local")]
    assert main([*given, *more, "--steps", "3"]) == 0
    capsys.readouterr()
    local, served = records(tmp_path / "local"), records(tmp_path / "served")
    assert len(local) == 3
    assert len({record["reward"] for record in local}) > 1
    for a, b in zip(local, served, strict=False):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6, abs=1e-6)
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
