"""Trains with both kinds of critic; run by accelerate on two processes, or imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.critics import Critic, SecondModel, ValueHead
from posttrain.data.tasks import Prompt
from posttrain.models import tiny_model, train_tokenizer
from posttrain.rewards import Reward, Sample
from posttrain.rollout import Sampling
from posttrain.trainers import ActorCriticConfig, train_actor_critic

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
JOBS: dict[str, Critic] = {
    "head": ValueHead(optimizer=AdamW(learning_rate=1e-2)),
    "model": SecondModel(optimizer=AdamW(learning_rate=1e-3)),
}


def remainders(samples: Sequence[Sample]) -> torch.Tensor:
    """Pay for something that a process cannot foresee."""
    return torch.tensor([sum(s.tokens) % 5 / 5 for s in samples])


@dataclass
class Sums:
    """Prompts of unequal lengths, so that processes pad differently."""

    reward: Reward = remainders

    def train(self) -> list[Prompt]:
        """Return the prompts."""
        return [Prompt(text="1 plus " * (i % 3) + f"{i} is", answer=str(i)) for i in range(20)]

    def heldout(self) -> list[Prompt]:
        """Return none."""
        return []


def train_all(output: Path) -> None:
    """Train with each critic in a stage of its own; one process has two rows, the other three."""
    tokenizer = train_tokenizer(TEXTS, vocabulary=80)
    with Runtime(output=output, seed=5) as run:
        for name, critic in JOBS.items():
            cfg = ActorCriticConfig(
                critic=critic,
                kl_in_reward=0.05,
                mask_truncated=True,
                sampling=Sampling(max_tokens=6, stop_tokens=tuple(range(10, 16))),
                optimizer=AdamW(learning_rate=1e-2),
                steps=4,
                prompts_per_step=5,
                epochs=2,
                minibatches=3,
                samples_every=0,
            )
            lm = tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)
            with run.stage(name) as stage:
                train_actor_critic(cfg, lm, Sums(), stage)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
