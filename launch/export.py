"""``monro export``: a checkpoint as an ordinary model folder, copied piece by piece.

Neither the model nor its library is needed: the settings stand in ``architecture/`` of the run
folder, and a safetensors file is a table of tensors followed by their bytes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import checkpoint
from launch.checkpoint import MARKER, checkpoint_name
from launch.errors import UsageError
from launch.folder import synchronize
from launch.stored import Stored, difference, read_facts

__all__ = ["ARCHITECTURE", "SHAPES", "export", "parse_size"]

ARCHITECTURE = "architecture"
SHAPES = "shapes.json"
"""In ``architecture/``: the shape of each tensor that the folder is to have, by name, in order."""
_WEIGHTS = "model.safetensors"
_BLOCK = 1 << 22  # bytes that are copied at a time
_WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Bytes of an element."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}


@dataclass(frozen=True, slots=True, order=True)
class _Run:
    """Where a file has bytes of a tensor."""

    place: int
    """Of the first of them in the tensor, in elements."""
    path: Path
    begin: int
    """Of the first of them in the file."""
    size: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of safetensors files: what it is, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    """In bytes."""
    runs: tuple[_Run, ...]
    """Of its bytes, one after another."""

    @property
    def order(self) -> tuple[int, str, str]:
        """Wide numbers first, so that each begins at a multiple of its width; then by name."""
        elements = 1
        for length in self.shape:
            elements *= length
        return -(self.size // max(elements, 1)), self.dtype, self.name


def parse_size(text: str) -> int:
    """Read a number of bytes, such as ``500MB``.

    Raises:
        UsageError: It is no positive number with a unit.

    >>> parse_size("1.5GB"), parse_size("200000")
    (1500000000, 200000)
    """
    upper = text.strip().upper()
    unit = next((unit for unit in _UNITS if upper.endswith(unit)), "")
    try:
        size = int(float(upper.removesuffix(unit)) * _UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UsageError(f"shard_size: got {text!r}, expected a number of bytes such as 500MB")
    return size


def export(
    run: Path, folder: Path, *, step: int | None = None, shard_size: int = 5 * 10**9
) -> Path:
    """Write the model of a checkpoint as an ordinary folder, whole or not at all.

    The checksums are verified first. The bytes of the tensors are copied as they are, a few
    megabytes at a time, so that memory does not grow with the model.

    Args:
        run: A run folder, or that of a stage.
        folder: Where to; it may be there if it is empty.
        step: Of the checkpoint; None takes the newest whole one.
        shard_size: Most bytes of tensors in a file; a larger tensor has a file of its own.

    Returns:
        The checkpoint.

    Raises:
        UsageError: There is no whole checkpoint, it holds no model or another one than the run
            says, or ``folder`` cannot be written. Nothing is left under its name then.
    """
    try:
        _check_target(folder)
        source = _checkpoint(run, step)
        stored, aliases = _read(_weights(source, run))
        _check_whole(stored, source)
        architecture = _architecture(run)
        tensors = _fitting(stored, aliases, architecture, source)
    except OSError as error:
        raise UsageError(f"{run} cannot be read: {error}") from None
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for path in _settings(architecture):
            copy = temporary / path.relative_to(architecture)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            synchronize(copy)
        _write_shards(tensors, temporary, shard_size)
        synchronize(temporary)
        temporary.rename(folder)
        synchronize(folder.absolute().parent)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return source


# -- what there is -------------------------------------------------------------------------------


def _check_target(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists and is no empty folder: give the name of a new one")


def _checkpoint(run: Path, step: int | None) -> Path:
    """Return the checkpoint that is meant, every file of it verified."""
    if not run.is_dir():
        raise UsageError(f"there is no run folder {run}")
    folder = run / "checkpoints"
    steps = checkpoint.steps_of(folder)
    if not steps:
        stages = sorted(x.parents[1] for x in run.glob("stages/*/checkpoints/step-*"))
        own = f": export one of its stages, such as {stages[-1]}" if stages else ""
        raise UsageError(f"{run} has no checkpoint{own}")
    if step is not None:
        path = folder / checkpoint_name(step)
        if step not in steps:
            there = ", ".join(map(str, reversed(steps)))
            raise UsageError(f"{run} has no checkpoint of step {step}; there are {there}")
        wrong = checkpoint.damage(path)
        if wrong is not None:
            raise UsageError(f"the checkpoint {path} is damaged: {wrong}; give another --step")
        return path
    for number in steps:
        path = folder / checkpoint_name(number)
        wrong = checkpoint.damage(path)
        if wrong is None:
            return path
        said = f"checkpoint {path} is skipped: {wrong}; an older one is used if there is any"
        warnings.warn(said, RuntimeWarning, stacklevel=3)
    raise UsageError(f"{run} has no whole checkpoint left: all {len(steps)} are damaged")


def _architecture(run: Path) -> Path:
    """Return the settings that belong to a run: its own, or of the run that it is a stage of."""
    place = run.absolute()
    candidates = [place]
    while place.parent.name == "stages":
        place = place.parent.parent
        candidates.append(place)
    for candidate in candidates:
        path = candidate / ARCHITECTURE
        if path.is_dir():
            wrong = checkpoint.damage(path)
            if wrong is None:
                return path
            raise UsageError(f"{path} is damaged: {wrong}; go on with the run to have it anew")
    raise UsageError(
        f"{run} has no {ARCHITECTURE}/, the model's settings: runs of adapters and of what is no "
        "language model have none; if it was begun by an older monro, go on with it to have one"
    )


def _settings(architecture: Path) -> list[Path]:
    own = (MARKER, SHAPES)
    return [x for x in sorted(architecture.rglob("*")) if x.is_file() and x.name not in own]


def _weights(source: Path, run: Path) -> list[Path]:
    paths = Stored.files(source, "model")
    if paths:
        return paths
    if (source / "model.pt").is_file():
        raise UsageError(
            f"{source} holds adapters, not a whole model: take {run / 'model'}, into which the run "
            "merges them at its end"
        )
    raise UsageError(f"{source} holds no model: there is no {_WEIGHTS} in it")


# -- safetensors ---------------------------------------------------------------------------------


def _read(paths: Sequence[Path]) -> tuple[dict[str, _Tensor], dict[str, str]]:
    """Return the tensors of the files, and the other names of those that have several."""
    stored: dict[str, _Tensor] = {}
    aliases: dict[str, str] = {}
    for path in paths:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            table = json.loads(file.read(length))
        facts = read_facts(table.pop("__metadata__", {}))
        aliases |= facts.get("aliases", {})
        for name, entry in table.items():
            place, shape = facts.get("pieces", {}).get(name, (0, entry["shape"]))
            begin, end = entry["data_offsets"]
            run = _Run(place, path, 8 + length + begin, end - begin)
            before = stored[name].runs if name in stored else ()
            runs = tuple(sorted((*before, run)))
            size = sum(run.size for run in runs)
            stored[name] = _Tensor(name, entry["dtype"], tuple(shape), size, runs)
    return stored, aliases


def _check_whole(stored: Mapping[str, _Tensor], source: Path) -> None:
    """Raise UsageError if some process's piece of a tensor is missing."""
    for x in stored.values():
        width, there = _WIDTHS[x.dtype], 0
        size = math.prod(x.shape) * width
        for run in x.runs:
            if run.place * width != there:
                break
            there += run.size
        if there != size:
            raise UsageError(
                f"{source} has {there} of the {size} bytes of {x.name}: the file of another "
                "process is missing"
            )


def _fitting(
    stored: Mapping[str, _Tensor], aliases: Mapping[str, str], architecture: Path, source: Path
) -> list[_Tensor]:
    """Return the tensors by the names that the folder is to have.

    Raises:
        UsageError: They are not those of this model; names the first that differs.
    """
    shapes = json.loads((architecture / SHAPES).read_text(encoding="utf-8"))
    differs = difference({name: list(x.shape) for name, x in stored.items()}, aliases, shapes)
    if differs is not None:
        raise UsageError(f"{source} is of another model than {architecture}: {differs}")
    found = [replace(stored.get(name) or stored[aliases[name]], name=name) for name in shapes]
    return sorted(found, key=lambda x: x.order)


def _write_shards(tensors: Sequence[_Tensor], folder: Path, shard_size: int) -> None:
    """Write tensors in one file, or in several with an index."""
    shards: list[list[_Tensor]] = [[]]
    for x in tensors:
        if shards[-1] and sum(y.size for y in shards[-1]) + x.size > shard_size:
            shards.append([])
        shards[-1].append(x)
    if len(shards) == 1:
        _write(shards[0], folder / _WEIGHTS)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(shard, folder / name)
        places |= {x.name: name for x in shard}
    index = {"metadata": {"total_size": sum(x.size for x in tensors)}, "weight_map": places}
    path = folder / f"{_WEIGHTS}.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    synchronize(path)


def _write(tensors: Sequence[_Tensor], path: Path) -> None:
    """Write one safetensors file, as its library does to the byte."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for x in tensors:
        table[x.name] = {"dtype": x.dtype, "shape": x.shape, "data_offsets": (at, at + x.size)}
        at += x.size
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as copy:
        copy.write(len(head).to_bytes(8, "little") + head)
        for x in tensors:
            for run in x.runs:
                for block in _blocks(run, x.name):
                    copy.write(block)
    synchronize(path)


def _blocks(run: _Run, name: str) -> Iterator[bytes]:
    with run.path.open("rb") as file:
        file.seek(run.begin)
        left = run.size
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise OSError(f"the file ends within {name}")
            left -= len(block)
            yield block
