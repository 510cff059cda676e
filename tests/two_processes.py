"""Two processes of a script, as ``accelerate launch`` starts them; all of them start warm."""

from __future__ import annotations

import subprocess
from pathlib import Path

from warm import Warm

__all__ = ["on_two_processes"]


def on_two_processes(
    warmed: Warm, script: Path, *words: str, cpu: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script on two processes to its end; ``cpu`` keeps it off GPUs."""
    command = [warmed.python, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--main_process_port", "0", str(script), *words]
    environment = warmed.environment | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
