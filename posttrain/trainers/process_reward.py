"""Process reward models learnt from labels of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from launch.checkpoint import Stateful
from launch.config import resumable
from launch.errors import UsageError
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Cosine, Schedule, set_learning_rate
from posttrain.data.order import shuffled
from posttrain.data.step_labels import StepBatch, StepDocument, pad_steps
from posttrain.eval.ranking import auc
from posttrain.objectives.process_reward import StepObjective, StepReward
from posttrain.rollout.portable import evaluating
from posttrain.scores import ScoreHead, token_scores
from posttrain.trainers.supervised import TOKENS_PER_MICRO_BATCH, check_loop, check_micro_batch

__all__ = ["ProcessRewardConfig", "train_process_reward_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessRewardConfig:
    """Probabilities of steps from their labels (Lightman et al. 2023, arXiv:2305.20050)."""

    objective: StepObjective = field(default_factory=StepReward)
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-6))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    steps: int = resumable(1_000)
    """Optimizer updates."""
    solutions_per_step: int = 128
    """Over all processes."""
    row_length: int = 2_048
    """Most tokens of a prompt with its solution; a longer one is an error."""
    micro_batch: int | None = None
    """Solutions a forward pass on one process; memory only, never the result. None derives it."""
    max_grad_norm: float = 1.0
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""
    heldout_every: int = resumable(0)
    """Steps between looks at held-out solutions, beside the first and the last; 0 never looks."""

    def __post_init__(self) -> None:
        if not isinstance(self.objective, StepObjective):
            raise ValueError(
                f"objective is {type(self.objective).__name__}: use StepReward of "
                "posttrain.objectives, or one with its two methods"
            )
        for name in ("steps", "solutions_per_step", "row_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        check_micro_batch(self.micro_batch)
        check_loop(self.max_grad_norm, save_every=self.save_every, heldout_every=self.heldout_every)


def train_process_reward_model(
    cfg: ProcessRewardConfig,
    model: nn.Module,
    documents: Sequence[StepDocument],
    run: Runtime,
    *,
    heldout: Sequence[StepDocument] = (),
    head: ScoreHead | None = None,
) -> None:
    """Train ``model`` to tell right steps from wrong ones, in place.

    Args:
        cfg: Settings.
        model: Of ``process_model`` or ``load_process_reward_model``, its ``model``.
        documents: Solutions with labelled steps.
        run: Where to train.
        heldout: Solutions to judge by, with right and wrong steps.
        head: Makes scores of hidden states; by default ``ScalarHead()``.

    Raises:
        ValueError: There are no solutions, one is too long or has no label, or the held-out steps
            are all right or all wrong.
    """
    check_solutions(documents, cfg.row_length)
    check_heldout(heldout)
    optimizer = cfg.optimizer.build(model)
    prepared, optimizer = run.prepare(model, optimizer)
    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    for step in run.steps(
        cfg.steps, state=state, save_every=cfg.save_every, headline=("loss", "accuracy")
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        with run.phase("data"):
            mine = step_solutions(cfg, documents, step, run)
            batch = pad_steps(mine).to(run.device)
        with run.phase("update"):
            scale = run.sum(cfg.objective.denominator(batch)).clamp(min=1)
            right = torch.zeros((), device=run.device)
            for part in run.micro_batches(batch, rows_per_pass(cfg, batch)):
                scores = token_scores(prepared, part.tokens, part.mask, head)
                run.backward(cfg.objective(scores, part) / scale)
                right = right + told(scores.detach(), part).sum()
            grad_norm = run.step(optimizer, cfg.max_grad_norm)
        figures: dict[str, Metric] = {
            "loss": run.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "accuracy": Mean(right, batch.mask.sum()),
            "share/right": Mean((batch.labels > 0.5).sum(), batch.mask.sum()),
            "labels": scale,
            "speed/tokens": Rate(sum(map(len, mine))),
        }
        ends = cfg.heldout_every > 0 and step in (1, cfg.steps)
        if len(heldout) and (ends or run.due(step, cfg.heldout_every)):
            with run.phase("heldout"), run.gathered(model):
                figures |= heldout_figures(cfg, model, heldout, run, head)
        run.log(step, figures)


def check_solutions(documents: Sequence[StepDocument], row_length: int) -> None:
    """Raise UsageError if there is no solution, or one is too long or has no labelled step."""
    if not len(documents):
        raise UsageError("there are no solutions to learn from: give at least one")
    for index, document in enumerate(documents):
        if len(document) > row_length:
            raise UsageError(
                f"solution {index} has {len(document)} tokens, but row_length={row_length}: "
                "solutions are never cut, so raise row_length or leave it out"
            )
        if not document.ends:
            raise UsageError(f"solution {index} has no step with a label: leave it out")


def check_heldout(documents: Sequence[StepDocument]) -> None:
    """Raise UsageError if held-out steps are all right or all wrong, so that nothing is ranked."""
    rights = [label > 0.5 for document in documents for label in document.labels]
    if len(documents) and len(set(rights)) < 2:
        kind = "right" if any(rights) else "wrong"
        raise UsageError(
            f"all {len(rights)} held-out steps are {kind}: how well right ones are told from wrong "
            "ones needs both; hold out more, or other solutions"
        )


def step_solutions(
    cfg: ProcessRewardConfig, documents: Sequence[StepDocument], step: int, run: Runtime
) -> list[StepDocument]:
    """Return this process's share of a step's solutions."""
    share = run.share(cfg.solutions_per_step)
    start = (step - 1) * cfg.solutions_per_step + share.start
    return [documents[i] for i in shuffled(len(documents), start, len(share), run.seed)]


def told(scores: Tensor, batch: StepBatch) -> Tensor:
    """Return ``(B, T)`` bool: steps whose score is on the side of a half that their label is."""
    return batch.mask & ((scores > 0) == (batch.labels > 0.5))


@torch.no_grad()
def heldout_figures(
    cfg: ProcessRewardConfig,
    model: nn.Module,
    heldout: Sequence[StepDocument],
    run: Runtime,
    head: ScoreHead | None,
) -> dict[str, Metric]:
    """Return how well held-out steps are told apart; of all processes together."""
    batch = pad_steps([heldout[i] for i in run.share(len(heldout))]).to(run.device)
    precision = run.backend.autocast
    parts = [torch.zeros(batch.tokens[:0].shape, device=run.device)]
    autocast = torch.autocast(run.device.type, dtype=precision, enabled=precision is not None)
    with evaluating(model), autocast:
        for part in batch.split(rows_per_pass(cfg, batch)):
            parts.append(token_scores(model, part.tokens, part.mask, head))
    scores = torch.cat(parts)
    seen = torch.stack((scores[batch.mask], batch.labels[batch.mask]), dim=-1)
    ranked, labels = run.gather(seen).unbind(-1)
    return {
        "heldout/loss": Mean(cfg.objective(scores, batch), cfg.objective.denominator(batch)),
        "heldout/accuracy": Mean(told(scores, batch).sum(), batch.mask.sum()),
        "heldout/auc": auc(ranked, labels),
    }


def rows_per_pass(cfg: ProcessRewardConfig, batch: StepBatch) -> int:
    """Return the solutions of a forward pass: as asked, or as many as fill a core."""
    return cfg.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // max(1, batch.tokens.shape[1]))
