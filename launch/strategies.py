"""Which strategy a run uses: what was asked for is checked, and ``auto`` finds out and says why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from launch.errors import UsageError
from launch.placement import inner_optimizers

__all__ = [
    "STRATEGIES",
    "Strategy",
    "check_precision",
    "check_strategy",
    "choose",
    "device_bytes",
    "training_bytes",
]

Strategy = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3", "fsdp"]
STRATEGIES: tuple[Strategy, ...] = ("auto", "single", "ddp", "zero1", "zero2", "zero3", "fsdp")
_SHARE = 0.6
"""Of a device's memory for parameters, gradients and optimizer state; activations take the rest."""
_TENSORS = {"SGD": 1, "Muon": 1, "Adagrad": 1, "RMSprop": 1}
"""State tensors of a parameter's size, for optimizers that have others than Adam's two."""


def check_precision(precision: str, device: torch.device) -> None:
    """Raise UsageError if a precision is unknown, or the device does not compute in it."""
    if precision not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"precision={precision!r}: use fp32, bf16 or fp16")
    if precision == "bf16" and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise UsageError(
                f"precision=bf16: {torch.cuda.get_device_name(device)} has compute capability "
                f"{major}.{minor}, and bfloat16 needs 8.0; use fp16 or fp32"
            )


def check_strategy(
    strategy: str,
    world: int,
    asked: int | None,
    *,
    offload: bool = False,
    deepspeed: Mapping[str, Any] | None = None,
) -> None:
    """Raise UsageError if a strategy is unknown, or impossible with what was asked for.

    Args:
        strategy: One of ``STRATEGIES``.
        world: The processes that started.
        asked: Those that were asked for; None does not compare.
        offload: Whether what is cut is to lie in the machine's memory.
        deepspeed: Further settings of DeepSpeed.
    """
    if asked is not None and asked != world:
        raise UsageError(
            f"{asked} processes were asked for, but {world} started: on a machine without GPUs, "
            f"use monro run ... --processes {asked} or accelerate launch --multi_gpu "
            f"--num_processes {asked} (with --cpu, accelerate starts only one)"
        )
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy={strategy!r}: use one of {', '.join(STRATEGIES)}")
    if strategy == "single" and world > 1:
        raise UsageError(
            f"strategy=single, but {world} processes started: each would train a model of its "
            "own; use strategy ddp or auto"
        )
    if strategy not in ("auto", "single") and world == 1:
        raise UsageError(
            f"strategy={strategy}, but only one process started: add --processes N, "
            "or use strategy auto or single"
        )
    if offload and strategy in ("auto", "single", "ddp"):
        raise UsageError(
            f"offload=true with strategy={strategy}, which keeps everything on its device: use "
            "zero1, zero2, zero3 or fsdp"
        )
    if deepspeed and not strategy.startswith("zero"):
        raise UsageError(
            f"deepspeed has settings ({', '.join(sorted(deepspeed))}), but strategy={strategy} "
            "does not use DeepSpeed: use zero1, zero2 or zero3, or leave them out"
        )
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(name, "").lower() in ("1", "true", "yes"):
            raise UsageError(
                f"{name} is set, by accelerate's config file or its flags, but here the strategy "
                "is chosen by --runtime.strategy: launch with --multi_gpu, without FSDP or "
                "DeepSpeed"
            )


def training_bytes(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> tuple[int, int, int]:
    """Return the bytes of a model's parameters, of their gradients and of the optimizers' state.

    The state is what it will be after a first step: two tensors of a parameter's size for Adam and
    its kin, one for Muon and for SGD with momentum.
    """
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    states = 0
    for optimizer in optimizers:
        for part in inner_optimizers(optimizer):
            tensors = _TENSORS.get(type(part).__name__, 2)
            states += tensors * sum(
                p.numel() * p.element_size() for group in part.param_groups for p in group["params"]
            )
    return parameters, gradients, states


def device_bytes(device: torch.device) -> int:
    """Return the memory that one process may use: of its GPU, or its share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def choose(
    world: int, device: torch.device, needs: Sequence[int], room: int
) -> tuple[Strategy, str]:
    """Return the strategy for a model, and why.

    Whole copies (``ddp``) are the fastest, so they are taken where parameters, gradients and
    optimizer state fit into 60% of the memory; else ``fsdp`` cuts all three.

    Args:
        world: Processes.
        device: Of this process.
        needs: Bytes of parameters, gradients and optimizer state.
        room: Bytes that one process may use.

    >>> choose(1, torch.device("cpu"), (4, 4, 8), 100)
    ('single', 'strategy single: one process')
    >>> choose(8, torch.device("cuda"), (14 * 10**9, 14 * 10**9, 28 * 10**9), 80 * 10**9)[0]
    'fsdp'
    """
    if world == 1:
        return "single", "strategy single: one process"
    total = sum(needs)
    what = (
        f"parameters, gradients and optimizer state take {_size(total)}, and each of {world} "
        f"processes has {_size(room)} ({device.type})"
    )
    if total <= _SHARE * room:
        return "ddp", f"strategy ddp: {what}, so each keeps them whole"
    return "fsdp", f"strategy fsdp: {what}, so they are cut into {world} parts"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
