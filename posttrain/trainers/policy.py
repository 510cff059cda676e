"""Reinforcement learning of a language model from verifiable rewards: GRPO and its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from posttrain.architecture import keep_architecture
from posttrain.data.tasks.base import Task
from posttrain.eval.run import Generates
from posttrain.models import LanguageModel
from posttrain.objectives import GRPO
from posttrain.objectives.base import Objective, needs_reference, with_chosen
from posttrain.objectives.mismatch import Mismatch
from posttrain.rewards import Reward
from posttrain.rollout import Engine, RolloutBatch, Sampling
from posttrain.rollout.tool_engine import ToolEngine
from posttrain.rollout.vllm_engine import VLLM, VLLMEngine
from posttrain.tools import ToolUse
from posttrain.trainers.advantages import (
    Advantages,
    GroupRelative,
    LeaveOneOut,
    OfTokens,
    estimate,
)
from posttrain.trainers.collection import Collected, Collector, DynamicSampling
from posttrain.trainers.minibatches import Minibatches
from posttrain.trainers.references import Reference, reference_of
from posttrain.trainers.rollouts import (
    FlatGroups,
    as_batch,
    rollout_figures,
    sample_rows,
    stopping,
    tool_figures,
    trained_mask,
)
from posttrain.trainers.supervised import check_loop, check_micro_batch
from posttrain.trainers.updates import frozen_log_probs, update, update_figures
from rl.estimators import k1

__all__ = ["GRPOConfig", "Probe", "train_grpo"]

NO_REFERENCE = (
    "no reference is used, since neither the objective's kl_weight nor kl_in_reward is above 0; "
    "set one of them, or leave refresh_every at 0"
)
Probe = Callable[[int, Generates], Mapping[str, Metric]]
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
    tools: ToolUse | None = None
    """A tool that completions may call, its output being part of them but not trained on."""
    rollouts: VLLM | None = None
    """Servers that draw the completions, and are given the policy before each rollout; None draws
    them with the trainer's own parameters."""
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-6))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    max_tokens_after: Mapping[int, int] = field(default_factory=dict)
    """From step to limit: completions drawn after that step may be so long."""
    steps: int = resumable(1_000)
    """Each trains on ``prompts_per_step * group_size`` completions."""
    prompts_per_step: int = 16
    """P, over all processes."""
    group_size: int = 8
    """G, completions per prompt."""
    minibatches: int = 1
    """Steps that a rollout serves: it is drawn for all of them at once, then shuffled, and each
    takes its part. With 1 a step samples for itself."""
    updates_per_rollout: int = 1
    """Optimizer updates of a step, all on the same completions; 1 is on-policy."""
    refresh_every: int = 0
    """Steps after which the reference becomes the policy as it is then; 0 keeps the first one. A
    rollout that serves several steps keeps the reference that it was compared with."""
    offload_reference: bool = resumable(False)
    """Keep the reference on the CPU between its passes; slower, memory of the GPU only."""
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
        for name in ("steps", "prompts_per_step", "minibatches", "updates_per_rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        self._check_steps()
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
        if self.rollouts is not None and self.sampling.temperature != 1:
            raise ValueError(
                f"sampling.temperature={self.sampling.temperature}: a server gives the untempered "
                "log-probs, which at another temperature than 1 are not those of the policy that "
                "drew; use 1.0, or rollouts: null"
            )
        if not self.allow_off_policy_sampling:
            check_uncut(self.sampling)

    @property
    def compares(self) -> bool:
        """Whether the policy is compared with a reference; if not, none is built."""
        return needs_reference(self.objective) or self.kl_in_reward > 0

    def _check_steps(self) -> None:
        """Refuse what changes with the step, or within a completion, and has no effect."""
        if self.refresh_every < 0 or (self.refresh_every and not self.compares):
            raise ValueError(
                f"refresh_every={self.refresh_every}: "
                + ("give 0 or more" if self.refresh_every < 0 else NO_REFERENCE)
            )
        for after, limit in self.max_tokens_after.items():
            if after < 1 or limit < 1:
                raise ValueError(
                    f"max_tokens_after: {after}: {limit}: give a step of at least 1, after which "
                    "completions may be longer, and their limit in tokens"
                )
        if self.kl_in_reward and isinstance(self.advantages, OfTokens):
            raise ValueError(
                f"kl_in_reward={self.kl_in_reward} is part of a completion's reward, which "
                f"{type(self.advantages).__name__} does not use: give the objective a kl_weight"
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
    prompts = task.train()
    check_prompts(len(prompts), cfg.prompts_per_step * cfg.minibatches)
    check_undropped(lm.model, "reinforcement learning")
    reference = frozen_reference(cfg, lm.model, run)
    keep_architecture(lm.model, lm.tokenizer, run)
    optimizer = cfg.optimizer.build(lm.model)
    model, optimizer = run.prepare(lm.model, optimizer)
    servers = None if cfg.rollouts is None else VLLMEngine(cfg.rollouts, lm, run)
    engine = sampler(cfg, lm, servers)
    collector = Collector(cfg, engine, lm, prompts, stopping(cfg.sampling, lm), reward, run)
    parts = Minibatches(cfg, run)
    flat_groups = FlatGroups(rounds=cfg.dynamic_sampling.rounds if cfg.dynamic_sampling else 0)
    state: dict[str, Stateful] = {"model": trained_state(lm.model), "optimizer": optimizer}
    run.print(about_loss(cfg))
    for step in run.steps(
        cfg.steps,
        state=state | kept_besides(cfg, parts, reference),
        save_every=cfg.save_every,
        headline=("reward", "length/mean", "entropy"),
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        if reference is not None and step > 1 and run.due(step - 1, cfg.refresh_every):
            reference.refresh(lm.model)
        figures: dict[str, Metric] = {}
        found = None
        if parts.are_due(step):
            longest = max_tokens(cfg, step)
            with run.gathered(lm.model):
                if servers is not None:
                    with run.phase("push"):
                        servers.push(step - 1)
                found = collector.collect(step, serves=cfg.minibatches, max_tokens=longest)
                parts.fill(as_trained(cfg, found, lm.model, reference, run), step)
            figures |= collected_figures(cfg, found)
        batch = parts.take(step)
        stream = run.stream("chosen", step)
        batch = with_chosen(cfg.objective, batch, stream, gather=run.gather, rank=run.rank)
        with run.phase("update"):
            sums, grad_norm = update(cfg, model, optimizer, batch, run)
        figures |= {
            "loss": run.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            **update_figures({name: run.sum(x) for name, x in sums.items()}),
            "timeouts": run.sum(getattr(reward, "timeouts", 0)),
            "speed/tokens": Rate(batch.mask.sum()),
        }
        ends = cfg.probe_every > 0 and step in (1, cfg.steps)
        if probe is not None and (ends or run.due(step, cfg.probe_every)):
            with run.phase("probe"), run.gathered(lm.model):
                if servers is not None:
                    servers.push(step)
                figures |= probe(step, engine)
        logged = run.log(step, figures)
        if found is not None:
            flat_groups.see(logged["groups/flat"], logged["reward"])
        if found is not None and samples_due(cfg, step):
            run.samples(step, sample_rows(found.samples[: cfg.group_size], found.scores))


def kept_besides(
    cfg: GRPOConfig, parts: Minibatches, reference: Reference | None
) -> dict[str, Stateful]:
    """Return what a checkpoint holds besides the policy and its optimizer."""
    kept: dict[str, Stateful] = {"minibatches": parts} if cfg.minibatches > 1 else {}
    if cfg.refresh_every and reference is not None:
        kept["reference"] = reference.model
    return kept


def sampler(cfg: GRPOConfig, lm: LanguageModel, servers: Generates | None = None) -> Generates:
    """Return what draws completions, with tools or without; on servers if they are given."""
    engine = Engine(lm.model) if servers is None else servers
    return engine if cfg.tools is None else ToolEngine(engine, lm, cfg.tools)


def frozen_reference(cfg: GRPOConfig, policy: nn.Module, run: Runtime) -> Reference | None:
    """Return the policy as it is, frozen, or None where nothing is compared with it."""
    if not cfg.compares:
        return None
    offload, refreshes = cfg.offload_reference, cfg.refresh_every > 0
    return reference_of(policy, run.device, offload=offload, refreshes=refreshes)


def max_tokens(cfg: GRPOConfig, step: int) -> int:
    """Return how long the completions may be that are drawn at ``step``."""
    since = [after for after in cfg.max_tokens_after if after < step]
    return cfg.max_tokens_after[max(since)] if since else cfg.sampling.max_tokens


def samples_due(cfg: GRPOConfig, step: int) -> bool:
    """Return whether a group is written: at the first step, and with the rollouts in between."""
    every = cfg.samples_every
    return every > 0 and (step == 1 or (step - 1) // every < (step - 1 + cfg.minibatches) // every)


def as_trained(
    cfg: GRPOConfig,
    found: Collected,
    model: nn.Module,
    reference: Reference | None,
    run: Runtime,
) -> RolloutBatch:
    """Return a rollout as it is trained on: with reference, advantages, and the old policy."""
    rollout = found.rollout
    batch = as_batch(rollout, trained_mask(rollout, cfg.mask_truncated)).to(run.device)
    with run.phase("log_probs"):
        if reference is not None:
            with reference.using() as frozen:
                batch = replace(batch, ref_log_probs=frozen_log_probs(cfg, frozen, batch, run))
        if cfg.minibatches > 1:
            batch = replace(batch, old_log_probs=frozen_log_probs(cfg, model, batch, run))
    return with_advantages(cfg, batch, found, run)


def collected_figures(cfg: GRPOConfig, found: Collected) -> dict[str, Metric]:
    """Return what is logged of a rollout."""
    return {
        **rollout_figures(found.rollout, found.samples, found.scores, cfg.group_size),
        **{f"reward/{name}": Mean(x.sum(), len(x)) for name, x in found.parts.items()},
        **(tool_figures(found.rollout) if cfg.tools is not None else {}),
        **found.figures,
    }


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


def with_advantages(
    cfg: GRPOConfig, batch: RolloutBatch, found: Collected, run: Runtime
) -> RolloutBatch:
    """Return ``batch`` with advantages of its rewards, less the KL where it is weighed."""
    if isinstance(cfg.advantages, OfTokens):
        by_token = cfg.advantages.of_tokens(found.samples, found.rollout.mask, cfg.group_size)
        by_token = by_token.to(batch.old_log_probs)
        return replace(batch, advantages=torch.where(batch.mask, by_token, 0.0))
    scores = found.scores
    if cfg.kl_in_reward:
        scores = scores - cfg.kl_in_reward * divergences(batch).to(scores)
    advantages = estimate(
        cfg.advantages,
        scores.view(-1, cfg.group_size),
        batch.mask.sum(-1).to(scores.device).view(-1, cfg.group_size),
        gather=run.gather,
        share=run.share(cfg.prompts_per_step * cfg.minibatches),
    )  # (P, G)
    spread = advantages.view(-1, 1).to(batch.old_log_probs)
    return replace(batch, advantages=torch.where(batch.mask, spread, 0.0))


def divergences(batch: RolloutBatch) -> Tensor:
    r"""Return each completion's estimate of KL(policy || reference), ``(B,)`` nats, by k1.

    \sum_t (old_log_probs_t - ref_log_probs_t)
    """
    assert batch.ref_log_probs is not None
    return torch.where(batch.mask, k1(batch.old_log_probs, batch.ref_log_probs), 0.0).sum(-1)


def check_prompts(available: int, needed: int) -> None:
    """Raise UsageError if a step needs more prompts than the task has."""
    if available < needed:
        raise UsageError(
            f"the task has {available} prompts to train on, but prompts_per_step={needed}: a step "
            f"needs that many different ones; lower prompts_per_step to at most {available}"
        )


def check_uncut(sampling: Sampling) -> None:
    """Raise ValueError if completions are drawn otherwise than the policy itself would."""
    if sampling.top_k > 0 or sampling.top_p < 1:
        raise ValueError(
            f"sampling.top_k={sampling.top_k}, sampling.top_p={sampling.top_p}: the "
            "log-probabilities that are trained know no cut, so the update would be "
            "off-policy; use 0 and 1.0, or set allow_off_policy_sampling"
        )
