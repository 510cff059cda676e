"""How a run uses the machine, as a config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.backends import Precision
from launch.config import resumable
from launch.strategies import Strategy

__all__ = ["RuntimeConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """How a run uses the machine. None of it changes a figure but by rounding."""

    strategy: Strategy = resumable("auto")
    """What each process holds: ``single``, ``ddp``: all of the model; ``zero1``: a part of the
    optimizer's state; ``zero2``: of the gradients as well; ``zero3``, ``fsdp``: of the parameters,
    too. ``auto`` looks at the devices and the model, and says why."""
    precision: Precision = "fp32"
    """Of the forward pass; weights and optimizer state stay in float32. ``fp16`` scales the loss
    and leaves out steps that overflow; records count them as ``skipped_steps``."""
    offload: bool = resumable(False)
    """Keep what a strategy has cut in the machine's memory while it is not computed with: the
    optimizer's state, and under ``zero3`` and ``fsdp`` the parameters."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict, metadata={"resumable": True})
    """Further keys of DeepSpeed's ``zero_optimization``, for ``zero1`` to ``zero3``."""
    activation_checkpointing: bool = resumable(False)
    """Compute a language model's layers again in the backward pass: less memory, more time."""
    keep: int = resumable(2)
    """Newest checkpoints that stay."""
    threads: int | None = resumable(None)
    """Threads of torch in each process; None leaves torch's own choice."""
    hang_seconds: float | None = resumable(None)
    """The longest a step may take after a launch's first, then the job ends; None: for ever."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep={self.keep}: at least one checkpoint has to stay")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads}: give at least 1, or null for torch's choice")
        if self.hang_seconds is not None and not 0 < self.hang_seconds < math.inf:
            raise ValueError(
                f"hang_seconds={self.hang_seconds}: give the longest a step may take, more than "
                "0 s, or null for no limit"
            )
