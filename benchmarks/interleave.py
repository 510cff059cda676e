"""Runs two sides of a benchmark in turn, each in its own process, so that both meet the noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["in_turn"]


def in_turn(module: str, arguments: Sequence[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Return what ``python -m module --side monro|peer`` printed, ``rounds`` times each."""
    found: dict[str, list[dict[str, Any]]] = {"monro": [], "peer": []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for _ in range(rounds):
        for side, results in found.items():
            command = [sys.executable, "-m", module, "--side", side, *arguments]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return found
