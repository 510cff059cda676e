"""Reinforcement learning of a language model from verifiable rewards: GRPO and its family."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from launch.config import resumable
from launch.errors import UsageError
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Cosine, Schedule, set_learning_rate
from posttrain.data.tasks.base import Task
from posttrain.log_probs import (
    shared_prompt_log_probs_and_entropy,
    token_log_probs_and_entropy,
)
from posttrain.models import LanguageModel
from posttrain.objectives import GRPO
from posttrain.objectives.base import (
    Objective,
    clip_limits,
    clips_sequences,
    needs_reference,
    with_chosen,
)
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.statistics import policy_metrics, policy_statistics
from posttrain.rewards import Reward
from posttrain.rollout import Engine, RolloutBatch, Sampling
from posttrain.trainers.advantages import Advantages, GroupRelative, LeaveOneOut, estimate
from posttrain.trainers.collection import Collector, DynamicSampling
from posttrain.trainers.rollouts import (
    FlatGroups,
    as_batch,
    rollout_figures,
    sample_rows,
    stopping,
    trained_mask,
)
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH, check_loop, check_micro_batch
from rl.estimators import k1, k3

__all__ = ["GRPOConfig", "Probe", "train_grpo"]

Probe = Callable[[int, Engine], Mapping[str, Metric]]
"""Looks at the policy between updates: takes the step and the engine, returns figures to log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOConfig:
    """Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300)."""

    objective: Objective = field(default_factory=GRPO)
    advantages: Advantages = field(default_factory=GroupRelative)
    dynamic_sampling: DynamicSampling | None = None
    """Replace groups of equal rewards, as DAPO does; None trains on what was drawn first."""
    mask_truncated: bool = False
    """Train on no completion that was cut off at max_tokens (DAPO's overlong filtering). Its
    reward still counts in its group."""
    kl_in_reward: float = 0.0
    """Subtract this times a completion's KL to the reference from its reward, as RLOO does; 0
    needs no reference model. An objective's ``kl_weight`` is a penalty beside it."""
    mismatch: Mismatch | None = None
    """Weighs tokens by how far the engine that sampled is from the trainer; None does not. The
    distance is logged either way."""
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=256))
    """The model's own stop tokens are used where none are given."""
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-6))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    steps: int = resumable(1_000)
    """Rollout-and-update rounds."""
    prompts_per_step: int = 16
    """P, over all processes."""
    group_size: int = 8
    """G, completions per prompt."""
    updates_per_rollout: int = 1
    """Optimizer updates on each rollout; 1 is on-policy."""
    micro_batch: int | None = None
    """Completions a forward pass on one process; memory only, never the result. None derives it;
    multiples of group_size compute each prompt once for its group."""
    max_grad_norm: float = 1.0
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""
    probe_every: int = resumable(0)
    """Steps between looks at held-out problems; 0 never looks."""
    samples_every: int = resumable(10)
    """Steps between groups written to ``samples.jsonl``; 0 writes none."""
    reward_seconds: float = resumable(600.0)
    """Wall-clock limit of one call of the reward; beyond it the run ends with an error."""
    allow_off_policy_sampling: bool = False
    """Train on completions cut by top-k or top-p, which the policy itself would draw otherwise."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: a group of one has no baseline, use >= 2"
            )
        for name in ("steps", "prompts_per_step", "updates_per_rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        check_micro_batch(self.micro_batch)
        check_loop(
            self.max_grad_norm,
            save_every=self.save_every,
            probe_every=self.probe_every,
            samples_every=self.samples_every,
        )
        if not 0 <= self.kl_in_reward < float("inf"):
            raise ValueError(f"kl_in_reward={self.kl_in_reward}: use a finite number of 0 or more")
        if not self.reward_seconds > 0:
            raise ValueError(f"reward_seconds={self.reward_seconds}: give a positive limit")
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature=0: greedy completions of a prompt are all the same, so "
                "no group has a spread to learn from; use 1.0"
            )
        cut = self.sampling.top_k > 0 or self.sampling.top_p < 1
        if cut and not self.allow_off_policy_sampling:
            raise ValueError(
                f"sampling.top_k={self.sampling.top_k}, sampling.top_p={self.sampling.top_p}: the "
                "log-probabilities that are trained know no cut, so the update would be "
                "off-policy; use 0 and 1.0, or set allow_off_policy_sampling"
            )


def train_grpo(
    cfg: GRPOConfig,
    lm: LanguageModel,
    task: Task,
    run: Runtime,
    *,
    reward: Reward | None = None,
    probe: Probe | None = None,
) -> None:
    """Improve ``lm`` on the task's reward, or on ``reward``, in place.

    Raises:
        UsageError: The task has fewer prompts than a step needs.
        ValueError: The reward returned something else than one finite number for each sample.
    """
    reward = task.reward if reward is None else reward
    prompts, sampling = task.train(), stopping(cfg.sampling, lm)
    check_prompts(len(prompts), cfg.prompts_per_step)
    compares = needs_reference(cfg.objective) or cfg.kl_in_reward > 0
    reference = copy.deepcopy(lm.model).eval().to(run.device) if compares else None
    optimizer = cfg.optimizer.build(lm.model)
    model, optimizer = run.prepare(lm.model, optimizer)
    engine = Engine(lm.model)
    collector = Collector(cfg, engine, lm, prompts, sampling, reward, run)
    flat_groups = FlatGroups(rounds=cfg.dynamic_sampling.rounds if cfg.dynamic_sampling else 0)
    run.print(about_loss(cfg))
    for step in run.steps(
        cfg.steps,
        state={"model": lm.model, "optimizer": optimizer},
        save_every=cfg.save_every,
        headline=("reward", "length/mean", "entropy"),
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        found = collector.collect(step)
        rollout, samples, scores = found.rollout, found.samples, found.scores
        batch = as_batch(rollout, trained_mask(rollout, cfg.mask_truncated)).to(run.device)
        if reference is not None:
            with run.phase("log_probs"):
                batch = with_reference(cfg, reference, batch)
        batch = with_advantages(cfg, batch, scores, run)
        stream = run.stream("chosen", step)
        batch = with_chosen(cfg.objective, batch, stream, gather=run.gather, rank=run.rank)
        with run.phase("update"):
            sums, grad_norm = update(cfg, model, optimizer, batch, run)
        figures: dict[str, Metric] = {
            "loss": run.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            **rollout_figures(rollout, samples, scores, cfg.group_size),
            **{f"reward/{name}": Mean(x.sum(), len(x)) for name, x in found.parts.items()},
            **found.figures,
            **update_figures({name: run.sum(x) for name, x in sums.items()}),
            "timeouts": run.sum(getattr(reward, "timeouts", 0)),
            "speed/tokens": Rate(rollout.mask.sum()),
        }
        ends = cfg.probe_every > 0 and step in (1, cfg.steps)
        if probe is not None and (ends or run.due(step, cfg.probe_every)):
            with run.phase("probe"):
                figures |= probe(step, engine)
        logged = run.log(step, figures)
        flat_groups.see(logged["groups/flat"], logged["reward"])
        if cfg.samples_every and (step == 1 or run.due(step, cfg.samples_every)):
            run.samples(step, sample_rows(samples[: cfg.group_size], scores))


def about_loss(cfg: GRPOConfig) -> str:
    """Return what to watch instead of the loss, and where it is so, that the loss is near zero.

    On-policy all ratios are 1, so GRPO's mean over each sequence is its advantage, and those of a
    group sum to zero. Where long sequences count more, as in DAPO, they need not.
    """
    cancels = isinstance(cfg.advantages, GroupRelative | LeaveOneOut)
    on_policy = cfg.updates_per_rollout == 1
    whole = not cfg.mask_truncated and cfg.mismatch is None
    watch = "Watch reward, length/mean, entropy and kl/old instead."
    plain = isinstance(cfg.objective, GRPO) and not cfg.objective.kl_weight
    if plain and cancels and on_policy and whole:
        return (
            "GRPO's loss is near zero by construction, because the advantages of a group sum to "
            f"zero. {watch}"
        )
    return f"The loss of a policy objective does not show progress. {watch}"


def update(
    cfg: GRPOConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: RolloutBatch,
    run: Runtime,
) -> tuple[dict[str, Tensor], Tensor]:
    """Take the updates of one rollout; return sums over its tokens and the last gradient norm.

    The policy before the first update is the old policy, so its log-probabilities cost nothing.
    """
    sums: dict[str, Tensor] = {}
    old_log_probs: list[Tensor] = []
    scale = run.sum(cfg.objective.denominator(batch)).clamp(min=1)
    for number in range(cfg.updates_per_rollout):
        for index, rows in enumerate(run.micro_batches(batch, rows_per_pass(cfg, batch))):
            log_probs, entropy = policy_log_probs(cfg, model, rows)
            if number == 0:
                old_log_probs.append(log_probs.detach())
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
    cfg: GRPOConfig, model: nn.Module, rows: RolloutBatch
) -> tuple[Tensor, Tensor]:
    """Return ``(B, T)`` log-probabilities and entropies under the policy that is sampled from.

    Where the rows are whole groups, each prompt is computed once for its group.
    """
    temperature = cfg.sampling.temperature
    if len(rows) % cfg.group_size:
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
def with_reference(cfg: GRPOConfig, reference: nn.Module, batch: RolloutBatch) -> RolloutBatch:
    """Return ``batch`` with the log-probabilities of the frozen reference."""
    parts = [torch.zeros_like(batch.old_log_probs[:0])]
    for rows in batch.split(rows_per_pass(cfg, batch)):
        parts.append(policy_log_probs(cfg, reference, rows)[0])
    return replace(batch, ref_log_probs=torch.cat(parts))


def with_advantages(
    cfg: GRPOConfig, batch: RolloutBatch, scores: Tensor, run: Runtime
) -> RolloutBatch:
    """Return ``batch`` with the advantages of ``(B,)`` rewards, less the KL where it is weighed."""
    if cfg.kl_in_reward:
        scores = scores - cfg.kl_in_reward * divergences(batch).to(scores)
    advantages = estimate(
        cfg.advantages,
        scores.view(-1, cfg.group_size),
        batch.mask.sum(-1).to(scores.device).view(-1, cfg.group_size),
        gather=run.gather,
        share=run.share(cfg.prompts_per_step),
    )  # (P, G)
    spread = advantages.view(-1, 1).to(batch.old_log_probs)
    return replace(batch, advantages=torch.where(batch.mask, spread, 0.0))


def divergences(batch: RolloutBatch) -> Tensor:
    r"""Return each completion's estimate of KL(policy || reference), ``(B,)`` nats, by k1.

    \sum_t (old_log_probs_t - ref_log_probs_t)
    """
    assert batch.ref_log_probs is not None
    return torch.where(batch.mask, k1(batch.old_log_probs, batch.ref_log_probs), 0.0).sum(-1)


def rows_per_pass(cfg: GRPOConfig, batch: RolloutBatch) -> int:
    """Return the completions of a forward pass: as asked, or whole groups that fill a core."""
    if cfg.micro_batch is not None:
        return cfg.micro_batch
    fitting = TOKENS_PER_MICRO_BATCH // max(1, batch.tokens.shape[1])
    return max(1, fitting // cfg.group_size) * cfg.group_size


def token_sums(
    cfg: GRPOConfig, log_probs: Tensor, entropy: Tensor, rows: RolloutBatch
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


def check_prompts(available: int, needed: int) -> None:
    """Raise UsageError if a step needs more prompts than the task has."""
    if available < needed:
        raise UsageError(
            f"the task has {available} prompts to train on, but prompts_per_step={needed}: a step "
            f"needs that many different ones; lower prompts_per_step to at most {available}"
        )
