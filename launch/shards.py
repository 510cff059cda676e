"""What a checkpoint's objects look like in files: whole tensors, or the pieces of every process.

``NAME.safetensors`` holds whole tensors. ``NAME-00001-of-00002.safetensors`` holds what one process
had: flat runs of elements, whose places in the whole stand in the file's metadata. Either can be
read by any number of processes under any strategy, because only the elements that are wanted are
looked for. All else is a torch file of plain values, ``NAME.pt``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from launch.errors import UsageError
from launch.placement import (
    Piece,
    Placement,
    inner_optimizers,
    optimizer_placement,
    placement_of,
    whole_of,
)
from launch.stored import FACTS, Stored, difference

__all__ = ["InPieces", "Stateful", "Write", "load", "taken"]


class Write(NamedTuple):
    """A file that is still to be written."""

    size: int
    """Bytes of its tensors."""
    into: Callable[[Path], None]
    """Writes it into a folder."""


class Stateful(Protocol):
    """Anything that can give its state and take it back: modules, optimizers, EMA, buffers."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:  # noqa: ANN401 as torch has it
        """Take what ``state_dict`` returned."""
        ...


@runtime_checkable
class InPieces(Protocol):
    """An object whose state is tensors that lie over the processes as a model does."""

    def pieces(self) -> dict[str, Piece]:
        """Return this process's pieces; a checkpoint is copied into them."""
        ...


# -- saving --------------------------------------------------------------------------------------


def taken(name: str, thing: Stateful, *, rank: int = 0, world: int = 1) -> list[Write]:
    """Copy an object's state as it is now; return what writes the files of this process.

    Every process has to call it: some states are gathered from all. Whole tensors are written by
    the first process alone.
    """
    if isinstance(thing, nn.Module):
        return _taken_model(name, thing, rank, world)
    if isinstance(thing, torch.optim.Optimizer):
        placement = optimizer_placement(thing)
        if placement is not None:
            pieces, groups = _optimizer_pieces(thing, placement)
            facts, sharded = {"groups": groups}, placement.sharded
            return _files(name, pieces, facts, sharded=sharded, rank=rank, world=world)
    if isinstance(thing, InPieces):
        pieces = thing.pieces()
        sharded = any(piece.alone for piece in pieces.values())
        return _files(name, pieces, {}, sharded=sharded, rank=rank, world=world)
    state = _copied(thing.state_dict())
    if rank:
        return []
    return [Write(_size(state), lambda folder: torch.save(state, folder / f"{name}.pt"))]


def _taken_model(name: str, model: nn.Module, rank: int, world: int) -> list[Write]:
    placement = placement_of(model)
    if not placement.sharded:
        if rank:
            return []
        tensors, aliases = _distinct(placement.module.state_dict())
        pieces = {key: Piece(x, 0, tuple(x.shape)) for key, x in tensors.items()}
        facts = {"aliases": aliases}
        return _files(name, pieces, facts, sharded=False, rank=rank, world=world)
    pieces = placement.pieces()
    aliases = _aliases(placement.module, pieces) if rank == 0 else {}
    if rank == 0:
        buffers = _persistent_buffers(placement.module)
        pieces |= {key: Piece(x, 0, tuple(x.shape)) for key, x in buffers.items()}
    return _files(name, pieces, {"aliases": aliases}, sharded=True, rank=rank, world=world)


def _files(
    name: str,
    pieces: Mapping[str, Piece],
    facts: Mapping[str, object],
    *,
    sharded: bool,
    rank: int,
    world: int,
) -> list[Write]:
    """Return what writes this process's file, of copies made now."""
    from safetensors.torch import save_file

    if not sharded and rank:
        return []
    places, tensors = {}, {}
    for key, piece in pieces.items():
        if (rank and not piece.alone) or (piece.alone and piece.data.numel() == 0):
            continue
        data = piece.data.detach()
        copy = data.clone() if data.device.type == "cpu" else data.cpu()
        tensors[key] = copy.reshape(-1) if piece.alone else copy.contiguous()
        if piece.alone:
            places[key] = [piece.begin, list(piece.shape)]
    file = f"{name}-{rank + 1:05d}-of-{world:05d}.safetensors" if sharded else f"{name}.safetensors"
    facts = {key: x for key, x in {**facts, "pieces": places}.items() if x}
    said = {FACTS: json.dumps(facts)}  # in one entry: the order of several is not always the same
    return [Write(_size(tensors), lambda folder: save_file(tensors, str(folder / file), said))]


def _optimizer_pieces(
    optimizer: torch.optim.Optimizer, placement: Placement
) -> tuple[dict[str, Piece], list[list[dict[str, Any]]]]:
    """Return the tensors of an optimizer's state as ``NAME/KEY``, and its groups' settings."""
    names, pieces, groups = placement.names(), {}, []
    for part in inner_optimizers(optimizer):
        settings = []
        for group in part.param_groups:
            settings.append({key: x for key, x in group.items() if key != "params"})
            for p in group["params"]:
                whole = whole_of(p)
                for key, value in part.state.get(p, {}).items():
                    x = torch.as_tensor(value)
                    if whole is None or x.shape != p.shape or x.dim() == 0:
                        piece = Piece(x, 0, tuple(x.shape))
                    else:
                        piece = Piece(x, whole.begin, tuple(whole.shape), alone=True)
                    pieces[f"{names[p]}/{key}"] = piece
        groups.append(settings)
    return pieces, groups


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors without those that are another one by a second name, and these names."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name in sorted(state):
        x = state[name]
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype, x.device)
        if x.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = x
    return tensors, aliases


def _aliases(module: nn.Module, pieces: Mapping[str, Piece]) -> dict[str, str]:
    """Return the further names of parameters that have several."""
    first: dict[int, str] = {}
    aliases = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(p), name)
        if name not in pieces:
            aliases[name] = kept
    return aliases


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for prefix, part in module.named_modules():
        for name, x in part._buffers.items():
            if x is not None and name not in part._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = x
    return found


def _copied(value: Any) -> Any:  # noqa: ANN401 any plain value
    """Return a state whose tensors are copies, so that it stays as it was."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return type(value)((key, _copied(x)) for key, x in value.items())
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_copied(x) for x in value)
    return value


def _size(value: Any) -> int:  # noqa: ANN401 any plain value
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


# -- loading -------------------------------------------------------------------------------------


def load(folder: Path, name: str, thing: Stateful) -> None:
    """Give an object its state back from a checkpoint's folder. Every process has to call it.

    Raises:
        UsageError: There is no file of this name, or it is of another model.
    """
    stored = Stored.files(folder, name)
    plain = folder / f"{name}.pt"
    cut = isinstance(thing, nn.Module | InPieces) or (
        isinstance(thing, torch.optim.Optimizer) and optimizer_placement(thing) is not None
    )
    if cut and stored:
        found = Stored(folder, name)
        if isinstance(thing, nn.Module):
            _load_model(found, thing)
        elif isinstance(thing, torch.optim.Optimizer):
            _load_optimizer(found, thing)
        elif isinstance(thing, InPieces):
            _load_pieces(found, thing.pieces())
    elif plain.is_file() and not isinstance(thing, nn.Module):
        if isinstance(thing, torch.optim.Optimizer):
            _check_whole(thing, plain)
        thing.load_state_dict(torch.load(plain, weights_only=True))
    else:
        expected = f"{name}.safetensors" if cut else plain.name
        raise UsageError(
            f"{folder} has no {expected}: it was written by another kind of run, "
            "so resume it with the recipe that made it"
        )


def _load_model(stored: Stored, model: nn.Module) -> None:
    placement = placement_of(model)
    module = placement.module
    pieces = placement.pieces()
    if not placement.sharded:
        state = module.state_dict()
        _check_fit(stored, {name: list(x.shape) for name, x in state.items()})
        module.load_state_dict({name: stored.whole(name) for name in state})
        return
    buffers = _persistent_buffers(module)
    wanted = {name: list(piece.shape) for name, piece in pieces.items()}
    wanted |= {name: wanted[kept] for name, kept in _aliases(module, pieces).items()}
    _check_fit(stored, wanted | {name: list(x.shape) for name, x in buffers.items()})
    _copy(stored, pieces)
    for name, x in buffers.items():
        x.copy_(stored.whole(name))
    placement.publish()


def _load_pieces(stored: Stored, pieces: Mapping[str, Piece]) -> None:
    _check_fit(stored, {name: list(piece.shape) for name, piece in pieces.items()})
    _copy(stored, pieces)


@torch.no_grad()
def _copy(stored: Stored, pieces: Mapping[str, Piece]) -> None:
    for name, piece in pieces.items():
        run = stored.read(name, piece.begin, piece.data.numel()) if piece.data.numel() else None
        if run is not None:
            piece.data.copy_(run.view_as(piece.data))


def _load_optimizer(stored: Stored, optimizer: torch.optim.Optimizer) -> None:
    placement = optimizer_placement(optimizer)
    assert placement is not None
    names = placement.names()
    keys: dict[str, list[str]] = {}
    for entry in stored.shapes:
        name, _, key = entry.rpartition("/")
        keys.setdefault(name, []).append(key)
    for part, settings in zip(_parts(optimizer, stored), stored.groups, strict=True):
        state: dict[int, dict[str, Tensor]] = {}
        number, groups = 0, []
        for group, kept in zip(part.param_groups, settings, strict=True):
            first = number
            for p in group["params"]:
                name = names[p]
                found = {key: _state(stored, f"{name}/{key}", p) for key in keys.get(name, ())}
                if found:
                    state[number] = found
                number += 1
            groups.append({**_settings(kept), "params": list(range(first, number))})
        own = part.param_groups
        part.load_state_dict({"state": state, "param_groups": groups})
        for group, loaded in zip(own, part.param_groups, strict=True):
            group.update(loaded)  # the same objects, which a ``Joined`` has as well
        part.param_groups = own


def _check_whole(optimizer: torch.optim.Optimizer, path: Path) -> None:
    placement = optimizer_placement(optimizer)
    if placement is not None and placement.sharded:
        raise UsageError(
            f"{path} holds whole tensors without their names, as an older monro wrote them: "
            "resume with --runtime.strategy ddp once, save, and then with another strategy"
        )


def _parts(optimizer: torch.optim.Optimizer, stored: Stored) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizers that one is made of; refuse those of another kind of run."""
    parts = inner_optimizers(optimizer)
    have = [len(part.param_groups) for part in parts]
    found = [len(settings) for settings in stored.groups]
    if have != found:
        raise UsageError(
            f"{stored.folder} is of an optimizer with {found} parameter groups, and this one has "
            f"{have}: resume the run with the settings that it was begun with"
        )
    yield from parts


def _state(stored: Stored, entry: str, p: nn.Parameter) -> Tensor:
    """Return an entry of an optimizer's state as it belongs to a parameter or to its piece."""
    whole, shape = whole_of(p), stored.shapes[entry]
    if whole is not None and shape and shape == list(whole.shape):
        if not p.numel():
            return p.detach().clone()
        return stored.read(entry, whole.begin, p.numel()).view_as(p).clone()
    return stored.whole(entry).clone()


def _settings(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's settings as they were before JSON made lists of tuples."""
    return {key: tuple(x) if isinstance(x, list) else x for key, x in kept.items()}


def _check_fit(stored: Stored, wanted: Mapping[str, list[int]]) -> None:
    differs = difference(stored.shapes, stored.aliases, wanted)
    if differs is not None:
        raise UsageError(
            f"{stored.files(stored.folder, stored.name)[0]} is of another model than this one: "
            f"{differs}; resume the run with the settings that it was begun with"
        )
