"""How one model and its optimizers lie over the processes.

The base class is for a model that is whole on every process. A sharded one gives each process runs
of elements, its ``pieces``: what the optimizers update, and what checkpoints are made of. A piece
says where in the whole tensor it begins, so that any number of processes, under any strategy, can
take what any other has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.errors import UsageError

__all__ = [
    "Piece",
    "Placement",
    "Whole",
    "as_piece",
    "assign",
    "check_elementwise",
    "hand_over",
    "has_own_hooks",
    "inner_optimizers",
    "inside",
    "is_marked",
    "mark",
    "optimizer_bytes",
    "optimizer_placement",
    "own_kind",
    "place",
    "placement_of",
    "unmark",
    "unplace",
    "whole_of",
    "whole_state",
]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of a tensor's elements, in row-major order: all of them, or what one process holds."""

    data: Tensor
    """Its elements, of any shape; it shares the memory of what it is a piece of."""
    begin: int
    """Of the run, in elements of the whole."""
    shape: tuple[int, ...]
    """Of the whole."""
    alone: bool = False
    """Whether no other process has these elements; else every process has all of the tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """What a piece that is a parameter of an optimizer belongs to; ``whole_of`` finds it."""

    begin: int
    shape: torch.Size
    lengths: tuple[int, ...]
    """Elements that each process holds, in order of rank; together the whole tensor."""

    def gather(self, x: Tensor) -> Tensor:
        """Return the whole of a tensor of which every process gives its piece. Collective."""
        room = max(self.lengths)
        mine = x.new_zeros(room)
        mine[: x.numel()] = x.reshape(-1)
        parts = [torch.empty_like(mine) for _ in self.lengths]
        dist.all_gather(parts, mine)
        runs = [part[:length] for part, length in zip(parts, self.lengths, strict=True)]
        return torch.cat(runs).view(self.shape)

    def cut(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return the piece of ``whole`` that this process holds, in the shape of ``like``."""
        return whole.reshape(-1)[self.begin : self.begin + like.numel()].view_as(like)


def whole_of(parameter: Tensor) -> Whole | None:
    """Return what a parameter is a piece of, or None if it is whole."""
    return getattr(parameter, "monro_whole", None)


def as_piece(data: Tensor, whole: Whole) -> nn.Parameter:
    """Return a parameter that shares ``data``'s memory and knows what it is a piece of."""
    parameter = nn.Parameter(data, requires_grad=False)
    parameter.monro_whole = whole  # type: ignore[attr-defined]
    return parameter


class Placement:
    """A model that is whole on every process; the base of those that are not."""

    sharded = False
    """Whether the optimizers' parameters are pieces, so that norms are sums over processes."""
    released = False
    """Whether the model was made whole again after it was cut, so that it cannot be trained."""

    def __init__(
        self,
        module: nn.Module,
        wrapped: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.module, self.wrapped = module, wrapped
        self.optimizers = tuple(optimizers)

    # -- a step ------------------------------------------------------------------------------

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Hold back the exchange of gradients inside the block, unless it is the ``last`` one."""
        if last or not isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()

    def collect(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer's parameters their gradients, once all of a step were added."""

    def publish(self) -> None:
        """Have the model see what was changed in the pieces. Collective."""

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients that the model keeps beside an optimizer's parameters."""

    # -- what it holds -----------------------------------------------------------------------

    def pieces(self) -> dict[str, Piece]:
        """Return this process's piece of each parameter, by its name in the model."""
        return {
            name: Piece(p.detach(), 0, tuple(p.shape)) for name, p in self.module.named_parameters()
        }

    def names(self) -> dict[nn.Parameter, str]:
        """Return the name in the model of each parameter that an optimizer may have."""
        return {p: name for name, p in self.module.named_parameters()}

    def parameter_bytes(self) -> int:
        """Return the bytes of the model's parameters that this process holds between steps."""
        return sum(p.numel() * p.element_size() for p in self.module.parameters())

    def gathered(self) -> AbstractContextManager[None]:
        """Have the model whole, and as it was given, inside the block. Collective; read only."""
        return nullcontext()

    def release(self) -> None:
        """Make the model whole and ordinary again, for good. Collective."""


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_kinds: WeakKeyDictionary[nn.Module, tuple[type[nn.Module], int]] = WeakKeyDictionary()


def _hooks(module: nn.Module) -> int:
    return sum(len(getattr(module, table)) for table in _HOOKS)


def mark(module: nn.Module, kind: type[nn.Module]) -> None:
    """Remember that the hooks a module has now are a strategy's, and what its own class is."""
    _kinds[module] = kind, _hooks(module)


def unmark(module: nn.Module) -> None:
    """Forget what ``mark`` remembered."""
    _kinds.pop(module, None)


def is_marked(module: nn.Module) -> bool:
    """Return whether a strategy has hooks around a module's forward: go through ``inside``."""
    return module in _kinds


def own_kind(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module was made of, whatever a strategy has made of it."""
    return _kinds[module][0] if module in _kinds else type(module)


def has_own_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks beside those of a strategy."""
    return _hooks(module) > (_kinds[module][1] if module in _kinds else 0)


_placements: WeakValueDictionary[int, Placement] = WeakValueDictionary()
"""By the identity of the model, which a placement keeps alive and must not be kept alive by."""


def place(placement: Placement) -> None:
    """Have ``placement_of`` find a model's placement; a later one takes its place."""
    _placements[id(placement.module)] = placement
    for optimizer in placement.optimizers:
        optimizer.monro_placement = placement  # type: ignore[attr-defined]


def optimizer_placement(optimizer: torch.optim.Optimizer) -> Placement | None:
    """Return the placement that an optimizer was prepared with, or None if it was not."""
    return getattr(optimizer, "monro_placement", None)


def unplace(placement: Placement) -> None:
    """Forget a placement that was released."""
    if _placements.get(id(placement.module)) is placement:
        del _placements[id(placement.module)]


def placement_of(model: nn.Module) -> Placement:
    """Return how a model (prepared or as it was given) or a part of one lies over processes."""
    bare = getattr(model, "bare", model)
    found = _placements.get(id(bare))
    if found is not None:
        return found
    for placement in list(_placements.values()):
        if placement.sharded:
            for name, part in placement.module.named_modules():
                if part is bare:
                    return _Within(placement, part, f"{name}.")
    return Placement(bare, bare, ())


class _Within(Placement):
    """A part of a model that was cut as a whole."""

    sharded = True

    def __init__(self, placement: Placement, part: nn.Module, prefix: str) -> None:
        super().__init__(part, placement.wrapped, ())
        self._placement, self._prefix = placement, prefix

    def pieces(self) -> dict[str, Piece]:
        prefix = self._prefix
        found = self._placement.pieces().items()
        return {name[len(prefix) :]: x for name, x in found if name.startswith(prefix)}

    def publish(self) -> None:
        self._placement.publish()

    def gathered(self) -> AbstractContextManager[None]:
        return self._placement.gathered()


def whole_state(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return parameters of a model by name, whole and on their device. Collective.

    Args:
        model: Prepared, or as it was given.
        names: Of the parameters; None takes all.
    """
    placement = placement_of(model)
    with placement.gathered():
        found = dict(placement.module.named_parameters())
        chosen = found if names is None else names
        return {name: found[name].detach().clone() for name in chosen}


@torch.no_grad()
def assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set parameters of a model from whole tensors, by name. Collective.

    Raises:
        UsageError: The model has no such parameter, or of another shape.
    """
    placement = placement_of(model)
    pieces = placement.pieces()
    for name, whole in state.items():
        if name not in pieces or tuple(whole.shape) != pieces[name].shape:
            expected = list(pieces[name].shape) if name in pieces else "no such parameter"
            raise UsageError(f"{name} is {list(whole.shape)}, but the model has {expected}")
    for name, whole in state.items():
        piece = pieces[name]
        run = whole.reshape(-1)[piece.begin : piece.begin + piece.data.numel()]
        piece.data.copy_(run.view_as(piece.data))
    placement.publish()


# -- optimizers ----------------------------------------------------------------------------------


def inside(module: nn.Module, function: Callable[..., Tensor], *args: Any) -> Tensor:  # noqa: ANN401
    """Return ``function(*args)``, run as the module's own forward.

    For code that reads a block's weights itself: what a strategy hooks around the block's forward
    then sees it, so that its parameters are there.
    """
    before = module.__dict__.get("forward")
    module.forward = function
    try:
        return nn.Module.__call__(module, *args)
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def inner_optimizers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return the optimizers that one is made of: itself, or the parts of a ``Joined``."""
    parts: Sequence[torch.optim.Optimizer] | None = getattr(optimizer, "parts", None)
    return [optimizer] if parts is None else [x for part in parts for x in inner_optimizers(part)]


_ELEMENTWISE = (
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta"),
    *("RMSprop", "Rprop", "ASGD"),
)


def check_elementwise(optimizer: torch.optim.Optimizer, strategy: str) -> None:
    """Raise UsageError if an optimizer cannot update pieces of tensors as it does whole ones.

    Those of torch that treat every element by itself can; another class says so by a class
    attribute ``elementwise = True``. ``launch.muon.Muon`` gathers what it needs whole.
    """
    for part in inner_optimizers(optimizer):
        kind = type(part)
        plain = kind.__module__.startswith("torch.optim") and kind.__name__ in _ELEMENTWISE
        if not plain and not getattr(kind, "elementwise", False):
            raise UsageError(
                f"strategy={strategy}: {kind.__name__} is not known to treat every element by "
                "itself, and each process holds only pieces of the parameters; use AdamW, Muon or "
                "SGD, or strategy ddp, or say elementwise = True in its class if it does"
            )


def hand_over(
    optimizer: torch.optim.Optimizer, pieces: Mapping[nn.Parameter, nn.Parameter]
) -> None:
    """Have an optimizer update ``pieces[p]`` instead of p, wherever it has p.

    Raises:
        UsageError: It has a parameter that is none of the model's.
    """
    for part in inner_optimizers(optimizer):
        for group in part.param_groups:
            for p in group["params"]:
                if p not in pieces:
                    raise UsageError(
                        f"the optimizer has a parameter of shape {tuple(p.shape)} that is not in "
                        "the model it is prepared with: build it from this model's parameters"
                    )
            group["params"] = [pieces[p] for p in group["params"]]
        if part.state:
            raise UsageError(
                "the optimizer has taken steps before it was prepared: prepare the model and the "
                "optimizer first"
            )


def optimizer_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return the bytes of the tensors that optimizers keep, counting each once."""
    seen: dict[int, int] = {}

    def count(value: Any) -> None:  # noqa: ANN401 whatever an optimizer keeps
        if isinstance(value, Tensor):
            seen[value.data_ptr() if value.numel() else id(value)] = (
                value.numel() * value.element_size()
            )
        elif isinstance(value, Mapping):
            for inner in value.values():
                count(inner)

    for optimizer in optimizers:
        for part in inner_optimizers(optimizer):
            for values in part.state.values():
                count(values)
    return sum(seen.values())
