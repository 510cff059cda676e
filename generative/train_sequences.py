"""Teaching an encoder-decoder a task on sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from generative.attention.beam_search import greedy_search
from generative.attention.label_smoothing import smoothed_cross_entropy
from generative.attention.transformer import Transformer
from generative.schedules import InverseRoot
from generative.sequence_tasks import (
    BEGIN,
    END,
    Answer,
    SequenceBatch,
    Sequences,
    parse_answer,
    sorted_up,
)
from launch.checkpoint import Stateful
from launch.config import resumable
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Schedule, set_learning_rate

__all__ = ["Answered", "SequenceTraining", "answered", "train_sequences"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceTraining:
    """Training on fresh random sequences, looked at on ones that are held out."""

    answer: Answer = field(default=sorted_up, metadata={"parse": parse_answer})
    """``sort``, ``copy``, ``reverse``, or ``module:function`` from symbols to as many symbols."""
    sequences: Sequences = field(default_factory=Sequences)
    steps: int = resumable(1_000)
    """Optimizer updates."""
    sequences_per_step: int = 128
    """Over all processes."""
    smoothing: float = 0.1
    """Share of the target that is spread evenly over the tokens (label smoothing)."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamW(learning_rate=1.0, beta2=0.98, eps=1e-9)
    )
    schedule: Schedule = field(default_factory=lambda: InverseRoot(width=64, warmup=200))
    max_grad_norm: float = 1.0
    micro_batch: int = 128
    """Sequences a forward pass on one process; memory only, never the result."""
    heldout: int = resumable(512)
    """Held-out sequences that are looked at."""
    heldout_every: int = resumable(100)
    """Steps between looks, beside the last step; 0 looks at the end alone."""
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""

    def __post_init__(self) -> None:
        for name in ("steps", "sequences_per_step", "micro_batch", "heldout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        for name in ("heldout_every", "save_every"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name}={getattr(self, name)}: give 0 (never) or a number of steps"
                )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing}: give a share from 0 to below 1")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: give a positive norm to clip to")


def train_sequences(cfg: SequenceTraining, model: Transformer, run: Runtime) -> None:
    """Train ``model`` on ``cfg.answer``, in place."""
    optimizer = cfg.optimizer.build(model)
    prepared, optimizer = run.prepare(model, optimizer)
    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    for step in run.steps(
        cfg.steps, state=state, save_every=cfg.save_every, headline=("loss", "heldout/exact")
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        with run.phase("data"):
            batch = step_batch(cfg, step, run).to(run.device)
        right = torch.zeros((), dtype=torch.int64, device=run.device)
        with run.phase("update"):
            scale = run.sum(batch.mask.sum()).clamp(min=1)
            for rows in run.micro_batches(batch, cfg.micro_batch):
                logits = prepared(
                    rows.source, rows.target, source_mask=rows.source_mask, seeds=rows.seeds
                )
                losses = smoothed_cross_entropy(logits, rows.labels, smoothing=cfg.smoothing)
                run.backward(losses[rows.mask].sum() / scale)
                right += (logits.argmax(-1) == rows.labels)[rows.mask].sum()
            grad_norm = run.step(optimizer, cfg.max_grad_norm)
        figures: dict[str, Metric] = {
            "loss": run.loss,
            "accuracy": Mean(right, batch.mask.sum()),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "speed/tokens": Rate(batch.mask.sum()),
        }
        if step == cfg.steps or run.due(step, cfg.heldout_every):
            with run.phase("heldout"), run.gathered(model):
                found = answered(cfg, model, run)
            figures["heldout/exact"] = Mean(found.exact.sum(), len(found.exact))
        run.log(step, figures)


def step_batch(cfg: SequenceTraining, step: int, run: Runtime) -> SequenceBatch:
    """Return this process's share of a step's sequences; each is keyed by its global index."""
    share = run.share(cfg.sequences_per_step)
    sources = [
        cfg.sequences.draw(run.stream("sequences", step, index), held_out=False) for index in share
    ]
    return cfg.sequences.batch(sources, cfg.answer, run.seeds("dropout", step, share))


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """Held-out sequences, and what the model makes of them by greedy search."""

    batch: SequenceBatch
    tokens: Tensor
    """``(B, T)`` int64, beyond ``END`` more of it."""
    exact: Tensor
    """``(B,)`` bool, True where every token is right."""


def answered(cfg: SequenceTraining, model: Transformer, run: Runtime) -> Answered:
    """Return this process's share of the held-out sequences, answered."""
    sources = [
        cfg.sequences.draw(run.stream("heldout", 0, index), held_out=True)
        for index in run.share(cfg.heldout)
    ]
    batch = cfg.sequences.batch(sources, cfg.answer).to(run.device)
    columns = batch.labels.shape[1]
    tokens = torch.full_like(batch.labels, END)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for first in range(0, len(sources), cfg.micro_batch):
            rows = batch.rows(first, first + cfg.micro_batch)
            state = model.new_state(rows.source, columns, source_mask=rows.source_mask)
            begin = torch.full((len(rows),), BEGIN, device=run.device)
            extend = partial(model.extend, state=state)
            found = greedy_search(state, extend, begin, end=END, max_tokens=columns)
            tokens[first : first + cfg.micro_batch] = found.tokens[:, 0]
    model.train(was_training)
    return Answered(batch, tokens, (tokens == batch.labels).all(1))
