"""Distils students by each objective; run by accelerate on two processes, or imported."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.data.tasks import Arithmetic
from posttrain.models import tiny_model, train_tokenizer
from posttrain.objectives import (
    DistillObjective,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SampledReverseKL,
)
from posttrain.rollout import Sampling
from posttrain.trainers import DistillConfig, train_on_policy_distillation

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
JOBS: dict[str, tuple[DistillObjective | SampledReverseKL, int]] = {
    "reverse": (ReverseKL(), 5),  # one process gets two prompts, the other three
    "forward": (ForwardKL(), 5),
    "jensen-shannon": (JensenShannon(0.3), 1),  # one process gets none
    "sampled": (SampledReverseKL(), 5),
}


def train_all(output: Path) -> None:
    """Distil each student in a stage of its own."""
    tokenizer = train_tokenizer(TEXTS, vocabulary=80)
    task = Arithmetic()
    with Runtime(output=output, seed=5) as run:
        for name, (objective, prompts_per_step) in JOBS.items():
            cfg = DistillConfig(
                objective=objective,
                sampling=Sampling(max_tokens=6),
                optimizer=AdamW(learning_rate=1e-2),
                steps=3,
                prompts_per_step=prompts_per_step,
                micro_batch=2,
            )
            student = tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)
            teacher = tiny_model(tokenizer, layers=2, width=16, heads=2, seed=2)
            with run.stage(name) as stage:
                train_on_policy_distillation(
                    cfg, student, teacher, task.train(), stage, reward=task.reward
                )


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
