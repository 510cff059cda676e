"""Rounds of sampling: a model answers prompts, and what becomes of the answers is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from launch.checkpoint import Stateful
from launch.config import resumable
from launch.runtime import Runtime
from posttrain.data.order import shuffled
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel
from posttrain.rewards import Reward
from posttrain.rollout import Engine, Sampling
from posttrain.trainers.collection import Collected, Collector
from posttrain.trainers.policy import check_prompts
from posttrain.trainers.rollouts import sample_rows, stopping
from posttrain.trainers.supervised import check_loop

__all__ = ["RoundsConfig", "sampled_rounds", "summed_counts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsConfig:
    """How many completions are drawn, of how many prompts."""

    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512))
    """The model's own stop tokens are used where none are given."""
    steps: int = 100
    """Rounds of sampling."""
    prompts_per_step: int = 32
    """Over all processes; no prompt comes twice before each has come once."""
    group_size: int = 4
    """Completions of each prompt."""
    right: float = 1.0
    """Least reward of a right completion."""
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""
    samples_every: int = resumable(10)
    """Steps between completions written to ``samples.jsonl``; 0 writes none."""
    reward_seconds: float = resumable(600.0)
    """Wall-clock limit of one call of the reward; beyond it the run ends with an error."""
    dynamic_sampling: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        check_loop(1.0, save_every=self.save_every, samples_every=self.samples_every)
        if not self.reward_seconds > 0:
            raise ValueError(f"reward_seconds={self.reward_seconds}: give a positive limit")


def sampled_rounds(
    cfg: RoundsConfig,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward,
    run: Runtime,
    *,
    kept: Stateful,
    headline: Sequence[str],
) -> Iterator[tuple[int, Collected, list[int]]]:
    """Yield each round's step, this process's completions, and which prompt each answers.

    Args:
        cfg: How much is sampled.
        lm: Is put on the run's device.
        prompts: To answer; their answers are for the reward.
        reward: Scores.
        run: Where to sample.
        kept: What whoever asks for rounds makes of them; is saved and restored.
        headline: Figures that the display shows.

    Raises:
        UsageError: There are too few prompts.
    """
    check_prompts(len(prompts), cfg.prompts_per_step)
    lm.model.to(run.device)
    sampling = stopping(cfg.sampling, lm)
    collector = Collector(cfg, Engine(lm.model), lm, prompts, sampling, reward, run)
    for step in run.steps(
        cfg.steps, state={"kept": kept}, save_every=cfg.save_every, headline=headline
    ):
        found = collector.collect(step)
        share = run.share(cfg.prompts_per_step)
        start = (step - 1) * cfg.prompts_per_step + share.start
        order = shuffled(len(prompts), start, len(share), run.seed)
        yield step, found, [order[i // cfg.group_size] for i in range(len(found.samples))]
        if cfg.samples_every and (step == 1 or run.due(step, cfg.samples_every)):
            run.samples(step, sample_rows(found.samples[: cfg.group_size], found.scores))


def summed_counts(counts: Mapping[str, int], run: Runtime) -> dict[str, int]:
    """Return the counts of all processes together; each has the same names."""
    total = run.sum(torch.tensor(list(counts.values()))).tolist()
    return dict(zip(counts, map(int, total), strict=True))
