"""Reinforcement learning of a language model with a critic: PPO on tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
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
from posttrain.architecture import keep_architecture
from posttrain.critics import ActorCritic, Critic, ValueHead, evaluate
from posttrain.data.tasks.base import Task
from posttrain.log_probs import token_log_probs
from posttrain.models import LanguageModel
from posttrain.objectives import DAPO, ValueLoss
from posttrain.objectives.base import Objective, needs_reference, with_chosen
from posttrain.objectives.mismatch import Mismatch
from posttrain.rewards import Reward
from posttrain.rollout import Engine, RolloutBatch, Sampling
from posttrain.trainers.collection import Collector
from posttrain.trainers.policy import Probe, check_prompts, check_uncut
from posttrain.trainers.rollouts import (
    as_batch,
    rollout_figures,
    sample_rows,
    stopping,
    trained_mask,
)
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH, check_loop, check_micro_batch
from posttrain.trainers.token_advantages import token_advantages, token_rewards, whitened
from posttrain.trainers.updates import token_sums, update_figures, weighted
from rl.estimators import explained_variance, k1, variance_sums

__all__ = ["ActorCriticConfig", "train_actor_critic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorCriticConfig:
    """PPO with a critic of tokens (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022)."""

    objective: Objective = field(default_factory=lambda: DAPO(clip_low=0.2, clip_high=0.2))
    """The policy's; as it is, PPO's clipped surrogate, mean over tokens."""
    critic: Critic = field(default_factory=ValueHead)
    value_loss: ValueLoss = field(default_factory=ValueLoss)
    discount: float = 1.0
    """Gamma, a token."""
    trace: float = 0.95
    """Lambda of the generalised advantages; 1 trusts the reward alone, 0 the critic."""
    whiten: bool = True
    """Give a rollout's advantages mean 0 and deviation 1, over all tokens of all processes."""
    kl_in_reward: float = 0.0
    """Subtract this times each token's log-ratio to the reference from its reward, as InstructGPT
    does; 0 needs no reference model."""
    mask_truncated: bool = False
    """Train on no completion that was cut off at max_tokens."""
    mismatch: Mismatch | None = None
    """Weighs tokens by how far the engine that sampled is from the trainer; None does not."""
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=256))
    """The model's own stop tokens are used where none are given."""
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-6))
    """Of the policy; the critic has its own."""
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    steps: int = resumable(1_000)
    """Rollouts."""
    prompts_per_step: int = 64
    """P, over all processes."""
    group_size: int = 1
    """G, completions per prompt; the critic is the baseline, so one will do."""
    epochs: int = 2
    """Passes over each rollout."""
    minibatches: int = 4
    """Updates in a pass, on shuffled completions of all processes."""
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
    allow_off_policy_sampling: bool = False
    """Train on completions cut by top-k or top-p, which the policy itself would draw otherwise."""

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "group_size", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        rows = self.prompts_per_step * self.group_size
        if self.minibatches > rows:
            raise ValueError(
                f"minibatches={self.minibatches}, but a rollout has only prompts_per_step * "
                f"group_size = {rows} completions: each minibatch needs at least one"
            )
        check_micro_batch(self.micro_batch)
        intervals = {x: getattr(self, x) for x in ("save_every", "probe_every", "samples_every")}
        check_loop(self.max_grad_norm, **intervals)
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: it lies between 0 and 1")
        if not 0 <= self.kl_in_reward < float("inf"):
            raise ValueError(f"kl_in_reward={self.kl_in_reward}: use a finite number of 0 or more")
        if not self.reward_seconds > 0:
            raise ValueError(f"reward_seconds={self.reward_seconds}: give a positive limit")
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature=0: a greedy policy tries nothing that it could learn from; "
                "use 1.0"
            )
        if not self.allow_off_policy_sampling:
            check_uncut(self.sampling)

    @property
    def dynamic_sampling(self) -> None:
        """None: with a critic, a group of equal rewards teaches as much as another."""


def train_actor_critic(
    cfg: ActorCriticConfig,
    lm: LanguageModel,
    task: Task,
    run: Runtime,
    *,
    reward: Reward | None = None,
    probe: Probe | None = None,
) -> ActorCritic:
    """Improve ``lm`` on the task's reward, or on ``reward``, in place; return it with its critic.

    Raises:
        UsageError: The task has fewer prompts than a step needs, or the critic does not fit.
        ValueError: The reward returned something else than one finite number for each sample.
    """
    reward = task.reward if reward is None else reward
    prompts, sampling = task.train(), stopping(cfg.sampling, lm)
    check_prompts(len(prompts), cfg.prompts_per_step)
    compares = needs_reference(cfg.objective) or cfg.kl_in_reward > 0
    reference = copy.deepcopy(lm.model).eval().to(run.device) if compares else None
    pair = cfg.critic.build(lm)
    optimizers = dict(cfg.critic.optimizers(cfg.optimizer, pair))
    check_precision(optimizers, run)
    keep_architecture(lm.model, lm.tokenizer, run)
    prepared, *_ = run.prepare(pair, *optimizers.values())
    engine = Engine(lm.model)
    collector = Collector(cfg, engine, lm, prompts, sampling, reward, run)
    state: dict[str, Stateful] = {"model": pair.policy, "critic": pair.critic, **optimizers}
    for step in run.steps(
        cfg.steps,
        state=state,
        save_every=cfg.save_every,
        headline=("reward", "length/mean", "value/explained_variance"),
    ):
        factor = cfg.schedule(step - 1, cfg.steps)
        rates = {name: set_learning_rate(x, factor) for name, x in optimizers.items()}
        with run.gathered(pair):
            found = collector.collect(step)
        rollout, samples, scores = found.rollout, found.samples, found.scores
        batch = as_batch(rollout, trained_mask(rollout, cfg.mask_truncated)).to(run.device)
        with run.phase("values"), run.gathered(pair):
            batch = with_old(cfg, pair, reference, batch, run)
        batch = with_returns(cfg, batch, scores, run)
        stream = run.stream("chosen", step)
        batch = with_chosen(cfg.objective, batch, stream, gather=run.gather, rank=run.rank)
        with run.phase("update"):
            figures = update(cfg, prepared, optimizers, batch, step, run)
        figures |= {
            "learning_rate": rates["optimizer"],
            **rollout_figures(rollout, samples, scores, cfg.group_size),
            **{f"reward/{name}": Mean(x.sum(), len(x)) for name, x in found.parts.items()},
            "timeouts": run.sum(getattr(reward, "timeouts", 0)),
            "speed/tokens": Rate(rollout.mask.sum()),
        }
        if cfg.group_size == 1:
            del figures["groups/flat"]  # a group of one has no spread to lack
        ends = cfg.probe_every > 0 and step in (1, cfg.steps)
        if probe is not None and (ends or run.due(step, cfg.probe_every)):
            with run.phase("probe"), run.gathered(pair):
                figures |= probe(step, engine)
        run.log(step, figures)
        if cfg.samples_every and (step == 1 or run.due(step, cfg.samples_every)):
            run.samples(step, sample_rows(samples[:8], scores))
    return pair


def check_precision(optimizers: Mapping[str, torch.optim.Optimizer], run: Runtime) -> None:
    """Raise UsageError where one loss scale would serve two optimizers."""
    if len(optimizers) > 1 and run.config.precision == "fp16":
        raise UsageError(
            "runtime.precision=fp16 with a critic that has an optimizer of its own: an overflow in "
            "one model would change the scale of the other's gradients; use bf16 or fp32, or a "
            "ValueHead"
        )


@torch.no_grad()
def with_old(
    cfg: ActorCriticConfig,
    pair: ActorCritic,
    reference: nn.Module | None,
    batch: RolloutBatch,
    run: Runtime,
) -> RolloutBatch:
    """Return ``batch`` with log-probs and values before the update, and those of the reference."""
    precision, temperature = run.backend.autocast, cfg.sampling.temperature
    old, values, frozen = ([torch.zeros_like(batch.old_log_probs[:0])] for _ in range(3))
    with torch.autocast(run.device.type, dtype=precision, enabled=precision is not None):
        for rows in batch.split(rows_per_pass(cfg, batch)):
            wanted = (rows.tokens, rows.mask)
            log_probs, _, found = evaluate(pair, *wanted, temperature=temperature)
            old.append(log_probs)
            values.append(found)
            if reference is not None:
                frozen.append(token_log_probs(reference, *wanted, temperature=temperature))
    return replace(
        batch,
        old_log_probs=torch.cat(old),
        values=torch.cat(values),
        ref_log_probs=None if reference is None else torch.cat(frozen),
    )


def with_returns(
    cfg: ActorCriticConfig, batch: RolloutBatch, scores: Tensor, run: Runtime
) -> RolloutBatch:
    """Return ``batch`` with advantages, and with the returns that the critic is fitted to.

    The returns are those before the advantages are whitened: in units of reward.
    """
    assert batch.values is not None
    penalties = None
    if cfg.kl_in_reward:
        assert batch.ref_log_probs is not None
        penalties = cfg.kl_in_reward * k1(batch.old_log_probs, batch.ref_log_probs)
    rewards = token_rewards(scores.to(batch.values), batch.mask, penalties)
    advantages = token_advantages(
        rewards, batch.values, batch.mask, discount=cfg.discount, trace=cfg.trace
    )
    returns = torch.where(batch.mask, advantages + batch.values, 0.0)
    if cfg.whiten:
        advantages = whitened(advantages, batch.mask, gather=run.gather, rank=run.rank)
    return replace(batch, advantages=advantages, returns=returns)


def update(
    cfg: ActorCriticConfig,
    pair: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    batch: RolloutBatch,
    step: int,
    run: Runtime,
) -> dict[str, Metric]:
    """Take the updates of one rollout; return figures over the tokens of all of them."""
    sums: dict[str, Tensor] = {}
    for minibatch in shuffled_minibatches(cfg, batch, step, run):
        scale = run.sum(cfg.objective.denominator(minibatch)).clamp(min=1)
        value_scale = run.sum(cfg.value_loss.denominator(minibatch)).clamp(min=1)
        for rows in run.micro_batches(minibatch, rows_per_pass(cfg, batch)):
            log_probs, entropy, values = evaluate(
                pair, rows.tokens, rows.mask, temperature=cfg.sampling.temperature
            )
            policy_loss = cfg.objective(log_probs, weighted(cfg.mismatch, rows))
            value_loss = cfg.value_loss(values, rows)
            run.backward(policy_loss / scale + cfg.critic.weight * value_loss / value_scale)
            seen = token_sums(cfg, log_probs.detach(), entropy, rows)
            seen["value/loss"] = value_loss.detach()
            seen["value/clipped"] = cfg.value_loss.clipped(values, rows).sum()
            for name, value in seen.items():
                sums[name] = sums[name] + value if name in sums else value
        losses, norms = [], {}
        for name, optimizer in optimizers.items():
            norms[name] = run.step(optimizer, cfg.max_grad_norm)
            losses.append(run.loss)
    sums = {name: run.sum(value) for name, value in sums.items()}
    tokens = sums["tokens"].clamp(min=1)
    names = {"optimizer": "grad_norm", "critic_optimizer": "value/grad_norm"}
    return {
        "loss": losses[0],  # of both together; the first step clears it
        **{names.get(name, name): norm for name, norm in norms.items()},
        **update_figures({k: v for k, v in sums.items() if not k.startswith("value/")}),
        "value/loss": sums["value/loss"] / tokens,
        "value/clipped": sums["value/clipped"] / tokens,
        **value_figures(batch, run),
    }


def shuffled_minibatches(
    cfg: ActorCriticConfig, batch: RolloutBatch, step: int, run: Runtime
) -> Iterator[RolloutBatch]:
    """Yield this process's rows of each minibatch; they are drawn over all processes' rows."""
    count, number = cfg.prompts_per_step * cfg.group_size, cfg.minibatches
    first = run.share(cfg.prompts_per_step).start * cfg.group_size
    for epoch in range(cfg.epochs):
        order = torch.randperm(count, generator=run.stream("minibatches", step, epoch))
        for part in order.tensor_split(number):
            mine = part[(part >= first) & (part < first + len(batch))] - first
            yield batch.take(mine.to(batch.mask.device))


def value_figures(batch: RolloutBatch, run: Runtime) -> dict[str, Metric]:
    """Return what is logged of the critic before the update."""
    assert batch.values is not None
    assert batch.returns is not None
    values, returns = batch.values[batch.mask], batch.returns[batch.mask]
    return {
        "value/explained_variance": explained_variance(run.sum(variance_sums(returns, values))),
        "value/mean": Mean(values.sum(), len(values)),
        "value/returns": Mean(returns.sum(), len(returns)),
    }


def rows_per_pass(cfg: ActorCriticConfig, batch: RolloutBatch) -> int:
    """Return the completions of a forward pass: as asked, or as many as fill a core."""
    return cfg.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // max(1, batch.tokens.shape[1]))
