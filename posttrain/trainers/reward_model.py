"""Reward models learnt from pairs of completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.config import resumable
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Cosine, Schedule, set_learning_rate
from posttrain.data.order import shuffled
from posttrain.data.preferences import Pair, PreferenceBatch, pad_pairs
from posttrain.objectives.preference import PreferenceObjective
from posttrain.objectives.reward_model import BradleyTerry, ComparisonObjective
from posttrain.reward_models import last_columns
from posttrain.rollout.portable import evaluating
from posttrain.scores import shared_prompt_scores, token_scores
from posttrain.trainers.preference import check_pair_lengths, reward_figures, shared_lengths
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH, check_loop, check_micro_batch

__all__ = ["RewardModelConfig", "train_reward_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelConfig:
    """A scalar reward from comparisons (Christiano et al. 2017, arXiv:1706.03741, eq. 1)."""

    objective: ComparisonObjective = field(default_factory=BradleyTerry)
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=6e-6))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    steps: int = resumable(1_000)
    """Optimizer updates."""
    pairs_per_step: int = 256
    """Over all processes."""
    row_length: int = 1_024
    """Most tokens of a prompt with its completion; a longer one is an error."""
    micro_batch: int | None = None
    """Pairs a forward pass on one process; memory only, never the result. None derives it."""
    max_grad_norm: float = 1.0
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""
    heldout_every: int = resumable(0)
    """Steps between looks at held-out pairs, beside the first and the last step; 0 never looks."""

    def __post_init__(self) -> None:
        policies = isinstance(self.objective, PreferenceObjective)  # these have the methods too
        if policies or not isinstance(self.objective, ComparisonObjective):
            raise ValueError(
                f"objective is {type(self.objective).__name__}, which compares no scores: use "
                "BradleyTerry of posttrain.objectives, or one with its two methods"
            )
        for name in ("steps", "pairs_per_step", "row_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        check_micro_batch(self.micro_batch)
        check_loop(self.max_grad_norm, save_every=self.save_every, heldout_every=self.heldout_every)


def train_reward_model(
    cfg: RewardModelConfig,
    model: nn.Module,
    pairs: Sequence[Pair],
    run: Runtime,
    *,
    heldout: Sequence[Pair] = (),
) -> None:
    """Train ``model`` to score the first of each pair of documents higher, in place.

    A document's score is that at its last token that counts. ``heldout`` pairs are looked at every
    ``cfg.heldout_every`` steps.

    Args:
        cfg: Settings.
        model: Of ``outcome_model`` or ``load_reward_model``, its ``model``.
        pairs: Documents of the same prompt, the chosen one first; they may have a margin.
        run: Where to train.
        heldout: Pairs to judge by.

    Raises:
        ValueError: There are no pairs, a document is too long, or none of its tokens counts.
    """
    check_pair_lengths(pairs, cfg.row_length)
    optimizer = cfg.optimizer.build(model)
    prepared, optimizer = run.prepare(model, optimizer)
    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    for step in run.steps(
        cfg.steps, state=state, save_every=cfg.save_every, headline=("loss", "accuracy")
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        with run.phase("data"):
            batch = pad_pairs(step_pairs(cfg, pairs, step, run)).to(run.device)
        with run.phase("update"):
            scale = run.sum(cfg.objective.denominator(batch)).clamp(min=1)
            scores = [torch.zeros(0, device=run.device)]
            for part in run.micro_batches(batch, pairs_per_pass(cfg, batch)):
                rewards = pair_scores(prepared, part)
                run.backward(cfg.objective(rewards, part) / scale)
                scores.append(rewards.detach())
            grad_norm = run.step(optimizer, cfg.max_grad_norm)
        figures: dict[str, Metric] = {
            "loss": run.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            **reward_figures(torch.cat(scores)),
            "tokens": run.sum(batch.mask.sum()),
            "speed/tokens": Rate(batch.mask.sum()),
        }
        ends = cfg.heldout_every > 0 and step in (1, cfg.steps)
        if len(heldout) and (ends or run.due(step, cfg.heldout_every)):
            with run.phase("heldout"), run.gathered(model):
                figures |= heldout_figures(cfg, model, heldout, run)
        run.log(step, figures)


def step_pairs(
    cfg: RewardModelConfig, pairs: Sequence[Pair], step: int, run: Runtime
) -> list[Pair]:
    """Return this process's share of a step's pairs."""
    share = run.share(cfg.pairs_per_step)
    start = (step - 1) * cfg.pairs_per_step + share.start
    return [pairs[i] for i in shuffled(len(pairs), start, len(share), run.seed)]


def pair_scores(model: nn.Module, batch: PreferenceBatch) -> Tensor:
    """Return each row's score, ``(B,)``; a pair's common prompt is computed once."""
    wanted, lengths = last_columns(batch.mask), shared_lengths(batch)
    if not len(batch) or not bool(lengths.all()):  # a pair without a common first token
        return token_scores(model, batch.tokens, wanted).sum(-1)
    return shared_prompt_scores(
        model, batch.tokens, wanted, group_size=2, prompt_lengths=lengths
    ).sum(-1)


@torch.no_grad()
def heldout_figures(
    cfg: RewardModelConfig, model: nn.Module, heldout: Sequence[Pair], run: Runtime
) -> dict[str, Metric]:
    """Return how well pairs are told apart that nothing is learnt from."""
    batch = pad_pairs([heldout[i] for i in run.share(len(heldout))]).to(run.device)
    precision = run.backend.autocast
    parts, loss = [torch.zeros(0, device=run.device)], torch.zeros((), device=run.device)
    autocast = torch.autocast(run.device.type, dtype=precision, enabled=precision is not None)
    with evaluating(model), autocast:
        for part in batch.split(pairs_per_pass(cfg, batch)):
            parts.append(pair_scores(model, part))
            loss = loss + cfg.objective(parts[-1], part)
    figures = reward_figures(torch.cat(parts))
    return {
        "heldout/loss": Mean(loss, len(batch)),
        "heldout/accuracy": figures["accuracy"],
        "heldout/margin": figures["reward/margin"],
    }


def pairs_per_pass(cfg: RewardModelConfig, batch: PreferenceBatch) -> int:
    """Return the pairs of a forward pass: as asked, or as many as fill a core."""
    longest = max(1, batch.tokens.shape[1])
    return cfg.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // (2 * longest))
