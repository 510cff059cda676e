"""On-policy distillation: a student learns from a teacher's view of the student's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from launch.config import resumable
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Cosine, Schedule, set_learning_rate
from posttrain.architecture import keep_architecture
from posttrain.data.tasks import Prompt
from posttrain.log_probs import (
    token_divergences,
    token_log_probs,
    token_log_probs_and_entropy,
)
from posttrain.models import LanguageModel
from posttrain.objectives.distill import (
    DistillObjective,
    ReverseKL,
    SampledReverseKL,
    distillation_advantages,
)
from posttrain.rewards import Reward, Sample
from posttrain.rollout import Engine, RolloutBatch, Sampling
from posttrain.trainers.collection import Collected, Collector
from posttrain.trainers.policy import Probe, check_prompts
from posttrain.trainers.rollouts import as_batch, rollout_figures, sample_rows, stopping
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH, check_loop, check_micro_batch
from posttrain.vocabulary import check_alike, model_vocabulary

__all__ = ["DistillConfig", "train_on_policy_distillation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """On-policy distillation (Agarwal et al. 2024, arXiv:2306.13649, with lambda = 1)."""

    objective: DistillObjective | SampledReverseKL = field(default_factory=ReverseKL)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=512))
    """Of the student; its own stop tokens are used where none are given. The temperature divides
    the logits of both models where they are compared."""
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-6))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    steps: int = resumable(200)
    """Rounds of sampling, each with one update."""
    prompts_per_step: int = 32
    """P, over all processes."""
    group_size: int = 1
    """G, completions of each prompt; nothing compares them, so other prompts teach more."""
    micro_batch: int | None = None
    """Completions a forward pass on one process; memory only, never the result. None derives it."""
    max_grad_norm: float = 1.0
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""
    probe_every: int = resumable(0)
    """Steps between looks at held-out problems; 0 never looks."""
    samples_every: int = resumable(10)
    """Steps between completions written to ``samples.jsonl``; 0 writes none."""
    reward_seconds: float = resumable(600.0)
    """Wall-clock limit of one call of the reward; beyond it the run ends with an error."""
    dynamic_sampling: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        check_micro_batch(self.micro_batch)
        check_loop(
            self.max_grad_norm,
            save_every=self.save_every,
            probe_every=self.probe_every,
            samples_every=self.samples_every,
        )
        if not self.reward_seconds > 0:
            raise ValueError(f"reward_seconds={self.reward_seconds}: give a positive limit")
        sampled = isinstance(self.objective, SampledReverseKL)
        if not sampled and not isinstance(self.objective, DistillObjective):
            raise ValueError(
                f"objective is {type(self.objective).__name__}, which compares no two models: use "
                "ReverseKL, ForwardKL, JensenShannon or SampledReverseKL of posttrain.objectives"
            )
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature=0: the models are compared at the temperature of the "
                "samples, and at 0 there are no distributions to compare; use 1.0"
            )
        if sampled and (self.sampling.top_k > 0 or self.sampling.top_p < 1):
            raise ValueError(
                f"sampling.top_k={self.sampling.top_k}, sampling.top_p={self.sampling.top_p}: the "
                "sampled form needs tokens drawn from the student itself; use 0 and 1.0, or a "
                "divergence over the whole vocabulary"
            )


def train_on_policy_distillation(
    cfg: DistillConfig,
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: Sequence[Prompt],
    run: Runtime,
    *,
    reward: Reward | None = None,
    probe: Probe | None = None,
) -> None:
    """Draw ``student`` towards ``teacher`` on what the student writes, in place.

    The teacher is put on the run's device and into evaluation mode. ``reward`` is logged and
    trains nothing.

    Raises:
        UsageError: The two have other tokenizers, or there are fewer prompts than a step needs.
    """
    sampled = isinstance(cfg.objective, SampledReverseKL)
    check_alike(model_vocabulary(student), model_vocabulary(teacher), logits=not sampled)
    check_prompts(len(prompts), cfg.prompts_per_step)
    frozen = teacher.model.to(run.device).eval()
    keep_architecture(student.model, student.tokenizer, run)
    optimizer = cfg.optimizer.build(student.model)
    model, optimizer = run.prepare(student.model, optimizer)
    engine = Engine(student.model)
    sampling = stopping(cfg.sampling, student)
    collector = Collector(cfg, engine, student, prompts, sampling, reward or unscored, run)
    for step in run.steps(
        cfg.steps,
        state={"model": student.model, "optimizer": optimizer},
        save_every=cfg.save_every,
        headline=("kl", "length/mean", "entropy" if reward is None else "reward"),
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        with run.gathered(student.model):
            found = collector.collect(step)
        batch = as_batch(found.rollout).to(run.device)
        kl = entropy = torch.zeros((), device=run.device)
        with run.phase("update"):
            scale = run.sum(cfg.objective.denominator(batch)).clamp(min=1)
            for rows in run.micro_batches(batch, rows_per_pass(cfg, batch)):
                loss, divergences, entropies = compare(cfg, model, frozen, rows, run)
                run.backward(loss / scale)
                kl, entropy = kl + divergences.sum(), entropy + entropies.sum()
            grad_norm = run.step(optimizer, cfg.max_grad_norm)
        figures: dict[str, Metric] = {
            "loss": run.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "kl": Mean(kl, batch.mask.sum()),
            "entropy": Mean(entropy, batch.mask.sum()),
            **sample_figures(cfg, found, scored=reward is not None),
            "speed/tokens": Rate(batch.mask.sum()),
        }
        ends = cfg.probe_every > 0 and step in (1, cfg.steps)
        if probe is not None and (ends or run.due(step, cfg.probe_every)):
            with run.phase("probe"), run.gathered(student.model):
                figures |= probe(step, engine)
        run.log(step, figures)
        if cfg.samples_every and (step == 1 or run.due(step, cfg.samples_every)):
            run.samples(step, sample_rows(found.samples[:4], found.scores))


def compare(
    cfg: DistillConfig, model: nn.Module, teacher: nn.Module, rows: RolloutBatch, run: Runtime
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the objective's sum, and ``(B, T)`` of the reverse KL and of the student's entropy.

    The sampled form knows the reverse KL by its samples alone: log p - log q of each token.
    """
    temperature = cfg.sampling.temperature
    if not isinstance(cfg.objective, SampledReverseKL):
        between = cfg.objective.between
        found = token_divergences(
            model, teacher, rows.tokens, rows.mask, between, temperature=temperature
        )
        return cfg.objective(found.divergence, rows), found.kl, found.entropy
    log_probs, entropy = token_log_probs_and_entropy(
        model, rows.tokens, rows.mask, temperature=temperature
    )
    graded = teacher_log_probs(teacher, rows, temperature, run)
    advantages = distillation_advantages(log_probs, graded, rows.mask)
    rows = replace(rows, old_log_probs=log_probs.detach(), advantages=advantages)
    return cfg.objective(log_probs, rows), -advantages, entropy


@torch.no_grad()
def teacher_log_probs(
    teacher: nn.Module, rows: RolloutBatch, temperature: float, run: Runtime
) -> Tensor:
    """Return ``(B, T)`` nats of the sampled tokens, at the run's precision."""
    precision = run.backend.autocast
    with torch.autocast(run.device.type, dtype=precision, enabled=precision is not None):
        return token_log_probs(teacher, rows.tokens, rows.mask, temperature=temperature)


def sample_figures(cfg: DistillConfig, found: Collected, *, scored: bool) -> dict[str, Metric]:
    """Return what is logged of the completions; of their rewards only if they were scored."""
    figures = rollout_figures(found.rollout, found.samples, found.scores, cfg.group_size)
    del figures["groups/flat"]  # equal rewards hinder no distillation
    if not scored:
        del figures["reward"]
        return figures
    parts = {f"reward/{name}": Mean(x.sum(), len(x)) for name, x in found.parts.items()}
    return figures | parts


def unscored(samples: Sequence[Sample]) -> Tensor:
    """Return zeros: nothing is known of these completions but what the teacher thinks of them."""
    return torch.zeros(len(samples))


def rows_per_pass(cfg: DistillConfig, batch: RolloutBatch) -> int:
    """Return the completions of a forward pass: as asked, or as many as fill a core."""
    return cfg.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // max(1, batch.tokens.shape[1]))
