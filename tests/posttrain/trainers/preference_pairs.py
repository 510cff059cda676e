"""Trains each preference objective; run by accelerate on two processes, or imported."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair
from posttrain.models import tiny_model, train_tokenizer
from posttrain.objectives import DPO, IPO, KTO, ORPO, PreferenceObjective, SimPO
from posttrain.trainers import PreferenceConfig, train_preferences

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
JOBS: dict[str, tuple[PreferenceObjective, int]] = {
    "dpo": (DPO(), 5),  # one process gets two pairs, the other three
    "ipo": (IPO(), 5),
    "simpo": (SimPO(), 1),  # one process gets none
    "orpo": (ORPO(), 5),
    "kto": (KTO(beta=0.5), 5),
}


def train_all(output: Path) -> None:
    """Train each job in a stage of its own, on completions of unequal lengths."""
    tokenizer = train_tokenizer(TEXTS, vocabulary=80)

    def document(prompt: str, completion: str) -> Document:
        start, rest = tokenizer.encode(prompt), tokenizer.encode(completion)
        return Document(start + rest, [False] * len(start) + [True] * len(rest))

    pairs: list[Pair] = []
    for a in range(12):
        prompt = "1 plus " * (a % 3) + f"{a} is"
        pairs.append((document(prompt, f" {a}"), document(prompt, " is" * (a % 4 + 1))))
    with Runtime(output=output, seed=5) as run:
        for name, (objective, pairs_per_step) in JOBS.items():
            cfg = PreferenceConfig(
                objective=objective,
                optimizer=AdamW(learning_rate=1e-2),
                steps=4,
                pairs_per_step=pairs_per_step,
                micro_batch=2,
                heldout_every=2,
            )
            lm = tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)
            with run.stage(name) as stage:
                train_preferences(cfg, lm.model, pairs[:-3], stage, heldout=pairs[-3:])


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
