"""Supervised fine-tuning on packed documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from launch.checkpoint import Stateful
from launch.config import resumable
from launch.errors import UsageError
from launch.metrics import Mean, Rate
from launch.optimizers import AdamW, OptimizerConfig
from launch.runtime import Runtime
from launch.schedule import Cosine, Schedule, set_learning_rate
from posttrain.adapters import trained_state
from posttrain.data.order import shuffled
from posttrain.data.packing import Document, pack
from posttrain.log_probs import token_log_probs
from posttrain.objectives.sft import SFT

__all__ = ["SFTConfig", "train_sft"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig:
    """Next-token prediction on the tokens that a document's mask names."""

    objective: SFT = field(default_factory=SFT)
    optimizer: OptimizerConfig = field(default_factory=lambda: AdamW(learning_rate=1e-5))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=10, final=0.1))
    steps: int = resumable(1_000)
    """Optimizer updates."""
    documents_per_step: int = 32
    """Over all processes."""
    row_length: int = 1_024
    """Tokens in a packed row; a longer document is an error."""
    shuffle: bool = True
    """Shuffle every epoch; False takes the documents in their order, for a curriculum."""
    micro_batch: int | None = None
    """Packed rows a forward pass on one process; memory only, never the result. None derives it."""
    max_grad_norm: float = 1.0
    save_every: int = resumable(0)
    """Steps between checkpoints; 0 saves at the end alone."""

    def __post_init__(self) -> None:
        for name in ("steps", "documents_per_step", "row_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        check_micro_batch(self.micro_batch)
        check_loop(self.max_grad_norm, save_every=self.save_every)


def train_sft(
    cfg: SFTConfig, model: nn.Module, documents: Sequence[Document], run: Runtime
) -> None:
    """Train ``model`` on ``documents``, in place.

    Raises:
        ValueError: There are no documents, or one is longer than a row.
    """
    check_lengths(cfg, documents)
    optimizer = cfg.optimizer.build(model)
    prepared, optimizer = run.prepare(model, optimizer)
    state: dict[str, Stateful] = {"model": trained_state(model), "optimizer": optimizer}
    micro_batch = cfg.micro_batch or max(1, TOKENS_PER_MICRO_BATCH // cfg.row_length)
    for step in run.steps(
        cfg.steps, state=state, save_every=cfg.save_every, headline=("loss", "speed/tokens")
    ):
        learning_rate = set_learning_rate(optimizer, cfg.schedule(step - 1, cfg.steps))
        with run.phase("data"):
            mine = step_documents(cfg, documents, step, run)
            batch = pack(mine, length=cfg.row_length).to(run.device)
        with run.phase("update"):
            scale = run.sum(cfg.objective.denominator(batch)).clamp(min=1)
            for rows in run.micro_batches(batch, micro_batch):
                log_probs = token_log_probs(
                    prepared, rows.tokens, rows.mask, position_ids=rows.position_ids
                )
                run.backward(cfg.objective(log_probs, rows) / scale)
            grad_norm = run.step(optimizer, cfg.max_grad_norm)
        run.log(
            step,
            {
                "loss": run.loss,
                "grad_norm": grad_norm,
                "learning_rate": learning_rate,
                "tokens": scale,
                "fill": Mean(sum(map(len, mine)), batch.tokens.numel()),
                "speed/tokens": Rate(batch.mask.sum()),
            },
        )


def check_lengths(cfg: SFTConfig, documents: Sequence[Document]) -> None:
    """Raise UsageError if a document does not fit into a row; of lazy ones, look at the first."""
    seen = documents if isinstance(documents, list) else documents[: cfg.documents_per_step]
    for index, document in enumerate(seen):
        if len(document) > cfg.row_length:
            raise UsageError(
                f"document {index} has {len(document)} tokens, but row_length={cfg.row_length}: "
                "documents are never split, so raise row_length or shorten the document"
            )


def step_documents(
    cfg: SFTConfig, documents: Sequence[Document], step: int, run: Runtime
) -> list[Document]:
    """Return this process's share of a step's documents."""
    start = (step - 1) * cfg.documents_per_step
    share = run.share(cfg.documents_per_step)
    if cfg.shuffle:
        chosen = shuffled(len(documents), start + share.start, len(share), run.seed)
    else:
        chosen = [(start + i) % len(documents) for i in share]
    return [documents[i] for i in chosen]


TOKENS_PER_MICRO_BATCH = 8_192
"""What a derived micro-batch holds: enough to keep a core busy, little enough for its cache."""


def check_loop(max_grad_norm: float, **intervals: int) -> None:
    """Raise ValueError unless the norm is positive and no interval is negative."""
    if not max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm={max_grad_norm}: give a positive norm to clip to; .inf never clips"
        )
    for name, steps in intervals.items():
        if steps < 0:
            raise ValueError(f"{name}={steps}: give 0 (never) or a number of steps")


def check_micro_batch(micro_batch: int | None) -> None:
    """Raise ValueError unless ``micro_batch`` is None or a positive count."""
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro_batch={micro_batch}: a forward pass needs at least one row")
