"""Optimizers as configs: an object that builds one torch optimizer for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from torch import nn

from launch.muon import Muon

__all__ = ["AdamW", "Joined", "MuonAdamW", "OptimizerConfig", "decay_groups", "embeddings"]


class OptimizerConfig(Protocol):
    """Builds an optimizer. One per model: that is what DeepSpeed takes."""

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over the parameters of ``model`` that require gradients."""
        ...


def decay_groups(
    model: nn.Module, weight_decay: float, parameters: Iterable[nn.Parameter] | None = None
) -> list[dict[str, Any]]:
    """Split parameters into matrices, which decay, and all else, which does not.

    Vectors (biases, norms) have no scale that a smaller weight would undo, and an embedding's row
    would shrink in every step in which its token does not occur; so neither decays, nor does a head
    that is the embedding. Where nothing decays they stay together: every group costs an update a
    launch of its own.

    Args:
        model: Its embeddings are known by their class.
        weight_decay: Of the matrices.
        parameters: Those of the model that are meant; None takes all. Frozen ones are left out.
    """
    chosen = model.parameters() if parameters is None else parameters
    trained = [p for p in chosen if p.requires_grad]
    if weight_decay == 0:
        return [{"params": trained, "weight_decay": 0.0}] if trained else []
    tables = embeddings(model)
    decays = [p.ndim >= 2 and id(p) not in tables for p in trained]
    groups = [
        {
            "params": [p for p, decay in zip(trained, decays, strict=True) if decay is chosen],
            "weight_decay": weight_decay if chosen else 0.0,
        }
        for chosen in (True, False)
    ]
    return [group for group in groups if group["params"]]


def embeddings(model: nn.Module) -> set[int]:
    """Return the identities of the parameters of a model's embeddings."""
    return {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    learning_rate: float = 1e-4
    """Peak rate; the schedule multiplies it."""
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Of matrices; biases, norms and embeddings never decay. Decoupled: a weight moves by
    ``learning_rate * weight_decay`` of itself, whatever its gradient's size."""

    def __post_init__(self) -> None:
        _check_rate("learning_rate", self.learning_rate)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return ``torch.optim.AdamW`` over the parameters that require gradients."""
        return torch.optim.AdamW(
            decay_groups(model, self.weight_decay),
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=True,  # one kernel for all parameters; bit-equal from run to run
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonAdamW:
    """Muon on hidden matrices, AdamW on embeddings, head, biases and norms.

    Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest semi-orthogonal matrix,
    found by Newton-Schulz steps.
    """

    learning_rate: float = 0.02
    """Peak rate of Muon."""
    momentum: float = 0.95
    adamw: AdamW = field(default_factory=lambda: AdamW(learning_rate=4e-3))
    """For all that is no hidden matrix."""

    def __post_init__(self) -> None:
        _check_rate("learning_rate", self.learning_rate)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return both as one optimizer over the parameters that require gradients."""
        tables = embeddings(model)
        heads = {id(p) for n, p in model.named_parameters() if n.split(".")[-2:-1] == ["lm_head"]}
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for p in model.parameters():
            if p.requires_grad:
                hidden = p.ndim == 2 and id(p) not in tables | heads
                (matrices if hidden else others).append(p)
        parts: list[torch.optim.Optimizer] = []
        if others:
            rest = self.adamw
            parts.append(
                torch.optim.AdamW(
                    decay_groups(model, rest.weight_decay, others),
                    lr=rest.learning_rate,
                    betas=(rest.beta1, rest.beta2),
                    eps=rest.eps,
                    fused=True,
                )
            )
        if matrices:
            parts.append(Muon(matrices, lr=self.learning_rate, momentum=self.momentum))
        return Joined(parts)


class Joined(torch.optim.Optimizer):
    """Several optimizers over different parameters, used as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        if not parts:
            raise ValueError("no parameter requires a gradient: there is nothing to optimize")
        self.parts = list(parts)
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every part."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear every part's gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < float("inf"):
        raise ValueError(f"{name}={rate}: a learning rate is a finite number of at least 0")
