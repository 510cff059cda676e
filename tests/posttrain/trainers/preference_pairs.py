"""Trains preference objectives and reward models; run on two processes, or imported."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair
from posttrain.data.step_labels import StepDocument
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import DPO, IPO, KTO, ORPO, BradleyTerry, PreferenceObjective, SimPO
from posttrain.process_reward_models import process_model
from posttrain.reward_models import outcome_model
from posttrain.trainers import (
    PreferenceConfig,
    ProcessRewardConfig,
    RewardModelConfig,
    train_preferences,
    train_process_reward_model,
    train_reward_model,
)

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
JOBS: dict[str, tuple[PreferenceObjective, int]] = {
    "dpo": (DPO(), 5),  # one process gets two pairs, the other three
    "ipo": (IPO(), 5),
    "simpo": (SimPO(), 1),  # one process gets none
    "orpo": (ORPO(), 5),
    "kto": (KTO(beta=0.5), 5),
}
REWARDS = {"pairs-5": 5, "pairs-1": 1, "steps-5": 5, "steps-1": 1}
"""Reward models, from so many pairs or solutions a step."""


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
        lm = tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)
        for name, count in REWARDS.items():
            with run.stage(name) as stage:
                if name.startswith("pairs"):
                    train_on_pairs(lm, pairs, count, stage)
                else:
                    train_on_steps(lm, pairs, count, stage)


def train_on_pairs(lm: LanguageModel, pairs: list[Pair], count: int, run: Runtime) -> None:
    """Train a reward model with ``count`` pairs a step."""
    cfg = RewardModelConfig(
        objective=BradleyTerry(centring=0.1),
        optimizer=AdamW(learning_rate=1e-2),
        steps=4,
        pairs_per_step=count,
        micro_batch=2,
        heldout_every=2,
    )
    train_reward_model(cfg, outcome_model(lm).model, pairs[:-3], run, heldout=pairs[-3:])


def train_on_steps(lm: LanguageModel, pairs: list[Pair], count: int, run: Runtime) -> None:
    """Train a process reward model with ``count`` solutions of one to three steps a step."""
    solutions = [
        StepDocument(
            x.tokens, range(1, 2 + i % 3), [(i % 2, 0.25, 0.75)[j] for j in range(1 + i % 3)]
        )
        for i, (x, _) in enumerate(pairs)
    ]
    cfg = ProcessRewardConfig(
        optimizer=AdamW(learning_rate=1e-2),
        steps=4,
        solutions_per_step=count,
        micro_batch=2,
        heldout_every=2,
    )
    model = process_model(lm).model
    train_process_reward_model(cfg, model, solutions[:-3], run, heldout=solutions[-3:])


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
