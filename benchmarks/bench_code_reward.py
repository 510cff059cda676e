"""Programs a second that the code reward judges, against a fresh interpreter for each program.

``reward`` is ``CodeReward`` as it is used: namespaces, limits, one case a program, on one core.
``bare`` starts ``python -I -S`` for each program and locks nothing in: the cheapest that does not
keep an interpreter warm. ``hanging`` is what a batch costs more when one program hangs, beyond that
program's own limit. Target: 50 programs a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings

from benchmarks.measure import emit, spread
from posttrain.rewards import CodeReward, CodeTests, Sample
from posttrain.rewards.sandbox import Limits

LIMIT = 1.0


def sample(source: str, number: int) -> Sample:
    tests = CodeTests(cases=((f"{number} {number}\n", f"{2 * number}\n"),))
    return Sample(prompt="", completion=f"```python\n{source}```\n", answer=tests.to_answer())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=7)
    a = parser.parse_args()
    if sys.platform == "linux":
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    source = "print(sum(map(int, input().split())))\n"
    batch = [sample(source, number) for number in range(a.programs)]
    hanging = [sample("while True: pass\n", 0), *batch]
    reward = CodeReward(limits=Limits(seconds=LIMIT))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        reward(batch[:2])
    figures: dict[str, list[float]] = {"reward": [], "bare": [], "hanging_seconds": []}
    for _ in range(a.repeat):
        start = time.perf_counter()
        assert reward(batch).sum() == len(batch)
        plain = time.perf_counter() - start
        figures["reward"].append(len(batch) / plain)
        start = time.perf_counter()
        assert reward(hanging).sum() == len(batch)
        figures["hanging_seconds"].append(time.perf_counter() - start - plain - LIMIT)
        few = max(1, a.programs // 10)
        start = time.perf_counter()
        for number in range(few):
            command = [sys.executable, "-I", "-S", "-c", source]
            subprocess.run(command, input=f"{number} {number}\n".encode(), capture_output=True)
        figures["bare"].append(few / (time.perf_counter() - start))
    settings = {"programs": a.programs, "namespaces": not said}
    emit("code_reward", {"settings": settings, **{k: spread(v) for k, v in figures.items()}})


if __name__ == "__main__":
    main()
