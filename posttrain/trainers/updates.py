"""Updates of a policy on completions: log-probabilities, gradients, and what is logged of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from launch.metrics import Metric
from launch.runtime import Runtime
from posttrain.log_probs import (
    shared_prompt_log_probs_and_entropy,
    token_log_probs_and_entropy,
)
from posttrain.objectives.base import Objective, clip_limits, clips_sequences
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.statistics import policy_metrics, policy_statistics
from posttrain.rollout import RolloutBatch
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH
from rl.estimators import k3

if TYPE_CHECKING:
    from posttrain.trainers.policy import GRPOConfig

__all__ = [
    "Judging",
    "frozen_log_probs",
    "policy_log_probs",
    "prompt_lengths",
    "rows_per_pass",
    "token_sums",
    "update",
    "update_figures",
    "weighted",
]


def update(
    cfg: GRPOConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: RolloutBatch,
    run: Runtime,
) -> tuple[dict[str, Tensor], Tensor]:
    """Take the updates of one step; return sums over its tokens and the last gradient norm.

    Where a rollout serves one step, the policy before the first update is the old policy, so its
    log-probabilities cost nothing; otherwise ``batch`` brings them.
    """
    sums: dict[str, Tensor] = {}
    old_log_probs: list[Tensor] = []
    first = cfg.minibatches == 1
    scale = run.sum(cfg.objective.denominator(batch)).clamp(min=1)
    for number in range(cfg.updates_per_rollout):
        for index, rows in enumerate(run.micro_batches(batch, rows_per_pass(cfg, batch))):
            log_probs, entropy = policy_log_probs(cfg, model, rows, grouped=first)
            if number == 0:
                old_log_probs.append(log_probs.detach() if first else rows.old_log_probs)
            part = replace(rows, old_log_probs=old_log_probs[index])
            run.backward(cfg.objective(log_probs, weighted(cfg.mismatch, part)) / scale)
            for name, value in token_sums(cfg, log_probs.detach(), entropy, part).items():
                sums[name] = sums[name] + value if name in sums else value
        grad_norm = run.step(optimizer, cfg.max_grad_norm)
    return sums, grad_norm


def weighted(mismatch: Mismatch | None, rows: RolloutBatch) -> RolloutBatch:
    """Return the rows with advantages weighed against the mismatch.

    Every gain is proportional to its advantage, so this weighs the gains, and no KL penalty.
    """
    if mismatch is None or rows.engine_log_probs is None:
        return rows
    weights = mismatch(rows.old_log_probs, rows.engine_log_probs, rows.mask)
    return replace(rows, advantages=rows.advantages * weights)


def policy_log_probs(
    cfg: GRPOConfig, model: nn.Module, rows: RolloutBatch, *, grouped: bool = True
) -> tuple[Tensor, Tensor]:
    """Return ``(B, T)`` log-probabilities and entropies under the policy that is sampled from.

    Where the rows are whole groups, each prompt is computed once for its group; ``grouped`` tells
    whether they are in the order of their groups at all.
    """
    temperature = cfg.sampling.temperature
    if not grouped or len(rows) % cfg.group_size:
        return token_log_probs_and_entropy(model, rows.tokens, rows.mask, temperature=temperature)
    return shared_prompt_log_probs_and_entropy(
        model,
        rows.tokens,
        rows.mask,
        group_size=cfg.group_size,
        prompt_lengths=prompt_lengths(rows.mask, cfg.group_size),
        temperature=temperature,
    )


def prompt_lengths(mask: Tensor, group_size: int) -> Tensor:
    """Return ``(P,)``: how many columns come before the first that a group's rows train on.

    A row whose completion is left out has none, so its group is asked; of a group that is left out
    altogether, one column is as good as any.
    """
    wanted = mask.view(-1, group_size, mask.shape[1]).any(1)
    before = (~wanted).int().cumprod(-1).sum(-1)
    return torch.where(wanted.any(-1), before, 1)


@torch.no_grad()
def frozen_log_probs(
    cfg: GRPOConfig, model: nn.Module, batch: RolloutBatch, run: Runtime
) -> Tensor:
    """Return ``(B, T)`` log-probabilities of whole groups, without gradient, part by part.

    At the run's precision, so that they are comparable with those of the update.
    """
    precision = run.backend.autocast
    parts = [torch.zeros_like(batch.old_log_probs[:0])]
    with torch.autocast(run.device.type, dtype=precision, enabled=precision is not None):
        for rows in batch.split(rows_per_pass(cfg, batch)):
            parts.append(policy_log_probs(cfg, model, rows)[0])
    return torch.cat(parts)


def rows_per_pass(cfg: GRPOConfig, batch: RolloutBatch) -> int:
    """Return the completions of a forward pass: as asked, or whole groups that fill a core."""
    if cfg.micro_batch is not None:
        return cfg.micro_batch
    fitting = TOKENS_PER_MICRO_BATCH // max(1, batch.tokens.shape[1])
    return max(1, fitting // cfg.group_size) * cfg.group_size


class Judging(Protocol):
    """What the figures of an update read of a loop's config."""

    @property
    def objective(self) -> Objective:
        """The policy's."""
        ...

    @property
    def mismatch(self) -> Mismatch | None:
        """Weighs tokens by how far the engine is from the trainer."""
        ...


def token_sums(
    cfg: Judging, log_probs: Tensor, entropy: Tensor, rows: RolloutBatch
) -> dict[str, Tensor]:
    """Return what is logged of an update, as sums over tokens."""
    sequences = clips_sequences(cfg.objective)
    sums = policy_statistics(log_probs, rows, *clip_limits(cfg.objective), sequences=sequences)
    sums["entropy"] = torch.where(rows.mask, entropy, 0.0).sum()
    if rows.engine_log_probs is not None:
        gap = (rows.old_log_probs - rows.engine_log_probs).abs()
        sums["mismatch"] = torch.where(rows.mask, gap, 0.0).sum()
        divergence = k3(rows.engine_log_probs, rows.old_log_probs)
        sums["mismatch/kl"] = torch.where(rows.mask, divergence, 0.0).sum()
        if cfg.mismatch is not None:
            weights = cfg.mismatch(rows.old_log_probs, rows.engine_log_probs, rows.mask)
            sums["mismatch/weight"] = weights.sum()
            sums["mismatch/left_out"] = (rows.mask & (weights == 0)).sum()
    return sums


def update_figures(sums: Mapping[str, Tensor]) -> dict[str, Metric]:
    """Return means and quantiles of sums over all tokens of all processes."""
    tokens = sums["tokens"].clamp(min=1)
    names = [name for name in sums if name == "entropy" or name.startswith("mismatch")]
    means = {name: sums[name] / tokens for name in names}
    return {**means, **policy_metrics(sums)}
