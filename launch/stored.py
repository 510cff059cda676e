"""Reading the tensors of a checkpoint, whole or in pieces, whoever wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from launch.errors import UsageError

__all__ = ["FACTS", "Stored", "difference", "read_facts"]

FACTS = "monro"
"""In a file's metadata, as JSON: ``pieces``, for each tensor that is one, where it begins and the
whole's shape; ``aliases``, further names of a tensor and the one that it is stored by; ``groups``,
the settings of an optimizer's parameter groups."""


def read_facts(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what a file's metadata says of its tensors.

    Files that safetensors wrote by itself name nothing but aliases.
    """
    metadata = metadata or {}
    if FACTS in metadata:
        return dict(json.loads(metadata[FACTS]))
    return {"aliases": {name: kept for name, kept in metadata.items() if name != "format"}}


class _Place(NamedTuple):
    """Where a file has a run of a tensor's elements."""

    path: Path
    begin: int
    elements: int


@dataclass(slots=True)
class Stored:
    """The tensors of ``NAME.safetensors``, or of all processes' files of that name."""

    folder: Path
    name: str
    shapes: dict[str, list[int]] = field(default_factory=dict)
    """Of whole tensors, by name."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Further names of a tensor, and the one that it is stored by."""
    groups: list[list[dict[str, Any]]] = field(default_factory=list)
    """An optimizer's settings."""
    places: dict[str, list[_Place]] = field(default_factory=dict)
    _open: dict[Path, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from safetensors import safe_open

        for path in self.files(self.folder, self.name):
            file: Any = safe_open(str(path), "pt")
            self._open[path] = file
            facts = read_facts(file.metadata())
            cut = facts.get("pieces", {})
            self.groups = facts.get("groups", self.groups)
            self.aliases |= facts.get("aliases", {})
            for key in file.keys():  # noqa: SIM118 a file is no dict
                own = list(file.get_slice(key).get_shape())
                begin, shape = cut.get(key, (0, own))
                self.shapes[key] = shape
                place = _Place(path, begin, torch.Size(own).numel())
                self.places.setdefault(key, []).append(place)

    @staticmethod
    def files(folder: Path, name: str) -> list[Path]:
        """Return the files of an object, in order of the processes that wrote them."""
        whole = folder / f"{name}.safetensors"
        return [whole] if whole.is_file() else sorted(folder.glob(f"{name}-*-of-*.safetensors"))

    def read(self, name: str, begin: int, count: int) -> Tensor:
        """Return a run of a tensor's elements, flat."""
        name = self.aliases.get(name, name)
        runs = []
        for place in sorted(self.places[name], key=lambda place: place.begin):
            first = max(begin, place.begin)
            last = min(begin + count, place.begin + place.elements)
            if first < last:
                file = self._open[place.path]
                a, b = first - place.begin, last - place.begin
                cut = file.get_slice(name)
                flat = (
                    cut[a:b] if len(cut.get_shape()) == 1 else file.get_tensor(name).view(-1)[a:b]
                )
                runs.append(flat)
        found = torch.cat(runs) if len(runs) != 1 else runs[0]
        if found.numel() != count:
            raise UsageError(
                f"{self.folder} has {found.numel()} of the {count} elements of {name} that are "
                "needed: a file of another process is missing"
            )
        return found

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor."""
        kept = self.aliases.get(name, name)
        shape = torch.Size(self.shapes[kept])
        if len(self.places[kept]) == 1 and self.places[kept][0].elements == shape.numel():
            found: Tensor = self._open[self.places[kept][0].path].get_tensor(kept)
            return found.view(shape)
        return self.read(kept, 0, shape.numel()).view(shape)


def difference(
    stored: Mapping[str, list[int]], aliases: Mapping[str, str], wanted: Mapping[str, list[int]]
) -> str | None:
    """Return how the tensors of a file first differ from those of a model, or None.

    Args:
        stored: The shapes in the file, by name.
        aliases: For further names of a tensor, the one that it is stored by.
        wanted: The model's shapes, by name.
    """
    for name, shape in wanted.items():
        found = stored.get(name, stored.get(aliases.get(name, "")))
        if found is None:
            return f"it has no {name}"
        if found != shape:
            return f"{name} is {found} instead of {shape}"
    used = {name if name in stored else aliases[name] for name in wanted}
    return next((f"it has {name} as well" for name in stored if name not in used), None)
