"""What the runtime costs a step: a bare torch loop against run.steps, pair by pair.

Both train the same model of about 10,000 parameters and clip its gradients. Our side also logs
every step, keeps checkpoints and shows progress. Target: at most 0.2 ms a step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import emit, spread
from launch.runtime import Runtime
from launch.schedule import Cosine, set_learning_rate


def network() -> nn.Module:
    """Return a network of 10,369 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 96), nn.Tanh(), nn.Linear(96, 72), nn.Tanh(), nn.Linear(72, 2)
    )


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def bare(steps: int) -> list[float]:
    """Return the seconds of each step of a plain loop."""
    model = network()
    optimizer = optimizer_of(model)
    schedule = Cosine(warmup=5, final=0.1)
    x, stamps = torch.randn(64, 32), []
    for step in range(steps):
        set_learning_rate(optimizer, schedule(step, steps))
        loss = model(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(stamps)]


def monro(steps: int) -> list[float]:
    """Return the seconds of each step under the runtime."""
    model = network()
    optimizer = optimizer_of(model)
    schedule = Cosine(warmup=5, final=0.1)
    x, stamps = torch.randn(64, 32), []
    with tempfile.TemporaryDirectory() as folder, Runtime(output=Path(folder) / "run") as run:
        prepared, optimizer = run.prepare(model, optimizer)
        state = {"model": model, "optimizer": optimizer}
        for step in run.steps(steps, state=state, save_every=steps // 4, headline=("loss",)):
            stamps.append(time.perf_counter())
            rate = set_learning_rate(optimizer, schedule(step - 1, steps))
            loss = prepared(x).square().mean()
            run.backward(loss)
            norm = run.step(optimizer, 1.0)
            run.log(step, {"loss": run.loss, "grad_norm": norm, "learning_rate": rate})
    return [b - a for a, b in itertools.pairwise(stamps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bare(50), monro(50)
    pairs = []
    for _ in range(arguments.pairs):
        ours, theirs = monro(arguments.steps), bare(arguments.steps)
        pairs.append((statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3))
    figures = {
        "monro_ms": spread([a for a, _ in pairs]),
        "torch_ms": spread([b for _, b in pairs]),
        "overhead_ms": spread([a - b for a, b in pairs]),
        "target_ms": 0.2,
    }
    emit("runtime", figures)


if __name__ == "__main__":
    main()
