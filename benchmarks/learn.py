"""``make learn``: the stated scores over several seeds, with the controls they are held against.

Every row is a run of ``monro run`` in its own process. The policies that agents leave are judged on
100 episodes that training did not see. Prints a line for each run, then one JSON line with medians,
means, their 95% bootstrap intervals and ranges; exits with 1 if a stated score is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.learn_cases import CASES, Case, Figures
from benchmarks.measure import emit
from rl.scores import bootstrap_interval


def run(case: Case, seed: int, folder: Path) -> Figures:
    """Run one seed and return its figures, with its seconds, the wall's and the processor's."""
    output = folder / f"{case.name.replace(' ', '-').replace(':', '')}-{seed}"
    start, used = time.perf_counter(), children_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments(case, seed, output)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(done.args)} failed:\n{done.stderr[-3000:]}")
    seconds = time.perf_counter() - start
    cpu_seconds = children_seconds() - used
    return case.figures(output, seed) | {"seconds": seconds, "cpu_seconds": cpu_seconds}


def children_seconds() -> float:
    """Return the processor time of all processes that this one has started and seen end."""
    times = os.times()
    return times.children_user + times.children_system


def arguments(case: Case, seed: int | str, output: Path) -> list[str]:
    """Return what follows ``monro``."""
    given = ["run", case.recipe, "--output", str(output), "--overwrite", "--seed", str(seed)]
    return [*given, *case.flags]


def over_seeds(case: Case, results: Sequence[Figures], folder: Path) -> dict[str, object]:
    """Return a row of the table: what is shown of each seed, and its mean, interval and range."""
    seen = {name: [r[name] for r in results] for name in case.shown}
    return {
        "case": case.name,
        "command": f"monro {' '.join(arguments(case, 'SEED', folder / case.name))}",
        "stated": case.stated,
        "seeds": {name: [float(f"{x:.5g}") for x in values] for name, values in seen.items()},
        "median": {name: statistics.median(values) for name, values in seen.items()},
        "mean": {name: statistics.fmean(values) for name, values in seen.items()},
        "mean_95%": {
            name: bootstrap_interval(values, lambda x: float(np.mean(x)))
            for name, values in seen.items()
        },
        "range": {name: [min(values), max(values)] for name, values in seen.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seeds", type=int, default=0, help="0: as each case states")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--output", type=Path, default=Path("runs/learn"))
    a = parser.parse_args()
    rows, missed = [], []
    for case in (c for c in CASES if a.only in c.name):
        results = []
        for seed in range(a.seed, a.seed + (a.seeds or case.seeds)):
            figures = run(case, seed, a.output)
            results.append(figures)
            reached = case.reaches(figures)
            missed += [] if reached else [f"{case.name}, seed {seed}"]
            told = "  ".join(f"{name} {figures[name]:.5g}" for name in case.shown)
            print(f"{case.name}, seed {seed}: {told}{'' if reached else '  MISSED'}", flush=True)
        means = {name: statistics.fmean(r[name] for r in results) for name in results[0]}
        missed += [] if case.reaches_on_average(means) else [f"{case.name}, mean over seeds"]
        rows.append(over_seeds(case, results, a.output))
    emit("learn", {"cases": rows, "missed": missed}, ("torch",))
    if missed:
        raise SystemExit(f"stated scores were missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
