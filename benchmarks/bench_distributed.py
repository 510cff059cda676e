"""What the runtime costs on two processes, and what a checkpoint costs.

- ``step``: the loop of ``run.steps`` with DDP on a language model of 0.35 million parameters,
  against the same on bare ``DistributedDataParallel``, pair by pair in the same two processes. Ours
  also counts over both processes, logs every step and hears signals. Target: at most 5% more.
- ``stall``: how long training stands still for a checkpoint of 200 MB of parameters and 400 MB of
  optimizer state, against writing it before going on. Target: at most 10%.
- ``start``: seconds from the command to the first step, against a bare script under
  ``accelerate launch``. Target: at most 3 seconds more.
- ``gather``: seconds of ``run.gathered`` for 200 MB of parameters under ``fsdp``, and what a
  process holds between steps, within it, and at its peak, counted by the allocator.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measure import emit, spread
from benchmarks.tiny import VOCABULARY, build
from launch.batch import TensorBatch, shaped
from launch.live_bytes import live_bytes
from launch.processes import leave
from launch.runtime import Runtime, RuntimeConfig
from launch.saving import Saver

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ROWS, LENGTH = 8, 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tokens(TensorBatch):
    """Rows of a language model."""

    tokens: Tensor = shaped("B T")


def losses(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


def batch() -> Tokens:
    return Tokens(tokens=torch.randint(VOCABULARY, (ROWS, LENGTH)))


# -- a step --------------------------------------------------------------------------------------


def ours(run: Runtime, steps: int) -> float:
    """Return the median seconds of a step under the runtime."""
    model = build("0.35m")
    prepared, optimizer = run.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-4))
    seconds, rows = [], batch()
    for step in run.steps(steps, state={"model": model, "optimizer": optimizer}):
        start = time.perf_counter()
        scale = run.sum(rows.tokens[:, 1:].numel())
        for part in run.micro_batches(rows, ROWS):
            run.backward(losses(prepared, part.tokens) / scale)
        norm = run.step(optimizer, 1.0)
        run.log(step, {"loss": run.loss, "grad_norm": norm, "tokens": scale})
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def bare(steps: int) -> float:
    """Return the median seconds of a step of a plain loop."""
    model = nn.parallel.DistributedDataParallel(build("0.35m"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    seconds, rows = [], batch()
    for _ in range(steps):
        start = time.perf_counter()
        loss = losses(model, rows.tokens) / rows.tokens[:, 1:].numel()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def step_worker(pairs: int, steps: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Runtime(RuntimeConfig(), output=None) as run:
        found = []
        for _ in range(pairs + 1):
            with contextlib.redirect_stderr(open(Path(folder, "log"), "w")):
                found.append((ours(run, steps), bare(steps)))
            run.backend.barrier()
        found = found[1:]
        ratios = [a / b - 1 for a, b in found]
        run.print(
            json.dumps(
                {
                    "monro_ms": spread([a * 1e3 for a, _ in found]),
                    "torch_ms": spread([b * 1e3 for _, b in found]),
                    "overhead": spread(ratios),
                    "target": 0.05,
                }
            )
        )


# -- checkpoints ---------------------------------------------------------------------------------


def large(layers: int = 12) -> nn.Module:
    """Return 50 million parameters, 200 MB."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(layers)))


def stall(pairs: int) -> dict[str, object]:
    """Return seconds of training's stand-still, in the background and not."""
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder, Runtime() as run:
        model = large()
        _, optimizer = run.prepare(model, torch.optim.AdamW(model.parameters()))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        state = {"model": model, "optimizer": optimizer}
        saver = Saver(run.backend, Path(folder), keep=2)
        for i in range(2 * pairs + 2):
            start = time.perf_counter()
            saver.save(i + 1, state, 0.0)
            begun = time.perf_counter() - start
            saver.finish()
            found.append((begun, time.perf_counter() - start))
        run.release()
    found = found[2:]
    return {
        "stall_seconds": spread([a for a, _ in found]),
        "written_before_going_on_seconds": spread([b for _, b in found]),
        "share": spread([a / b for a, b in found]),
        "target": 0.1,
    }


# -- the start -----------------------------------------------------------------------------------

BARE = """
import sys, time, torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, Qwen2Config
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(8, 8)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
accelerator.backward(model(torch.randn(4, 8)).square().mean())
optimizer.step()
print("first step", flush=True)
"""


def first_step(command: list[str]) -> float:
    """Return the seconds until a command has said that its first step is done."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert process.stdout is not None
    seconds = None
    for line in process.stdout:
        if seconds is None and ("first step" in line or "training 1/" in line):
            seconds = time.perf_counter() - start
    process.wait()
    if seconds is None:
        raise RuntimeError(f"{command} never made a step")
    return seconds


def start(pairs: int) -> dict[str, object]:
    """Return seconds to the first step of two processes, ours and bare."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "bare.py")
        script.write_text(BARE)
        for i in range(pairs):
            monro = [sys.executable, "-m", "launch", "run", "sft-mini", "--steps", "3"]
            monro += ["--processes", "2", "--output", str(Path(folder, f"run-{i}"))]
            found.append((first_step(monro), first_step([*LAUNCH, str(script)])))
    return {
        "monro_seconds": spread([a for a, _ in found]),
        "accelerate_seconds": spread([b for _, b in found]),
        "more_seconds": spread([a - b for a, b in found]),
        "target_seconds": 3.0,
    }


# -- a rollout's weights -------------------------------------------------------------------------


def gather_worker(pairs: int) -> None:
    torch.set_num_threads(1)
    with Runtime(RuntimeConfig(strategy="fsdp")) as run:
        model = nn.Module()
        model.layers = nn.ModuleList(large())
        _, _ = run.prepare(model, torch.optim.AdamW(model.parameters()))
        seconds = []
        for _ in range(pairs):
            begun = time.perf_counter()
            with run.gathered(model):
                seconds.append(time.perf_counter() - begun)
                held = sum(p.numel() * p.element_size() for p in model.parameters())
        between = run.backend.held_bytes()[0]
        with live_bytes() as counted, run.gathered(model):
            pass
        run.print(
            json.dumps(
                {
                    "seconds": spread(seconds),
                    "gathered_mb": held / 1e6,
                    "between_steps_mb": between / 1e6,
                    "peak_mb": (between + counted.peak) / 1e6,
                }
            )
        )
        run.release()


def launched(worker: str, pairs: int) -> dict[str, object]:
    """Run a worker in two processes; return what the first one printed."""
    words = ["-m", "benchmarks.bench_distributed", "--worker", worker, "--pairs", str(pairs)]
    done = subprocess.run(
        [*LAUNCH, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(lines[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--only", choices=("step", "stall", "start", "gather"))
    parser.add_argument("--worker", choices=("step", "gather"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pairs = arguments.pairs
    if arguments.worker:
        workers = {"step": lambda: step_worker(pairs, 60), "gather": lambda: gather_worker(pairs)}
        workers[arguments.worker]()
        leave(0)
    measures: dict[str, Callable[[], dict[str, object]]] = {
        "step": lambda: launched("step", pairs),
        "stall": lambda: stall(pairs),
        "start": lambda: start(max(3, pairs // 3)),
        "gather": lambda: launched("gather", pairs),
    }
    for name, measure in measures.items():
        if arguments.only in (None, name):
            emit(f"distributed-{name}", measure())


if __name__ == "__main__":
    main()
