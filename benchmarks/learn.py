"""``make learn``: the stated scores over three seeds, with the controls that they are held against.

Every row is a run of ``monro run`` in its own process. Prints a line for each run, then a table and
one JSON line; exits with 1 if a stated score is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import emit

Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A recipe with its flags, and what every seed of it must reach."""

    name: str
    recipe: str
    flags: Sequence[str] = ()
    seeds: int = 3
    reaches: Callable[[Figures], bool] = lambda _: True
    stated: str = ""


def _r1_mini(f: Figures) -> bool:
    return (
        f["before/pass@1"] <= 0.40
        and f["pass@1"] >= 0.90
        and f["greedy"] >= 0.95
        and f["length/mean"] >= 1.8 * f["before/length/mean"]
        and f["share/reasoning"] >= 0.97
        and f["seconds"] <= 360
    )


RANDOM = '{_type: "posttrain.recipes.controls:RandomReward"}'
CASES = (
    Case(
        "r1-mini",
        "r1-mini",
        reaches=_r1_mini,
        stated="pass@1 <= .40 -> >= .90, greedy >= .95, length x 1.8, >= 97% reason, <= 6 min",
    ),
    Case(
        "r1-zero-mini",
        "r1-zero-mini",
        reaches=lambda f: f["greedy"] >= 0.85 and f["pass@1"] >= 0.65 and f["seconds"] <= 600,
        stated="greedy >= .85, pass@1 >= .65, <= 10 min",
    ),
    Case("control: reasons from the start", "r1-mini-control"),
    Case(
        "control: random rewards",
        "r1-mini",
        ("--reward", RANDOM),
        reaches=lambda f: f["pass@1"] - f["before/pass@1"] <= 0.05,
        stated="gains at most .05",
    ),
    Case("control: format reward alone", "r1-mini", ("--reward", "format")),
    Case(
        "control: cold start prolonged by the same compute",
        "r1-mini",
        ("--cold_start.steps", "2600", "--grpo.steps", "1", "--grpo.optimizer.learning_rate", "0"),
    ),
)


def run(case: Case, seed: int, folder: Path) -> Figures:
    """Run one seed and return its final figures, with those before GRPO as ``before/...``."""
    output = folder / f"{case.name.replace(' ', '-').replace(':', '')}-{seed}"
    command = [sys.executable, "-m", "launch", "run", case.recipe, "--output", str(output)]
    command += ["--overwrite", "--seed", str(seed), *case.flags]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    before, after = (json.loads(line) for line in lines)
    figures = after | {f"before/{name}": value for name, value in before.items()}
    return figures | {"seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seeds", type=int, default=0, help="0: as each case states")
    parser.add_argument("--output", type=Path, default=Path("runs/learn"))
    a = parser.parse_args()
    rows, missed = [], []
    shown = ("before/pass@1", "pass@1", "greedy", "length/mean", "share/reasoning")
    for case in (c for c in CASES if a.only in c.name):
        results = []
        for seed in range(a.seeds or case.seeds):
            figures = run(case, seed, a.output)
            results.append(figures)
            reached = case.reaches(figures)
            missed += [] if reached else [f"{case.name}, seed {seed}"]
            told = "  ".join(f"{name} {figures[name]:.3f}" for name in (*shown, "seconds"))
            print(f"{case.name}, seed {seed}: {told}{'' if reached else '  MISSED'}", flush=True)
        medians = {name: statistics.median(r[name] for r in results) for name in results[0]}
        spread = {
            name: [min(r[name] for r in results), max(r[name] for r in results)]
            for name in (*shown, "seconds")
        }
        rows.append({"case": case.name, "stated": case.stated, "median": medians, "range": spread})
    emit("learn", {"cases": rows, "missed": missed}, ("torch",))
    if missed:
        raise SystemExit(f"stated scores were missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
