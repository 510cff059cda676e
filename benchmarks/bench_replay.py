"""Microseconds of the replay memory: a step added, over one and three steps, and a batch drawn.

Target: at most 15 us each, for one environment of four numbers and batches of 32.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces

from benchmarks.measure import emit, spread
from rl.replay import PrioritizedReplay, Replay

CAPACITY = 100_000
CALLS = 2_000
ROUNDS = 9


def microseconds(function: Callable[[], object]) -> dict[str, float]:
    """Return the processor's time of a call: the median of some rounds, and their range."""
    for _ in range(CALLS):
        function()
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            function()
        found.append((time.process_time() - start) / CALLS * 1e6)
    return spread(found)


def figures(kind: type[Replay], n_step: int) -> dict[str, dict[str, float]]:
    box = spaces.Box(-1.0, 1.0, (4,), np.float32)
    replay = kind(CAPACITY, box, spaces.Discrete(2), n_step=n_step, discount=0.99)
    seen, no, yes = np.ones((1, 4), np.float32), np.zeros(1, np.bool_), np.ones(1, np.bool_)
    actions, rewards = np.zeros(1, np.int64), np.ones(1)
    generator = np.random.default_rng(0)
    add = microseconds(lambda: replay.add(seen, actions, rewards, no, no, seen, yes))
    return {"add": add, "sample_32": microseconds(lambda: replay.sample(32, generator))}


def main() -> None:
    torch.set_num_threads(1)
    found = {
        f"{name}, n={n_step}": figures(kind, n_step)
        for name, kind in (("uniform", Replay), ("prioritized", PrioritizedReplay))
        for n_step in (1, 3)
    }
    emit("replay", {"microseconds": found}, ("torch", "numpy", "numba"))


if __name__ == "__main__":
    main()
