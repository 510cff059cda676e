"""A recipe of short steps that harms itself where it is told to."""

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from launch.config import resumable
from launch.runtime import Runtime, RuntimeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Harmed:
    """Four weights by Adam on rows that are drawn anew in every step."""

    leaves_run: ClassVar[bool] = True
    steps: int = resumable(6)
    save_every: int = resumable(2)
    pause: float = resumable(0.0)
    """Seconds of each step."""
    harm: tuple[str, ...] = resumable(())
    """KIND:STEP:RANK, each done once; of step 0 after the loop."""
    clock: bool = resumable(False)
    """Whether the clock jumps by a year to and fro."""
    stages: bool = False
    """Whether another stage comes first."""
    seed: int = 0
    trackers: tuple[str, ...] = resumable(())
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None: ...

    def run(self, run: Runtime) -> None:
        if self.clock:
            _jump()
        if self.stages:
            with run.stage("first") as first:
                self._train(first)
        self._train(run)
        self._harm(0, run.rank)

    def _train(self, run: Runtime) -> None:
        model = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        model, optimizer = run.prepare(model, torch.optim.Adam(model.parameters(), 0.01))
        state = {"model": model, "optimizer": optimizer}
        for step in run.steps(self.steps, state=state, save_every=self.save_every):
            self._harm(step, run.rank)
            rows = torch.randn(4, 4, generator=run.stream("data", step))[run.share(4)]
            run.backward((model(rows) - rows.sum(1, keepdim=True)).square().sum())
            run.log(step, {"grad_norm": run.step(optimizer), "loss": run.loss})
            time.sleep(self.pause)

    def _harm(self, step: int, rank: int) -> None:
        for number, word in enumerate(self.harm):
            kind, at, by = word.split(":")
            if (step, rank) != (int(at), int(by)) or os.path.exists(f"harmed-{number}"):
                continue
            with open(f"harmed-{number}", "x"):
                print(f"rank {rank}: {kind} at step {step}", file=sys.stderr, flush=True)
            if kind == "raise":
                raise ArithmeticError("the loss is not a number")
            if kind == "exit":
                os._exit(7)
            if kind == "sleep":
                time.sleep(1000)
            if kind == "busy":
                ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter's lock
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])


def _jump() -> None:
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + (-1) ** calls[0] * 365 * 86_400

    time.time = jumping


def harmed() -> Harmed:
    return Harmed()
