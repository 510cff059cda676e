"""Teaching a decoder to predict the next byte of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from generative.attention.decoder_lm import DecoderLM
from generative.attention.label_smoothing import smoothed_cross_entropy
from launch.batch import TensorBatch, shaped
from launch.checkpoint import Stateful
from launch.config import resumable
from launch.errors import UsageError
from launch.metrics import Mean, Metric, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Cosine, Schedule, set_learning_rate

__all__ = ["CharacterTraining", "Windows", "heldout_bits", "train_characters"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Windows(TensorBatch):
    """Stretches of a text."""

    tokens: Tensor = shaped("B T")
    """int64, bytes."""
    labels: Tensor = shaped("B T")
    """int64, the byte after each of ``tokens``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterTraining:
    """Next-byte prediction on random windows of a text."""

    steps: int = resumable(600)
    """Optimizer updates."""
    windows_per_step: int = 16
    """Over all processes."""
    context: int = 256
    """T, bytes that a window has; in training as in evaluation none sees more before it."""
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=3e-3))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=50, final=0.05))
    max_grad_norm: float = 1.0
    micro_batch: int = 16
    """Windows a forward pass on one process; memory only, never the result."""
    heldout_every: int = resumable(100)
    """Steps between looks at held-out text, beside the last step; 0 looks at the end alone."""
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""

    def __post_init__(self) -> None:
        for name in ("steps", "windows_per_step", "context", "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        for name in ("heldout_every", "save_every"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name}={getattr(self, name)}: give 0 (never) or a number of steps"
                )
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: give a positive norm to clip to")


def train_characters(
    cfg: CharacterTraining, model: DecoderLM, text: Tensor, heldout: Tensor, run: Runtime
) -> None:
    """Train ``model`` on ``text``, in place.

    Args:
        cfg: How.
        model: Its vocabulary is the 256 bytes, or more.
        text: ``(N,)`` uint8.
        heldout: ``(M,)`` uint8, looked at in between.
        run: The runtime.

    Raises:
        UsageError: A text is shorter than a window.
    """
    for name, given in {"text": text, "heldout": heldout}.items():
        if len(given) <= cfg.context:
            raise UsageError(
                f"{name} has {len(given)} bytes, but context={cfg.context}: a window takes "
                f"{cfg.context + 1}; give more text or a shorter context"
            )
    optimizer = cfg.optimizer.build(model)
    prepared, optimizer = run.prepare(model, optimizer)
    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    for step in run.steps(
        cfg.steps, state=state, save_every=cfg.save_every, headline=("loss", "heldout/bits")
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        with run.phase("data"):
            batch = step_windows(cfg, text, step, run).to(run.device)
        with run.phase("update"):
            scale = cfg.windows_per_step * cfg.context  # every byte of every window counts
            for rows in run.micro_batches(batch, cfg.micro_batch):
                losses = smoothed_cross_entropy(prepared(rows.tokens), rows.labels)
                run.backward(losses.sum() / scale)
            grad_norm = run.step(optimizer, cfg.max_grad_norm)
        figures: dict[str, Metric] = {
            "loss": run.loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "speed/tokens": Rate(batch.tokens.numel()),
        }
        if step == cfg.steps or run.due(step, cfg.heldout_every):
            with run.phase("heldout"), run.gathered(model):
                figures["heldout/bits"] = heldout_bits(cfg, model, heldout, run)
        run.log(step, figures)


def step_windows(cfg: CharacterTraining, text: Tensor, step: int, run: Runtime) -> Windows:
    """Return this process's share of a step's windows; each is keyed by its global index."""
    share = run.share(cfg.windows_per_step)
    spots = len(text) - cfg.context
    starts = [key % spots for key in run.seeds("windows", step, share)]
    return windows(text, starts, cfg.context)


def windows(text: Tensor, starts: list[int], context: int) -> Windows:
    """Return the windows that begin at ``starts``, each with what follows its bytes."""
    places = torch.tensor(starts, dtype=torch.int64)[:, None] + torch.arange(context + 1)
    drawn = text[places].long()
    return Windows(tokens=drawn[:, :-1], labels=drawn[:, 1:])


@torch.no_grad()
def heldout_bits(cfg: CharacterTraining, model: DecoderLM, text: Tensor, run: Runtime) -> Mean:
    """Return the bits that a byte of ``text`` takes, -log2 p, on windows side by side."""
    starts = range(0, len(text) - cfg.context, cfg.context)
    share = run.share(len(starts))
    nats = torch.zeros((), dtype=torch.float64)
    for first in range(share.start, share.stop, cfg.micro_batch):
        own = list(starts[first : min(first + cfg.micro_batch, share.stop)])
        batch = windows(text, own, cfg.context).to(run.device)
        nats += smoothed_cross_entropy(model(batch.tokens), batch.labels).double().sum().cpu()
    return Mean(nats / math.log(2), len(share) * cfg.context)
