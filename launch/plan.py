"""What a training step takes of each device under each strategy: bytes by part, and seconds.

A job says what its step does on one process, as a ``Workload``. Here that is laid out over devices:
what a strategy shards (Rajbhandari et al. 2020, arXiv:1910.02054, section 5; Zhao et al. 2023,
arXiv:2304.11277), what it adds, and what it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import nn

from launch.optimizers import AdamW, MuonAdamW, OptimizerConfig
from launch.plan_devices import Device, Exchange, Stage, seconds_sent, seconds_worked

__all__ = [
    "PARTS",
    "STRATEGIES",
    "Moment",
    "Placement",
    "Plannable",
    "Sharding",
    "Workload",
    "fastest",
    "lay_out",
    "state_bytes",
]

Sharding = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp"]
STRATEGIES: tuple[Sharding, ...] = get_args(Sharding)
PARTS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "kv_cache",
    "logits",
    "reference",
    "copies",
    "buffers",
)
"""What memory is taken by. ``copies``: weights cast, joined or merged for a pass. ``buffers``: what
the strategy adds, buckets and gathered units."""

_BUCKET = 2_000_000_000
"""Most bytes of DeepSpeed's bucket: reduce_bucket_size, 5e8 numbers, of float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A point of a step at which memory may be highest; bytes of one process, nothing sharded."""

    name: str
    gradients: int = 0
    activations: int = 0
    kv_cache: int = 0
    logits: int = 0
    copies: int = 0
    reference: int = 0
    """Of a reference that is there at this moment alone."""
    gathered: bool = False
    """Whether all weights are needed at once, as for rollouts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What one process holds and does in a step."""

    parameters: int
    """Bytes of the weights, each once."""
    gradients: int
    """Bytes of the gradients of all that is trained."""
    optimizer: int
    """Bytes of the optimizer's state."""
    reference: int = 0
    """Bytes of a frozen copy that stays on the device."""
    unit: int = 0
    """Bytes of the largest unit, such as a layer, that ZeRO-3 and FSDP gather at a time."""
    moments: tuple[Moment, ...]
    stages: tuple[Stage, ...] = ()
    """The step's work, one after another."""
    passes: int = 1
    """Forward and backward passes of an update: its micro-batches."""
    updates: int = 1
    """Of the optimizer, in a step."""
    forwards: int = 0
    """Passes without gradient of a step."""
    precision: str = ""
    """In words, for people."""
    notes: tuple[str, ...] = ()
    """What was assumed, for people."""


@runtime_checkable
class Plannable(Protocol):
    """A job that ``monro plan`` knows how to plan."""

    def workload(self, processes: int, device: str) -> Workload:
        """Return what one of so many processes does in a step, on ``"cpu"`` or ``"cuda"``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A workload under one strategy, on one of its devices."""

    strategy: Sharding
    parts: dict[str, int]
    """The most bytes that each part takes; not all at the same moment."""
    total: int
    """The most bytes at any moment."""
    peak: str
    """The name of that moment."""
    fits: bool
    seconds: float
    """Of a step."""
    working: float
    """Seconds of it that are not spent on sending."""


def lay_out(
    workload_of: Callable[[int], Workload], gpus: int, memory: float, device: Device
) -> list[Placement]:
    """Return a placement for each strategy.

    Args:
        workload_of: A process's workload, given how many share the step.
        gpus: Devices. ``single`` uses one of them.
        memory: Bytes of each.
        device: Its speed.
    """
    alone = workload_of(1)
    shared = alone if gpus == 1 else workload_of(gpus)
    found = []
    for strategy in STRATEGIES:
        work, count = (alone, 1) if strategy == "single" else (shared, gpus)
        found.append(_placement(strategy, work, count, memory, device))
    return found


def fastest(placements: Sequence[Placement]) -> Placement | None:
    """Return the fastest that fits, of equally fast ones the plainest; None if none fits."""
    return min((p for p in placements if p.fits), key=lambda p: p.seconds, default=None)


def _placement(
    strategy: Sharding, work: Workload, count: int, memory: float, device: Device
) -> Placement:
    moments = [_parts(strategy, work, moment, count) for moment in work.moments]
    totals = [sum(parts.values()) for parts in moments]
    total = max(totals)
    working = sum(seconds_worked(stage, device) for stage in work.stages)
    sent = seconds_sent(_exchange(strategy, work), count, device)
    return Placement(
        strategy=strategy,
        parts={name: max(parts[name] for parts in moments) for name in PARTS},
        total=total,
        peak=work.moments[totals.index(total)].name,
        fits=total <= memory,
        seconds=working + sent,
        working=working,
    )


def _parts(strategy: Sharding, work: Workload, moment: Moment, count: int) -> dict[str, int]:
    r"""Return bytes by part at a moment, of one of N = ``count`` devices.

    With P, G and O the bytes of weights, gradients and optimizer state (Rajbhandari et al. 2020,
    arXiv:1910.02054, section 5; their K = 12 counts a float32 copy that is no second one here,
    where weights are float32)::

        single  P + G + O
        ddp     P + G + O          + a bucket for every gradient, G
        zero1   P + G + (O + G)/N  + a bucket; DeepSpeed has a float32 copy of its partition
        zero2   P + (G + O + G)/N  + a bucket
        zero3   (P + G + O + G)/N  + two gathered units and the gradients of two
        fsdp    (P + G + O)/N      + two gathered units and the gradients of two

    A unit is gathered while the one before is computed, hence two. A rollout gathers all weights.
    """

    def share(size: int) -> int:
        return -(-size // count)

    whole = strategy in ("single", "ddp", "zero1", "zero2")
    deepspeed = strategy in ("zero1", "zero2", "zero3")
    gradients = moment.gradients
    optimizer = work.optimizer
    if strategy not in ("single", "ddp"):
        optimizer = share(optimizer) + (share(work.gradients) if deepspeed else 0)
    buffers = 0
    if strategy == "ddp":
        buffers = work.gradients
    elif strategy in ("zero1", "zero2"):
        buffers = min(work.gradients, _BUCKET)
    elif strategy in ("zero3", "fsdp"):
        units = min(2 * work.unit, work.parameters)
        buffers = work.parameters if moment.gathered else units
        buffers += min(units, work.gradients) if gradients else 0
    if strategy in ("zero2", "zero3", "fsdp"):
        gradients = share(gradients)
    return {
        "parameters": work.parameters if whole else share(work.parameters),
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": moment.activations,
        "kv_cache": moment.kv_cache,
        "logits": moment.logits,
        "reference": (work.reference if whole else share(work.reference)) + moment.reference,
        "copies": moment.copies,
        "buffers": buffers,
    }


def _exchange(strategy: Sharding, work: Workload) -> Exchange:
    r"""Return what a step sends, in units of (N - 1)/N: one for a reduce-scatter or an all-gather.

    After Rajbhandari et al. 2020, arXiv:1910.02054, section 7, with m passes an update::

        ddp, zero1     2 G                       all-reduce; reduce-scatter and all-gather
        zero2          m G + G                   gradients are reduced in every pass
        zero3, fsdp    m G + 2 m P (+ P a pass without gradient, + P a rollout)
    """
    g, p, m = work.gradients, work.parameters, work.passes
    if strategy == "single":
        return Exchange(0, 0)
    if strategy in ("ddp", "zero1"):
        return Exchange(2 * g * work.updates, 2 * work.updates)
    if strategy == "zero2":
        return Exchange((m + 1) * g * work.updates, (m + 1) * work.updates)
    gathers = 2 * m * work.updates + work.forwards + any(x.gathered for x in work.moments)
    units = max(1, p // max(1, work.unit))
    return Exchange(gathers * p + m * g * work.updates, (gathers + m * work.updates) * units)


def state_bytes(optimizer: OptimizerConfig, model: nn.Module) -> tuple[int, str]:
    """Return the bytes of an optimizer's state over what is trained, and what was assumed.

    AdamW keeps two numbers a parameter, Muon one for a hidden matrix; both in the parameter's type.
    An unknown one is taken to keep two.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if isinstance(optimizer, MuonAdamW):
        tables = {
            id(p)
            for name, p in model.named_parameters()
            if "embed" in name or name.split(".")[-2:-1] == ["lm_head"]
        }
        return sum(
            p.numel() * p.element_size() * (1 if p.ndim == 2 and id(p) not in tables else 2)
            for p in trained
        ), ""
    two = 2 * sum(p.numel() * p.element_size() for p in trained)
    if isinstance(optimizer, AdamW):
        return two, ""
    return two, f"{type(optimizer).__name__} is taken to keep two numbers a parameter, as AdamW."
