"""``make bench``: every benchmark in turn, a JSON line each."""

import subprocess
import sys
from pathlib import Path

GRPO_LONG = ["--prompts", "16", "--prompt-tokens", "256"]

for path in sorted(Path(__file__).parent.glob("bench_*.py")):
    module = f"benchmarks.{path.stem}"
    subprocess.run([sys.executable, "-m", module], check=True)
    if path.stem == "bench_grpo":
        subprocess.run([sys.executable, "-m", module, *GRPO_LONG], check=True)
