"""Trains with all that needs the whole batch; run by accelerate on two processes, or imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.optimizers import AdamW
from launch.runtime import Runtime
from launch.schedule import Constant
from posttrain.data.tasks import Prompt
from posttrain.models import tiny_model, train_tokenizer
from posttrain.objectives import (
    CISPO,
    DAPO,
    GMPO,
    GRPO,
    GSPO,
    LUSPO,
    SAPO,
    ClipCov,
    DrGRPO,
    IcePop,
    KLCov,
    Objective,
    PolicyGradient,
)
from posttrain.rewards import Reward, Sample
from posttrain.rollout import Sampling
from posttrain.tools import ToolOutput, ToolUse
from posttrain.trainers import (
    BatchRelative,
    DynamicSampling,
    GroupRelative,
    GRPOConfig,
    ReinforcePlusPlus,
    train_grpo,
)
from posttrain.trainers.advantages import Advantages

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]


def answers(request: str) -> ToolOutput:
    """Outputs of unequal lengths."""
    return ToolOutput("7" * (len(request) % 3), failed=len(request) > 5)


TOOLS = ToolUse(tool=answers, opening="l", closing="s", before=" is ")
JOBS: dict[str, tuple[Objective, Advantages, int, ToolUse | None]] = {
    "clip-cov": (ClipCov(share=0.2, cov_low=0.0), ReinforcePlusPlus(), 1, None),
    "kl-cov": (KLCov(share=0.2), BatchRelative(), 1, None),
    "minibatches": (GRPO(kl_weight=0.1), GroupRelative(), 2, None),
    "tools": (GRPO(), GroupRelative(), 1, TOOLS),
}
"""Objective, advantages, the steps that a rollout serves, and a tool that random models call."""
EACH: dict[str, Objective] = {
    "grpo": GRPO(clip_low=0.02, clip_high=0.02),
    "grpo-kl": GRPO(kl_weight=0.1),
    "dapo": DAPO(),
    "dr-grpo": DrGRPO(max_length=6),
    "gspo": GSPO(),
    "cispo": CISPO(clip_high=0.02),
    "policy-gradient": PolicyGradient(),
    "sapo": SAPO(),
    "gmpo": GMPO(clip_low=0.02, clip_high=0.02),
    "luspo": LUSPO(),
    "clip-cov": ClipCov(share=0.2, cov_low=0.0),
    "kl-cov": KLCov(share=0.2),
}


def remainders(samples: Sequence[Sample]) -> torch.Tensor:
    """Spread for prompts with an odd answer alone."""
    return torch.tensor([sum(s.tokens) % 5 / 5 * (int(s.answer) % 2) for s in samples])


def spread(samples: Sequence[Sample]) -> torch.Tensor:
    """Spread for every prompt."""
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
    """Train each job in a stage of its own."""
    tokenizer = train_tokenizer(TEXTS, vocabulary=80)
    with Runtime(output=output, seed=5) as run:
        for name, (objective, advantages, minibatches, tools) in JOBS.items():
            cfg = GRPOConfig(
                objective=objective,
                advantages=advantages,
                tools=tools,
                mismatch=IcePop(0.5, 5.0),
                dynamic_sampling=DynamicSampling(rounds=6),
                mask_truncated=True,
                sampling=Sampling(
                    max_tokens=6 if tools is None else 16, stop_tokens=tuple(range(10, 16))
                ),
                optimizer=AdamW(learning_rate=1e-2),
                steps=3,
                prompts_per_step=5,
                group_size=4,
                minibatches=minibatches,
                updates_per_rollout=2,
                save_every=1,
                samples_every=0,
            )
            lm = tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)
            with run.stage(name) as stage:
                train_grpo(cfg, lm, Sums(), stage)
        train_each(run)


def train_each(run: Runtime, micro_batch: int | None = None) -> None:
    """Take one step of two updates with every objective, each in a stage of its own.

    AdamW with an eps of 1 moves weights by about their gradients. So the second loss, whose ratios
    are not 1, depends on the first gradients smoothly; a usual eps would take their signs.
    """
    tokenizer = train_tokenizer(TEXTS, vocabulary=80)
    for name, objective in EACH.items():
        cfg = GRPOConfig(
            objective=objective,
            mismatch=IcePop(0.5, 5.0),
            sampling=Sampling(max_tokens=6, stop_tokens=tuple(range(10, 16))),
            optimizer=AdamW(learning_rate=0.5, eps=1.0),
            schedule=Constant(),
            steps=1,
            prompts_per_step=5,
            group_size=4,
            updates_per_rollout=2,
            micro_batch=micro_batch,
            samples_every=0,
        )
        lm = tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)
        with run.stage(f"each-{name}") as stage:
            train_grpo(cfg, lm, Sums(spread), stage)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
