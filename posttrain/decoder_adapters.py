"""Linear layers as the decoder reads them, with what a LoRA adapter adds to each.

peft's layers are known by their type's name, so that nothing here loads peft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from launch.placement import has_own_hooks
from posttrain.decoder_kernels import Affine, linear

__all__ = [
    "Adapted",
    "LowRank",
    "add_low_rank",
    "is_adapted",
    "joined_low_rank",
    "merged_weight",
    "read_linear",
    "through",
    "unreadable",
]

Untyped: TypeAlias = Any  # a layer of peft's: its attributes have no types
LowRank: TypeAlias = tuple[Tensor, Tensor]
"""``(R, D)`` A and ``(M, R)`` scaled B: what is added is ``x @ A.T @ B.T``."""
_VARIANTS = ("lora_variant", "lora_embedding_A", "lora_magnitude_vector")


@dataclass(frozen=True, slots=True)
class Adapted:
    """A linear layer's own parameters, and what its adapter adds if it is on and not merged."""

    weight: Tensor
    bias: Tensor | None
    low_rank: LowRank | None


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is one of peft's LoRA layers around a linear one."""
    kind = type(module)
    return kind.__module__ == "peft.tuners.lora.layer" and kind.__name__ == "Linear"


def unreadable(module: Untyped) -> str | None:
    """Return why an adapted layer is not ``W x + b + B A x``, or None if it is just that."""
    names = list(module.lora_A)
    if len(names) != 1 or list(module.active_adapters) != names:
        return f"has the adapters {', '.join(names)} rather than one that is active"
    if module.merged or module.fan_in_fan_out or any(len(getattr(module, x)) for x in _VARIANTS):
        return "has an adapter that is merged, or no plain LoRA"
    a, b, base = module.lora_A[names[0]], module.lora_B[names[0]], module.base_layer
    if any(type(part) is not nn.Linear for part in (a, b, base)) or not (a.bias is b.bias is None):
        return "has an adapter of something else than plain matrices"
    for part in (module, *module.modules()):
        if "forward" in vars(part) or has_own_hooks(part):
            return "has a hook or another forward in its adapter"
    return None


def read_linear(module: Untyped, *, merged: bool) -> Affine:
    """Return a linear layer, or what is needed of an adapted one.

    Args:
        module: An ``nn.Linear``, or an adapted layer that ``unreadable`` has nothing against.
        merged: Add the adapter to a copy of the weight, for passes without gradient.
    """
    if not is_adapted(module):
        return module
    base = module.base_layer
    if merged:
        return Adapted(merged_weight(module), base.bias, None)
    return Adapted(base.weight, base.bias, _low_rank(module))


def merged_weight(module: Untyped) -> Tensor:
    """Return a copy of an adapted layer's weight with its adapter, ``W + scale B A``.

    The sum is taken in at least float32. With the adapter off it is W.
    """
    weight: Tensor = module.base_layer.weight.detach()
    if module.disable_adapters:
        return weight.clone()
    (name,) = module.lora_A
    exact = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(exact) + module.get_delta_weight(name).detach().to(exact)).to(weight.dtype)


def _low_rank(module: Untyped) -> LowRank | None:
    if module.disable_adapters:
        return None
    (name,) = module.lora_A
    return module.lora_A[name].weight, module.lora_B[name].weight * module.scaling[name]


def joined_low_rank(layers: Sequence[Affine], rows: Tensor) -> LowRank | None:
    """Return what adapters add to layers of the same input, whose rows are put in an order.

    The As lie one below another; each B has columns of its own.
    """
    pairs = [layer.low_rank if isinstance(layer, Adapted) else None for layer in layers]
    if all(pair is None for pair in pairs):
        return None
    blocks = [
        layer.weight.new_zeros(len(layer.weight), 0) if pair is None else pair[1]
        for layer, pair in zip(layers, pairs, strict=True)
    ]
    a = torch.cat([pair[0] for pair in pairs if pair is not None])
    return a, torch.block_diag(*blocks).to(a.dtype).index_select(0, rows)


def through(layer: Affine, x: Tensor) -> Tensor:
    """Return ``(N, M)``: a layer of ``(N, D)`` rows, with gradients."""
    y = linear(x, layer.weight, layer.bias)
    return add_low_rank(y, x, layer.low_rank if isinstance(layer, Adapted) else None)


def add_low_rank(y: Tensor, x: Tensor, low_rank: LowRank | None) -> Tensor:
    """Return ``y + x A^T B^T`` (Hu et al. 2021, arXiv:2106.09685, eq. 3), of the type of ``y``."""
    if low_rank is None:
        return y
    a, b = low_rank
    return (y + linear(linear(x.to(a.dtype), a), b)).to(y.dtype)
