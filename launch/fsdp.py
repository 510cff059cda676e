"""Parameters, gradients and optimizer state in pieces: torch's ``fully_shard`` (FSDP2).

Each block of a model is gathered when its forward pass begins and dropped when it ends, and again
in the backward pass; what belongs to no block is gathered for the whole of a pass. Gradients are
summed into pieces after every backward pass, so that no process ever holds all of them.

Zhao et al. 2023, arXiv:2304.11277; the second version keeps every parameter as a tensor of its own,
cut along its first axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.errors import UsageError
from launch.placement import (
    Piece,
    Placement,
    Whole,
    as_piece,
    check_elementwise,
    hand_over,
    mark,
    unmark,
)

__all__ = ["FullyShardedPlacement", "blocks"]


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of a model, inner ones first: what is gathered at a time.

    A transformers model names them (``_no_split_modules``); of any other, they are the elements of
    its ``nn.ModuleList``s.
    """
    named = {
        kind for part in module.modules() for kind in getattr(part, "_no_split_modules", None) or ()
    }
    if named:
        found = [part for part in module.modules() if type(part).__name__ in named]
    else:
        lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        found = [element for parts in lists for element in parts]
    return [part for part in reversed(found) if any(True for _ in part.parameters())]


class FullyShardedPlacement(Placement):
    """A model of which each process holds rows of every parameter.

    Args:
        module: On its device; the objects that are its parameters come back with ``release``.
        inner: Holds ``module``, and runs functions of it in its own forward.
        optimizers: Of its parameters; they are given the pieces instead.
        device: Of this process.
        offload: Keep the pieces in the machine's memory; a block is moved when it is gathered.

    Raises:
        UsageError: A parameter is shared between blocks, or an optimizer needs whole tensors.
    """

    sharded = True

    def __init__(
        self,
        module: nn.Module,
        inner: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        device: torch.device,
        offload: bool = False,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(module, inner, optimizers)
        for optimizer in optimizers:
            check_elementwise(optimizer, "fsdp")
        self._given = dict(module.named_parameters(remove_duplicate=False))
        self._depth = 0
        world, rank = dist.get_world_size(), dist.get_rank()
        scalars = {p for p in self._given.values() if p.ndim == 0}  # have no axis to be cut along
        mesh = init_device_mesh(device.type, (world,))
        self._offload = offload and device.type != "cpu"
        self._shard(mesh, scalars)
        self._own: dict[str, nn.Parameter] = {}  # as the optimizers have them
        self._live = dict(module.named_parameters())  # as the model has them between passes
        handed: dict[nn.Parameter, nn.Parameter] = {}
        for name, p in self._live.items():
            given = self._given[name]
            self._own[name] = handed[given] = given if given in scalars else _piece(p, world, rank)
        self._names = {own: name for name, own in self._own.items()}
        for optimizer in optimizers:
            hand_over(optimizer, handed)
        for p in self._given.values():
            if p not in scalars:
                p.data = p.data.new_empty(0)

    def _shard(self, mesh: Any, scalars: set[nn.Parameter]) -> None:  # noqa: ANN401 a DeviceMesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        policy = CPUOffloadPolicy() if self._offload else OffloadPolicy()
        homes: dict[int, nn.Module] = {}
        parts = blocks(self.module)
        for part in parts:
            for p in part.parameters():
                homes.setdefault(id(p), part)
        for name, p in self._given.items():
            holders = [part for part in parts if _holds(part, self.module, name)]
            if id(p) in homes and not holders:
                raise UsageError(
                    f"strategy=fsdp: {name} is one tensor with a parameter of a "
                    f"{type(homes[id(p)]).__name__}, which is gathered by itself: use zero2 or ddp"
                )
        for part in parts:
            fully_shard(part, mesh=mesh, ignored_params=scalars, offload_policy=policy)
        root: Any = fully_shard(
            self.wrapped, mesh=mesh, ignored_params=scalars, offload_policy=policy
        )
        for part in parts:
            mark(part, type(part).__bases__[1])  # fully_shard has made a class of FSDPModule and it
        root._get_fsdp_state()._lazy_init()  # a block may be gathered before the first pass

    def _states(self) -> Iterator[tuple[nn.Module, Any]]:
        from torch.distributed.fsdp import FSDPModule

        for part in self.wrapped.modules():
            if isinstance(part, FSDPModule):
                yield part, part._get_fsdp_state()

    def collect(self, optimizer: torch.optim.Optimizer) -> None:
        """Give each piece its gradient; those of scalars are averaged here."""
        for name, own in self._of(optimizer):
            gradient: Any = self._live[name].grad
            if own is self._live[name]:
                if gradient is not None:
                    dist.all_reduce(gradient)
                    gradient /= dist.get_world_size()
            else:
                own.grad = None if gradient is None else gradient.to_local()

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the model's own parameters."""
        for name, _ in self._of(optimizer):
            self._live[name].grad = None

    def _of(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and the pieces of an optimizer's parameters."""
        for group in optimizer.param_groups:
            for own in group["params"]:
                yield self._names[own], own

    def pieces(self) -> dict[str, Piece]:
        """Return this process's rows of each parameter."""
        found = {}
        for name, own in self._own.items():
            shape = tuple(self._live[name].shape)
            whole: Whole | None = getattr(own, "monro_whole", None)
            begin, alone = (0, False) if whole is None else (whole.begin, True)
            found[name] = Piece(own.detach(), begin, shape, alone)
        return found

    def names(self) -> dict[nn.Parameter, str]:
        """Return the name in the model of each piece."""
        return dict(self._names)

    def parameter_bytes(self) -> int:
        """Return the bytes of the pieces."""
        return sum(p.numel() * p.element_size() for p in self._own.values())

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Have whole parameters in the model, and neither hooks nor other classes.

        One block is gathered after the other, and copied: fully_shard's own tensors are freed in
        place, which what reads them (numpy, for one) may forbid.
        """
        self._depth += 1
        if self._depth > 1:
            try:
                yield
            finally:
                self._depth -= 1
            return
        entries, hooks = self._entries(), []
        try:
            copies = self._copies(entries)
            for part, state in self._states():
                hooks.append((part, type(part), _without_hooks(part, state)))
            for home, name, p in entries:
                home._parameters[name] = copies[id(p)]
            yield
        finally:
            self._depth -= 1
            for home, name, p in entries:
                home._parameters[name] = p
            for part, kind, before in hooks:
                _with_hooks(part, before)
                mark(part, type(part))
                part.__class__ = kind

    def _entries(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Return where each parameter stands, in pieces; a pass may have left some whole."""
        for part, _ in self._states():
            part.reshard()  # type: ignore[operator]  # an FSDPModule
        return [
            (home, name, p)
            for home in self.wrapped.modules()
            for name, p in home._parameters.items()
            if p is not None
        ]

    def _copies(
        self, entries: Sequence[tuple[nn.Module, str, nn.Parameter]]
    ) -> dict[int, nn.Parameter]:
        """Return whole copies of the parameters, by the identity of what is in pieces."""
        copies: dict[int, nn.Parameter] = {}
        for part, _ in self._states():
            part.unshard()  # type: ignore[operator]  # an FSDPModule
            for home, name, p in entries:
                now = home._parameters[name]
                if now is not None and now is not p and id(p) not in copies:
                    copies[id(p)] = nn.Parameter(now.detach().clone(), p.requires_grad)
            part.reshard()  # type: ignore[operator]  # an FSDPModule
        for _, _, p in entries:
            copies.setdefault(id(p), p)  # a scalar is whole
        return copies

    def release(self) -> None:
        """Give the model its own parameters back, whole."""
        from torch.distributed._composable_state import _module_state_mapping

        self.released = True
        with self.gathered():
            whole = {name: p.detach() for name, p in self.module.named_parameters()}
        for part, state in list(self._states()):
            _without_hooks(part, state)
            _module_state_mapping.pop(part, None)  # else it could not be cut again
            for group in state._fsdp_param_groups:
                _without_state_hooks(group)
            for key in [key for key in vars(part) if "composable" in str(key).lower()]:
                del part.__dict__[key]
        for part in self.wrapped.modules():
            for key in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
                vars(part).pop(key, None)
        for name, p in self._given.items():
            home, _, own = name.rpartition(".")
            if name in whole:
                p.data = whole[name]
            vars(p).pop("_fsdp_orig_uid", None)
            self.module.get_submodule(home)._parameters[own] = p


def _piece(p: Any, world: int, rank: int) -> nn.Parameter:  # noqa: ANN401 a DTensor
    """Return this process's rows of a sharded parameter, as one that an optimizer can have."""
    shape: torch.Size = p.shape
    rows, width = shape[0], shape[1:].numel()
    size = -(-rows // world)
    starts = [min(i * size, rows) for i in range(world + 1)]
    lengths = tuple((b - a) * width for a, b in pairwise(starts))
    local: Tensor = p.detach().to_local()
    assert local.numel() == lengths[rank], (local.shape, shape, rank)
    return as_piece(local, Whole(starts[rank] * width, shape, lengths))


def _holds(part: nn.Module, module: nn.Module, name: str) -> bool:
    """Whether the module that has the parameter of this name lies within ``part``."""
    home = module.get_submodule(name.rpartition(".")[0])
    return any(home is inner for inner in part.modules())


_TABLES = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)


def _without_hooks(part: nn.Module, state: Any) -> list[dict[int, Any]]:  # noqa: ANN401 FSDPState
    """Take fully_shard's hooks and class from a module; return all hooks that it had."""
    before = [dict(getattr(part, table)) for table in _TABLES]
    for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        for table in _TABLES:
            getattr(part, table).pop(handle.id, None)
    part.__class__ = type(part).__bases__[1]
    unmark(part)
    return before


def _without_state_hooks(group: Any) -> None:  # noqa: ANN401 an FSDPParamGroup
    """Take from modules what fully_shard does when their state is read or set."""
    handles = [p._post_load_hook_handle for p in group.fsdp_params]
    handles += group._module_to_pre_save_state_dict_hook_handle.values()
    handles += group._module_to_pre_load_state_dict_hook_handle.values()
    for handle in handles:
        handle.remove()


def _with_hooks(part: nn.Module, before: list[dict[int, Any]]) -> None:
    for table, hooks in zip(_TABLES, before, strict=True):
        getattr(part, table).clear()
        getattr(part, table).update(hooks)
