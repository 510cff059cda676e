"""Run by test_precision.py as two processes: the second one's gradient overflows in step 2."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from launch.placement import whole_state
from launch.processes import leave
from launch.runtime import Runtime, RuntimeConfig


def main(strategy: str, path: str) -> None:
    with Runtime(RuntimeConfig(strategy=strategy, precision="fp16")) as run:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        prepared, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        skipped, moved = [], []
        for step in (1, 2, 3):
            before = whole_state(model)
            large = 1e36 if step == 2 and run.rank == 1 else 0.1
            run.backward(prepared(torch.ones(2, 3)).float().sum() * large)
            run.step(optimizer, 1.0)
            after = whole_state(model)
            skipped.append(run.skipped_steps)
            moved.append(any(not after[name].equal(x) for name, x in before.items()))
        both = run.backend.gather_objects(skipped)
        if run.is_main:
            Path(path).write_text(json.dumps({"skipped": both, "moved": moved}))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
