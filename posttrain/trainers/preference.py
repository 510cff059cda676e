"""Preference optimisation on pairs of completions: DPO and its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.config import resumable
from launch.errors import UsageError
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Cosine, Schedule, set_learning_rate
from posttrain.adapters import check_undropped, trained_state
from posttrain.data.order import shuffled
from posttrain.data.preferences import Pair, PreferenceBatch, pad_pairs, unrelated_pairs
from posttrain.log_probs import shared_prompt_log_probs, token_log_probs
from posttrain.objectives.base import needs_reference
from posttrain.objectives.preference import (
    DPO,
    PreferenceObjective,
    kto_reference_point,
    needs_reference_point,
)
from posttrain.trainers.references import Reference, reference_of
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH, check_loop, check_micro_batch

__all__ = ["PreferenceConfig", "train_preferences"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and its family."""

    objective: PreferenceObjective = field(default_factory=DPO)
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-6))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    steps: int = resumable(1_000)
    """Optimizer updates."""
    pairs_per_step: int = 32
    """Over all processes."""
    row_length: int = 1_024
    """Most tokens of a prompt with its completion; a longer one is an error."""
    micro_batch: int | None = None
    """Pairs a forward pass on one process; memory only, never the result. None derives it."""
    offload_reference: bool = resumable(False)
    """Keep the reference on the CPU between its passes; slower, memory of the GPU only."""
    max_grad_norm: float = 1.0
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""
    heldout_every: int = resumable(0)
    """Steps between looks at held-out pairs, beside the first and the last step; 0 never looks."""

    def __post_init__(self) -> None:
        if not isinstance(self.objective, PreferenceObjective):
            raise ValueError(
                f"objective is {type(self.objective).__name__}, which compares no pairs: use DPO, "
                "IPO, SimPO, ORPO or KTO of posttrain.objectives, or one with their three methods"
            )
        for name in ("steps", "pairs_per_step", "row_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if self.pairs_per_step < 2 and needs_reference_point(self.objective):
            raise ValueError(
                f"pairs_per_step={self.pairs_per_step}: this objective's reference point is "
                "estimated on prompts with completions of other pairs, so use >= 2"
            )
        check_micro_batch(self.micro_batch)
        check_loop(self.max_grad_norm, save_every=self.save_every, heldout_every=self.heldout_every)


def train_preferences(
    cfg: PreferenceConfig,
    model: nn.Module,
    pairs: Sequence[Pair],
    run: Runtime,
    *,
    heldout: Sequence[Pair] = (),
) -> None:
    """Train ``model`` on ``pairs`` of documents, the chosen one first, in place.

    The reference is the model as it is given, frozen: a copy, or the model with its adapters off;
    an objective that compares with none costs none. ``heldout`` pairs are looked at every
    ``cfg.heldout_every`` steps.

    Raises:
        ValueError: There are no pairs, a document is too long, or none of its tokens counts.
    """
    check_pairs(cfg, pairs)
    check_undropped(model, "preference training")
    compares = needs_reference(cfg.objective)
    offload = cfg.offload_reference
    reference = reference_of(model, run.device, offload=offload) if compares else None
    optimizer = cfg.optimizer.build(model)
    prepared, optimizer = run.prepare(model, optimizer)
    state: dict[str, Stateful] = {"model": trained_state(model), "optimizer": optimizer}
    for step in run.steps(
        cfg.steps, state=state, save_every=cfg.save_every, headline=("loss", "accuracy")
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        with run.phase("data"):
            mine = step_pairs(cfg, pairs, step, run)
            batch = pad_pairs([pairs[i] for i, _ in mine]).to(run.device)
        with run.phase("log_probs"):
            batch = with_reference(cfg, reference, batch, run)
            seen: dict[str, Metric] = {}
            if needs_reference_point(cfg.objective):
                others = unrelated_pairs([(pairs[i], pairs[j]) for i, j in mine], cfg.row_length)
                with run.gathered(model):
                    point = reference_point(cfg, model, reference, others, run)
                batch = replace(batch, reference_point=point.expand(len(batch.tokens)))
                seen["reference_point"] = point
        with run.phase("update"):
            scale = run.sum(cfg.objective.denominator(batch)).clamp(min=1)
            rewards = []
            for part in run.micro_batches(batch, pairs_per_pass(cfg, batch)):
                log_probs = pair_log_probs(prepared, part)
                run.backward(cfg.objective(log_probs, part) / scale)
                rewards.append(cfg.objective.rewards(log_probs.detach(), part))
            grad_norm = run.step(optimizer, cfg.max_grad_norm)
        figures: dict[str, Metric] = {
            "loss": run.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            **reward_figures(torch.cat(rewards)),
            **seen,
            "tokens": run.sum(batch.mask.sum()),
            "speed/tokens": Rate(batch.mask.sum()),
        }
        ends = cfg.heldout_every > 0 and step in (1, cfg.steps)
        if len(heldout) and (ends or run.due(step, cfg.heldout_every)):
            with run.phase("heldout"), run.gathered(model):
                figures |= heldout_figures(cfg, model, reference, heldout, run)
        run.log(step, figures)


def check_pairs(cfg: PreferenceConfig, pairs: Sequence[Pair]) -> None:
    """Raise UsageError if a document is too long or cannot be used; of lazy ones, see the first."""
    check_pair_lengths(pairs, cfg.row_length)
    if len(pairs) < 2 and needs_reference_point(cfg.objective):
        raise UsageError(
            "there is one pair, but this objective's reference point is estimated on prompts with "
            "completions of other pairs: give at least two, or another objective"
        )


def check_pair_lengths(pairs: Sequence[Pair], row_length: int) -> None:
    """Raise UsageError if there is no pair, or a document is too long; of lazy ones, the first."""
    if not len(pairs):
        raise UsageError("there are no pairs to learn from: give at least one")
    for index, pair in enumerate(pairs if isinstance(pairs, list) else pairs[:1]):
        for kind, document in zip(("chosen", "rejected"), pair, strict=True):
            if len(document) > row_length:
                raise UsageError(
                    f"pair {index}: the {kind} document has {len(document)} tokens, but "
                    f"row_length={row_length}: documents are never cut, so raise row_length or "
                    "leave the pair out"
                )


def step_pairs(
    cfg: PreferenceConfig, pairs: Sequence[Pair], step: int, run: Runtime
) -> list[tuple[int, int]]:
    """Return this process's share of a step's pairs, each with the one that follows in the step.

    Both are indices of ``pairs``; after a step's last pair comes its first.
    """
    start = (step - 1) * cfg.pairs_per_step
    order = shuffled(len(pairs), start, cfg.pairs_per_step, run.seed)
    return [(order[i], order[(i + 1) % len(order)]) for i in run.share(cfg.pairs_per_step)]


def pair_log_probs(model: nn.Module, batch: PreferenceBatch) -> Tensor:
    """Return ``(B, T)`` nats at the completions; a pair's common prompt is computed once."""
    lengths = shared_lengths(batch)
    if not len(batch) or not bool(lengths.all()):  # a pair without a common first token
        return token_log_probs(model, batch.tokens, batch.mask)
    return shared_prompt_log_probs(
        model, batch.tokens, batch.mask, group_size=2, prompt_lengths=lengths
    )


def shared_lengths(batch: PreferenceBatch) -> Tensor:
    """Return ``(B / 2,)``: columns in which a pair's rows are alike, before either one counts."""
    alike = (batch.tokens[::2] == batch.tokens[1::2]) & ~batch.mask[::2] & ~batch.mask[1::2]
    return alike.int().cumprod(-1).sum(-1)


@torch.no_grad()
def frozen_log_probs(
    cfg: PreferenceConfig, model: nn.Module, batch: PreferenceBatch, run: Runtime
) -> Tensor:
    """Return ``pair_log_probs`` without gradient, at the run's precision and part by part."""
    precision = run.backend.autocast
    parts = [torch.zeros_like(batch.tokens[:0], dtype=torch.float32)]
    with torch.autocast(run.device.type, dtype=precision, enabled=precision is not None):
        for part in batch.split(pairs_per_pass(cfg, batch)):
            parts.append(pair_log_probs(model, part))
    return torch.cat(parts)


def with_reference(
    cfg: PreferenceConfig, reference: Reference | None, batch: PreferenceBatch, run: Runtime
) -> PreferenceBatch:
    """Return ``batch`` with the log-probabilities of the frozen reference, if there is one."""
    if reference is None:
        return batch
    with reference.using() as frozen:
        return replace(batch, ref_log_probs=frozen_log_probs(cfg, frozen, batch, run))


def reference_point(
    cfg: PreferenceConfig,
    model: nn.Module,
    reference: Reference | None,
    others: Sequence[Pair],
    run: Runtime,
) -> Tensor:
    """Return z_0 in nats, a scalar, of all processes' prompts with completions not theirs."""
    assert reference is not None, "an objective with a reference point compares with a reference"
    batch = with_reference(cfg, reference, pad_pairs(others).to(run.device), run)
    assert batch.ref_log_probs is not None
    log_probs = frozen_log_probs(cfg, model, batch, run)
    sums = torch.stack([log_probs.sum(-1), batch.ref_log_probs.sum(-1)], dim=-1)  # (B, 2)
    policy, frozen = run.gather(sums).unsqueeze(1).unbind(-1)  # as rows of one token
    return kto_reference_point(policy, frozen, torch.ones_like(policy, dtype=torch.bool))


def reward_figures(rewards: Tensor) -> dict[str, Metric]:
    """Return what is logged of ``(B,)`` implicit rewards; equal ones are not in the right order."""
    chosen, rejected = rewards.double().view(-1, 2).unbind(-1)
    count = len(chosen)
    return {
        "accuracy": Mean((chosen > rejected).sum(), count),
        "reward/chosen": Mean(chosen.sum(), count),
        "reward/rejected": Mean(rejected.sum(), count),
        "reward/margin": Mean((chosen - rejected).sum(), count),
    }


def heldout_figures(
    cfg: PreferenceConfig,
    model: nn.Module,
    reference: Reference | None,
    heldout: Sequence[Pair],
    run: Runtime,
) -> dict[str, Metric]:
    """Return rewards on held-out pairs, and how often the model itself ranks them right."""
    mine = [heldout[i] for i in run.share(len(heldout))]
    batch = with_reference(cfg, reference, pad_pairs(mine).to(run.device), run)
    log_probs = frozen_log_probs(cfg, model, batch, run)
    figures = reward_figures(cfg.objective.rewards(log_probs, batch))
    likelier = log_probs.sum(-1).view(-1, 2)
    return {
        "heldout/accuracy": figures["accuracy"],
        "heldout/margin": figures["reward/margin"],
        "heldout/ranking": Mean((likelier[:, 0] > likelier[:, 1]).sum(), len(likelier)),
    }


def pairs_per_pass(cfg: PreferenceConfig, batch: PreferenceBatch) -> int:
    """Return the pairs of a forward pass: as asked, or as many as fill a core."""
    longest = max(1, batch.tokens.shape[1])
    return cfg.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // (2 * longest))
