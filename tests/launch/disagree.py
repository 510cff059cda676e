"""Run by test_runtime.py as two processes, of which each is given another config."""

import os
import sys

from launch.errors import UsageError
from launch.processes import leave
from launch.runtime import Runtime

if __name__ == "__main__":
    try:
        Runtime(config_yaml=f"steps: {os.environ['RANK']}\n")
    except UsageError as error:
        print(f"process {os.environ['RANK']}: {error}", flush=True)
        leave(2)
    sys.exit("nobody noticed")
