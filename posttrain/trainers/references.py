"""The frozen reference that a policy is compared with, and where it lies between its passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launch.errors import UsageError
from launch.placement import placement_of, whole_state
from posttrain.adapters import adapters_off, has_adapters
from posttrain.rollout.portable import evaluating

__all__ = ["Reference", "moved", "reference_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A model as it was, to be computed inside ``using`` alone."""

    model: nn.Module
    """A frozen copy, or the policy itself, whose adapters are what it has learnt."""
    device: torch.device
    """Where it is computed."""

    @contextmanager
    def using(self) -> Iterator[nn.Module]:
        """Give the frozen model, on its device, until the end of the block."""
        with (
            placement_of(self.model).gathered(),
            moved(self.model, self.device),
            adapters_off(self.model),
            evaluating(self.model),
            torch.no_grad(),
        ):
            yield self.model

    def refresh(self, policy: nn.Module) -> None:
        """Become the policy as it is now."""
        self.model.load_state_dict(whole_state(policy), strict=False)


def reference_of(
    policy: nn.Module, device: torch.device, *, offload: bool, refreshes: bool = False
) -> Reference:
    """Return the policy as it is now, frozen.

    A policy with adapters is its own reference, with its adapters off, at no memory; any other is
    copied. ``offload`` keeps the copy on the CPU.

    Raises:
        UsageError: It is to be refreshed, but is the policy without its adapters.
    """
    if has_adapters(policy):
        if refreshes:
            raise UsageError(
                "refresh_every is above 0, but the reference of a model with adapters is the "
                "model without them, which never changes: leave it at 0, or train without lora"
            )
        return Reference(policy, device)
    kept = torch.device("cpu") if offload else device
    return Reference(copy.deepcopy(policy).eval().to(kept), device)


@contextmanager
def moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a frozen model on ``device`` inside the block; what lies elsewhere stays there.

    So its way back costs no transfer: the copies on the device are dropped.
    """
    tables: list[dict[str, Any]] = []
    for module in model.modules():
        tables += [module._parameters, module._buffers]
    places = [
        (table, name, x)
        for table in tables
        for name, x in table.items()
        if x is not None and x.device != device
    ]
    there = {id(x): x.detach().to(device) for _, _, x in places}  # tied ones stay tied
    try:
        for table, name, x in places:
            table[name] = there[id(x)]
        yield
    finally:
        for table, name, x in places:
            table[name] = x
