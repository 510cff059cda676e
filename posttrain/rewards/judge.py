"""Judges untrusted answers in processes that can be killed."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Literal

from posttrain.rewards import judge_worker
from posttrain.rewards.worker_process import WorkerGone, WorkerOwner, WorkerProcess

__all__ = ["Judge", "Verdict", "judge_for"]

_START_SECONDS = 300.0
_GRACE_SECONDS = 60.0
"""How much later than its limit a verdict may come before the supervisor itself is replaced."""


class Verdict(Enum):
    """What came of a request."""

    EQUAL = judge_worker.EQUAL
    DIFFERENT = judge_worker.DIFFERENT
    TIMEOUT = judge_worker.TIMEOUT
    CRASH = judge_worker.CRASH


class Judge(WorkerOwner):
    """A supervising process, started with the first request, and its children.

    It works in any thread and after a fork, needs no guard in ``__main__``, and its processes end
    with this one, however it ends. Threads take turns.
    """

    def __init__(self, kind: Literal["math", "gym"]) -> None:
        self._kind = kind
        super().__init__()

    def __call__(self, requests: Sequence[object], *, seconds: float) -> list[Verdict]:
        """Judge ``requests``, each within ``seconds`` of wall-clock time.

        The time of a request begins when a child that has imported everything takes it.
        """
        self._settle()
        frames = [pickle.dumps(request) for request in requests]
        verdicts: dict[int, Verdict] = {}
        with self._lock:
            for _ in range(3):
                left = [index for index in range(len(frames)) if index not in verdicts]
                if not left:
                    break
                try:
                    self._exchange(frames, left, seconds, verdicts)
                except WorkerGone:
                    self._stop()
                except BaseException:  # an interrupt leaves a batch half answered
                    self._stop()
                    raise
            else:
                if len(verdicts) < len(frames):
                    warnings.warn(
                        f"the judge of {self._kind} answers ended three times in one batch: "
                        f"{len(frames) - len(verdicts)} answers count as wrong",
                        RuntimeWarning,
                        stacklevel=2,
                    )
        return [verdicts.get(index, Verdict.CRASH) for index in range(len(frames))]

    def _exchange(
        self, frames: list[bytes], left: list[int], seconds: float, verdicts: dict[int, Verdict]
    ) -> None:
        process = self._worker if self._worker is not None else self._start()
        process.send((seconds, [frames[index] for index in left]))
        for _ in left:
            number, letter = process.line(seconds + _GRACE_SECONDS).split()
            verdicts[left[int(number)]] = Verdict(letter)

    def _start(self) -> WorkerProcess:
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **single, "PYTHONHASHSEED": "0"}
        process = WorkerProcess(Path(judge_worker.__file__), environment)
        self._worker = process
        try:
            process.send((self._kind, sys.path))
            said = process.line(_START_SECONDS)
        except WorkerGone:
            said = "error it ended without a word"
        if said != "ready":
            self._stop()
            library = {"math": "math-verify", "gym": "reasoning-gym"}[self._kind]
            raise RuntimeError(
                f"the process that judges answers with {library} did not start: "
                f"{said.removeprefix('error ')}. Is {library} installed? `monro doctor` tells"
            )
        return process


_JUDGES: dict[str, Judge] = {}
_MAKING = threading.Lock()


def judge_for(kind: Literal["math", "gym"]) -> Judge:
    """Return this process's judge of a kind; its processes start with the first request."""
    with _MAKING:
        if kind not in _JUDGES:
            _JUDGES[kind] = Judge(kind)
        return _JUDGES[kind]
